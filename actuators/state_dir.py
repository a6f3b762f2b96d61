"""The state directory: ours, no links, and files in it that are 0600 and ours. Anything else is refused. 0711: nobody
else may look into it or write there, but a decider gets to the directory of its tapes below."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

LOCK = "actuator.lock"
MODE = 0o711
WRITABLE_BY_OTHERS = 0o022
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: a pipe that somebody put there is looked at, not waited for."""


class JournalError(Exception):
    """No journal, and why, in one line. Where there is no journal, nothing is changed; reverts still work."""

    def __init__(self, reason: str, number: int = 0) -> None:
        super().__init__(reason)
        self.errno = number
        """errno(3) where the system said no (EACCES: only root may read the journal); else 0."""


def directory(path: Path) -> None:
    """Make `path` (MODE), or check the one that is there. Raises JournalError."""
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700, parents=True)
        fd = os.open(path, FLAGS | os.O_DIRECTORY)
    except OSError as error:
        raise _refusal(path, error) from None
    try:
        _narrow(path, fd)
    finally:
        os.close(fd)


def _narrow(path: Path, fd: int) -> None:
    status = os.fstat(fd)
    _ours(path, status)
    if stat.S_IMODE(status.st_mode) != MODE:
        try:
            os.fchmod(fd, MODE)
        except OSError as error:
            # A read-only file system: what is in there can still be read.
            if status.st_mode & 0o006:
                raise _refusal(path, error) from None


def file(path: Path) -> None:
    """Make `path` (0600, empty), or check the one that is there. Raises JournalError."""
    try:
        fd = os.open(path, FLAGS | os.O_CREAT, 0o600)
    except OSError as error:
        raise _refusal(path, error) from None
    try:
        status = os.fstat(fd)
        _ours(path, status)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise JournalError(f"{path}: not a plain file with one name; refused")
    finally:
        os.close(fd)


def is_still(path: Path, what: os.stat_result) -> bool:
    """What has this name is what had it then (and is open, so that its number is nobody else's)."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), what)
    return False


def _refusal(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{path}: {error.strerror}", error.errno or 0)


def _ours(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise JournalError(f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()}; refused")
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise JournalError(f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets others write there; refused")
