"""Writes a decider's tape (see bus.tape) beside its work: never in its way.

What is to be recorded is gathered in memory and written every few seconds, sooner where something was asked for: what
comes each second is alike, and packs the better the more of it is packed at once. A disk that is full, or a directory
that cannot be written, stops the tape and not the decider: what was gathered is let go, and a new segment is tried a
minute later. Not forced to disk: a tape is no journal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bus.codec import encode
from bus.config import Config
from bus.schema import VERSION, Probe, Request
from bus.tape import (
    ASKED,
    BATCH,
    BLOCK_BYTES,
    LEVEL,
    SUFFIX,
    End,
    Head,
    Machine,
    Memory,
    TapeError,
    asked_at,
    opening,
    pack,
    record_parts,
)
from bus.tape import encode as encoded
from bus.tunables import Tunable

FLUSH_NS = 10_000_000_000
ASKED_FLUSH_NS = 1_000_000_000
SEGMENT_NS = 3_600_000_000_000
RETRY_NS = 60_000_000_000


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Session:
    """One run of a decider: what all of its segments begin with."""

    def __init__(self, decider: str, module: str, code: str, config: Config, rows: Iterable[Tunable]) -> None:
        self._decider, self._module, self._code = decider, module, code
        self._config, self._rows = config, list(rows)
        name = os.uname()
        boot_id = BOOT_ID.read_text().strip()
        mem_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._host = Machine(name.nodename, name.release, name.machine, os.cpu_count() or 1, mem_bytes, boot_id)
        self._id = f"{boot_id}.{decider}.{os.getpid()}.{time.monotonic_ns()}"

    def head(self, number: int, memory: Memory, probes: Iterable[Probe]) -> Head:
        """The head of a segment that begins now."""
        tai_ns = time.clock_gettime_ns(time.CLOCK_TAI)
        return Head(
            schema=VERSION,
            decider=self._decider,
            module=self._module,
            code=self._code,
            session=self._id,
            number=number,
            t_ns=time.monotonic_ns(),
            tai_ns=tai_ns,
            tai_offset_s=round((tai_ns - time.time_ns()) / 1e9),
            host=self._host,
            config=self._config,
            rows=self._rows,
            probes=list(probes),
            memory=memory,
        )


class Recorder:
    """One decider's tape. `turn` is to be called whenever all that has come is folded, and may then write."""

    def __init__(self, folder: Path, cap_bytes: int, segment_bytes: int, begin: Callable[[int], Head]) -> None:
        """folder: the decider's own. cap_bytes: all of it at most. begin: makes the head of the segment of a number."""
        self.trouble = ""
        """Why nothing is recorded; empty when all is well."""
        self.written = 0
        """Bytes, since the process began."""
        self._folder = folder
        self._cap_bytes = cap_bytes
        # At least two: with one, nothing would be left of it when the next begins.
        self._segment_bytes = min(segment_bytes, cap_bytes // 2)
        self._begin = begin
        self._name = _now()
        self._fd = -1
        self._number = 0
        self._segment = 0
        self._gathered: list[bytes] = []
        self._size = 0
        self._patience_ns = FLUSH_NS
        self._flushed_ns = self._began_ns = self._retry_ns = 0

    def batch(self, raw: bytes) -> None:
        """A batch that has come."""
        # Joined once, when it is written.
        self._gathered += record_parts(BATCH, raw)
        self._size += len(raw)

    def asked(self, events: int, request: Request) -> None:
        """A wish that goes out, after so many events."""
        raw = encode(request)
        self._gathered += record_parts(ASKED, asked_at(events), raw)
        self._size += len(raw)
        self._patience_ns = ASKED_FLUSH_NS

    def turn(self, t_ns: int, events: int) -> None:
        """All that came is folded, and its wishes are out. t_ns: CLOCK_MONOTONIC."""
        if self._fd < 0:
            self._clear(t_ns)
            if t_ns >= self._retry_ns:
                self._guarded(lambda: self._open(t_ns), t_ns)
            return
        if self._size < BLOCK_BYTES and t_ns - self._flushed_ns < self._patience_ns:
            return
        self._guarded(lambda: self._flush(t_ns), t_ns)
        why = "full" if self._segment >= self._segment_bytes else "old" if t_ns - self._began_ns >= SEGMENT_NS else ""
        if why and self._fd >= 0:
            self._guarded(lambda: self._shut(t_ns, events, why), t_ns)
            self._guarded(lambda: self._open(t_ns), t_ns)

    def close(self, t_ns: int, events: int) -> None:
        """Write what is gathered, and end the segment."""
        if self._fd >= 0:
            self._guarded(lambda: self._flush(t_ns), t_ns)
        if self._fd >= 0:
            self._guarded(lambda: self._shut(t_ns, events, "stopped"), t_ns)

    def _open(self, t_ns: int) -> None:
        head = pack("head", encoded(self._begin(self._number)))
        self._make_room()
        self._name = self._name or _now()
        path = self._folder / f"{self._name}-{self._number:04d}{SUFFIX}"
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            # Not ours, whatever it is: the next try takes another name.
            self._name = ""
            raise
        # Says that it is being written (see bus.tape_reader); who reads it already has asked for that, for a moment.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._segment = 0
        self._began_ns = t_ns
        self._clear(t_ns)
        try:
            self._write(opening() + head)
        except OSError:
            # Each try on a full disk would leave one of these.
            path.unlink()
            raise
        self._number += 1
        self.trouble = ""

    def _flush(self, t_ns: int) -> None:
        block = b"".join(self._gathered)
        self._clear(t_ns)
        if block:
            self._write(pack("block", block, level=LEVEL))

    def _shut(self, t_ns: int, events: int, why: str) -> None:
        self._write(pack("end", encoded(End(t_ns=t_ns, events=events, why=why))))
        self._let_go()

    def _write(self, raw: bytes) -> None:
        try:
            written = os.write(self._fd, raw)
            if written < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        except OSError:
            # A part of a frame is of no use. On a full disk, too, a file can be shortened.
            os.ftruncate(self._fd, self._segment)
            raise
        self._segment += written
        self.written += written

    def _make_room(self) -> None:
        # What is no plain file is none of ours, and is left.
        found = [(path, path.lstat()) for path in sorted(self._folder.glob(f"*{SUFFIX}"))]
        ours = [(path, its.st_size) for path, its in found if stat.S_ISREG(its.st_mode)]
        size = sum(size for _, size in ours) + self._segment_bytes + BLOCK_BYTES
        for path, its in ours:
            if size <= self._cap_bytes:
                break
            path.unlink()
            size -= its

    def _guarded(self, work: Callable[[], None], t_ns: int) -> None:
        try:
            work()
        except (OSError, TapeError) as error:
            self.trouble = _words(error)
            self._retry_ns = t_ns + RETRY_NS
            self._let_go()

    def _clear(self, t_ns: int) -> None:
        self._gathered.clear()
        self._size = 0
        self._patience_ns = FLUSH_NS
        self._flushed_ns = t_ns

    def _let_go(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1


def _now() -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f".{time.time_ns() // 1_000_000 % 1000:03d}Z"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
