"""Ring buffer -> events in Python: how many a second, at what cost, and whether any is lost.

    sudo .venv/bin/python bench/ring.py [--seconds 3] [--rate 200000] [--ring-kib 1024]

The kernel writes records of the tcp_rcvbuf probe's form: a few instructions run by BPF_PROG_TEST_RUN in a process of
their own. They are read as collector-bpf reads them, to the event structs that it publishes. Budget (DESIGN
section 10): 200 000 events/s, none lost, under one core.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import select
import struct
import sys
import time
from collections.abc import Iterator
from itertools import starmap
from typing import NamedTuple

from bpf import PROBES
from bpf.libbpf import BPF_F_MMAPABLE, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF, Libbpf
from bus.schema import AnyEvent
from collectors.bpf import maker
from collectors.ring import HEADER_BYTES, Drops, Ring

COMMAND = "sudo .venv/bin/python bench/ring.py"
PROBE = next(probe for probe in PROBES if probe.topic == "TcpRcvBuf")
BURSTS_PER_S = 500

# linux/bpf.h: opcodes, registers, helpers.
MOV, MOV_REGISTER, ADD, STORE, STORE_REGISTER, CALL, EXIT, LOAD_MAP = 0xB7, 0xBF, 0x07, 0x7A, 0x7B, 0x85, 0x95, 0x18
STORE_WORD, JUMP_IF_EQUAL, ATOMIC_ADD = 0x62, 0x15, 0xDB
R0, R1, R2, R3, R4, FRAME = 0, 1, 2, 3, 4, 10
LOOKUP, KTIME_GET_NS, RINGBUF_OUTPUT = 1, 5, 130
SOCKET_FILTER = 1


class _Run(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf's bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("context", ctypes.c_void_p * 3),  # none: in, out and their two sizes
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("unused3", ctypes.c_uint32 * 4),
    )


class Produced(NamedTuple):
    """A measured run."""

    sent: int
    received: int
    lost: int
    malformed: int
    wall_s: float
    cpu_s: float
    late_us: list[float]


def program(ring: int, lost: int) -> bytes:
    """Fill a record on the stack, stamp it with the time, copy it into the ring; where that fails count it."""
    size = PROBE.record.size

    def one(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
        return struct.pack("<BBhi", code, source << 4 | to, offset, value)

    fill = [one(STORE, FRAME, offset=-size + at, value=1) for at in range(8, size, 8)]
    send = [
        one(CALL, value=KTIME_GET_NS),
        one(STORE_REGISTER, FRAME, R0, -size),
        one(LOAD_MAP, R1, 1, value=ring) + one(0),
        one(MOV_REGISTER, R2, FRAME) + one(ADD, R2, value=-size),
        one(MOV, R3, value=size),
        one(MOV, R4, value=0),
        one(CALL, value=RINGBUF_OUTPUT),
        one(JUMP_IF_EQUAL, R0, offset=9, value=0),
        one(STORE_WORD, FRAME, offset=-size - 4, value=0),
        one(LOAD_MAP, R1, 1, value=lost) + one(0),
        one(MOV_REGISTER, R2, FRAME) + one(ADD, R2, value=-size - 4),
        one(CALL, value=LOOKUP),
        one(JUMP_IF_EQUAL, R0, offset=2, value=0),
        one(MOV, R1, value=1),
        one(ATOMIC_ADD, R0, R1),
        one(MOV, R0, value=0),
        one(EXIT),
    ]
    return b"".join(fill + send)


class Producer:
    """The program, loaded."""

    def __init__(self, ring: int, lost: int) -> None:
        self._lib = ctypes.CDLL("libbpf.so.1")
        code = program(ring, lost)
        self._fd = self._lib.bpf_prog_load(SOCKET_FILTER, b"bench", b"GPL", code, ctypes.c_size_t(len(code) // 8), None)
        if self._fd < 0:
            raise OSError(-self._fd, "the kernel does not load the producer; run as root")

    def run(self, times: int) -> None:
        """So many records."""
        frame = bytes(64)
        options = _Run(sz=ctypes.sizeof(_Run), data_in=frame, data_size_in=len(frame), repeat=times)
        failure = self._lib.bpf_prog_test_run_opts(self._fd, ctypes.byref(options))
        if failure:
            raise OSError(-failure, "BPF_PROG_TEST_RUN failed")


class Lane:
    """A ring, its reader, and the counter of what found no room."""

    def __init__(self, ring_bytes: int) -> None:
        libbpf = Libbpf()
        self.fd = libbpf.map_create(BPF_MAP_TYPE_RINGBUF, "bench", 0, ring_bytes)
        self.lost_fd = libbpf.map_create(BPF_MAP_TYPE_ARRAY, "lost", 8, 1, BPF_F_MMAPABLE)
        self.ring = Ring(self.fd, ring_bytes, PROBE.record)
        self.drops = Drops(self.lost_fd, 1)
        self._make = maker(PROBE, {})

    def read(self) -> list[AnyEvent]:
        """What is there, as collector-bpf makes it."""
        return list(starmap(self._make, self.ring.read()))


def drained(rounds: int) -> float:
    """Events a second of a reader that always finds the ring full."""
    lane = Lane(PROBE.ring_bytes)
    producer = Producer(lane.fd, lane.lost_fd)
    fits = PROBE.ring_bytes // (HEADER_BYTES + PROBE.record.size)
    taken_s = 0.0
    count = 0
    for _ in range(rounds):
        producer.run(fits)
        begun_s = time.perf_counter()
        count += len(lane.read())
        taken_s += time.perf_counter() - begun_s
    return count / taken_s


def _produce(fd: int, lost_fd: int, rate: int, seconds: float) -> None:
    producer = Producer(fd, lost_fd)
    begun_s = time.monotonic()
    for number in range(int(seconds * BURSTS_PER_S)):
        while (early_s := begun_s + number / BURSTS_PER_S - time.monotonic()) > 0:
            time.sleep(early_s)
        producer.run(rate // BURSTS_PER_S)


def _batches(lane: Lane, writer: multiprocessing.process.BaseProcess) -> Iterator[list[AnyEvent]]:
    """As the collector's loop takes them, until the writer has ended and the ring is empty."""
    poll = select.poll()
    poll.register(lane.fd, select.POLLIN)
    while True:
        over = not writer.is_alive()
        if poll.poll(20):
            yield lane.read()
        elif over:
            return


