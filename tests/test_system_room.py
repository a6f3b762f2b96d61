"""Limits that leave room until they do not, on the real kernel: what fails without the tuner and does not with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance_world import Trimtab, instance
from netns_world import named_namespaces

from bus import netns

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(120),
]

SYSCTL = Path("/proc/sys/net")


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


@pytest.fixture
def namespace() -> Iterator[str]:
    """The path of a namespace whose loopback is up."""
    with named_namespaces() as make:
        path = make("room")
        netns.inside(path, up)
        yield path


def up() -> None:
    """The loopback device, by ioctl: linux/sockios.h, linux/if.h."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x1))


# --- TCP's memory --------------------------------------------------------------------------------------------------

TCP_MEM = SYSCTL / "ipv4/tcp_mem"
LOWERED = "600 800 1200"
CONNECTIONS, EACH = 200, 48 << 10


@pytest.fixture
def little_memory(the_host: None) -> Iterator[None]:
    """tcp_mem lowered, and put back."""
    before = TCP_MEM.read_text()
    TCP_MEM.write_text(LOWERED)
    yield
    TCP_MEM.write_text(before)


@contextlib.contextmanager
def unread(path: str) -> Iterator[list[socket.socket]]:
    """Connections over the loopback device of a namespace, whose receiving ends nobody reads, and into which as much
    has been written as they take."""
    with contextlib.ExitStack() as stack:
        yield netns.inside(path, lambda: connected(stack))


def connected(stack: contextlib.ExitStack) -> list[socket.socket]:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS))
    ends = []
    for _ in range(CONNECTIONS):
        sender = stack.enter_context(socket.create_connection(listener.getsockname()))
        ends += [sender, stack.enter_context(listener.accept()[0])]
    for sender in ends[::2]:
        sender.setblocking(False)
    return ends


def arrived(ends: list[socket.socket], seconds: float) -> int:
    """Bytes that wait to be read after at most so long, EACH of each connection counted; stops when all is there."""
    sent, deadline_s, found = dict.fromkeys(ends[::2], 0), time.monotonic() + seconds, 0
    while found < CONNECTIONS * EACH and time.monotonic() < deadline_s:
        for sender, done in sent.items():
            with contextlib.suppress(BlockingIOError):
                sent[sender] += sender.send(bytes(EACH - done)) if done < EACH else 0
        time.sleep(0.02)
        waiting = [struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))[0] for end in ends[1::2]]
        found = sum(waiting)
    return found


@pytest.mark.usefixtures("little_memory")
class TestTcpMemory:
    def test_without_trimtabs_hand_tcp_runs_out_of_memory_and_advice_says_what_would_help(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        trimtab.start("--mode", "advise", "--only", "tcp_memory")
        with unread(namespace) as ends:
            assert arrived(ends, 3) < CONNECTIONS * EACH
            trimtab.until(lambda: trimtab.documents("history"), "advice")
        assert TCP_MEM.read_text().split() == LOWERED.split()
        assert {change["state"] for change in trimtab.documents("history")} == {"advised"}
        assert trimtab.stop() == 0

    def test_with_it_all_arrives_the_three_are_in_order_and_all_is_undone_at_the_end(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        trimtab.start("--only", "tcp_memory")
        with unread(namespace) as ends:
            assert arrived(ends, 30) == CONNECTIONS * EACH, trimtab.log.read_text()
            least, pressure, most = map(int, TCP_MEM.read_text().split())
        assert 600 < least < pressure <= most
        assert most > 1200
        history = trimtab.documents("history")
        assert {change["decider"] for change in history} == {"tcp_memory"}
        assert "pages held of the 1200 in tcp_mem[2]" in next(
            change["why"] for change in history if change["tunable"] == "net.ipv4.tcp_mem[2]"
        )
        assert trimtab.stop() == 0
        assert TCP_MEM.read_text().split() == LOWERED.split()


# --- local ports ---------------------------------------------------------------------------------------------------

FEW = "40000 40099"
MANY = 3000


@contextlib.contextmanager
def connections(path: str, count: int, patience_s: float = 3.0) -> Iterator[list[int]]:
    """So many connections to one place, all open at once, each tried again for so long; what came of each, as errno."""
    with contextlib.ExitStack() as stack:

        def connect() -> list[int]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 8888), backlog=4096))
            return [reach(stack, listener, patience_s) for _ in range(count)]

        yield netns.inside(path, connect)


def reach(stack: contextlib.ExitStack, listener: socket.socket, patience_s: float) -> int:
    deadline_s = time.monotonic() + patience_s
    while True:
        sock = socket.socket()
        error = sock.connect_ex(listener.getsockname())
        if not error:
            # Closed in the reverse order: the end that connected first, so that TIME_WAIT is on its side.
            stack.enter_context(listener.accept()[0])
            stack.enter_context(sock)
            return 0
        sock.close()
        if time.monotonic() > deadline_s:
            return error
        time.sleep(0.02)


def sysctl(path: str, name: str, value: str = "") -> str:
    def access() -> str:
        file = SYSCTL / name
        if value:
            file.write_text(value)
        return " ".join(file.read_text().split())

    return netns.inside(path, access)


