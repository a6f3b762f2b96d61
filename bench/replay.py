"""Replay: how many events a second the deciders take, on one core, from events in memory and from tapes on disk.

    .venv/bin/python bench/replay.py [--events 300000] [--rounds 3]

The same engine and deciders as live, without lanes. In memory: what a replay spends on deciding. From disk: `trimtab
replay` of one tape per decider, each with all events, written by the recorder: unpacking, decoding, numbering, deciding
and comparing each wish. The events are made up, in the mix of a busy host: sockets near their limits in many namespaces
(each with RTT, windows and rates that move), both neighbour tables filling and emptying, counters, ticks, and values
and outcomes from the actuator. Every event has its decider's whole arithmetic to do. Measured in processor time; the
best of the rounds counts.
Budget (DESIGN section 10): 300 000 events/s through all deciders, counting each tape's events.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bus import tunables
from bus.codec import decode, encode
from bus.config import Config
from bus.disk import Disk
from bus.numbering import Numbering
from bus.recorder import Recorder, Session
from bus.revision import revision
from bus.schema import VERSION, AnyEvent, Batch, Counters, NeighEntries, TcpRcvBuf, TcpSndBuf, Tick, Value
from bus.tape import Head, Memory
from deciders.__main__ import load, place
from deciders.engine import decide
from trimtab.tape.reels import find_reels
from trimtab.tape.replay import play

BUDGET = 300_000
TUNERS = ("neigh_table", "tcp_buffer")
DECIDERS = (*TUNERS, "guard")
BATCH = 32
NAMESPACES = 20
FLOWS = 200
MSEC = 1_000_000
COUNTERS = {f"counter{number}": number for number in range(60)}


def events(count: int) -> list[AnyEvent]:
    """`count` events in order of time, the same each time."""
    source = _stream(random.Random(1))
    return [next(source) for _ in range(count)]


def _stream(chance: random.Random) -> Iterator[AnyEvent]:
    total = dict.fromkeys(range(FLOWS), 0)
    t_ns = 1_000_000_000
    for second in range(1, 1 << 30):
        yield Tick(t_ns, second)
        for netns in range(1, NAMESPACES + 1):
            yield Counters(t_ns, netns, "net/netstat", COUNTERS)
            for name in ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"):
                yield Value(t_ns, name, netns, netns, _limit(netns), 262144, 65536, 64 << 20, False)
        for tenth in range(10):
            for flow in range(FLOWS):
                t_ns += 100 * MSEC // FLOWS
                total[flow] += chance.randrange(300_000, 500_000)
                yield _receiver(t_ns, flow, total[flow]) if flow % 2 else _sender(t_ns, flow, total[flow])
            for entry in range(10):
                entries = 300 + 5 * entry + 20 * tenth
                yield NeighEntries(t_ns + entry, 2, entries, entries, 128, 512, 1024, 1, 1, 2, 0)


def _limit(netns: int) -> int:
    return 262144 << (netns % 4)


def _receiver(t_ns: int, flow: int, total: int) -> TcpRcvBuf:
    netns, rtt_us = flow % NAMESPACES + 1, 20_000 + total % 3000
    limit = _limit(netns)
    window = limit * 2 // 3
    about = (netns, netns, flow, 2, 5201, 40000 + flow, limit, limit, False, window, window, 7)
    return TcpRcvBuf(t_ns, *about, window // 2, rtt_us, rtt_us, total)


def _sender(t_ns: int, flow: int, total: int) -> TcpSndBuf:
    netns, rtt_us = flow % NAMESPACES + 1, 20_000 + total % 3000
    limit = _limit(netns)
    packets = limit // 2200
    about = (netns, netns, flow, 2, 40000 + flow, 5201, limit, limit, False, rtt_us, 20_000, 3 * packets, 1448, packets)
    return TcpSndBuf(t_ns, *about, limit, limit * 3 // 4, total, packets, rtt_us, flow % 4, 0)


def record(folder: Path, name: str, stream: list[AnyEvent]) -> None:
    """A decider's tape of these events."""
    raws = [encode(Batch(VERSION, "bench", 1, at, stream[at : at + BATCH])) for at in range(0, len(stream), BATCH)]
    decider, numbering, settings = load(name, Config()), Numbering("bench"), Config()
    session = Session(name, place(name), revision(place(name)), settings, tunables.table().values())
    folded = 0

    def head(number: int) -> Head:
        lanes = {"bench": (numbering.epoch_ns, numbering.next)}
        return session.head(number, Memory(folded, lanes, *decider.remember()), [])

    recorder = Recorder(folder, 1 << 30, settings.tape.segment_mib << 20, head, Disk(1 << 40))
    for raw in raws:
        # Time as the recorder sees it is that of the events, so that it writes as often as it would live.
        recorder.turn(stream[folded].t_ns, folded)
        recorder.batch(raw)
        for _, wishes in decide(numbering.take(decode(Batch, raw)), [decider]):
            folded += 1
            for wish in wishes:
                recorder.asked(folded, wish)
    recorder.close(stream[-1].t_ns, folded)
    recorder.disk.settle(60)


def from_disk(folder: Path, rounds: int) -> float:
    """Events a second of processor time."""
    chains, best = find_reels([folder]).chains, 0.0
    for _ in range(rounds):
        start_ns = time.process_time_ns()
        played = [one for chain in chains for one in play(chain)]
        spent_s = (time.process_time_ns() - start_ns) / 1e9
        if any(one.words or one.differs for one in played):
            raise SystemExit("the tape does not replay equal")
        best = max(best, sum(one.events for one in played) / spent_s)
    return best


def in_memory(names: tuple[str, ...], stream: list[AnyEvent], rounds: int) -> None:
    """Measure and print."""
    best, wishes = 0.0, 0
    for _ in range(rounds):
        deciders = [load(name, Config()) for name in names]
        start_ns = time.process_time_ns()
        wishes = sum(len(asked) for _, asked in decide(stream, deciders))
        best = max(best, len(stream) * 1e9 / (time.process_time_ns() - start_ns))
    print(f"in memory, {', '.join(names)}: {best:,.0f} events/s ({wishes} wishes of {len(stream)} events)")


def main() -> int:
    """Measure and print. 0 when within the budget, 1 when not."""
    parser = argparse.ArgumentParser(description="Events a second through the engine and the deciders.")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stream = events(options.events)
    for names in (*((name,) for name in DECIDERS), TUNERS, DECIDERS):
        in_memory(names, stream, options.rounds)
    with tempfile.TemporaryDirectory() as where:
        for name in DECIDERS:
            folder = Path(where) / name
            folder.mkdir()
            record(folder, name, stream)
        stream.clear()
        for name in DECIDERS:
            print(f"from disk, {name}: {from_disk(Path(where) / name, options.rounds):,.0f} events/s")
        together = from_disk(Path(where), options.rounds)
    print(f"from disk, the tapes of all deciders: {together:,.0f} events/s and core")
    verdict = "met" if together >= BUDGET else "missed"
    print(f"budget {BUDGET:,} events/s: {verdict}; again with: .venv/bin/python bench/replay.py")
    return 0 if together >= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
