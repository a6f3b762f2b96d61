#!/usr/bin/env python3
"""What a running instance costs while nothing happens: processor time, wake-ups and memory of every process of it.

    sudo .venv/bin/python bench/idle.py [--run-dir /run/trimtab] [--seconds 60]

CPU: each process's own clock, all of its threads (also those that have ended), over the time measured.
PSS: smaps_rollup, with pages that the roles share counted by their share; so the sum is what the instance takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CPU_BUDGET = 1.0
PSS_BUDGET_MIB = 120
PSS_AIM_MIB = 60


class Sample(NamedTuple):
    """One process at one moment."""

    cpu_ns: int
    wakeups: int


def processes(run_dir: Path) -> dict[str, int]:
    """Name -> pid of the supervisor and of every role that runs."""
    status = json.loads((run_dir / "supervisor.json").read_bytes())
    roles = {role["name"]: role["pid"] for role in status["roles"] if role["pid"]}
    return {"supervisor": status["pid"], **roles}


def sample(pid: int) -> Sample:
    """Its clock, and how often its threads have gone to sleep. OSError when it has ended."""
    # The clock of another process, as clock_getcpuclockid(3) makes it: CPUCLOCK_SCHED in the kernel's posix-timers.h.
    try:
        cpu_ns = time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    wakeups = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                wakeups += int(line.split()[1])
    return Sample(cpu_ns, wakeups)


def pss_kib(pid: int) -> int:
    """Its proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def measure(run_dir: Path, seconds: float) -> list[tuple[str, float, float, float]]:
    """(name, CPU in percent of a core, wake-ups per second, PSS in MiB) of each process."""
    pids = processes(run_dir)
    before = {name: sample(pid) for name, pid in pids.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    after = {name: sample(pid) for name, pid in pids.items()}
    if processes(run_dir) != pids:
        raise SystemExit("idle: a role was restarted meanwhile; nothing to compare")
    return [
        (
            name,
            (after[name].cpu_ns - before[name].cpu_ns) / took / 1e7,
            (after[name].wakeups - before[name].wakeups) / took,
            pss_kib(pid) / 1024,
        )
        for name, pid in pids.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. 0 within the budgets, 1 not."""
    parser = argparse.ArgumentParser(description="What a running instance costs while nothing happens.")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/trimtab"))
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args(argv)
    try:
        rows = measure(options.run_dir, options.seconds)
    except (OSError, ValueError, KeyError) as error:
        print(f"idle: no instance to measure: {error}", file=sys.stderr)
        return 1
    cpu, wakeups, pss = (sum(row[column] for row in rows) for column in (1, 2, 3))
    print(f"{'':24}{'CPU %':>8}{'wake-ups/s':>12}{'PSS MiB':>9}")
    for name, *numbers in (*rows, ("all", cpu, wakeups, pss)):
        print(f"{name:24}{numbers[0]:8.3f}{numbers[1]:12.1f}{numbers[2]:9.1f}")
    print(f"over {options.seconds:g} s; budget {CPU_BUDGET:g} % of a core, {PSS_BUDGET_MIB} MiB (aim {PSS_AIM_MIB})")
    return 0 if cpu < CPU_BUDGET and pss < PSS_BUDGET_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
