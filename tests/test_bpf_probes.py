"""The probes on the real kernel: real conditions made in namespaces of our own, and what arrives of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from bpf import _KFREE_SKB, PROBES
from bpf.libbpf import Libbpf
from bus import roles, schema
from bus.schema import AnyEvent
from collectors import loader
from collectors.bpf import BpfSource
from trimtab.lab import Lab, NetNs

pytestmark = pytest.mark.system

PYTHON = "/usr/bin/python3"
TIMEOUT_S = 20.0
LIMIT = 131072
E = TypeVar("E", bound=schema.Event)

RAW_ONLY = f"""
import sys
sys.path.append({str(Path(loader.__file__).parents[1])!r})
import collectors.loader as loader
loader.PROBES = tuple(probe._replace(roads=probe.roads[-1:]) for probe in loader.PROBES)
sys.exit(loader.main(sys.argv[1:]))
"""


ONE_ROAD = f"""
import sys
sys.path.append({str(Path(loader.__file__).parents[1])!r})
import collectors.loader as loader
def only(probe):
    roads = tuple(road for road in probe.roads if road.function == "NAME")
    return roads or tuple(road for road in probe.roads if not road.source)
loader.PROBES = tuple(probe._replace(roads=only(probe)) for probe in loader.PROBES)
sys.exit(loader.main(sys.argv[1:]))
"""


class Watch:
    """A BPF source with its probes attached, and the events it gave."""

    def __init__(self, run_dir: Path, *program: str) -> None:
        (run_dir / "collector-bpf").mkdir(parents=True)
        self.source = BpfSource(run_dir)
        self.seen: list[AnyEvent] = []
        command = [PYTHON, "-I", *(program or (loader.__file__,)), str(roles.probes_path(run_dir))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        self.wait(lambda: self.source.ready)
        self.roads = {event.name: (event.road, event.reason) for event in self.seen if isinstance(event, schema.Probe)}

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {TIMEOUT_S:.0f} s"
            self.collect()

    def collect(self, timeout_s: float = 0.05) -> None:
        poll = select.poll()
        for fd in self.source.descriptors():
            poll.register(fd, select.POLLIN)
        readable = frozenset(fd for fd, _ in poll.poll(timeout_s * 1000))
        self.seen += self.source.collect(time.monotonic_ns(), readable)

    def drain(self, seconds: float = 0.05) -> None:
        """All that is in the rings by then."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.collect(left_s)

    def events(self, kind: type[E], netns: int) -> list[E]:
        return [event for event in self.seen if isinstance(event, kind) and event.netns == netns]  # type: ignore[attr-defined]

    def first(self, kind: type[E], netns: int) -> E:
        self.wait(lambda: bool(self.events(kind, netns)))
        return self.events(kind, netns)[0]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    watch = Watch(tmp_path_factory.mktemp("typed"))
    yield watch
    watch.source.close()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    watch = Watch(tmp_path_factory.mktemp("raw"), "-c", RAW_ONLY)
    yield watch
    watch.source.close()


@pytest.fixture(scope="module", params=[road.function for road in _KFREE_SKB])
def dropping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """By each road to the packets that are dropped."""
    watch = Watch(tmp_path_factory.mktemp(request.param), "-c", ONE_ROAD.replace("NAME", request.param))
    yield watch
    watch.source.close()


@pytest.fixture
def watch(typed: Watch) -> Watch:
    typed.drain()
    typed.seen.clear()
    return typed


@pytest.fixture(params=["typed", "raw"])
def either(request: pytest.FixtureRequest) -> Watch:
    found: Watch = request.getfixturevalue(request.param)
    found.drain()
    found.seen.clear()
    return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


class Pair:
    """Two connected TCP sockets in one namespace."""

    def __init__(self, netns: NetNs, family: socket.AddressFamily = socket.AF_INET, **buffers: int) -> None:
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.buffer_bytes = 65536
        self.client, self.server = netns.run(self._connect, family, address, buffers)

    @staticmethod
    def _connect(
        family: socket.AddressFamily, address: str, buffers: dict[str, int]
    ) -> tuple[socket.socket, socket.socket]:
        with socket.create_server((address, 0), family=family) as listener:
            client = socket.socket(family)
            for option, value in buffers.items():
                client.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
            client.connect(listener.getsockname()[:2])
            return client, listener.accept()[0]

    def talk(self, seconds: float = 0.0, size: int = 1000) -> None:
        """Messages there and back, one at least. Each side both sends and receives."""
        until_s = time.monotonic() + seconds
        while True:
            for a, b in ((self.client, self.server), (self.server, self.client)):
                a.sendall(b"x" * size)
                left = size
                while left:
                    left -= len(b.recv(left))
            if time.monotonic() >= until_s:
                break

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pairs() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def pair(*args: Any, **kwargs: Any) -> Pair:
        made.append(Pair(*args, **kwargs))
        return made[-1]

    yield pair
    for one in made:
        one.close()


def limits(netns: NetNs, receive: int = 1 << 30, send: int = 1 << 30) -> None:
    netns.sysctl("net.ipv4.tcp_rmem", f"4096 131072 {receive}")
    netns.sysctl("net.ipv4.tcp_wmem", f"4096 131072 {send}")


