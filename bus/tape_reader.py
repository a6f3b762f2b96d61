"""Reads tapes (see bus.tape), streaming: a frame at a time, so in constant memory. Damage ends what it damages, with a
word and never a traceback: the segment that it is in. The next segment holds all that it needs, and is looked for."""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from bus import tape
from bus.codec import CodecError, decode
from bus.numbering import Numbering
from bus.schema import AnyEvent, Batch
from bus.tape import SUFFIX, End, Head, Packed, TapeError
from bus.tape_file import HEAD_BEGINS, begin, next_frame, next_head, opened, unpacker_of

Record = tuple[int, int, bytes]
"""See bus.tape.split."""
PLACES_MAX = 1000
"""Places of one file where a segment is looked for behind damage."""


class Block(Struct, frozen=True):
    """A run of records of one source."""

    records: list[Record]


class Damage(Struct, frozen=True):
    """Where a tape cannot be read, and what that costs."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Unended(Damage, frozen=True):
    """Nothing is damaged, but the segment was not closed in order: what had been gathered last is not there."""


class Segment(Struct, frozen=True):
    """A part of a file that can be replayed on its own."""

    path: Path
    offset: int
    """Of its head in the file."""
    source: int
    packed: Packed
    """Its head, as it stands in the file: a tape may have thousands, each with a decider's memory in it."""

    @property
    def head(self) -> Head:
        """What it begins with."""
        return _head(self.packed)

    def blocks(self) -> Iterator[Block | End | Damage]:
        """What is in it, up to its end, or the damage that ends it."""
        mine = _walk(self.path, self.offset, self.source)
        first = next(mine, None)
        if first is None or not isinstance(first[1], Head):
            yield Damage(str(self.path), "has become another while it was read")
            return
        for _, item in mine:
            if isinstance(item, Head):
                return
            yield item
            if not isinstance(item, Block):
                return


ALL = -1
"""Stands for the source where damage ends the whole file."""