class TestPorts:
    def test_without_trimtabs_hand_the_hundred_and_first_connection_finds_no_port_for_good(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        sysctl(namespace, "ipv4/ip_local_port_range", FEW)
        trimtab.start("--mode", "advise", "--only", "ports")
        with connections(namespace, 101) as found:
            assert found == [0] * 100 + [99]
            trimtab.until(lambda: trimtab.documents("history"), "advice")
        assert sysctl(namespace, "ipv4/ip_local_port_range") == FEW
        (change,) = {change["why"] for change in trimtab.documents("history")}
        assert change.startswith("no local port of 40000 to 40099 for a connect()")
        assert trimtab.stop() == 0

    def test_with_it_there_are_ports_for_all_in_that_namespace_alone_and_the_range_is_put_back(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        here = (SYSCTL / "ipv4/ip_local_port_range").read_text()
        sysctl(namespace, "ipv4/ip_local_port_range", FEW)
        # A fifth of what the range grows by first is kept for others.
        sysctl(namespace, "ipv4/ip_local_reserved_ports", "40100-40119")
        trimtab.start("--only", "ports")
        with connections(namespace, MANY) as found:
            assert not any(found)
        low, high = map(int, sysctl(namespace, "ipv4/ip_local_port_range").split())
        assert 10_240 <= low <= 40_000
        assert high - low + 1 >= MANY
        assert (SYSCTL / "ipv4/ip_local_port_range").read_text() == here
        assert {change["decider"] for change in trimtab.documents("history")} == {"ports"}
        assert trimtab.stop() == 0
        assert sysctl(namespace, "ipv4/ip_local_port_range") == FEW

    @pytest.mark.long
    @pytest.mark.parametrize(("mode", "without"), [("advise", 27_500), ("enforce", 0)])
    def test_twenty_eight_thousand_connections_to_one_place(
        self, trimtab: Trimtab, namespace: str, mode: str, without: int
    ) -> None:
        sysctl(namespace, "ipv4/ip_local_port_range", "32768 33767")
        # Else the kernel gives ports in TIME_WAIT out again on the loopback device.
        sysctl(namespace, "ipv4/tcp_tw_reuse", "0")
        trimtab.start("--mode", mode, "--only", "ports")
        patience_s = 3.0 if mode == "enforce" else 0.0
        assert netns.inside(namespace, lambda: short_lived(28_500, patience_s)) == without
        assert trimtab.stop() == 0


def short_lived(count: int, patience_s: float) -> int:
    """So many connections to one place one after another, each left in TIME_WAIT; how many found no port."""
    with socket.create_server(("127.0.0.1", 8888)) as listener:
        failed = 0
        for _ in range(count):
            with contextlib.ExitStack() as stack:
                failed += bool(reach(stack, listener, patience_s))
        return failed


# --- tracked connections -------------------------------------------------------------------------------------------

CONNTRACK_MAX = SYSCTL / "netfilter/nf_conntrack_max"
TRACKED, PER_SECOND = 2400, 600
FEW_TRACKED = 1024
# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
NETLINK_NETFILTER, CT_NEW, CT_DELETE = 12, 1 << 8, 1 << 8 | 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLA_F_NESTED = 1, 4, 0x400, 0x8000
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_TIMEOUT = 1, 2, 7
FIRST, SECOND = bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2))


def attribute(kind: int, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, *parts)


def tuple_of(kind: int, source: bytes, target: bytes, source_port: int, target_port: int) -> bytes:
    ports = attribute(2, struct.pack("!H", source_port)), attribute(3, struct.pack("!H", target_port))
    return nested(kind, nested(1, attribute(1, source), attribute(2, target)), nested(2, attribute(1, b"\x11"), *ports))


def track(count: int, what: int, per_second: int = 0) -> list[int]:
    """Have the kernel track (or forget) UDP connections between two addresses of nobody's; its answers, as errno."""
    answers, began_s = [], time.monotonic()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        for number in range(count):
            if per_second:
                time.sleep(max(0.0, began_s + number / per_second - time.monotonic()))
            body = struct.pack("=BBH", socket.AF_INET, 0, 0)
            body += tuple_of(CTA_TUPLE_ORIG, FIRST, SECOND, 1024 + number, 53)
            body += tuple_of(CTA_TUPLE_REPLY, SECOND, FIRST, 53, 1024 + number)
            body += attribute(CTA_TIMEOUT, struct.pack("!I", 60))
            flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE if what == CT_NEW else 0)
            netlink.send(struct.pack("=IHHII", 16 + len(body), what, flags, number, 0) + body)
            answers.append(-struct.unpack_from("=i", netlink.recv(4096), 16)[0])
    return answers


@pytest.fixture
def few_tracked(the_host: None) -> Iterator[None]:
    """nf_conntrack_max lowered, and put back; what was tracked is forgotten."""
    if not CONNTRACK_MAX.exists():
        pytest.skip("kernel: connections are not tracked")
    before = CONNTRACK_MAX.read_text()
    CONNTRACK_MAX.write_text(str(FEW_TRACKED))
    yield
    CONNTRACK_MAX.write_text(before)
    track(TRACKED, CT_DELETE)


@pytest.mark.usefixtures("few_tracked")
class TestConntrack:
    def test_without_trimtabs_hand_the_table_is_full_and_advice_says_what_would_help(self, trimtab: Trimtab) -> None:
        trimtab.start("--mode", "advise", "--only", "conntrack")
        answers = track(FEW_TRACKED + 10, CT_NEW)
        assert any(answers)
        trimtab.until(lambda: trimtab.documents("history"), "advice")
        assert int(CONNTRACK_MAX.read_text()) == FEW_TRACKED
        assert trimtab.stop() == 0

    def test_with_it_each_is_tracked_and_the_limit_is_put_back(self, trimtab: Trimtab) -> None:
        trimtab.start("--only", "conntrack")
        answers = track(TRACKED, CT_NEW, PER_SECOND)
        assert not any(answers)
        assert int(CONNTRACK_MAX.read_text()) >= TRACKED
        assert "connections tracked" in trimtab.documents("history")[0]["why"]
        assert trimtab.stop() == 0
        assert int(CONNTRACK_MAX.read_text()) == FEW_TRACKED
