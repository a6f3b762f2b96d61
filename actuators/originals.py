"""originals.log: a second, small copy of what it takes to put everything back when journal.db cannot be read.

JSON objects, one per line, appended: a `Write` before each write of a key, a `Done` once nothing of ours stands there,
a `Held` and a `Released` for the administrator's keys. The last line about a key counts; a line that is no such object
(a torn tail) is skipped. The first `Write` of a key is forced to disk before the key is written; the others are there
for a process that died, which loses nothing that it has written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec import Struct

from actuators.records import Hold, Intent, Site, Spot, Twin
from actuators.state_dir import JournalError, file

NAME = "originals.log"
SIZE_MAX = 1 << 20
"""Above this the log is written anew with what still counts."""


class _Line(Struct, frozen=True, tag_field="what", tag=str.lower):
    spot: Spot
    boot_id: str
    """Empty: holds in every boot."""


class Write(_Line, frozen=True):
    """`new` is about to be written in place of `old`; before trimtab there stood `original`."""

    site: Site
    decider: str
    original: int
    old: int
    new: int
    twin: Twin | None = None


class Done(_Line, frozen=True):
    """Nothing of ours stands there any more."""


class Held(_Line, frozen=True):
    """Hands off this key."""

    why: str
    since_tai_ns: int
    until_tai_ns: int = 0


class Released(_Line, frozen=True):
    """No longer."""


Line = Write | Done | Held | Released
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Recovered(Struct, frozen=True):
    """What a log says stands, or may stand, in one boot."""

    writes: list[Write]
    holds: list[Hold]


def read(state_dir: Path, boot_id: str) -> Recovered:
    """What the log in state_dir says of this boot. A log that is not there, or unreadable, says nothing."""
    lines: list[Line] = []
    with contextlib.suppress(OSError):
        for raw in (state_dir / NAME).read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                lines.append(_decoder.decode(raw))
    writes: dict[Spot, Write] = {}
    holds: dict[Spot, Hold] = {}
    for line in lines:
        if line.boot_id not in ("", boot_id):
            continue
        match line:
            case Write():
                writes[line.spot] = line
            case Done():
                writes.pop(line.spot, None)
            case Held():
                holds[line.spot] = Hold(line.spot, line.why, line.since_tai_ns, not line.boot_id, line.until_tai_ns)
            case Released():
                holds.pop(line.spot, None)
    return Recovered(list(writes.values()), list(holds.values()))


class Originals:
    """The log, open for appending. Methods raise JournalError."""

    def __init__(self, state_dir: Path, boot_id: str, aside: Executor | None = None) -> None:
        """aside: where it is synced while the caller goes on; by default in a thread of its own."""
        self._path = state_dir / NAME
        self._boot_id = boot_id
        file(self._path)
        self._fd = self._open()
        self._aside = aside or ThreadPoolExecutor(1, "originals")
        self._safe: set[Spot] = set()

    @contextlib.contextmanager
    def writing(self, intent: Intent) -> Iterator[None]:
        """Before a write; on disk at the end of the block, for a key's first. Until then other files can be written:
        two disks' waits side by side take as long as one."""
        self._append(
            Write(
                intent.spot,
                self._boot_id,
                intent.site,
                intent.decider,
                intent.original,
                intent.old,
                intent.new,
                intent.twin,
            )
        )
        if intent.spot in self._safe:
            yield
            return
        synced = self._aside.submit(self._sync)
        try:
            yield
        finally:
            synced.exception()
        synced.result()
        self._safe.add(intent.spot)

    def done(self, spot: Spot) -> None:
        """Nothing of ours stands there any more."""
        self._safe.discard(spot)
        self._append(Done(spot, self._boot_id))

    def held(self, hold: Hold) -> None:
        """Hands off; on disk when this returns."""
        self._append(
            Held(hold.spot, "" if hold.ever else self._boot_id, hold.why, hold.since_tai_ns, hold.until_tai_ns)
        )
        self._sync()

    def released(self, spot: Spot) -> None:
        """Not any more."""
        self._append(Released(spot, ""))

    @property
    def too_large(self) -> bool:
        """compact() is due."""
        return os.fstat(self._fd).st_size > SIZE_MAX

    def compact(self, lines: Iterable[Line]) -> None:
        """Replace the log by these lines, at once and for good."""
        fresh = self._path.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            file(fresh)
            fresh.write_bytes(b"".join(_encoder.encode(line) + b"\n" for line in lines))
            fd = self._open(fresh)
            os.fdatasync(fd)
            fresh.rename(self._path)
        except OSError as error:
            raise self._failed(error) from None
        os.close(self._fd)
        self._fd = fd
        self._safe.clear()

    def close(self) -> None:
        """Give the descriptor back."""
        self._aside.shutdown()
        os.close(self._fd)

    def _open(self, path: Path | None = None) -> int:
        try:
            return os.open(path or self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from None

    def _append(self, line: Line) -> None:
        # The leading newline ends a line that an earlier full disk cut short.
        raw = b"\n" + _encoder.encode(line) + b"\n"
        if not os.fstat(self._fd).st_nlink:
            raise JournalError(f"{self._path}: has been removed")
        try:
            written = os.write(self._fd, raw)
        except OSError as error:
            raise self._failed(error) from None
        if written != len(raw):
            raise JournalError(f"{self._path}: no space left")

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> JournalError:
        return JournalError(f"{self._path}: {error.strerror}", error.errno or 0)