def find(paths: Iterable[Path]) -> list[Path]:
    """The files of these tapes: a file, or a directory of them at any depth, by name. TapeError: none there. OSError:
    a directory that may not be looked into."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(_below(path))
            if not below:
                raise TapeError(f"{path}: no tape ({SUFFIX}) in it")
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise TapeError(f"{path}: no such file")
    return found


def _below(folder: Path) -> Iterator[Path]:
    # Path.rglob() passes over what may not be read.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path))
            elif entry.name.endswith(SUFFIX):
                yield Path(entry.path)


def segments(path: Path) -> list[Segment]:
    """The segments of a file, in their order. TapeError when it is no tape at all."""
    return [found for found in heads(path) if isinstance(found, Segment)]


def heads(path: Path) -> Iterator[Segment | Damage]:
    """The segments of a file as they come, and what keeps one from being read. TapeError when it is no tape at all."""
    headless: dict[int, bool] = {}
    for offset, packed in _packed(path, 0):
        if isinstance(packed, Damage):
            # It may have hit any head, and is told of.
            headless.clear()
            yield packed
        elif packed.kind == "head":
            headless[packed.source] = False
            try:
                _head(packed)
            except TapeError as error:
                yield _skipped(path, offset, error)
            else:
                yield Segment(path, offset, packed.source, packed)
        else:
            if headless.get(packed.source):
                headless[packed.source] = False
                yield _skipped(path, offset, TapeError("the head of a segment is missing"))
            if packed.kind == "end":
                headless[packed.source] = True


def segment(path: Path, offset: int) -> Segment:
    """The segment whose head is at this byte of the file. TapeError: there is none (any more)."""
    packed = next((packed for _, packed in _packed(path, offset)), None)
    if not isinstance(packed, Packed) or packed.kind != "head":
        raise TapeError(f"{path}, byte {offset}: no segment begins there")
    _head(packed)
    return Segment(path, offset, packed.source, packed)


def items(path: Path) -> Iterator[tuple[int, Head | Block | End | Damage]]:
    """All of a file in its order, with the source of each. Damage ends its source up to that one's next head; that of
    ALL ends every source. TapeError when it is no tape at all, or one of a newer format."""
    return _walk(path, 0)


def being_written(path: Path) -> bool:
    """Whether a recorder is at it (bus.recorder holds a lock): then it ends where it ends, and nothing is wrong."""
    with opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _walk(path: Path, start: int, only: int = -1) -> Iterator[tuple[int, Head | Block | End | Damage]]:
    """only: the source that is asked for; -1: all."""
    sound: dict[int, bool] = {}
    known: set[int] = set()
    """Sources that have had a head, or whose lack of one was told of."""
    hit = False
    # Asked first: it may be closed while it is read.
    writing = being_written(path)
    for offset, packed in _packed(path, start):
        if isinstance(packed, Damage):
            # It may have hit any head, and is told of.
            hit = True
            sound.clear()
            yield ALL, packed
            continue
        source = packed.source
        if packed.kind != "head" and source not in known and only == ALL and not hit:
            yield source, _skipped(path, offset, TapeError("it belongs to no segment"))
        known.add(source)
        if only not in (ALL, source) or (packed.kind != "head" and not sound.get(source)):
            continue
        try:
            item = _item(packed)
        except TapeError as error:
            sound[source] = False
            yield source, _skipped(path, offset, error)
            continue
        if isinstance(item, Head) and sound.get(source):
            yield source, _unended(path)
        sound[source] = not isinstance(item, End)
        yield source, item
    unended = [source for source, is_open in sound.items() if is_open]
    for source in () if writing else unended:
        yield source, _unended(path)


@functools.lru_cache(maxsize=2)
def _head(packed: Packed) -> Head:
    return tape.head(packed.unpack())


def lanes(head: Head) -> dict[str, Numbering]:
    """How far each publisher had been heard when the segment began."""
    return {name: Numbering(name, epoch, number) for name, (epoch, number) in head.memory.lanes.items()}


def events(numbering: dict[str, Numbering], raw: bytes) -> list[AnyEvent]:
    """What a recorded batch brought. TapeError for one that no version of ours has sent."""
    return taken(numbering, raw)[1]


def taken(numbering: dict[str, Numbering], raw: bytes) -> tuple[Batch, list[AnyEvent]]:
    """A recorded batch, and what it brought. TapeError for one that no version of ours has sent."""
    try:
        batch = decode(Batch, raw)
    except CodecError as error:
        raise TapeError(str(error)) from None
    lane = numbering.get(batch.publisher)
    if lane is None:
        lane = numbering[batch.publisher] = Numbering(batch.publisher)
    return batch, lane.take(batch)


def _unended(path: Path) -> Damage:
    return Unended(str(path), "the segment has no end: the process was killed, or the disk was full")


def _skipped(path: Path, offset: int, error: TapeError) -> Damage:
    return Damage(f"{path}, byte {offset}", f"{error}; skipped to the next segment")


def _item(packed: Packed) -> Head | Block | End:
    payload = packed.unpack()
    if packed.kind == "head":
        return tape.head(payload)
    return tape.end(payload) if packed.kind == "end" else Block(tape.split(payload))


def _packed(path: Path, start: int) -> Iterator[tuple[int, Packed | Damage]]:
    """The frames from byte `start` on with their offsets; where there is none, Damage, and on from the next head."""
    writing = being_written(path)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        unpacker = unpacker_of(file)
        if not start:
            begin(path, unpacker)
        places = before = 0
        last: Packed | None = None
        while (offset := start + unpacker.tell()) < size:
            found = next_frame(unpacker)
            if isinstance(found, Packed) and HEAD_BEGINS in found.payload and not found.sound:
                # Its length may be what is damaged, and it has taken in what is not its own.
                found = "the checksum does not fit: damaged"
            if isinstance(found, Packed):
                yield offset, found
                before, last = offset, found
                continue
            places += 1
            # One that is damaged and of the wrong length may have taken in the beginning of a head.
            behind = before if last and not last.sound else offset
            start = next_head(file, behind + 1) if places < PLACES_MAX else 0
            if start or not writing:
                rest = f"skipped to byte {start}" if start else "the rest is not read"
                yield offset, Damage(f"{path}, byte {offset}", f"{found}; {rest}")
            if not start:
                return
            file.seek(start)
            unpacker, last = unpacker_of(file), None