def cookie(sock: socket.socket) -> int:
    return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def info(sock: socket.socket) -> dict[str, int]:
    """Members of struct tcp_info (linux/tcp.h)."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    u32 = dict(zip(("rto", "ato", "mss"), struct.unpack_from("3I", raw, 8), strict=True))
    u32 |= {"rtt": struct.unpack_from("I", raw, 68)[0], "cwnd": struct.unpack_from("I", raw, 80)[0]}
    u32 |= {"rcv_rtt": struct.unpack_from("I", raw, 92)[0], "rcv_space": struct.unpack_from("I", raw, 96)[0]}
    acked, received = struct.unpack_from("2Q", raw, 120)
    return u32 | {
        "acked": acked,
        "received": received,
        "wscale": raw[6] >> 4,
        "min_rtt": struct.unpack_from("I", raw, 148)[0],
    }


def test_every_probe_takes_its_first_road_and_says_so(watch: Watch) -> None:
    status = watch.source.status()
    assert status.missing == []
    assert watch.roads == {
        "tcp_rcvbuf": ("raw tracepoint, typed", ""),
        "tcp_sndbuf": ("raw tracepoint, typed", ""),
        "tcp_end": ("raw tracepoint, typed", ""),
        "neigh_create": ("raw tracepoint", ""),
        "neigh_move": ("raw tracepoint", ""),
        "drops": ("raw tracepoint, typed", ""),
        "udp_drop": ("raw tracepoint, typed", ""),
        "ip_frag": watch.roads["ip_frag"],
        "ports": ("raw tracepoint, typed", ""),
        "flows_ended": ("raw tracepoint, typed", ""),
        "flows_going": ("raw tracepoint, typed", ""),
        "sysctl_write": ("cgroup", ""),
    }
    # Where no function may be watched (CONFIG_FPROBE, lockdown), the next road: and it says why.
    assert watch.roads["ip_frag"] in (("fentry", ""), ("raw tracepoint, typed", "fentry: not permitted"))


def test_each_probe_says_where_in_the_kernel_it_reads_as_btf_has_it(typed: Watch) -> None:
    typed.wait(lambda: any(isinstance(event, schema.Probe) for event in typed.seen))
    told = {event.name: event.offsets_bytes for event in typed.seen if isinstance(event, schema.Probe)}
    btf = Libbpf().btf(Path("/sys/kernel/btf/vmlinux"))
    try:
        for probe in PROBES:
            assert told[probe.name] == {f"{f.of}.{f.path}": btf.place(f).offset for f in probe.fields}
    finally:
        btf.close()
    assert told["drops"]["sock.__sk_common.skc_net.net"] > 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_receive_buffer_at_the_limit_is_told_with_what_the_socket_says_of_itself(
    either: Watch, lab: Lab, pairs: Callable[..., Pair], family: socket.AddressFamily
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT)
    pair = pairs(netns, family)
    cookies = {cookie(pair.client): pair.client, cookie(pair.server): pair.server}
    pair.talk()
    before_ns = time.monotonic_ns()
    pair.talk(0.3)
    told = info(pair.client), info(pair.server)
    either.wait(lambda: {event.socket for event in either.events(schema.TcpRcvBuf, netns.cookie)} == cookies.keys())
    for event in either.events(schema.TcpRcvBuf, netns.cookie):
        ours = cookies[event.socket]
        mine = told[ours is pair.server]
        assert (event.netns_ino, event.family) == (netns.inode, family)
        assert (event.sport, event.dport) == (ours.getsockname()[1], ours.getpeername()[1])
        assert event.rcvbuf_bytes == ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert (event.limit_bytes, event.locked) == (LIMIT, False)
        assert event.wscale == mine["wscale"]
        assert 0 < event.received_bytes <= mine["received"]
        assert 0 < event.rcv_wnd_bytes <= LIMIT
        assert event.rcv_wnd_bytes <= event.window_clamp_bytes
        assert event.copied_per_rtt_bytes > 0
        assert 0 < event.srtt_us < 1_000_000
        assert event.t_ns <= time.monotonic_ns()
    last = max(either.events(schema.TcpRcvBuf, netns.cookie), key=lambda event: event.t_ns)
    assert last.t_ns > before_ns
    assert last.rcv_rtt_us > 0


def test_a_send_buffer_at_the_limit_is_told_with_what_the_socket_says_of_itself(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    netns.command(["ip", "link", "set", "lo", "mtu", "1500"])  # else the segments grow with the window
    limits(netns, send=LIMIT)
    pair = pairs(netns)
    cookies = {cookie(pair.client): pair.client, cookie(pair.server): pair.server}
    pair.talk(0.3)
    told = info(pair.client), info(pair.server)
    either.wait(lambda: {event.socket for event in either.events(schema.TcpSndBuf, netns.cookie)} == cookies.keys())
    for event in either.events(schema.TcpSndBuf, netns.cookie):
        ours = cookies[event.socket]
        mine = told[ours is pair.server]
        assert (event.netns_ino, event.family) == (netns.inode, socket.AF_INET)
        assert (event.sport, event.dport) == (ours.getsockname()[1], ours.getpeername()[1])
        assert event.limit_bytes == LIMIT
        assert LIMIT * 3 // 4 <= event.sndbuf_bytes <= ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert not event.locked
        assert event.mss_bytes == mine["mss"]
        assert 0 < event.cwnd_packets <= max(mine["cwnd"], 10)
        assert event.acked_bytes <= mine["acked"]
        assert 0 < event.srtt_us < 1_000_000
        assert event.snd_wnd_bytes > 0
        assert event.limited_by in (0, 1, 2, 3)
        assert event.retransmits == 0
    last = max(either.events(schema.TcpSndBuf, netns.cookie), key=lambda event: event.t_ns)
    assert last.acked_bytes > 0
    assert last.min_rtt_us >= told[0]["min_rtt"] or last.min_rtt_us >= told[1]["min_rtt"]
    assert last.delivered_packets > 0
    assert last.delivered_us > 0


def test_a_bulk_sender_is_told_to_be_held_by_its_send_buffer(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, send=LIMIT)
    pair = pairs(netns)
    pair.client.setblocking(False)
    until_s = time.monotonic() + 0.4
    while time.monotonic() < until_s:
        with contextlib.suppress(BlockingIOError):
            while True:
                pair.client.send(b"x" * 65536)
        pair.server.recv(65536)
    port = pair.client.getsockname()[1]
    watch.wait(lambda: any(event.sport == port for event in watch.events(schema.TcpSndBuf, netns.cookie)))
    sent = [event for event in watch.events(schema.TcpSndBuf, netns.cookie) if event.sport == port]
    assert max(event.queued_bytes for event in sent) > LIMIT // 2
    assert {event.limited_by for event in sent} & {2, 3}


def test_a_near_socket_is_told_ten_times_a_second_however_many_packets_it_gets(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT)
    pair = pairs(netns)
    pair.talk(0.6)
    either.drain()
    events = either.events(schema.TcpRcvBuf, netns.cookie)
    for port in {event.sport for event in events}:
        times = [event.t_ns for event in events if event.sport == port]
        assert 2 <= len(times) <= 7, times
        assert all(after - before >= 100_000_000 - 10_000_000 for before, after in pairwise(times))


def test_without_a_cookie_the_raw_road_makes_an_id_that_stays_and_hides_the_address(
    raw: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT)
    pair = pairs(netns)
    pair.talk(0.3)
    raw.drain()
    by_port: dict[int, set[int]] = {}
    for event in raw.events(schema.TcpRcvBuf, netns.cookie):
        by_port.setdefault(event.sport, set()).add(event.socket)
    assert len(by_port) == 2
    for sock in (pair.client, pair.server):
        ids = by_port[sock.getsockname()[1]]
        hashes = ids - {cookie(sock)}  # anybody on this host may ask for its cookie meanwhile, as the typed road does
        assert len(hashes) <= 1
        assert all(2**62 <= one < 2**63 for one in hashes)
    assert len(set.union(*by_port.values())) == sum(map(len, by_port.values()))


def test_a_socket_in_use_but_not_near_is_told_once_in_five_seconds_for_its_namespace(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=2 * LIMIT)
    netns.sysctl("net.ipv4.tcp_moderate_rcvbuf", 0)  # else the kernel grows them to the limit
    for pair in (pairs(netns), pairs(netns)):
        pair.talk(0.2, size=100)
    watch.drain()
    events = watch.events(schema.TcpRcvBuf, netns.cookie)
    assert len(events) == 1, [(e.t_ns, e.socket, e.rcvbuf_bytes) for e in events]
    assert events[0].rcvbuf_bytes * 4 < events[0].limit_bytes * 3


def test_a_socket_locked_by_its_application_is_told_as_locked_and_at_the_slow_rate(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT, send=LIMIT)
    pair = pairs(netns, SO_RCVBUF=60000, SO_SNDBUF=60000)
    port = pair.client.getsockname()[1]
    pair.talk(0.5, size=100)
    watch.drain()
    for kind in (schema.TcpRcvBuf, schema.TcpSndBuf):
        mine = [event for event in watch.events(kind, netns.cookie) if event.sport == port]
        assert [event.locked for event in mine] == [True]
        others = [event for event in watch.events(kind, netns.cookie) if event.sport != port]
        assert not any(event.locked for event in others)
        assert len(others) >= 2


def test_a_socket_far_below_the_limit_is_never_told(either: Watch, lab: Lab, pairs: Callable[..., Pair]) -> None:
    netns = lab.netns()
    limits(netns)
    pairs(netns).talk(0.2)
    either.drain()
    assert not either.events(schema.TcpRcvBuf, netns.cookie)
    assert not either.events(schema.TcpSndBuf, netns.cookie)


def test_a_size_that_a_program_has_set_is_told_however_far_below_the_limit_it_is(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns)
    pair = pairs(netns, SO_RCVBUF=8192, SO_SNDBUF=8192)
    port = pair.client.getsockname()[1]
    pair.talk(0.2, size=100)
    watch.drain()
    for kind in (schema.TcpRcvBuf, schema.TcpSndBuf):
        (event,) = watch.events(kind, netns.cookie)
        assert (event.sport, event.locked, event.limit_bytes) == (port, True, 1 << 30)
        assert event.socket == cookie(pair.client)


def test_a_connection_that_ends_is_told_with_what_it_used_once_for_both_of_its_ends(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    pair = pairs(netns, SO_SNDBUF=100_000)
    pair.talk(0.1)
    told = {end.getsockname()[1]: info(end) for end in (pair.client, pair.server)}
    client = pair.client.getsockname()[1]
    pair.close()
    either.drain()
    (event,) = either.events(schema.TcpEnd, netns.cookie)
    assert {event.sport, event.dport} == told.keys()
    mine = told[event.sport]
    assert (event.netns_ino, event.family, event.ended) == (netns.inode, socket.AF_INET, 1)
    # A FIN counts for one.
    assert 0 <= event.received_bytes - mine["received"] <= 1
    assert 0 <= event.acked_bytes - mine["acked"] <= 1
    assert event.mss_bytes == mine["mss"]
    assert event.cwnd_packets >= 10
    assert event.copied_per_rtt_bytes == mine["rcv_space"]
    assert (event.rcvbuf_locked, event.sndbuf_locked) == (False, event.sport == client)


def test_a_connection_that_moved_next_to_nothing_does_not_count(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    pair = pairs(netns)
    pair.talk(0.0, size=1000)
    pair.close()
    either.drain()
    assert not either.events(schema.TcpEnd, netns.cookie)


def test_a_socket_that_was_near_goes_on_being_told_after_the_limit_was_raised(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT)
    netns.sysctl("net.ipv4.tcp_moderate_rcvbuf", 0)  # else the kernel grows it to the new limit
    pair = pairs(netns)
    pair.talk(0.15, size=100)
    limits(netns, receive=4 * LIMIT)
    pair.talk(0.4, size=100)
    watch.drain()
    after = [event for event in watch.events(schema.TcpRcvBuf, netns.cookie) if event.limit_bytes == 4 * LIMIT]
    assert len(after) >= 2
    assert all(event.rcvbuf_bytes * 5 < event.limit_bytes * 2 for event in after)


def test_far_below_a_limit_raised_tenfold_even_a_socket_that_was_near_is_not_looked_at(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT)
    netns.sysctl("net.ipv4.tcp_moderate_rcvbuf", 0)
    pair = pairs(netns)
    pair.talk(0.15, size=100)
    limits(netns, receive=10 * LIMIT)
    pair.talk(0.3, size=100)
    either.drain()
    events = either.events(schema.TcpRcvBuf, netns.cookie)
    assert {event.limit_bytes for event in events} == {LIMIT}


def test_a_socket_that_never_was_near_is_not_told_below_forty_percent(
    either: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=3 * LIMIT)
    netns.sysctl("net.ipv4.tcp_moderate_rcvbuf", 0)
    pairs(netns).talk(0.2, size=100)
    either.drain()
    assert not either.events(schema.TcpRcvBuf, netns.cookie)


def test_a_lock_on_one_side_says_nothing_of_the_other(watch: Watch, lab: Lab, pairs: Callable[..., Pair]) -> None:
    netns = lab.netns()
    limits(netns, receive=LIMIT, send=LIMIT)
    pair = pairs(netns, SO_RCVBUF=60000)
    port = pair.client.getsockname()[1]
    pair.talk(0.3, size=100)
    watch.drain()
    locked = {
        kind: {event.locked for event in watch.events(kind, netns.cookie) if event.sport == port}
        for kind in (schema.TcpRcvBuf, schema.TcpSndBuf)
    }
    assert locked == {schema.TcpRcvBuf: {True}, schema.TcpSndBuf: {False}}


def test_a_locked_socket_does_not_use_up_the_turn_of_one_in_use(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    netns = lab.netns()
    limits(netns, receive=2 * LIMIT)
    netns.sysctl("net.ipv4.tcp_moderate_rcvbuf", 0)
    pair = pairs(netns, SO_RCVBUF=80000)
    # Linux doubles what is asked for: 61 % of the limit, so that neither is near.
    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 80000)
    pair.talk(0.1, size=100)
    pairs(netns).talk(0.2, size=100)
    watch.drain()
    assert sorted(event.locked for event in watch.events(schema.TcpRcvBuf, netns.cookie)) == [False, True]


def test_two_namespaces_are_told_apart_and_do_not_slow_each_other(
    watch: Watch, lab: Lab, pairs: Callable[..., Pair]
) -> None:
    spaces = [lab.netns(), lab.netns()]
    for netns in spaces:
        limits(netns, receive=2 * LIMIT)
        pairs(netns).talk(size=100)
    for netns in spaces:
        assert watch.first(schema.TcpRcvBuf, netns.cookie).netns_ino == netns.inode


@contextlib.contextmanager
def thresholds(first: int, second: int, third: int) -> Iterator[None]:
    """The host's ARP thresholds, put back after: for a test that uses `the_host`."""
    folder = Path("/proc/sys/net/ipv4/neigh/default")
    names = ("gc_thresh1", "gc_thresh2", "gc_thresh3")
    before = [(folder / name).read_text() for name in names]
    try:
        for name, value in zip(names, (first, second, third), strict=True):
            (folder / name).write_text(str(value))
        yield
    finally:
        for name, text in zip(names, before, strict=True):
            (folder / name).write_text(text)


