"""Writes a decider's tape (see bus.tape) beside its work: never in its way.

What is to be recorded is gathered in memory and written every few seconds, sooner where something was asked for: what
comes each second is alike, and packs the better the more of it is packed at once. The decider packs it, and another
thread writes it (bus.disk). A disk that is full, that hangs or does not keep up, or a directory that cannot be written,
stops the tape and not the decider: what was gathered is let go and counted, and a new segment is tried a minute later.
Not forced to disk: a tape is no journal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bus.codec import encode
from bus.config import Config
from bus.disk import Disk, Work
from bus.schema import VERSION, Probe, Request
from bus.segment_file import SegmentFile, Tally
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
    """One decider's tape. `turn` is to be called whenever all that has come is folded. Nothing waits for the disk."""

    def __init__(
        self, folder: Path, cap_bytes: int, segment_bytes: int, begin: Callable[[int], Head], disk: Disk | None = None
    ) -> None:
        """folder: the decider's own. cap_bytes: all of it at most. begin: makes the head of the segment of a number.
        disk: who writes; several recorders may have the same."""
        self.disk = disk or Disk()
        self._folder = folder
        self._cap_bytes = cap_bytes
        # At least two: with one, nothing would be left of it when the next begins.
        self._segment_bytes = min(segment_bytes, cap_bytes // 2)
        self._begin = begin
        self._name = _now()
        self._file: SegmentFile | None = None
        self._tally = Tally()
        self._trouble = ""
        self._number = 0
        self._segment = 0
        self._gathered: list[bytes] = []
        self._size = 0
        self._patience_ns = FLUSH_NS
        self._flushed_ns = self._began_ns = self._retry_ns = 0

    @property
    def trouble(self) -> str:
        """Why nothing is recorded; empty when all is well."""
        found = (self._file.trouble if self._file else "") or self._trouble
        return found or (f"{self._folder}: the disk does not answer" if self.disk.silent else "")

    @property
    def written(self) -> int:
        """Bytes, since the process began."""
        return self._tally.written

    def lost(self, events: int) -> int:
        """How many of so many folded events are on no tape."""
        whole = self._file is not None and not self._file.trouble
        return self._tally.lost + (0 if whole else events - self._tally.events)

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
        file = self._file
        if file and file.trouble:
            self._give_up(file.trouble, t_ns)
        elif file and file.begun:
            self._trouble = ""
        if not self._file:
            self._clear(t_ns)
            # What waits to be written is not to be made more by trying again.
            if t_ns >= self._retry_ns and (self.disk.idle or not self._trouble):
                self._guarded(lambda: self._open(t_ns, events), t_ns)
            return
        if self._size < BLOCK_BYTES and t_ns - self._flushed_ns < self._patience_ns:
            return
        self._guarded(lambda: self._flush(t_ns, events), t_ns)
        why = "full" if self._segment >= self._segment_bytes else "old" if t_ns - self._began_ns >= SEGMENT_NS else ""
        if why and self._file is not None:
            self._guarded(lambda: self._shut(t_ns, events, why), t_ns)
            self._guarded(lambda: self._open(t_ns, events), t_ns)

    def close(self, t_ns: int, events: int) -> None:
        """Write what is gathered, and end the segment. It is done when the disk has settled."""
        if self._file:
            self._guarded(lambda: self._flush(t_ns, events), t_ns)
        if self._file:
            self._guarded(lambda: self._shut(t_ns, events, "stopped"), t_ns)

    def _open(self, t_ns: int, events: int) -> None:
        raw = opening() + pack("head", encoded(self._begin(self._number)))
        self._name = self._name or _now()
        file = SegmentFile(self._folder / f"{self._name}-{self._number:04d}{SUFFIX}", self._tally)
        allowed = self._cap_bytes - self._segment_bytes - BLOCK_BYTES
        self._number += 1
        self._give(lambda: file.begin(raw, events, allowed), raw)
        self._file, self._segment = file, len(raw)
        self._began_ns = t_ns
        self._clear(t_ns)

    def _flush(self, t_ns: int, events: int) -> None:
        block, file = b"".join(self._gathered), self._file
        self._clear(t_ns)
        if block and file:
            raw = pack("block", block, level=LEVEL)
            self._give(lambda: file.add(raw, events), raw)
            self._segment += len(raw)

    def _shut(self, t_ns: int, events: int, why: str) -> None:
        raw, file = pack("end", encoded(End(t_ns=t_ns, events=events, why=why))), self._file
        if file:
            self._give(lambda: file.end(raw, events), raw)
        self._file = None

    def _give(self, work: Work, raw: bytes) -> None:
        if not self.disk.give(work, len(raw)):
            waiting = f"{self.disk.waiting_bytes >> 10} KiB wait to be written"
            raise TapeError(f"{self._folder}: the disk does not keep up: {waiting}")

    def _guarded(self, work: Callable[[], None], t_ns: int) -> None:
        try:
            work()
        except TapeError as error:
            self._give_up(str(error), t_ns)

    def _give_up(self, why: str, t_ns: int) -> None:
        self._trouble = why
        self._retry_ns = t_ns + RETRY_NS
        file, self._file = self._file, None
        if not file:
            return
        self.disk.give(file.let_go)
        if file.trouble and not file.begun:
            self._number -= 1
        if file.taken:
            # Not ours, whatever it is: the next try takes another name.
            self._name = ""

    def _clear(self, t_ns: int) -> None:
        self._gathered.clear()
        self._size = 0
        self._patience_ns = FLUSH_NS
        self._flushed_ns = t_ns


def _now() -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f".{time.time_ns() // 1_000_000 % 1000:03d}Z"
