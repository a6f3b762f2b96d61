"""Datagrams whose fragments come mixed with each other's, in a namespace with too little room for those that wait: all
are lost until trimtab makes room there."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab, NetNs, Way

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

TOO_SMALL = 131_072
TOGETHER = 16
SIZE = 30_000
PIECE = 1440
PORT = 9999
DATAGRAMS = 600
SIX = ("fd00:1::1", "fd00:1::2")
KEYS = {socket.AF_INET: "net.ipv4.ipfrag", socket.AF_INET6: "net.ipv6.ip6frag"}
MORE_4, MORE_6 = 0x2000, 1
# linux/ipv6.h; asm-generic/socket.h
NEXTHDR_FRAGMENT, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 44, 32, 33


class Ends:
    """A sender and a receiver with little room for fragments, and what has become of the datagrams."""

    def __init__(self, lab: Lab) -> None:
        self.a, self.b = lab.netns("sender"), lab.netns("receiver")
        link = lab.veth(self.a, self.b)
        for netns, device, address in ((self.a, link.a_device, SIX[0]), (self.b, link.b_device, SIX[1])):
            netns.command(["ip", "addr", "add", f"{address}/64", "dev", device, "nodad"])
        for key in KEYS.values():
            self.b.sysctl(f"{key}_low_thresh", 0)
            self.b.sysctl(f"{key}_high_thresh", TOO_SMALL)
        self.addresses = {socket.AF_INET: (link.a_address, link.b_address), socket.AF_INET6: SIX}
        self.sockets = {family: self.b.run(receiver, family) for family in KEYS}
        self.senders = {family: self.a.run(raw, family) for family in KEYS}
        self.number = 0

    def limit(self, family: int, netns: NetNs | None = None) -> int:
        return int((netns or self.b).sysctl(f"{KEYS[family]}_high_thresh"))

    def whole(self, family: int) -> int:
        """Send so many together, and count those that arrive whole. A veth pair and a CPU's backlog are done with them
        when the sender is asked for the next, so what has not come by then never will."""
        self.number += TOGETHER
        addresses, sender = self.addresses[family], self.senders[family]
        packets = [list(pieces(family, self.number + each, *addresses)) for each in range(TOGETHER)]
        for places in zip(*packets, strict=True):
            for packet in places:
                sender.sendto(packet, (addresses[1], 0))
        return received(self.sockets[family])


def receiver(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", PORT))
    sock.settimeout(0.1)
    return sock


def raw(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


def received(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            assert len(sock.recv(SIZE + 1)) == SIZE
        except TimeoutError:
            return count
        count += 1


def pieces(family: int, number: int, source: str, target: str) -> Iterator[bytes]:
    """The fragments of one UDP datagram of zeros."""
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    words = sum(struct.unpack(f"!{len(ends) // 2}H", ends)) + socket.IPPROTO_UDP + 2 * (SIZE + 8) + 2 * PORT
    words = (words & 0xFFFF) + (words >> 16)
    body = struct.pack("!4H", PORT, PORT, SIZE + 8, ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF) + bytes(SIZE)
    for at in range(0, len(body), PIECE):
        piece, more = body[at : at + PIECE], at + PIECE < len(body)
        if family == socket.AF_INET:
            flags = at // 8 | (MORE_4 if more else 0)
            yield struct.pack("!BBHHHBBH", 0x45, 0, 0, number, flags, 64, socket.IPPROTO_UDP, 0) + ends + piece
        else:
            head = struct.pack("!IHBB", 6 << 28, 8 + len(piece), NEXTHDR_FRAGMENT, 64) + ends
            yield head + struct.pack("!BBHI", socket.IPPROTO_UDP, 0, at | (MORE_6 if more else 0), number) + piece


@pytest.fixture
def ends() -> Iterator[Ends]:
    with Lab() as lab:
        made = Ends(lab)
        yield made
        for sock in (*made.sockets.values(), *made.senders.values()):
            sock.close()


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


def test_only_advised_they_are_lost_and_it_says_what_would_help(trimtab: Trimtab, ends: Ends) -> None:
    trimtab.start("--mode", "advise", "--only", "ip_frag")
    for family in KEYS:
        assert ends.whole(family) == 0
    trimtab.until(lambda: len(trimtab.documents("history")) == 2, "advice of both")
    for family in KEYS:
        assert ends.whole(family) == 0
        assert ends.limit(family) == TOO_SMALL
    assert {advice["netns"] for advice in trimtab.documents("history")} == {ends.b.cookie}


def test_with_it_there_is_soon_room_where_they_are_and_they_come_whole_and_at_the_end_all_is_as_before(
    trimtab: Trimtab, ends: Ends
) -> None:
    trimtab.start("--mode", "enforce", "--only", "ip_frag")
    sender = {family: ends.limit(family, ends.a) for family in KEYS}
    for family in KEYS:
        trimtab.until(lambda family=family: ends.whole(family) == TOGETHER, "all whole")  # type: ignore[misc]
        assert TOO_SMALL < ends.limit(family) <= 8 << 20
    assert {family: ends.limit(family, ends.a) for family in KEYS} == sender
    steps = trimtab.documents("history")
    assert {step["netns"] for step in steps} == {ends.b.cookie}
    assert all(step["new"] <= 2 * step["old"] for step in steps)
    assert "bytes" in steps[-1]["why"]
    assert trimtab.stop() == 0
    assert [ends.limit(family) for family in KEYS] == [TOO_SMALL, TOO_SMALL]


def share_whole(trimtab: Trimtab, mode: str) -> float:
    """How many datagrams come whole over a path that loses 3 packets of 1000, once the limit has had time to grow."""
    with Lab() as lab:
        a, b = lab.netns("sender"), lab.netns("receiver")
        link = lab.relay(a, b, Way(delay_ms=10, rate_mbit=200, loss=0.003), offload=False).link
        b.sysctl("net.ipv4.ipfrag_low_thresh", 0)
        b.sysctl("net.ipv4.ipfrag_high_thresh", 2 * TOO_SMALL)
        trimtab.start("--mode", mode, "--only", "ip_frag")
        with (
            b.run(receiver, socket.AF_INET) as taker,
            a.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
            arrivals: list[float] = []
            counter = threading.Thread(target=note, args=(taker, arrivals))
            counter.start()
            for number in range(2 * DATAGRAMS):
                if number == DATAGRAMS:
                    half_s = time.monotonic()
                sender.sendto(bytes(SIZE), (link.b_address, PORT))
                time.sleep(0.01)
            counter.join()
            return sum(arrived_s > half_s for arrived_s in arrivals) / DATAGRAMS


def note(taker: socket.socket, arrivals: list[float]) -> None:
    """When each datagram arrives, until none has for a while."""
    taker.settimeout(10)
    with contextlib.suppress(TimeoutError):
        while taker.recv(SIZE + 1):
            arrivals.append(time.monotonic())


@pytest.mark.long
def test_over_a_path_that_loses_packets_what_was_lost_whole_comes_but_for_what_the_path_lost(trimtab: Trimtab) -> None:
    # 21 fragments each: the path itself spoils 61 of 1000 datagrams.
    assert share_whole(trimtab, "advise") < 0.2
    assert trimtab.stop() == 0
    assert share_whole(trimtab, "enforce") > 0.85
