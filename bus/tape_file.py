"""A tape's file, frame by frame (see bus.tape): plain bytes in, no more memory than a frame's."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack  # type: ignore[import-untyped]

from bus.tape import FORMAT, MAGIC, PACKED_MAX, SOURCES_MAX, Packed, TapeError

HEAD_BEGINS = b"\x95\xa4head"
"""An array of five, whose first is the text "head": MessagePack."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, which is a plain one. TapeError: what else it is, or why it cannot be read."""
    try:
        # A pipe would be waited for; a device is there without end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise TapeError(f"{path}: not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TapeError(f"{path}: {error.strerror}") from None


def unpacker_of(file: BinaryIO) -> Any:
    """What takes frames from where the file stands, and refuses what is larger or deeper than one."""
    return msgpack.Unpacker(
        file,
        read_size=64 << 10,
        use_list=False,
        max_buffer_size=2 * PACKED_MAX,
        max_str_len=64,
        max_bin_len=PACKED_MAX,
        max_array_len=5,
        max_map_len=0,
        max_ext_len=0,
    )


def next_head(file: BinaryIO, start: int) -> int:
    """Where the next head may begin; 0: nowhere."""
    file.seek(start)
    before = b""
    while chunk := file.read(1 << 20):
        place = (before + chunk).find(HEAD_BEGINS)
        if place >= 0:
            return start - len(before) + place
        start += len(chunk)
        before = chunk[-len(HEAD_BEGINS) + 1 :]
    return 0


def next_frame(unpacker: Any) -> Packed | str:
    """The next frame, or what is wrong with it."""
    try:
        found = next(unpacker)
    except StopIteration:
        return "torn off in the middle of a frame"
    # msgpack's own: what exceeds a limit, is no MessagePack, or holds bad UTF-8.
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        return f"no frame ({error})"
    match found:
        case ("head" | "block" | "end" as kind, int(source), int(size), int(crc), bytes(payload)) if (
            0 <= source < SOURCES_MAX
        ):
            return Packed(kind, source, size, crc, payload)
        case _:
            return "no frame of ours"


def begin(path: Path, unpacker: Any) -> None:
    """Take MAGIC and FORMAT. TapeError: no tape, or one of a newer format."""
    try:
        magic, version = next(unpacker), next(unpacker)
    except (StopIteration, ValueError, msgpack.exceptions.UnpackException):
        raise TapeError(f"{path}: not a tape of trimtab's") from None
    if magic != MAGIC or not isinstance(version, int):
        raise TapeError(f"{path}: not a tape of trimtab's")
    if version != FORMAT:
        raise TapeError(f"{path}: format {version}, and this trimtab reads format {FORMAT}; use a newer one")
