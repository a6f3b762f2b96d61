"""What a tape costs: the decider that records it, the disk that holds it, and whoever reads it.

    .venv/bin/python bench/tape.py [--seconds 8] [--rate 20000] [--decider tcp_buffer]

Two processes of one decider hear the same lane at the same time, one with a tape and one without: the stream of
bench/busy_host.py (hundreds of flows that wait for their buffers, which is the worst that there is), a little every
millisecond, as a collector sends it. What the one takes more of the processor than the other is what the tape costs;
as that is within what two processes differ by on a host that others use, too, the recorder's own work is measured
apart, and counts. The sizes are those of an hour, busy and idle. Budget: under 5 % of the decider's time at 20 000
events/s.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import busy_host

from bus import roles
from bus.codec import encode
from bus.config import Config
from bus.link import Publisher
from bus.recorder import Recorder, Session
from bus.schema import AnyEvent, Batch, Counters, NeighTable, Tick, Value
from bus.tape import Memory
from bus.tape_reader import Block, events, find, lanes, segments

BUDGET = 0.05
ROOT = Path(__file__).resolve().parent.parent
LANE = "collector-bpf"
BATCH_EVENTS = 32
BEAT_S = 0.001
WARM_S = 2.0
MIB = 1 << 20


def record_idle(folder: Path, seconds: int = 600) -> None:
    """Ten minutes of what a decider hears on a host where nothing happens, by the clock of the events."""
    session = Session("idle", "", "", Config(), ())
    tape = Recorder(folder, 1 << 40, 4 * MIB, lambda number: session.head(number, Memory(0, {}), ()))
    for second in range(seconds):
        t_ns = second * 1_000_000_000
        tape.turn(t_ns, 0)
        found: list[AnyEvent] = [Tick(t_ns, second)]
        counted = dict.fromkeys(busy_host.OTHERS[:60], 7 * second)
        found += (Counters(t_ns, 1, source, counted) for source in ("net/netstat", "net/snmp", "net/sockstat"))
        if second % 5 == 0:
            found += (Value(t_ns, f"net.ipv4.key{key}", 1, 1, 5, 5, 1, 9, False) for key in range(8))
            found += (NeighTable(t_ns, family, 3, 128, 512, 1024, 0, 0, second, second) for family in (2, 10))
        tape.batch(encode(Batch(1, LANE, 5, second, found)))
    tape.close(seconds * 1_000_000_000, 0)
    tape.disk.settle(10)


@contextmanager
def decider(name: str, run_dir: Path, tape: Path | None) -> Iterator[int]:
    """A process of this decider. Its pid."""
    argv = [sys.executable, "-m", "deciders", name, "--run-dir", str(run_dir), "--config", str(run_dir / "config.json")]
    process = subprocess.Popen([*argv, *(["--tapes", str(tape.parent)] if tape else [])], cwd=ROOT)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def spent_s(pid: int) -> float:
    """Processor time so far of a process's first thread, which does all but zmq's own (sched-stats.rst)."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def publish(publisher: Publisher, stream: Sequence[AnyEvent], rate: int) -> None:
    begun, sent = time.monotonic(), 0
    while sent < len(stream):
        due = min(len(stream), int((time.monotonic() - begun) * rate))
        publisher.publish(stream[sent:due])
        sent = due
        time.sleep(BEAT_S)


def measure(
    name: str, run_dir: Path, tapes: Sequence[Path | None], stream: Sequence[AnyEvent], rate: int
) -> list[float]:
    """Processor seconds of as many processes of a decider, each with its tape or without one."""
    publisher = Publisher(roles.events_path(run_dir, LANE), LANE)
    warm = int(WARM_S * rate)
    with ExitStack() as stack:
        pids = [stack.enter_context(decider(name, run_dir, tape)) for tape in tapes]
        time.sleep(1.0)
        publish(publisher, stream[:warm], rate)
        before = [spent_s(pid) for pid in pids]
        publish(publisher, stream[warm:], rate)
        time.sleep(0.2)
        after = [spent_s(pid) for pid in pids]
    publisher.close()
    return [end - begin for begin, end in zip(before, after, strict=True)]


