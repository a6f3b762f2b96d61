#!/usr/bin/env python3
"""How fast the actuator is, on this machine, in network namespaces of its own: nothing else is touched.

    sudo .venv/bin/python bench/actuator.py [--namespaces 10] [--wishes 300] [--changes 2000] [--state-dir DIR]

Latency: a real actuator process; one wish at a time, from before it is sent until the value stands in the kernel (the
original and the intent are on disk by then), and until the outcome has come back (journaled and published).
Throughput: the same code in this process with the rows' pace limits lifted, one change after the other.
Disk: what the one sync of a change costs on the file system of the state directory (default: a temporary directory);
a key's first change waits for two files at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from actuators.change import Writer
from actuators.modes import Modes
from actuators.parts import StateLock, assemble
from bus import link, netns, roles, tunables
from bus.schema import VERSION, AnyEvent, Outcome, Wish

PREFIX = f"tt-bench-act-{os.getpid()}-"
KEYS = ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]")
LOW = 1 << 20
SHARE = 64
"""Each wish is for a 64th more: above the gate's dead band, and never the other way (a key may turn twice an hour)."""
CHANGES_MAX = 3500
"""A decider may make 3600 changes an hour."""
PACE_S = 0.02
SETTLE_S = 2.0
LOOK_S = 20e-6
"""Between two looks at the value; looking without a pause would take a processor away from the actuator."""


class Place(msgspec.Struct):
    """A namespace of ours and a descriptor of one of its sysctls."""

    name: str
    cookie: int
    inode: int
    key: str
    fd: int

    def value(self) -> int:
        """What stands there."""
        return int(os.pread(self.fd, 100, 0).split()[2])

    def wish(self, want: int, believed: int) -> Wish:
        """As a decider would send it."""
        evidence: dict[str, int | str] = {"event": "TcpRcvBuf@1", "limit_bytes": believed, "rcv_rtt_us": 40000}
        why = "the bench asks for a 64th more"
        return Wish(
            VERSION,
            time.monotonic_ns(),
            1_000_000_000,
            self.key,
            self.cookie,
            self.inode,
            believed,
            want,
            why,
            evidence,
        )


@contextlib.contextmanager
def places(count: int) -> Iterator[list[Place]]:
    """So many namespaces with two keys each, both at LOW; gone afterwards."""
    made: list[str] = []
    found: list[Place] = []
    try:
        for number in range(count):
            name = f"{PREFIX}{number}"
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
            found += [_place(name, key) for key in KEYS]
        # The kernel is busy with new namespaces for a moment.
        time.sleep(SETTLE_S)
        yield found
    finally:
        for place in found:
            os.close(place.fd)
        for name in made:
            subprocess.run(["ip", "netns", "del", name])


def _place(name: str, key: str) -> Place:
    file = Path("/proc/sys") / key.partition("[")[0].replace(".", "/")

    def look() -> tuple[int, int]:
        file.write_text(f"4096 131072 {LOW}")
        return netns.cookie_here(), os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    cookie, fd = netns.inside(f"/run/netns/{name}", look)
    return Place(name, cookie, os.stat(f"/run/netns/{name}").st_ino, key, fd)


def latency(found: Sequence[Place], wishes: int, base: Path, state: Path) -> tuple[list[float], list[float]]:
    """Milliseconds from sending a wish until its value stands, and until its outcome is back."""
    run = base / "run"
    for folder in ("actuator", "control", *(f"wish/{name}" for name in roles.BUILT_IN_DECIDERS)):
        (run / folder).mkdir(parents=True)
    (run / "config.json").write_text('{"mode": "enforce", "deciders": {"neigh_table": false}}')
    command = [
        sys.executable,
        "-m",
        "actuators",
        "--run-dir",
        run,
        "--state-dir",
        state,
        "--config",
        run / "config.json",
    ]
    with (base / "log").open("w") as log, subprocess.Popen(command, stderr=log, cwd=Path(__file__).parents[1]) as child:
        try:
            _until_ready(roles.control_path(run))
            # Not before: zmq waits up to 200 ms between its tries to connect.
            with (
                contextlib.closing(link.Subscriber(roles.events_path(run, "actuator"), "actuator")) as subscriber,
                contextlib.closing(link.WishSender(roles.wish_path(run, "tcp_buffer"))) as sender,
            ):
                time.sleep(SETTLE_S)
                rounds = [_round(found[number % len(found)], sender, subscriber) for number in range(wishes)]
        finally:
            child.terminate()
    return [written for written, _ in rounds], [told for _, told in rounds]


