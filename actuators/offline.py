"""Orders when no actuator runs: rollback, hold and release, straight from the journal, under the actuator's lock."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from actuators.parts import Parts, StateLock, assemble
from actuators.restore import Restore
from actuators.state_dir import LOCK, JournalError
from actuators.undo import Ending
from bus import plugins, tunables
from bus.config import ConfigError
from bus.link import LinkError
from bus.schema import Answer, Ask
from bus.tunables import Tunable

__all__ = ["LOCK", "VERBS", "end", "end_trials", "holder", "order", "restore"]

VERBS = ("rollback", "hold", "release", "confirm", "revert")


def order(folder: Path, ask: Ask) -> Answer:
    """Carry out an order on the state directory `folder`. Raises LinkError where an actuator holds it: ask that one.

    Works with a broken configuration, a missing third party's tuner, and a journal that can only be read.
    """
    if ask.verb not in VERBS:
        raise LinkError(f"no actuator runs, and `{ask.verb}` needs one")
    said: list[str] = []
    try:
        with _opened(folder, said) as parts:
            answer: Answer = getattr(parts.orders, ask.verb)(ask)
    except JournalError as error:
        return Answer(False, [str(error)])
    return Answer(answer.ok, [*said, *answer.lines], answer.data)


def end_trials(folder: Path, deciders: Collection[str] | None, why: str) -> list[str]:
    """Put back what these deciders (None: all) have on trial. Returns what is to be said. LinkError where an actuator
    has the lock."""
    said: list[str] = []
    try:
        with _opened(folder, said) as parts:
            parts.undo.trials(Ending("reverted", why), deciders)
    except JournalError as error:
        said.append(str(error))
    return said


def restore(folder: Path) -> list[str]:
    """Apply what was confirmed before a reboot: for a oneshot early in the boot. Returns what is to be said."""
    said: list[str] = []
    with _opened(folder, said) as parts:
        done = Restore(parts).run()
    return [*said, f"{done} confirmed values applied again"]


def holder(lock: Path) -> int:
    """The pid of who holds this lock file, proc_locks(5); 0 where nobody does. For root."""
    try:
        file = lock.stat()
    except OSError:
        return 0
    # `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(file.st_ino) and _has_open(words[4], file):
            return int(words[4])
    return 0


def _has_open(pid: str, file: os.stat_result) -> bool:
    """Files of two file systems may have one number (of each tmpfs the first is 2), and the device there is not always
    that of stat(2): btrfs, overlayfs. So the process itself is looked at, before one is ended that has nothing to do
    with it."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as found:
            for each in found:
                with contextlib.suppress(OSError):
                    if os.path.samestat(each.stat(), file):
                        return True
    except OSError:
        pass
    return False


def end(lock: Path, pid: int, kill: bool) -> None:
    """Have the holder of a lock stop, or kill it; it may be stopped (SIGSTOP) itself."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            # Looked at with the pidfd in hand: the number cannot have become another process's in between.
            if holder(lock) == pid:
                signal.pidfd_send_signal(process, signal.SIGKILL if kill else signal.SIGTERM)
        finally:
            os.close(process)


@contextlib.contextmanager
def _opened(folder: Path, said: list[str]) -> Iterator[Parts]:
    """The parts, with what stands taken up, under the actuator's lock."""
    with contextlib.closing(StateLock(folder)) as lock:
        lock.take()
        with contextlib.closing(assemble(_rows(), folder, said.append, lambda event: None)) as parts:
            try:
                said += parts.keeper.open()
            except JournalError as error:
                said.append(f"the journal cannot be written: {error}")
            parts.undo.recover()
            yield parts


def _rows() -> Mapping[str, Tunable]:
    try:
        return tunables.table(row for tuner in plugins.tuners() for row in tuner.rows)
    except (ConfigError, ValueError):
        return tunables.table()