def paced(rate: int, seconds: float, ring_bytes: int) -> Produced:
    """A writer at this rate against one reader."""
    lane = Lane(ring_bytes)
    writer = multiprocessing.get_context("fork").Process(target=_produce, args=(lane.fd, lane.lost_fd, rate, seconds))
    received, late_us = 0, []
    begun_s, cpu_s = time.monotonic(), time.process_time()
    writer.start()
    for events in _batches(lane, writer):
        received += len(events)
        if events:
            late_us.append((time.monotonic_ns() - events[0].t_ns) / 1000)
    writer.join()
    return Produced(
        sent=int(seconds * BURSTS_PER_S) * (rate // BURSTS_PER_S),
        received=received,
        lost=lane.drops.read()[0],
        malformed=lane.ring.malformed,
        wall_s=time.monotonic() - begun_s,
        cpu_s=time.process_time() - cpu_s,
        late_us=sorted(late_us),
    )


def main() -> int:
    """Print the figures. 1 when any event was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=int, default=200_000)
    parser.add_argument("--ring-kib", type=int, default=1024, help="a power of two; must last while the reader waits")
    options = parser.parse_args()
    if options.ring_kib < 64 or options.ring_kib & (options.ring_kib - 1):
        parser.error("--ring-kib: not a power of two of at least 64")
    print(f"$ {COMMAND} --seconds {options.seconds:g} --rate {options.rate} --ring-kib {options.ring_kib}")
    print(f"{PROBE.record.size}-byte records, as {PROBE.name} writes them; one reader")
    best = max(drained(200) for _ in range(5))
    print(f"full ring -> events, best of 5: {best:,.0f} events/s")
    run = paced(options.rate, options.seconds, options.ring_kib * 1024)
    share = run.cpu_s / run.wall_s
    print(
        f"at {options.rate:,} events/s for {options.seconds:g} s: {run.received:,} of {run.sent:,} received, "
        f"{run.lost:,} found no room, {run.malformed} malformed; {share:.0%} of one core"
    )
    if run.late_us:
        half, most, worst = (run.late_us[int(len(run.late_us) * part)] for part in (0.5, 0.99, 0.9999))
        print(f"age of a batch's oldest event: p50 {half:.0f} us, p99 {most:.0f} us, worst {worst:.0f} us")
    return 0 if run.received == run.sent else 1


if __name__ == "__main__":
    sys.exit(main())
