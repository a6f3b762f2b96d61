"""What the supervisor says of the whole: the block at ready, and supervisor.json."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bus.config import MODES
from trimtab import rundir
from trimtab.process import Process, printable

SCHEMA = "trimtab.supervisor/v1"


def mode(processes: Sequence[Process], configured: str) -> str:
    """The mode that the actuator says it is in; until it has spoken, the configured one."""
    said = [process.status.get("mode") for process in processes if process.role.kind == "actuator"]
    return next((word for word in MODES if word in said), configured)


def gathered(processes: Sequence[Process], key: str) -> list[str]:
    """All that the roles list under `watched` or `missing`."""
    lists = [process.status.get(key) for process in processes]
    return [printable(str(line)) for lines in lists if isinstance(lines, list) for line in lines]


def start_ticks(stat: Path) -> int:
    """When a process began, in clock ticks since boot: with the pid, that names it. proc_pid_stat(5), field 22."""
    return int(stat.read_text().rpartition(")")[2].split()[19])


@functools.cache
def _own_ticks(pid: int) -> int:
    return start_ticks(Path(f"/proc/{pid}/stat"))


def age_s() -> float:
    """How long this process has been there, from its very start."""
    started_s = start_ticks(Path("/proc/self/stat")) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def document(processes: Sequence[Process], configured_mode: str, ready: bool) -> dict[str, Any]:
    """The content of supervisor.json. t_ns (CLOCK_MONOTONIC) says how old it is."""
    return {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "start_ticks": _own_ticks(os.getpid()),
        "t_ns": time.monotonic_ns(),
        "ready": ready,
        "mode": mode(processes, configured_mode),
        "roles": [process.row() for process in processes],
        "watched": gathered(processes, "watched"),
        "missing": gathered(processes, "missing"),
    }


def ready_block(processes: Sequence[Process], configured_mode: str) -> str:
    """Ready: how long it took, in which mode, what is watched, what is not and why."""
    daemons = [process for process in processes if process.daemon]
    lines = [f"ready in {age_s():.2f} s: mode {mode(processes, configured_mode)}, {len(daemons)} roles"]
    for process in daemons:
        watched = gathered([process], "watched")
        lines += [f"  {process.name} watches {', '.join(watched)}"] if watched else []
    lines += [f"  without {what}" for what in gathered(processes, "missing")]
    return "\n".join(lines)


class Board:
    """supervisor.json, and when it was last written (CLOCK_MONOTONIC seconds)."""

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        self.written_s = 0.0
        self._path = run_dir / rundir.STATUS
        self._say = say
        self._failure = ""

    def write(self, content: dict[str, Any]) -> None:
        """Replace it. A full file system must not end the supervisor; who reads sees how old the file is."""
        self.written_s = time.monotonic()
        failure = ""
        try:
            rundir.write(self._path, msgspec.json.encode(content))
        except OSError as error:
            failure = f"cannot write {self._path}: {error.strerror}"
        if failure and failure != self._failure:
            self._say(failure)
        self._failure = failure
