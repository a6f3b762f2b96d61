"""`trimtab off`: the big red button. Works with roles hung, the configuration broken, the bus gone.

The supervisor is asked to stop in order, and given its time. What is left then is killed: whoever holds one of our
locks. Last, what still stands is put back from the journal, as by `trimtab rollback` without an actuator.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from actuators import offline
from bus.link import LinkError
from bus.schema import Answer, Ask
from trimtab import exits, rundir, show
from trimtab.supervisor import STOP_S

GRACE_S = STOP_S[-1] + 1.0
"""The supervisor bounds its own stop by less."""
KILLED_S = 5.0
SCHEMA = "trimtab.off/v1"


def off(run_dir: Path, state_dir: Path, restore: bool, as_json: bool) -> int:
    """Stop all, end trials, and with `restore` put back what is confirmed as well. 0 done, 1 not all of it."""
    exits.need_root("trimtab off")
    lines = [*_stop(run_dir / rundir.LOCK, "supervisor"), *_stop(state_dir / offline.LOCK, "actuator")]
    answer = _put_back(state_dir, restore) if state_dir.is_dir() else Answer(True)
    lines += answer.lines or ["nothing of trimtab's stands"]
    if as_json:
        show.as_json({"schema": SCHEMA, "ok": answer.ok, "lines": lines, "data": answer.data})
    else:
        show.say("\n".join(lines), hang=2)
    return exits.FINE if answer.ok else exits.ERROR


def _stop(lock: Path, what: str) -> list[str]:
    """Have whoever holds the lock end: asked first, then killed. Returns what is to be said."""
    pid = offline.holder(lock)
    if not pid:
        return []
    offline.end(lock, pid, kill=False)
    if not _stopped(pid) and _gone(lock, GRACE_S):
        return [f"{what} (pid {pid}) has stopped"]
    offline.end(lock, pid, kill=True)
    if _gone(lock, KILLED_S):
        return [f"{what} (pid {pid}) did not stop and was killed"]
    raise LinkError(f"{what} (pid {pid}) cannot be killed; it holds {lock}")


def _stopped(pid: int) -> bool:
    """Stopped by a signal or a tracer: it will not act on SIGTERM."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] in "Tt"
    except OSError:
        return False


def _gone(lock: Path, within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    # One that dies has let go of its files before the kernel has of its lock.
    while offline.holder(lock) or not _free(lock):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _free(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _put_back(state_dir: Path, restore: bool) -> Answer:
    if restore:
        return offline.order(state_dir, Ask("rollback", who="trimtab off"))
    lines = offline.end_trials(state_dir, None, "trimtab off")
    return Answer(True, lines)
