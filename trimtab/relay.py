"""A delay line between two TUN devices: constant delay, random loss, a rate with a queue. For kernels without netem.

    python -I -m trimtab.relay --tun FD FD --control FD [--delay-ms 20] [--loss 0.01] [--rate-mbit 400] ...

The descriptors are inherited (trimtab.lab opens the devices, each in its namespace), so the relay itself needs no
privilege. Each way is a FIFO of its own. A packet leaves when the wire would have passed it on: behind all that came
before it, at the rate, plus the delay; a packet that would have to wait for more than the queue holds is dropped. Where
the devices were opened with IFF_VNET_HDR a "packet" may be a 64 KiB segment that the kernel cuts up or has put
together (TSO), lost or kept as a whole.

Control (a SOCK_SEQPACKET socket, one JSON object per message): {"set": {"loss": 0.02}, "way": "ab"} changes settings
while traffic flows ("way" left out: both ways); {"stats": true} answers the counters of each way. When the other end
closes, the relay ends, and the devices vanish with it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

READ_BYTES = 65_600
"""The largest read from a TUN device: 64 KiB and struct virtio_net_hdr."""
BATCH = 512
"""Packets taken from one device before the other has its turn."""
BUSY = 8
REST_S = 0.0003
"""After a round that moved more than BUSY packets the relay rests this long, so that the next round has a batch to move
and not one packet: a system call each to wake up is what would cost most."""
REQUEST_BYTES = 4096
PRIORITY = -10


@dataclasses.dataclass(frozen=True)
class Way:
    """What one way does to packets. ValueError for what no wire can do."""

    delay_ms: float = 0.0
    loss: float = 0.0
    """Share of packets lost at random, 0 to 1."""
    rate_mbit: float = 0.0
    """Mbit/s; 0: no limit."""
    queue_kib: float = 2048.0
    """What may wait for its turn at the rate; more is dropped at the tail."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{field.name}: {value!r} is not a number from 0 up")
        if self.loss > 1:
            raise ValueError(f"loss: {self.loss} is more than everything (1)")


class Lane:
    """One way: reads from src, holds each packet until it is due, writes to dst."""

    def __init__(self, src: int, dst: int, way: Way, seed: int) -> None:
        self.src = src
        self.dst = dst
        self.way = way
        self.line: deque[tuple[float, bytes]] = deque()
        """(when due, packet), first in first out."""
        self.wire_free_s = 0.0
        """When the last packet taken will be on the wire."""
        self.random = random.Random(seed)
        self.counts = dict.fromkeys(("packets", "bytes", "lost", "dropped", "refused"), 0)

    def take(self, now_s: float) -> int:
        """Read what waits (at most BATCH packets) and line it up; return how many. OSError when the device is gone."""
        packets: list[bytes] = []
        read, src = os.read, self.src
        try:
            while len(packets) < BATCH:
                packets.append(read(src, READ_BYTES))
        except BlockingIOError:
            pass
        taken = len(packets)
        if self.way.loss:
            packets = [packet for packet in packets if self.random.random() >= self.way.loss]
            self.counts["lost"] += taken - len(packets)
        if self.way.rate_mbit:
            self._queue(packets, now_s)
        else:
            due = now_s + self.way.delay_ms / 1e3
            self.line.extend([(due, packet) for packet in packets])
        return taken

    def _queue(self, packets: list[bytes], now_s: float) -> None:
        byte_s = 8e-6 / self.way.rate_mbit
        longest_s = self.way.queue_kib * 1024 * byte_s
        delay_s = self.way.delay_ms / 1e3
        free_s = max(self.wire_free_s, now_s)
        for packet in packets:
            if free_s - now_s > longest_s:
                self.counts["dropped"] += 1
                continue
            free_s += len(packet) * byte_s
            self.line.append((free_s + delay_s, packet))
        self.wire_free_s = free_s

    def give(self, now_s: float) -> None:
        """Write out what is due."""
        line, dst, write = self.line, self.dst, os.write
        packets = octets = 0
        while line and line[0][0] <= now_s:
            try:
                octets += write(dst, line.popleft()[1])
                packets += 1
            except OSError:
                # The interface is down (EIO) or the kernel is out of memory for it: a wire loses the packet, too.
                self.counts["refused"] += 1
        self.counts["packets"] += packets
        self.counts["bytes"] += octets

    def stats(self) -> dict[str, int]:
        """Passed on (packets, bytes), lost at random, dropped at the queue, refused by the kernel, on the way now."""
        return self.counts | {"waiting": len(self.line)}


def answer(lanes: dict[str, Lane], request: bytes) -> dict[str, Any]:
    """Do what a control message asks; the reply, which has "error" when it asks for what cannot be."""
    try:
        asked = json.loads(request)
        chosen = [lanes[asked["way"]]] if "way" in asked else list(lanes.values())
        ways = [dataclasses.replace(lane.way, **asked.get("set", {})) for lane in chosen]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    for lane, way in zip(chosen, ways, strict=True):
        lane.way = way
    return {name: lane.stats() | {"way": dataclasses.asdict(lane.way)} for name, lane in lanes.items()}


def serve(lanes: dict[str, Lane], control: socket.socket) -> None:
    """Move packets until the control socket's other end closes. OSError when a device is gone."""
    both = list(lanes.values())
    sources = [*(lane.src for lane in both), control.fileno()]
    wait_s: float | None = None
    while True:
        ready = select.select(sources, [], [], wait_s)[0]
        if control.fileno() in ready:
            request = control.recv(REQUEST_BYTES)
            if not request:
                return
            control.send(json.dumps(answer(lanes, request)).encode())
        moved = 0
        for lane in both:
            now_s = time.monotonic()
            if lane.src in ready:
                moved += lane.take(now_s)
            lane.give(now_s)
        if moved > BUSY:
            time.sleep(REST_S)
        dues = [lane.line[0][0] for lane in both if lane.line]
        wait_s = max(0.0, min(dues) - time.monotonic()) if dues else None


def main(argv: Sequence[str]) -> int:
    """Run the relay on inherited descriptors; 0 when the owner has closed the control socket, 1 when a device went."""
    parser = argparse.ArgumentParser(prog="trimtab.relay", description="A delay line between two TUN devices.")
    parser.add_argument("--tun", type=int, nargs=2, required=True, metavar="FD")
    parser.add_argument("--control", type=int, required=True, metavar="FD")
    parser.add_argument("--seed", type=int, default=1)
    for field in dataclasses.fields(Way):
        parser.add_argument("--" + field.name.replace("_", "-"), type=float, default=field.default)
    options = parser.parse_args(argv)
    try:
        way = Way(*(getattr(options, field.name) for field in dataclasses.fields(Way)))
    except ValueError as error:
        parser.error(str(error))
    # select(2) takes no descriptor above 1023: the lowest free ones.
    a, b, control_fd = (os.dup(fd) for fd in (*options.tun, options.control))
    os.set_blocking(a, False)
    os.set_blocking(b, False)
    # Nothing here makes reference cycles, and each packet is an object: a collector would only run for nothing.
    gc.disable()
    with contextlib.suppress(PermissionError):
        # A wire does not wait for a processor: let no other work pass before it.
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    with socket.socket(fileno=control_fd) as control:
        lanes = {"ab": Lane(a, b, way, options.seed), "ba": Lane(b, a, way, options.seed + 1)}
        try:
            serve(lanes, control)
        except ConnectionError:
            return 0
        except OSError as error:
            sys.stderr.write(f"relay: a device is gone: {error.strerror}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
