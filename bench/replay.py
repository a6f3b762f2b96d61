"""Replay: how many events a second the deciders take, on one core, from events in memory and from tapes on disk.

    .venv/bin/python bench/replay.py [--events 60000] [--rounds 3]

The same engine and deciders as live, without lanes. In memory: what a replay spends on deciding. From disk: `trimtab
replay` of one tape of each decider, as a host writes them: each with all events, whatever its decider listens to. So a
tape's cost is that of unpacking, decoding, numbering, deciding and comparing each wish. The events are made up, in the
mix of a busy host (bench/busy_host.py), for all deciders that a host runs. Measured in processor time; the best of the
rounds counts.
Budget (DESIGN section 10): 300 000 events/s through all deciders, counting each tape's events.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from busy_host import events

from bus import tunables
from bus.codec import decode, encode
from bus.config import Config
from bus.disk import Disk
from bus.numbering import Numbering
from bus.recorder import Recorder, Session
from bus.revision import revision
from bus.roles import BUILT_IN_DECIDERS
from bus.schema import VERSION, AnyEvent, Batch
from bus.tape import Head, Memory
from deciders.__main__ import load, place
from deciders.engine import Decider, decide, decide_apart
from trimtab.tape.reels import find_reels
from trimtab.tape.replay import play

BUDGET = 300_000
DECIDERS = tuple(BUILT_IN_DECIDERS)
BATCH = 32


def in_memory(names: tuple[str, ...], stream: list[AnyEvent], rounds: int) -> str:
    """Measure; a cell to print."""
    best_ns, wishes = 1 << 62, 0
    for _ in range(rounds):
        deciders = [load(name, Config()) for name in names]
        start_ns = time.process_time_ns()
        wishes = sum(len(asked) for _, asked in decide(stream, deciders))
        best_ns = min(best_ns, time.process_time_ns() - start_ns)
    return f"{len(stream) * 1e9 / best_ns:>12,.0f}  {wishes:>7,}"


def record(base: Path, stream: list[AnyEvent]) -> None:
    """The tapes of one process that runs all deciders."""
    numbering, settings, disk = Numbering("bench"), Config(), Disk(1 << 40)
    folded = 0

    def recorder(decider: Decider) -> Recorder:
        module = place(decider.name)
        session = Session(decider.name, module, revision(module), settings, tunables.table().values())

        def head(number: int) -> Head:
            lanes = {"bench": (numbering.epoch_ns, numbering.next)}
            return session.head(number, Memory(folded, lanes, *decider.remember()), [])

        folder = base / decider.name
        folder.mkdir()
        return Recorder(folder, 1 << 30, settings.tape.segment_mib << 20, head, disk)

    deciders = [load(name, settings) for name in DECIDERS]
    recorders = {decider.name: recorder(decider) for decider in deciders}
    for at in range(0, len(stream), BATCH):
        raw = encode(Batch(VERSION, "bench", 1, at, stream[at : at + BATCH]))
        for each in recorders.values():
            # Time as the recorder sees it is that of the events, so that it writes as often as it would live.
            each.turn(stream[at].t_ns, folded)
            each.batch(raw)
        for _, asked in decide_apart(numbering.take(decode(Batch, raw)), deciders):
            folded += 1
            for decider, wishes in asked:
                for wish in wishes:
                    recorders[decider.name].asked(folded, wish)
    for each in recorders.values():
        each.close(stream[-1].t_ns, folded)
    disk.settle(60)


def from_disk(folder: Path, rounds: int) -> tuple[int, float]:
    """How many events, and their seconds of processor time."""
    chains, best_s, count = find_reels([folder]).chains, 1e9, 0
    for _ in range(rounds):
        start_ns = time.process_time_ns()
        played = [one for chain in chains for one in play(chain)]
        best_s = min(best_s, (time.process_time_ns() - start_ns) / 1e9)
        count = sum(one.events for one in played)
        if any(one.words or one.differs for one in played):
            raise SystemExit(f"{folder.name}: the tape does not replay equal")
    return count, best_s


def main() -> int:
    """Measure and print. 0 when within the budget, 1 when not."""
    parser = argparse.ArgumentParser(description="Events a second through the engine and the deciders.")
    parser.add_argument("--events", type=int, default=60_000, help="on each tape")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stream = events(options.events)
    cells = {name: in_memory((name,), stream, options.rounds) for name in DECIDERS}
    cells["all at once"] = in_memory(DECIDERS, stream, options.rounds)
    print(f"{options.events:,} events, events/s   in memory   wishes     from disk")
    events_all, spent_all_s = 0, 0.0
    with tempfile.TemporaryDirectory() as where:
        record(Path(where), stream)
        stream.clear()
        for name in DECIDERS:
            count, spent_s = from_disk(Path(where) / name, options.rounds)
            events_all, spent_all_s = events_all + count, spent_all_s + spent_s
            print(f"{name:<24}{cells[name]}  {count / spent_s:>12,.0f}")
    together = events_all / spent_all_s
    print(f"{'all at once':<24}{cells['all at once']}")
    print(f"from disk, the {len(DECIDERS)} tapes of all deciders: {together:,.0f} events/s and core")
    verdict = "met" if together >= BUDGET else "missed"
    print(f"budget {BUDGET:,} events/s: {verdict}; again with: .venv/bin/python bench/replay.py")
    return 0 if together >= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
