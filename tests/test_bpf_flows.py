"""The probes of flows on the real kernel: what connections towards a destination come to, and which are none."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bpf_probes import RAW_ONLY, Watch

from bus.schema import Flows
from collectors.words import prefix_of
from trimtab.lab import Lab, NetNs

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LISTENS = 30_000
THERE4, THERE6 = "203.0.113.5", "2001:db8:7::5"
PREFIX4, PREFIX6 = "203.0.113.0/24", "2001:db8:7::/48"
BULK = 128 << 10


@pytest.fixture(scope="module", params=["typed", "raw"])
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    made = Watch(tmp_path_factory.mktemp("flows"), *(("-c", RAW_ONLY) if request.param == "raw" else ()))
    assert made.roads["flows_going"] == (f"raw tracepoint{', typed' if request.param == 'typed' else ''}", "")
    yield made
    made.source.close()


@pytest.fixture
def netns() -> Iterator[NetNs]:
    """A namespace that has the two addresses itself."""
    with Lab() as lab:
        made = lab.netns("flows")
        made.command(["ip", "addr", "add", f"{THERE4}/32", "dev", "lo"])
        made.command(["ip", "addr", "add", f"{THERE6}/128", "dev", "lo"])
        yield made


def bring(netns: NetNs, address: str, sizes: list[int], algorithm: str = "reno", pieces: int = 1) -> None:
    """A connection for each of the sizes, one after another, and so many bytes through it, in pieces 20 ms apart; the
    end that sends closes it last, so that none of its ends sends anything else."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def do() -> None:
        anywhere = "::" if family == socket.AF_INET6 else ""
        with socket.create_server((anywhere, LISTENS), family=family, dualstack_ipv6=bool(anywhere)) as listener:
            for size in sizes:
                with socket.socket(family) as sender:
                    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
                    sender.connect((address, LISTENS))
                    receiver = listener.accept()[0]
                    for piece in range(pieces):
                        time.sleep(0.02 if piece else 0.0)
                        send(sender, receiver, size // pieces)
                    receiver.close()
                    assert sender.recv(1) == b""

    netns.run(do)


def flush(netns: NetNs, address: str, size: int, algorithm: str = "reno") -> None:
    """What came within the same tenth of a second as the last that was told, is told with the next."""
    time.sleep(0.15)
    bring(netns, address, [size], algorithm)


def send(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    while size:
        some = sender.send(bytes(min(size, 32 << 10)))
        size -= some
        while some:
            some -= len(receiver.recv(some))


def last(watch: Watch, netns: NetNs, true: Callable[[Flows], bool]) -> Flows:
    watch.wait(lambda: any(true(event) for event in watch.events(Flows, netns.cookie)))
    return next(event for event in reversed(watch.events(Flows, netns.cookie)) if true(event))


@pytest.mark.parametrize(("address", "prefix"), [(THERE4, PREFIX4), (THERE6, PREFIX6), (f"::ffff:{THERE4}", PREFIX4)])
def test_connections_are_added_up_by_destination_and_algorithm_as_they_end(
    watch: Watch, netns: NetNs, address: str, prefix: str
) -> None:
    sizes = [1 << 20, 1 << 20]
    bring(netns, address, sizes)
    flush(netns, address, 20_000)
    event = last(watch, netns, lambda event: event.algorithm == "reno" and event.short_connections > 0)
    assert (event.prefix, event.family) == (prefix, 10 if prefix == PREFIX6 else 2)
    assert event.netns_ino == netns.inode
    assert event.connections == 2
    # A SYN and a FIN count for one each.
    assert sum(sizes) <= event.delivered_bytes <= sum(sizes) + 4
    assert event.segments >= sum(sizes) // 65_536
    assert event.resent == 0
    assert event.samples >= 2
    assert 0 < event.srtt_sum_us < event.samples * 1_000_000
    assert 0 <= event.limited_us <= event.busy_us < 5_000_000
    assert (event.short_connections, event.short_resent) == (1, 0)
    assert 20_000 <= event.short_bytes <= 20_002
    assert any(0 < each.min_rtt_us < 100_000 for each in watch.events(Flows, netns.cookie))


def test_two_algorithms_are_told_apart(watch: Watch, netns: NetNs) -> None:
    for algorithm in ("reno", "bbr"):
        bring(netns, THERE4, [1 << 20], algorithm)
        flush(netns, THERE4, 1000, algorithm)
    for algorithm in ("reno", "bbr"):
        event = last(watch, netns, lambda event, mine=algorithm: event.algorithm == mine and event.connections)  # type: ignore[misc]
        assert (event.connections, event.prefix) == (1, PREFIX4)


def test_a_connection_that_goes_on_is_told_of_and_nothing_of_it_is_counted_twice(watch: Watch, netns: NetNs) -> None:
    bring(netns, THERE4, [1 << 22], pieces=64)
    flush(netns, THERE4, 1000)
    event = last(watch, netns, lambda event: event.connections == 1)
    assert 1 << 22 <= event.delivered_bytes <= (1 << 22) + 2
    assert event.samples > 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_no_route_is_for_is_not_told_of(watch: Watch, netns: NetNs, address: str) -> None:
    bring(netns, address, [1 << 20])
    watch.drain(0.2)
    assert watch.events(Flows, netns.cookie) == []


@given(st.binary(min_size=16, max_size=16))
def test_a_prefix_is_written_as_the_actuator_wants_it(address: bytes) -> None:
    for family, length, bits in ((socket.AF_INET, 4, 24), (socket.AF_INET6, 16, 48)):
        network = ip_network((address[:length], bits), strict=False)
        # What begins with zeros is of no interest (::/16), and may be written like IPv4.
        if family == socket.AF_INET or any(address[:2]):
            assert prefix_of(family, address) == str(network)