def neighbours(count: int, pause_s: float, net: int = 0) -> int:
    """Add so many of 10.78.net and on to the only veth here; returns how many the kernel refused."""
    refused = 0
    with IPRoute() as route:
        index = route.link_lookup(kind="veth")[0]
        for number in range(count):
            address = f"10.78.{net + number // 250}.{1 + number % 250}"
            try:
                route.neigh("add", dst=address, lladdr="02:00:00:00:00:01", ifindex=index, state="reachable")
            except OSError:
                refused += 1
            if pause_s:
                time.sleep(pause_s)
    return refused


@pytest.mark.usefixtures("the_host")
@pytest.mark.usefixtures("the_host")
def test_a_neighbour_table_is_told_as_it_fills_and_when_it_refuses(watch: Watch, lab: Lab) -> None:
    a, b = lab.netns(), lab.netns()
    lab.veth(a, b)
    used = sum(1 for line in Path("/proc/net/arp").read_text().splitlines()[1:] if line)
    with thresholds(64, 128, 256 + used):
        filler = threading.Thread(target=lambda: refusals.append(a.run(neighbours, 300 + used, 0.001)))
        refusals: list[int] = []
        filler.start()
        watch.wait(lambda: not filler.is_alive())
        refusals[0] += a.run(neighbours, 200, 0, 100)  # as fast as it goes
        time.sleep(0.005)
        refusals[0] += a.run(neighbours, 1, 0, 200)
        watch.drain()
    events = watch.events(schema.NeighEntries, a.cookie)
    limit = 256 + used
    assert {event.family for event in events} == {socket.AF_INET}
    assert {(event.gc_thresh1, event.gc_thresh2, event.gc_thresh3) for event in events} == {(64, 128, limit)}
    assert {event.netns_ino for event in events} == {a.inode}
    assert all(event.ifindex > 0 and event.total_entries >= event.entries for event in events)
    assert all(event.entries * 5 >= limit * 2 for event in events)
    filling = [event for event in events if event.entries * 4 < limit * 3 and event.refused == events[0].refused]
    assert 1 <= len(filling) <= 8, "one per sixteenth between 40 and 75 %"
    assert any(event.entries * 4 >= limit * 3 and event.refused == events[0].refused for event in events), (
        "told before it is full"
    )
    assert max(event.entries for event in events) == limit
    assert refusals[0] > 0
    assert events[-1].refused - events[0].refused >= refusals[0] - 1
    assert all(later.t_ns - sooner.t_ns >= 1_000_000 for sooner, later in pairwise(events))