def calls_s(folder: Path, stream: Sequence[AnyEvent], rounds: int = 20) -> float:
    """Processor seconds of a recorder's own work on these events, in this process; the least of the rounds."""
    session = Session("calls", "", "", Config(), ())
    raws = [encode(Batch(1, LANE, 5, at, list(stream[at : at + 20]))) for at in range(0, len(stream), 20)]
    least = 1e9
    for number in range(rounds):
        own = folder / str(number)
        own.mkdir(parents=True)
        tape = Recorder(own, 1 << 40, 4 * MIB, lambda number: session.head(number, Memory(0, {}), ()))
        tape.turn(0, 0)
        begun = time.process_time_ns()
        for raw in raws:
            tape.batch(raw)
            tape.turn(number, 0)
        tape.turn(2_000_000_000, 0)
        tape.disk.settle(10)
        least = min(least, (time.process_time_ns() - begun) / 1e9)
        tape.close(2_000_000_000, 0)
        assert not tape.trouble, tape.trouble
    return least


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def read(folder: Path, decoded: bool) -> float:
    """Events a second off the tape, their batches decoded or not."""
    count, begun = 0, time.process_time()
    for path in find([folder]):
        for segment in segments(path):
            numbering = lanes(segment.head)
            for block in segment.blocks():
                if isinstance(block, Block):
                    for kind, _, raw in block.records:
                        count += len(events(numbering, raw)) if decoded and kind == 1 else BATCH_EVENTS
    return count / (time.process_time() - begun)


def main() -> int:
    """Measure and print. 0 when within the budget, 1 when not."""
    parser = argparse.ArgumentParser(description="What a tape costs.")
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=8, help="of events at that rate, each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--decider", default="tcp_buffer")
    options = parser.parse_args()
    busy = busy_host.events(int(options.rate * (options.seconds + WARM_S)))
    with tempfile.TemporaryDirectory(prefix="tt-bench-") as base:
        run_dir, tapes, quiet, calls = (Path(base) / name for name in ("run", "busy", "idle", "calls"))
        tape = tapes / options.decider
        for folder in (
            tape,
            quiet,
            run_dir / "wish" / options.decider,
            *(run_dir / role for role in roles.publishers()),
        ):
            folder.mkdir(parents=True)
        (run_dir / "config.json").write_text('{"tape": {"max_mib": 4096}}')
        bare, taped = 1e9, 1e9
        for number in range(options.rounds):
            # Each way round in turn, since it must not count which one was started first; the least counts, since
            # others on the host only ever add.
            both = (None, tape) if number % 2 else (tape, None)
            took = measure(options.decider, run_dir, both, busy, options.rate)
            bare, taped = min(bare, took[both.index(None)]), min(taped, took[both.index(tape)])
        record_idle(quiet)
        own = calls_s(calls, busy[: options.rate])
        share = own / (own + bare / options.seconds)
        print(f"{options.decider} at {options.rate:,} events/s: {bare / options.seconds:.2%} of a core without a tape,"
              f" {taped / options.seconds:.2%} with one")  # fmt: skip
        print(f"the recorder's own work: {own:.2%} of a core, {share:.1%} of the decider's time")
        hours = (options.seconds + WARM_S) * options.rounds / 3600
        print(f"size of an hour: busy {size(tape) / hours / MIB:,.0f} MiB, idle {size(quiet) * 6 / MIB:.2f} MiB")
        print(f"reading: {read(tape, False):,.0f} events/s off the disk, {read(tape, True):,.0f} decoded")
    verdict = "met" if share < BUDGET else "missed"
    print(f"budget {BUDGET:.0%} of the decider's time: {verdict}; again with: .venv/bin/python bench/tape.py")
    return 0 if share < BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
