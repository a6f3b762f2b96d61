"""The source of flows: which congestion control there is where flows are told of, and flows where no probe tells."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from netns_world import cookie, ip, named_namespaces

from bus import netns, roles
from bus.link import Publisher
from bus.schema import Algorithms, AnyEvent, Flows, Probe
from collectors import flows, sampled, sockdiag
from collectors.flows import FlowsSource
from collectors.namespaces import Census
from collectors.sampled import Sampled
from collectors.sockdiag import Talking

SECOND_NS = 1_000_000_000
THERE, PREFIX = "203.0.113.5", "203.0.113.0/24"
PEER = socket.inet_pton(socket.AF_INET, THERE)


def talk(cookie: int, acked: int, busy: int, **more: Any) -> Talking:
    fields = {"limited_us": 5, "segments": acked // 1000, "resent": 2, "srtt_us": 40_000, "min_rtt_us": 39_000} | more
    return Talking(cookie, more.pop("family", 2), more.pop("peer", PEER), "cubic", acked, busy, **{
        name: value for name, value in fields.items() if name not in ("family", "peer")
    })  # fmt: skip


def test_what_comes_between_two_looks_is_added_up_and_what_was_before_the_first_is_not() -> None:
    made = Sampled(9, 5)
    assert made.take([talk(1, 1 << 20, 1000)], SECOND_NS) == []
    (first,) = made.take([talk(1, 3 << 20, 3000), talk(2, 1000, 10)], 2 * SECOND_NS)
    assert (first.t_ns, first.netns, first.netns_ino, first.family) == (2 * SECOND_NS, 9, 5, 2)
    assert (first.prefix, first.algorithm, first.min_rtt_us) == (PREFIX, "cubic", 39_000)
    assert (first.delivered_bytes, first.busy_us, first.resent, first.samples) == (2 << 20, 2000, 0, 1)
    # Both have ended: one as long, one as short.
    (second,) = made.take([], 3 * SECOND_NS)
    assert (second.connections, second.delivered_bytes) == (1, 2 << 20)
    assert (second.short_connections, second.short_bytes, second.short_busy_us) == (1, 1000, 10)
    assert made.take([], 4 * SECOND_NS) == []


def test_a_connection_that_became_long_counts_from_its_beginning_and_one_that_waits_not_at_all() -> None:
    made = Sampled(9, 5)
    made.take([talk(1, 1000, 10)], SECOND_NS)
    (event,) = made.take([talk(1, 1 << 20, 1000)], 2 * SECOND_NS)
    assert (event.delivered_bytes, event.busy_us) == (1 << 20, 1000)
    assert made.take([talk(1, 1 << 20, 1000)], 3 * SECOND_NS) == []


def test_destinations_are_bounded() -> None:
    made = Sampled(9, 5)
    made.take([], SECOND_NS)
    for number in range(sampled.SUMS_MAX + 9):
        made.take([talk(number, 1 << 20, 1000, peer=bytes((10, *divmod(number, 256), 1)))], SECOND_NS)
    assert len(made._sums) == sampled.SUMS_MAX


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("10.1.2.3", (2, "10.1.2.0/24")),
        ("2001:db8:1:2::3", (10, "2001:db8:1::/48")),
        ("::ffff:10.1.2.3", (2, "10.1.2.0/24")),
        ("127.0.0.1", None),
        ("169.254.1.1", None),
        ("0.0.0.1", None),
        ("224.0.0.1", None),
        ("::1", None),
        ("fe80::1", None),
        ("ff02::1", None),
    ],
)
def test_a_destination_is_its_network_or_none_that_a_route_is_for(address: str, where: tuple[int, str] | None) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert sampled.place(family, socket.inet_pton(family, address)) == where


class Watch:
    """A source, at times of our own making."""

    def __init__(self, run_dir: Path) -> None:
        self.census = Census()
        (run_dir / flows.PUBLISHER).mkdir()
        self.publisher = Publisher(roles.events_path(run_dir, flows.PUBLISHER), flows.PUBLISHER)
        self.source = FlowsSource(run_dir, self.census)
        self.t_ns = time.monotonic_ns()
        self.census.scan(self.t_ns)
        self.census.visit(self.t_ns)
        while self.census.more:
            self.census.visit(self.t_ns)

    def hear(self, *events: AnyEvent) -> list[AnyEvent]:
        """What comes of these, which arrive when they do."""
        self.publisher.publish(list(events))
        deadline_s = time.monotonic() + 10
        found: list[AnyEvent] = []
        while not found and time.monotonic() < deadline_s:
            found = self.collect()
        return found

    def collect(self, after_ns: int = SECOND_NS) -> list[AnyEvent]:
        self.t_ns += after_ns
        time.sleep(0.01)
        return self.source.collect(self.t_ns, frozenset())

    def close(self) -> None:
        self.source.close()
        self.publisher.close()


@pytest.fixture
def path() -> Iterator[str]:
    """A namespace that has the address itself."""
    with named_namespaces() as make:
        made = make("flows")
        ip("-n", Path(made).name, "link", "set", "lo", "up")
        ip("-n", Path(made).name, "addr", "add", f"{THERE}/32", "dev", "lo")
        yield made


@pytest.fixture
def watch(path: str, tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.close()


def flow(t_ns: int, where: int) -> Flows:
    return Flows(t_ns, where, 5, 2, PREFIX, "cubic", *[1] * 9)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_a_flow_is_told_of_congestion_control_is_too_until_nothing_is_for_long(watch: Watch, path: str) -> None:
    where = cookie(path)
    netns.inside(path, lambda: (flows.SYSCTL / "tcp_congestion_control").write_text("reno"))
    (event,) = watch.hear(flow(watch.t_ns, where))
    assert isinstance(event, Algorithms)
    assert (event.netns, event.netns_ino, event.standing) == (where, os.stat(path).st_ino, "reno")
    assert set(event.available) == set((flows.SYSCTL / "tcp_available_congestion_control").read_text().split())
    # Told again every few seconds, read again each minute.
    netns.inside(path, lambda: (flows.SYSCTL / "tcp_congestion_control").write_text(other(event.available)))
    assert watch.collect(flows.STATE_NS) == [Algorithms(watch.t_ns, where, event.netns_ino, event.available, "reno")]
    (later,) = watch.collect(flows.READ_NS)
    assert isinstance(later, Algorithms)
    assert later.standing == other(event.available)
    assert watch.collect(flows.LINGER_NS) == []


def other(available: tuple[str, ...]) -> str:
    """One that any namespace may have."""
    allowed = (flows.SYSCTL / "tcp_allowed_congestion_control").read_text().split()
    return next((each for each in allowed if each != "reno" and each in available), "reno")


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_the_probes_connections_are_sampled(watch: Watch, path: str) -> None:
    where = cookie(path)
    off = [Probe(watch.t_ns, name, "", "not permitted") for name in flows.PROBES]
    assert not watch.source.blind
    watch.publisher.publish(list(off))
    until(watch, lambda: watch.source.blind)
    assert "from sock_diag" in watch.source.status().watched[0]
    with Connection(path) as (sender, receiver):
        watch.source._sample_ns = 0
        watch.collect()
        send(sender, receiver, 1 << 20)
        time.sleep(0.05)
        told: list[Flows] = []
        for _ in range(2 + len(watch.census.places()) // flows.SAMPLES):
            watch.source._sample_ns = 0
            told += [event for event in watch.collect() if isinstance(event, Flows) and event.netns == where]
    (event,) = told
    assert (event.prefix, event.algorithm, event.connections) == (PREFIX, "reno", 0)
    assert event.delivered_bytes >= 1 << 20
    assert event.samples == 1
    assert 0 < event.min_rtt_us <= event.srtt_sum_us * 2
    # A probe that works again ends it.
    watch.publisher.publish([Probe(watch.t_ns, flows.PROBES[0], "raw tracepoint", "")])
    until(watch, lambda: not watch.source.blind)
    assert watch.source.status().watched == []


def until(watch: Watch, true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s
        watch.collect()


class Connection:
    """Both ends of one within a namespace."""

    def __init__(self, path: str) -> None:
        self.ends = netns.inside(path, self._make)

    @staticmethod
    def _make() -> tuple[socket.socket, socket.socket]:
        with socket.create_server((THERE, 0)) as listener, socket.socket() as sender:
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            sender.connect(listener.getsockname())
            return sender.dup(), listener.accept()[0]

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        return self.ends

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()


def send(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    while size:
        some = sender.send(bytes(min(size, 32 << 10)))
        size -= some
        while some:
            some -= len(receiver.recv(some))


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_sock_diag_says_of_a_connection_what_the_connection_says_of_itself(path: str) -> None:
    with Connection(path) as (sender, receiver):
        send(sender, receiver, 300_000)
        time.sleep(0.05)
        look = netns.inside(path, flows.talking_here)
        raw = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (mine,) = [one for one in look.talking if one.acked_bytes > 1000]
    assert look.cookie != 0
    u32, u64 = [int.from_bytes(raw[at : at + 4], "little") for at in (68, 100, 148, 156)], raw[120:128]
    assert [mine.srtt_us, mine.resent, mine.min_rtt_us, mine.segments] == u32
    assert mine.acked_bytes == int.from_bytes(u64, "little")
    assert mine.busy_us == int.from_bytes(raw[168:176], "little")
    assert (mine.algorithm, mine.peer, mine.family) == ("reno", PEER, socket.AF_INET)
    assert sockdiag.RATES_AT == 148