# --- drops -----------------------------------------------------------------------------------------------------------


def claim(sender: socket.socket, target: str, card: bytes) -> None:
    """Gratuitous ARP: target is at this card now."""
    address = socket.inet_aton(target)
    head = b"\xff" * 6 + card + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2)
    sender.send(head + card + address + card + address)


def claims(netns: NetNs, device: str, target: str, seconds: float, pause_s: float) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((device, 0))
            until_s, number = time.monotonic() + seconds, 0
            while time.monotonic() < until_s:
                number += 1
                claim(sender, target, bytes((2, 0, 0, 0, number >> 8 & 255, number & 255)))
                time.sleep(pause_s)

    netns.run(send)


def test_neighbours_that_claim_another_card_all_the_time_are_told_of_once_a_second_and_a_move_is_not(
    watch: Watch, lab: Lab
) -> None:
    a, b = lab.netns("a"), lab.netns("b")
    link = lab.veth(a, b)
    known = f"{link.b_address} lladdr 02:00:00:00:00:09 dev {link.a_device} nud reachable"
    a.command(["ip", "neigh", "replace", *known.split()])
    claims(b, link.b_device, link.b_address, 1.2, 0.3)
    watch.drain(0.1)
    assert watch.events(schema.NeighMoves, a.cookie) == []
    claims(b, link.b_device, link.b_address, 2.3, 0.02)
    event = watch.first(schema.NeighMoves, a.cookie)
    assert (event.family, event.netns_ino) == (socket.AF_INET, a.inode)
    assert event.ifindex == a.run(socket.if_nametoindex, link.a_device)
    watch.drain(0.1)
    assert 1 <= len(watch.events(schema.NeighMoves, a.cookie)) <= 2
    assert event.moves >= 10
    assert watch.events(schema.NeighMoves, b.cookie) == []


