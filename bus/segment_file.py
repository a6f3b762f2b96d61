"""A tape's segment as a file while it is recorded (see bus.recorder). What changes it is work for a bus.disk.Disk; what
goes wrong with that is kept as a word, for the recorder to find."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from msgspec import Struct

from bus.tape import SUFFIX


class Tally(Struct):
    """What has become of a tape, over all its segments. Counted where it is written."""

    written: int = 0
    """Bytes."""
    events: int = 0
    """How many had been folded, since the process began, by the end of what is on it."""
    lost: int = 0
    """How many of them are not on it."""


class SegmentFile:
    """One segment, in one file of its own."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.trouble = ""
        """Why nothing is written to it any more; empty when all is well."""
        self.begun = False
        """It is there."""
        self.taken = False
        """Something else of that name is there."""
        self._path = path
        self._tally = tally
        self._fd = -1
        self._size = 0

    def begin(self, raw: bytes, events: int, allowed_bytes: int) -> None:
        """Make it, with these bytes in it. allowed_bytes: of more than that beside it, the oldest goes."""
        try:
            _make_room(self._path, allowed_bytes)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.taken = isinstance(error, FileExistsError)
            self.trouble = _words(error)
            return
        # Says that it is being written (see bus.tape_reader); who reads it already has asked for that, for a moment.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lost = events - self._tally.events
        self.add(raw, events)
        if self.trouble:
            # Each try on a full disk would leave one of these.
            with contextlib.suppress(OSError):
                self._path.unlink()
            return
        self._tally.lost += lost
        self.begun = True

    def add(self, raw: bytes, events: int) -> None:
        """Append a frame. events: how many had been folded by its end."""
        if self._fd < 0:
            return
        try:
            self._write(raw)
        except OSError as error:
            self.trouble = f"{self._path.parent}: {error.strerror}" if not error.filename else _words(error)
            self.let_go()
            return
        self._tally.events = events

    def end(self, raw: bytes, events: int) -> None:
        """Append the last frame."""
        self.add(raw, events)
        self.let_go()

    def let_go(self) -> None:
        """Leave it as it is."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1

    def _write(self, raw: bytes) -> None:
        if not os.fstat(self._fd).st_nlink:
            raise OSError(errno.ENOENT, "has been removed", str(self._path))
        try:
            written = os.write(self._fd, raw)
            if written < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path.parent))
        except OSError:
            # A part of a frame is of no use. On a full disk, too, a file can be shortened.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += written
        self._tally.written += written


def _make_room(path: Path, allowed_bytes: int) -> None:
    # What is no plain file is none of ours, and is left.
    found = [(file, file.lstat()) for file in path.parent.glob(f"*{SUFFIX}")]
    ours = [(file, its.st_size) for file, its in found if stat.S_ISREG(its.st_mode)]
    size = sum(its for _, its in ours)
    run, _ = _place(path)
    # Of other runs the names tell the order by the wall clock, which may have been set back: what is this run's goes
    # last of all.
    for file, its in sorted(ours, key=lambda each: (_place(each[0])[0] == run, _place(each[0]))):
        if size <= allowed_bytes:
            break
        file.unlink()
        size -= its


def _place(file: Path) -> tuple[str, int]:
    """Run and number of a segment: one of five digits comes after those of four."""
    run, _, number = file.stem.rpartition("-")
    return run, int(number) if number.isdecimal() else 0


def _words(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words
