"""Reads tapes (see bus.tape), streaming: a frame at a time, so in constant memory. Damage ends what it damages, with a
word and never a traceback: a bad frame its segment, a bad stream its file. The next segment holds all that it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
from msgspec import Struct

from bus import tape
from bus.codec import CodecError, decode
from bus.numbering import Numbering
from bus.schema import AnyEvent, Batch
from bus.tape import FORMAT, MAGIC, PACKED_MAX, SUFFIX, End, Head, Packed, TapeError

Record = tuple[int, int, bytes]
"""See bus.tape.split."""


class Block(Struct, frozen=True):
    """A run of records of one source."""

    records: list[Record]


class Damage(Struct, frozen=True):
    """Where a tape cannot be read, and what that costs."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Segment(Struct, frozen=True):
    """A part of a file that can be replayed on its own."""

    path: Path
    offset: int
    """Of its head in the file."""
    source: int
    head: Head

    def blocks(self) -> Iterator[Block | End | Damage]:
        """What is in it, up to its end, or the damage that ends it."""
        mine = (item for source, item in _walk(self.path, self.offset) if source in (self.source, ALL))
        next(mine)
        for item in mine:
            if isinstance(item, Head):
                return
            yield item


ALL = -1
"""Stands for the source where damage ends the whole file."""


def find(paths: Iterable[Path]) -> list[Path]:
    """The files of these tapes: a file, or a directory of them at any depth, by name. TapeError: none there."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(path.rglob(f"*{SUFFIX}"))
            if not below:
                raise TapeError(f"{path}: no tape ({SUFFIX}) in it")
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise TapeError(f"{path}: no such file")
    return found


def segments(path: Path) -> list[Segment]:
    """The segments of a file, in their order. TapeError when it is no tape at all."""
    found: list[Segment] = []
    for offset, packed in _packed(path, 0):
        if isinstance(packed, Packed) and packed.kind == "head":
            with contextlib.suppress(TapeError):
                # A damaged one is told of by items(), and by the segment before it.
                found.append(Segment(path, offset, packed.source, tape.head(packed.unpack())))
    return found


def items(path: Path) -> Iterator[tuple[int, Head | Block | End | Damage]]:
    """All of a file in its order, with the source of each. A source is damaged up to its next head; ALL, to the end.
    TapeError when it is no tape at all, or one of a newer format."""
    return _walk(path, 0)


def _walk(path: Path, start: int) -> Iterator[tuple[int, Head | Block | End | Damage]]:
    sound: dict[int, bool] = {}
    for offset, packed in _packed(path, start):
        where = f"{path}, byte {offset}"
        if isinstance(packed, Damage):
            yield ALL, packed
            return
        source = packed.source
        if packed.kind != "head" and not sound.get(source):
            continue
        try:
            item = _item(packed)
        except TapeError as error:
            sound[source] = False
            yield source, Damage(where, f"{error}; skipped to the next segment")
            continue
        if isinstance(item, Head) and sound.get(source):
            yield source, _unended(path)
        sound[source] = not isinstance(item, End)
        yield source, item
    for source in [source for source, is_open in sound.items() if is_open]:
        yield source, _unended(path)


def lanes(head: Head) -> dict[str, Numbering]:
    """How far each publisher had been heard when the segment began."""
    return {name: Numbering(name, epoch, number) for name, (epoch, number) in head.memory.lanes.items()}


def events(numbering: dict[str, Numbering], raw: bytes) -> list[AnyEvent]:
    """What a recorded batch brought. TapeError for one that no version of ours has sent."""
    try:
        batch = decode(Batch, raw)
    except CodecError as error:
        raise TapeError(str(error)) from None
    lane = numbering.get(batch.publisher)
    if lane is None:
        lane = numbering[batch.publisher] = Numbering(batch.publisher)
    return lane.take(batch)


def _unended(path: Path) -> Damage:
    return Damage(str(path), "the segment has no end: the process was killed, or the disk was full")


def _item(packed: Packed) -> Head | Block | End:
    payload = packed.unpack()
    if packed.kind == "head":
        return tape.head(payload)
    return tape.end(payload) if packed.kind == "end" else Block(tape.split(payload))


def _packed(path: Path, start: int) -> Iterator[tuple[int, Packed | Damage]]:
    """The frames from byte `start` on with their offsets, and the damage that ends them, where there is any."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            unpacker = msgpack.Unpacker(
                file,
                use_list=False,
                max_buffer_size=2 * PACKED_MAX,
                max_str_len=64,
                max_bin_len=PACKED_MAX,
                max_array_len=5,
                max_map_len=0,
                max_ext_len=0,
            )
            if start:
                file.seek(start)
            else:
                _begin(path, unpacker)
            while (offset := start + unpacker.tell()) < size:
                found = _next(unpacker)
                if isinstance(found, str):
                    yield offset, Damage(f"{path}, byte {offset}", f"{found}; the rest is not read")
                    return
                yield offset, found
    except OSError as error:
        raise TapeError(f"{path}: {error.strerror}") from None


def _next(unpacker: Any) -> Packed | str:
    """The next frame, or what is wrong with it."""
    try:
        found = next(unpacker)
    except StopIteration:
        return "torn off in the middle of a frame"
    # msgpack's own: what exceeds a limit, is no MessagePack, or holds bad UTF-8.
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        return f"no frame ({error})"
    match found:
        case ("head" | "block" | "end" as kind, int(source), int(size), int(crc), bytes(payload)) if source >= 0:
            return Packed(kind, source, size, crc, payload)
        case _:
            return "no frame of ours"


def _begin(path: Path, unpacker: Any) -> None:
    try:
        magic, version = next(unpacker), next(unpacker)
    except (StopIteration, ValueError, msgpack.exceptions.UnpackException):
        raise TapeError(f"{path}: not a tape of trimtab's") from None
    if magic != MAGIC or not isinstance(version, int):
        raise TapeError(f"{path}: not a tape of trimtab's")
    if version != FORMAT:
        raise TapeError(f"{path}: format {version}, and this trimtab reads format {FORMAT}; use a newer one")