def flood(receive_bytes: int, packets: int) -> int:
    """More datagrams than a socket with so little room takes (0: the default). Returns how many it did."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        if receive_bytes:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        receiver.bind(("127.0.0.1", 0))
        for _ in range(packets):
            sender.sendto(b"x" * 1000, receiver.getsockname())
        receiver.setblocking(False)
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(2000):
                taken += 1
        return taken


def drops(watch: Watch, netns: NetNs, reason: str) -> list[schema.Drops]:
    return [event for event in watch.events(schema.Drops, netns.cookie) if event.reason == reason]


def test_the_first_packet_that_is_dropped_is_told_with_the_kernels_reason_and_where(
    dropping: Watch, request: pytest.FixtureRequest, lab: Lab
) -> None:
    netns, other = lab.netns(), lab.netns()
    taken = netns.run(flood, 2304, 200)
    dropping.wait(lambda: bool(drops(dropping, netns, "SOCKET_RCVBUFF")))
    first = drops(dropping, netns, "SOCKET_RCVBUFF")[0]
    assert (first.dropped, first.netns_ino) == (1, netns.inode)
    # A kernel that does not say which socket dropped it leaves the device, here lo.
    assert first.ifindex == ("to_socket" not in request.node.callspec.params["dropping"])
    assert 0 < taken < 200
    assert not dropping.events(schema.Drops, other.cookie)


def test_a_packet_with_a_socket_of_its_own_is_dropped_in_its_namespace_and_one_without_where_its_device_is(
    dropping: Watch, lab: Lab
) -> None:
    a, b = lab.netns("a"), lab.netns("b")
    link = lab.veth(a, b)

    def send() -> None:
        with contextlib.ExitStack() as senders:
            # More than wait for one neighbour (unres_qlen_bytes) that does not answer; none sends so much by itself.
            for _ in range(4):
                sender = senders.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                with contextlib.suppress(BlockingIOError):
                    for _ in range(150):
                        sender.sendto(b"x", socket.MSG_DONTWAIT, ("10.77.0.99", 9))
            sender.sendto(b"x", (link.b_address, 9))

    a.run(send)
    dropping.wait(lambda: bool(drops(dropping, b, "NO_SOCKET") and drops(dropping, a, "NEIGH_QUEUEFULL")))
    assert drops(dropping, b, "NO_SOCKET")[0].ifindex == b.run(socket.if_nametoindex, link.b_device)
    assert drops(dropping, a, "NEIGH_QUEUEFULL")[0].ifindex == 0


def test_a_packet_refused_before_it_is_taken_in_is_dropped_where_its_device_is_and_not_where_it_was_sent(
    dropping: Watch, lab: Lab
) -> None:
    a, b = lab.netns("a"), lab.netns("b")
    link = lab.veth(a, b)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((link.a_device, 0))
            addresses = socket.inet_aton(link.a_address) + socket.inet_aton(link.b_address)
            wrong_sum = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 17, 1)
            sender.send(b"\xff" * 6 + bytes(6) + b"\x08\x00" + wrong_sum + addresses)

    a.run(send)
    dropping.wait(lambda: bool(drops(dropping, b, "IP_CSUM")))
    assert drops(dropping, b, "IP_CSUM")[0].ifindex == b.run(socket.if_nametoindex, link.b_device)
    assert not drops(dropping, a, "IP_CSUM")


def test_inside_a_fence_no_other_namespace_is_spoken_of(
    watch: Watch, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = lab.netns(), lab.netns()
    monkeypatch.setattr(watch.source, "_fence", frozenset({0, ours.cookie}))
    other.run(flood, 2304, 200)
    ours.run(flood, 2304, 200)
    watch.wait(lambda: bool(drops(watch, ours, "SOCKET_RCVBUFF")))
    assert not watch.events(schema.Drops, other.cookie)
    assert not watch.events(schema.UdpDrop, other.cookie)


def test_drops_that_go_on_are_told_ten_times_a_second_with_how_many_there_were(either: Watch, lab: Lab) -> None:
    netns = lab.netns()
    dropped = 0
    until_s = time.monotonic() + 1.0
    while time.monotonic() < until_s:
        dropped += 100 - netns.run(flood, 2304, 100)
        either.collect(0.0)
    either.drain(0.2)
    told = drops(either, netns, "SOCKET_RCVBUFF")
    assert 5 <= len(told) <= 12
    assert 100 < told[-1].dropped <= dropped
    assert all(later.dropped > before.dropped for before, later in pairwise(told))


def test_each_reason_is_counted_apart(either: Watch, lab: Lab) -> None:
    netns = lab.netns()

    def to_nobody() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(3):
                with contextlib.suppress(ConnectionRefusedError):
                    sender.sendto(b"x", ("127.0.0.1", 9))

    netns.run(to_nobody)
    netns.run(flood, 2304, 50)
    either.wait(lambda: bool(drops(either, netns, "SOCKET_RCVBUFF")))
    assert drops(either, netns, "NO_SOCKET")[0].dropped == 1


# --- datagrams that a socket could not take -----------------------------------------------------------------------


def test_a_socket_that_drops_is_told_at_its_first_drop_with_its_buffer_and_port(dropping: Watch, lab: Lab) -> None:
    netns = lab.netns()
    netns.run(flood, 2304, 200)
    event = dropping.first(schema.UdpDrop, netns.cookie)
    assert (event.reason, event.dropped, event.locked, event.family) == ("SOCKET_RCVBUFF", 1, True, socket.AF_INET)
    assert event.rcvbuf_bytes == 2 * 2304
    assert event.port > 0
    assert event.netns_ino == netns.inode


def test_sockets_with_buffers_of_another_size_are_told_apart(either: Watch, lab: Lab) -> None:
    netns = lab.netns()
    for size in (2304, 4608):
        netns.run(flood, size, 200)
    either.wait(lambda: len(either.events(schema.UdpDrop, netns.cookie)) >= 2)
    told = either.events(schema.UdpDrop, netns.cookie)
    assert {event.rcvbuf_bytes: event.dropped for event in reversed(told)} == {2 * 2304: 1, 2 * 4608: 1}


def test_a_socket_whose_program_set_nothing_has_the_default_and_is_not_locked(either: Watch, lab: Lab) -> None:
    netns = lab.netns()
    netns.run(flood, 0, 1000)
    event = either.first(schema.UdpDrop, netns.cookie)
    assert (event.locked, event.rcvbuf_bytes) == (False, int(Path("/proc/sys/net/core/rmem_default").read_text()))


def test_datagrams_dropped_without_end_are_told_ten_times_a_second(either: Watch, lab: Lab) -> None:
    netns = lab.netns()
    until_s = time.monotonic() + 0.6
    while time.monotonic() < until_s:
        netns.run(flood, 2304, 100)
        either.collect(0.0)
    either.drain(0.2)
    told = either.events(schema.UdpDrop, netns.cookie)
    assert 3 <= len(told) <= 8
    assert told[-1].dropped > 100


# --- fragments that wait -------------------------------------------------------------------------------------------


def fragments(netns: NetNs, address: str, datagrams: int, bytes_each: int = 60_000) -> None:
    """Datagrams of many fragments each."""

    def send() -> None:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(datagrams):
                sender.sendto(b"x" * bytes_each, (address, 9))

    netns.run(send)


@pytest.fixture
def joined(lab: Lab) -> tuple[NetNs, NetNs, dict[int, str]]:
    """Two namespaces, the second with room for one datagram's fragments, and its addresses."""
    a, b = lab.netns("a"), lab.netns("b")
    link = lab.veth(a, b)
    for netns, own in ((a, 1), (b, 2)):
        device = link.a_device if netns is a else link.b_device
        netns.command(["ip", "addr", "add", f"fd00::{own}/64", "dev", device, "nodad"])
    for name in ("net.ipv4.ipfrag", "net.ipv6.ip6frag"):
        b.sysctl(f"{name}_low_thresh", 0)
        b.sysctl(f"{name}_high_thresh", 65536)
    return a, b, {socket.AF_INET: link.b_address, socket.AF_INET6: "fd00::2"}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_fragment_that_finds_no_room_is_told_in_its_own_namespace_with_what_waits_there(
    dropping: Watch, joined: tuple[NetNs, NetNs, dict[int, str]], family: int
) -> None:
    a, b, addresses = joined
    fragments(a, addresses[family], 3)
    event = dropping.first(schema.FragMemory, b.cookie)
    assert (event.family, event.high_bytes, event.netns_ino) == (family, 65536, b.inode)
    assert 65536 < event.held_bytes < 2 * 65536
    assert event.refused >= 1
    assert not dropping.events(schema.FragMemory, a.cookie)


