"""Below TCP: packets that a processor takes too slowly, datagrams that wait, fragments that wait."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from scene import Scene, Settings, total

from trimtab.lab import Lab

PORT = 9999
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 32, 33, 26
RPS = "mount -t sysfs none /sys && echo 2 > /sys/class/net/{}/queues/rx-0/rps_cpus"
"""Whoever receives hands packets over to the second processor. A namespace's devices show in a sysfs of its own."""
DROPPED, SQUEEZED = 1, 2
"""Columns of net/softnet_stat."""
ADD, RETURN = 0x04, 0x06
"""linux/bpf_common.h"""
INSTRUCTIONS = 4000


def slow_filter(device: str) -> socket.socket:
    """A socket that wants no packet, and takes microseconds to say so."""
    code = struct.pack("HBBI", ADD, 0, 0, 1) * INSTRUCTIONS + struct.pack("HBBI", RETURN, 0, 0, 0)
    held = ctypes.create_string_buffer(code, len(code))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", INSTRUCTIONS + 1, ctypes.addressof(held)))
    sock.bind((device, 0))
    return sock


class Backlog(Scene):
    """Three bursts a second, of packets of 100 to 1400 bytes, to a processor slower than they come."""

    name = "receive_path: backlog"
    decider = "receive_path"
    host = True
    together = 2500
    filters = 64
    start: ClassVar[Settings] = {"net.core.netdev_max_backlog": 100}
    best: ClassVar[Settings] = {"net.core.netdev_max_backlog": 16384}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        link = lab.veth(self.a, self.b)
        dice = random.Random(1)
        self.address, self.burst = link.b_address, [bytes(dice.randint(100, 1400)) for _ in range(self.together)]
        self.b.command(["unshare", "-m", "sh", "-c", RPS.format(link.b_device)])
        self.slow = [self.b.run(slow_filter, link.b_device) for _ in range(self.filters)]
        self.taker = self.b.run(taker, 1 << 16)

    def round(self) -> float:
        """How many found room in the processor's queue."""
        before = total("net/softnet_stat", DROPPED)
        sent = sum(self.a.run(self._burst) for _ in range(4))
        return 100 * (1 - (total("net/softnet_stat", DROPPED) - before) / sent)

    def _burst(self) -> int:
        os.sched_setaffinity(0, {0})  # this thread alone, like its priority: else others on the host thin the burst out
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        began_s = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
            sender.connect((self.address, PORT))
            for datagram in self.burst:
                with contextlib.suppress(OSError):
                    sender.send(datagram)
        time.sleep(max(0.0, began_s + 0.3 - time.monotonic()))
        return self.together

    def close(self) -> None:
        """Our ends."""
        for sock in (*self.slow, self.taker):
            sock.close()


class Budget(Backlog):
    """The same, with room for all: runs of the receive softirq that end with work left."""

    name = "receive_path: budget"
    start: ClassVar[Settings] = {"net.core.netdev_max_backlog": 16384}
    best: ClassVar[Settings] = {"net.core.netdev_budget": 2400, "net.core.netdev_budget_usecs": 20000}

    def round(self) -> float:
        """How many of that processor's runs ended with all done."""
        squeezed, runs = total("net/softnet_stat", SQUEEZED), softirqs()
        super().round()
        return 100 * (1 - (total("net/softnet_stat", SQUEEZED) - squeezed) / max(1, softirqs() - runs))


def softirqs() -> int:
    """Runs of the receive softirq on the second processor so far."""
    line = next(line for line in Path("/proc/softirqs").read_text().splitlines() if "NET_RX" in line)
    return int(line.split()[2])


def taker(size: int) -> socket.socket:
    """A socket that datagrams can be sent to, with room for so many bytes whatever the host allows."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    sock.bind(("0.0.0.0", PORT))
    sock.settimeout(0.05)
    return sock


class UdpBuffer(Scene):
    """Bursts of 700 datagrams of all sizes to programs that start anew each second; one sets its buffer."""

    name = decider = "udp_buffer"
    host = True
    burst = 700
    start: ClassVar[Settings] = {"net.core.rmem_default": 212992, "net.core.rmem_max": 212992}
    best: ClassVar[Settings] = {"net.core.rmem_default": 8 << 20, "net.core.rmem_max": 8 << 20}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.address, self.dice = lab.veth(self.a, self.b).b_address, random.Random(1)

    def round(self) -> float:
        """How many of three bursts to each find room."""
        began_s, taken = time.monotonic(), 0
        for asks in (0, 8 << 20):
            with self.b.run(self._open, asks) as sock:
                for _ in range(3):
                    self.a.run(self._send)
                    taken += drained(sock)
        time.sleep(max(0.0, began_s + 1.0 - time.monotonic()))
        return 100 * taken / (6 * self.burst)

    def _open(self, asks: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if asks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asks)
        sock.bind(("0.0.0.0", PORT))
        sock.setblocking(False)
        return sock

    def _send(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(self.burst):
                sender.sendto(bytes(self.dice.randint(20, 1400)), (self.address, PORT))


def drained(sock: socket.socket) -> int:
    """How many datagrams wait, and are taken."""
    taken = 0
    with contextlib.suppress(BlockingIOError, TimeoutError):
        while sock.recv(1 << 16):
            taken += 1
    return taken


class IpFrag(Scene):
    """Datagrams of 8 to 60 kB from eight hosts, whose fragments come mixed with those of 250 others: 15 MB wait."""

    name = decider = "ip_frag"
    together = 250
    piece = 1440
    best: ClassVar[Settings] = {"net.ipv4.ipfrag_high_thresh": 64 << 20}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        link = lab.veth(self.a, self.b)
        self.ends = (link.a_address, link.b_address)
        self.dice, self.number = random.Random(1), 0
        self.taker = self.b.run(taker, 64 << 20)
        self.raw = self.a.run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.raw.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)

    def round(self) -> float:
        """How many come whole."""
        began_s = time.monotonic()
        # No more of one host than ipfrag_max_dist lets mix (ip_frag_too_far in net/ipv4/ip_fragment.c).
        left = [list(self._pieces(10 + number % 8)) for number in range(self.together)]
        while left:
            for pieces in left:
                self.raw.sendto(pieces.pop(), (self.ends[1], 0))
            left = [pieces for pieces in left if pieces]
        whole = drained(self.taker)
        time.sleep(max(0.0, began_s + 1.0 - time.monotonic()))
        return 100 * whole / self.together

    def _pieces(self, host: int) -> Iterator[bytes]:
        """The fragments of one UDP datagram, without a checksum."""
        size = self.dice.randint(8000, 60_000)
        self.number = self.number % 65_535 + 1
        body = struct.pack("!4H", PORT, PORT, size + 8, 0) + bytes(size)
        ends = socket.inet_aton(self.ends[0])[:3] + bytes((host,)) + socket.inet_aton(self.ends[1])
        for at in range(0, len(body), self.piece):
            flags = at // 8 | (0x2000 if at + self.piece < len(body) else 0)
            head = struct.pack("!BBHHHBBH", 0x45, 0, 0, self.number, flags, 64, socket.IPPROTO_UDP, 0)
            yield head + ends + body[at : at + self.piece]

    def close(self) -> None:
        """Our ends."""
        self.taker.close()
        self.raw.close()
