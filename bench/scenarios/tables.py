"""Tables that are full: neighbours, tracked connections."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from typing import ClassVar

from scene import Scene, Settings

from trimtab.lab import Lab

PORT = 9
NEIGH = "net.ipv4.neigh.default.gc_thresh"
# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
NETLINK_NETFILTER, CT_NEW = 12, 1 << 8
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLA_F_NESTED = 1, 4, 0x400, 0x8000
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_TIMEOUT = 1, 2, 7


class Neighbours(Scene):
    """A host that talks to four thousand others on its own network, all of which answer ARP."""

    name = decider = "neigh_table"
    host = True
    count = 4000
    per_s = 2000
    start: ClassVar[Settings] = {f"{NEIGH}1": 128, f"{NEIGH}2": 512, f"{NEIGH}3": 1024}
    best: ClassVar[Settings] = {f"{NEIGH}1": 4096, f"{NEIGH}2": 8192, f"{NEIGH}3": 16384}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        link = lab.veth(self.a, self.b)
        self.a.command(["ip", "addr", "add", "10.9.0.1/16", "dev", link.a_device])
        self.b.command(["ip", "addr", "add", "10.9.0.2/16", "dev", link.b_device])
        # One that stands for all: it answers for each of these addresses.
        self.b.command(["ip", "route", "add", "local", "10.9.128.0/17", "dev", "lo"])
        self.taker = self.b.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.taker.bind(("0.0.0.0", PORT))
        self.taker.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        self.taker.settimeout(0.3)
        self.sender = self.a.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)

    def round(self) -> float:
        """How many of those that are sent a datagram get it."""
        began_s, taken = time.monotonic(), 0
        for number in range(self.count):
            time.sleep(max(0.0, began_s + number / self.per_s - time.monotonic()))
            with contextlib.suppress(OSError):
                self.sender.sendto(b"x", (f"10.9.{128 + number // 250}.{1 + number % 250}", PORT))
        with contextlib.suppress(TimeoutError):
            while self.taker.recv(10):
                taken += 1
        return 100 * taken / self.count

    def close(self) -> None:
        """Our ends."""
        self.taker.close()
        self.sender.close()


class Conntrack(Scene):
    """A thousand new UDP connections a second from all over, tracked for 5 to 15 s each: ten thousand at once."""

    name = decider = "conntrack"
    host = True
    per_s = 1000
    start: ClassVar[Settings] = {"net.netfilter.nf_conntrack_max": 4096}
    best: ClassVar[Settings] = {"net.netfilter.nf_conntrack_max": 65536}
    warm_s = 15.0

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.dice, self.number = random.Random(1), 0
        self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)

    def round(self) -> float:
        """How many of a second's are tracked."""
        began_s, tracked = time.monotonic(), 0
        for number in range(self.per_s):
            time.sleep(max(0.0, began_s + number / self.per_s - time.monotonic()))
            tracked += self._track()
        return 100 * tracked / self.per_s

    def _track(self) -> bool:
        self.number += 1
        here = struct.pack("!I", 0xC6120000 + self.number % (1 << 17))  # 198.18.0.0/15: nobody's
        there, port = bytes((198, 18, 0, 2)), 1024 + self.number % 60_000
        body = struct.pack("=BBH", socket.AF_INET, 0, 0)
        body += tuple_of(CTA_TUPLE_ORIG, here, there, port, 53) + tuple_of(CTA_TUPLE_REPLY, there, here, 53, port)
        body += attribute(CTA_TIMEOUT, struct.pack("!I", self.dice.randint(5, 15)))
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
        self.netlink.send(struct.pack("=IHHII", 16 + len(body), CT_NEW, flags, self.number, 0) + body)
        return not struct.unpack_from("=i", self.netlink.recv(4096), 16)[0]

    def close(self) -> None:
        """Our end. What is tracked is forgotten within 15 s."""
        self.netlink.close()


def attribute(kind: int, *parts: bytes) -> bytes:
    """A netlink attribute, padded."""
    payload = b"".join(parts)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def tuple_of(kind: int, source: bytes, target: bytes, source_port: int, target_port: int) -> bytes:
    """One direction of a UDP connection."""
    ports = attribute(2, struct.pack("!H", source_port)), attribute(3, struct.pack("!H", target_port))
    ip = attribute(1 | NLA_F_NESTED, attribute(1, source), attribute(2, target))
    return attribute(kind | NLA_F_NESTED, ip, attribute(2 | NLA_F_NESTED, attribute(1, b"\x11"), *ports))