def test_fragments_for_which_there_is_room_are_not_told_of_and_many_without_ten_times_a_second(
    either: Watch, joined: tuple[NetNs, NetNs, dict[int, str]]
) -> None:
    a, b, addresses = joined
    for _ in range(5):
        fragments(a, addresses[socket.AF_INET], 1, 10_000)
    either.drain(0.1)
    assert either.events(schema.FragMemory, b.cookie) == []
    until_s = time.monotonic() + 0.6
    while time.monotonic() < until_s:
        fragments(a, addresses[socket.AF_INET], 5)
        either.collect(0.0)
    either.drain(0.2)
    told = either.events(schema.FragMemory, b.cookie)
    assert 3 <= len(told) <= 8
    assert told[-1].refused > 100


# --- writes of sysctls ---------------------------------------------------------------------------------------------


def test_a_write_is_told_with_who_wrote_what_over_what(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    before = netns.sysctl("net.ipv4.tcp_fin_timeout")
    netns.command(["/bin/sh", "-c", "echo 61 > /proc/sys/net/ipv4/tcp_fin_timeout"])
    event = watch.first(schema.SysctlWrite, netns.cookie)
    assert (event.name, event.old, event.new) == ("net/ipv4/tcp_fin_timeout", before, "61")
    assert (event.netns_ino, event.uid, event.comm) == (netns.inode, os.getuid(), "sh")
    assert event.pid not in (0, os.getpid())
    assert event.t_ns <= time.monotonic_ns()


def test_a_read_is_not_told_and_a_write_goes_through(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    assert netns.sysctl("net.ipv4.tcp_fin_timeout", 62) == "62"
    for _ in range(10):
        netns.sysctl("net.ipv4.tcp_fin_timeout")
    watch.drain(0.2)
    events = watch.events(schema.SysctlWrite, netns.cookie)
    assert [(event.new, event.pid) for event in events] == [("62", os.getpid())], "the process, not the thread"


def test_a_write_that_the_kernel_refuses_as_a_bad_value_is_told_all_the_same(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    with pytest.raises(OSError, match="Invalid argument"):
        netns.sysctl("net.ipv4.tcp_fin_timeout", "many")
    assert watch.first(schema.SysctlWrite, netns.cookie).new == "many"


def test_the_namespace_told_is_the_tables_not_the_writers(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    path = "/proc/sys/net/ipv4/tcp_fin_timeout"
    fd = netns.run(lambda: os.open(path, os.O_RDWR))
    here = Path(path).read_text()
    os.write(fd, b"63\n")  # from the host's namespace
    os.close(fd)
    assert watch.first(schema.SysctlWrite, netns.cookie).pid == os.getpid()
    assert Path(path).read_text() == here


def test_a_table_of_no_namespace_is_the_hosts(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    path = Path("/proc/sys/vm/swappiness")
    netns.run(path.write_text, path.read_text())  # the value it has: nothing changes
    watch.wait(lambda: any(event.name == "vm/swappiness" for event in watch.events(schema.SysctlWrite, 0)))
    assert not watch.events(schema.SysctlWrite, netns.cookie)


def test_hostile_names_and_endless_values_arrive_harmless(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()

    ports = b",".join(b"%d" % (20000 + 2 * step) for step in range(200))

    def enter() -> None:
        Path("/proc/thread-self/comm").write_bytes(b"\x1b[2J\xff\nx\x07")
        for name, value in ("ip_local_reserved_ports", ports), ("tcp_fin_timeout", b"\x1b[31m\xff"):
            with contextlib.suppress(OSError):
                Path("/proc/sys/net/ipv4", name).write_bytes(value)

    netns.run(enter)
    watch.wait(lambda: len(watch.events(schema.SysctlWrite, netns.cookie)) == 2)
    for event in watch.events(schema.SysctlWrite, netns.cookie):
        assert event.comm == "�[2J��x�"
    long, short = watch.events(schema.SysctlWrite, netns.cookie)
    assert long.new.startswith("20000,20002,")
    assert len(long.new) == 127
    assert short.new == "�[31m�"


def test_what_finds_no_room_in_the_ring_is_counted_told_and_the_rest_still_comes(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()
    writes = 1500

    def write() -> None:
        with open("/proc/sys/net/ipv4/tcp_fin_timeout", "wb", buffering=0) as file:
            for number in range(writes):
                file.seek(0)
                file.write(b"%d" % (1 + number))

    before = watch.source.status().counters["ring_drops"]
    netns.run(write)
    lost = watch.source.status().counters["ring_drops"] - before
    watch.drain(0.2)
    found = [int(event.new) for event in watch.events(schema.SysctlWrite, netns.cookie)]
    assert found == list(range(1, len(found) + 1)), "the first to come are kept, in order"
    assert len(found) >= 500
    assert lost >= writes - len(found)
    assert watch.source.status().counters["ring_drops_sysctl_write"] >= lost
    watch.wait(lambda: any(isinstance(event, schema.Gap) for event in watch.seen))
    gap = next(event for event in watch.seen if isinstance(event, schema.Gap))
    assert (gap.publisher, gap.restarted) == ("ring sysctl_write", False)
    assert gap.lost >= lost
    netns.sysctl("net.ipv4.tcp_fin_timeout", 77)
    watch.wait(lambda: watch.events(schema.SysctlWrite, netns.cookie)[-1].new == "77")


def test_many_more_records_than_the_ring_holds_come_whole_when_they_are_read(watch: Watch, lab: Lab) -> None:
    netns = lab.netns()

    def write() -> None:
        with open("/proc/sys/net/ipv4/tcp_fin_timeout", "wb", buffering=0) as file:
            for number in range(3000):
                file.seek(0)
                file.write(b"%d" % (1 + number))
                if number % 100 == 0:
                    time.sleep(0.005)

    before = watch.source.status().counters["ring_drops"]
    writer = threading.Thread(target=netns.run, args=(write,))
    writer.start()
    watch.wait(lambda: not writer.is_alive())
    watch.drain()
    found = [int(event.new) for event in watch.events(schema.SysctlWrite, netns.cookie)]
    lost = watch.source.status().counters["ring_drops"] - before
    assert len(found) + lost >= 3000
    assert found == sorted(set(found))
    assert len(found) > 1000


READER = """
import os, select, sys, time
sys.path.insert(0, sys.argv[1])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
from pathlib import Path
from bus import schema
from collectors.bpf import BpfSource
source = BpfSource(Path(sys.argv[2]))
print("listening", flush=True)
while True:
    poll = select.poll()
    for fd in source.descriptors():
        poll.register(fd, select.POLLIN)
    readable = frozenset(fd for fd, _ in poll.poll(100))
    for event in source.collect(time.monotonic_ns(), readable):
        if isinstance(event, schema.SysctlWrite):
            print(event.netns, event.new, flush=True)
    if source.ready and readable:
        capabilities = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff"))]
        print("ready", *capabilities, len(source.status().watched), source.status().counters["ring_drops"], flush=True)
"""


def test_a_reader_of_another_user_without_capabilities_reads_on_after_the_loader_has_gone(lab: Lab) -> None:
    netns = lab.netns()
    # Where that user may go; tmp_path is root's alone.
    run_dir = Path("/run") / f"trimtab-test-{os.getpid()}"
    (run_dir / "collector-bpf").mkdir(parents=True)
    os.chown(run_dir / "collector-bpf", 65534, 65534)
    try:
        root = str(Path(loader.__file__).parents[1])
        with subprocess.Popen(
            [sys.executable, "-c", READER, root, str(run_dir)], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout
            try:
                assert reader.stdout.readline() == "listening\n"
                path = str(roles.probes_path(run_dir))
                assert subprocess.run([PYTHON, "-I", loader.__file__, path], timeout=60).returncode == 0
                line = reader.stdout.readline().split()
                assert line == ["ready", "0" * 16, "0" * 16, str(len(PROBES)), "0"]
                netns.sysctl("net.ipv4.tcp_fin_timeout", 64)
                while (line := reader.stdout.readline().split())[0] != str(netns.cookie):
                    pass
                assert line[1] == "64"
            finally:
                reader.kill()
    finally:
        subprocess.run(["rm", "-rf", run_dir])


def link_ids(watch: Watch) -> set[int]:
    found = set()
    for fd in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError):
            text = Path("/proc/self/fdinfo", fd).read_text()
            found |= {int(line.split()[1]) for line in text.splitlines() if line.startswith("link_id:")}
    return found


def test_closing_the_source_detaches_every_probe(tmp_path: Path) -> None:
    lib = ctypes.CDLL("libbpf.so.1")
    before = link_ids(None)  # type: ignore[arg-type]
    watch = Watch(tmp_path)
    ours = link_ids(watch) - before
    sharing = [
        one.name for one in PROBES if any(road.source for road in one.roads) and watch.roads[one.name][0] != "fentry"
    ]
    assert len(ours) == len(PROBES) - len(sharing) + len({"kfree_skb", "tcp_probe", "inet_sock_set_state"})
    assert all((fd := lib.bpf_link_get_fd_by_id(number)) >= 0 and os.close(fd) is None for number in ours)
    descriptors = len(os.listdir("/proc/self/fd"))
    watch.source.close()
    assert len(os.listdir("/proc/self/fd")) < descriptors - 2 * len(PROBES)
    deadline_s = time.monotonic() + TIMEOUT_S
    while any(lib.bpf_link_get_fd_by_id(number) >= 0 for number in ours):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