def _until_ready(control: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(link.LinkError):
            if link.ask(control, link.Ask("ping"), 1.0).ok:
                return
        time.sleep(0.05)
    raise SystemExit("the actuator did not start")


def _round(place: Place, sender: link.WishSender, subscriber: link.Subscriber) -> tuple[float, float]:
    time.sleep(PACE_S)
    subscriber.receive()
    believed = place.value()
    want = believed + believed // SHARE
    wish = place.wish(want, believed)
    began = time.perf_counter()
    sender.send(wish)
    while place.value() != want:
        if time.perf_counter() - began > 5:
            raise SystemExit(f"not written: {[e for e in subscriber.receive() if isinstance(e, Outcome)]}")
        time.sleep(LOOK_S)
    written = time.perf_counter()
    while not _told(subscriber, place):
        subscriber.socket.poll(1000)
    return (written - began) * 1e3, (time.perf_counter() - began) * 1e3


def _told(subscriber: link.Subscriber, place: Place) -> bool:
    return any(
        isinstance(event, Outcome) and event.verdict == "written" and event.netns == place.cookie
        for event in subscriber.receive()
    )


def throughput(found: Sequence[Place], changes: int, state: Path) -> tuple[float, list[float]]:
    """Changes per second, and the milliseconds of each."""
    rows = {
        name: msgspec.structs.replace(row, cooldown_s=0.0, per_hour=10**9) for name, row in tunables.table().items()
    }
    events: list[AnyEvent] = []
    parts = assemble(rows, state, lambda line: None, events.append)
    writer = Writer(parts, ())
    lock = StateLock(state)
    modes = Modes(parts, writer, lock, ("tcp_buffer",))
    try:
        modes.start("enforce")
        each: list[float] = []
        for number in range(changes):
            place = found[number % len(found)]
            believed = place.value()
            wish = place.wish(believed + believed // SHARE, believed)
            began = time.perf_counter()
            writer.handle(wish, "tcp_buffer")
            each.append((time.perf_counter() - began) * 1e3)
        written = sum(isinstance(event, Outcome) and event.verdict == "written" for event in events)
        if written != changes:
            raise SystemExit(f"only {written} of {changes} were written: {writer.refused}")
        modes.stop()
        return changes / (sum(each) / 1e3), each
    finally:
        parts.close()
        lock.close()


def disk(state: Path, count: int = 300) -> list[float]:
    """Milliseconds of a 4 KiB append and fdatasync."""
    each = []
    fd = os.open(state / "fsync", os.O_WRONLY | os.O_CREAT, 0o600)
    for _ in range(count):
        began = time.perf_counter()
        os.write(fd, b"x" * 4096)
        os.fdatasync(fd)
        each.append((time.perf_counter() - began) * 1e3)
    os.close(fd)
    return each


def line(what: str, each: Sequence[float]) -> str:
    """Quantiles of milliseconds."""
    ordered = sorted(each)
    p50, p90, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.9, 0.99))
    return f"{what:42} p50 {p50:6.3f} ms  p90 {p90:6.3f}  p99 {p99:6.3f}  max {ordered[-1]:6.3f}  ({len(each)})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", type=int, default=10)
    parser.add_argument("--wishes", type=int, default=300)
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--state-dir", type=Path, help="a directory on the file system to measure")
    options = parser.parse_args()
    if options.wishes > 100 * 2 * options.namespaces:
        parser.error("at most 100 wishes per key, or the hourly limit refuses them")
    if options.changes > CHANGES_MAX:
        parser.error(f"at most {CHANGES_MAX} changes, or the hourly limit refuses them")
    print("$", " ".join([".venv/bin/python", "bench/actuator.py", *sys.argv[1:]]))
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(prefix="tt", dir=options.state_dir) as folder, places(options.namespaces) as found:
        base = Path(folder)
        written, told = latency(found, options.wishes, base, base / "state")
        rate, each = throughput(found, options.changes, base / "state-2")
        first, later = written[: len(found)], written[len(found) :]
        print(line("wish sent -> value stands in the kernel", later))
        print(line("  the first wish for a key", first))
        print(line("wish sent -> outcome journaled and back", told[len(found) :]))
        print(line("one change, journaled twice (no lanes)", each))
        print(line("disk: 4 KiB append + fdatasync", disk(base)))
        print(f"changes journaled and made: {rate:.0f}/s")


if __name__ == "__main__":
    main()
