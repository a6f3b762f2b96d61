"""Recordings: what one decider process consumed and asked for, in its own order, so that it can be decided again.

Format 1. A tape is a MessagePack stream: the text MAGIC, the number FORMAT, then frames, each an array of five:

    kind     "head", "block" or "end"
    source   which recorded process it belongs to: 0, unless tapes were merged into one
    size     bytes of the payload when unpacked, at most SIZE_MAX
    crc      CRC-32 of the payload as it stands in the file
    payload  a zstd frame, at most PACKED_MAX bytes

A head (Head, a map) begins a segment of its source. It holds all that is needed to go on from there: the schema, the
resolved configuration, the rows, the host, and the decider's memory at that moment; so a tape whose oldest segments
were dropped still replays exactly. A block is a run of records, each

    length   u32, little-endian: bytes that follow the kind
    kind     u8: BATCH or ASKED
    BATCH    a bus.schema.Batch as it came over the lane
    ASKED    u64, how many events had been folded by then since the process began; then the wish or verdict as sent

and ends where all that had come had been folded, so that its wishes are all there. An end (End, a map) says that the
segment was closed in order; without one the process was killed, or the disk was full. Segments are files of their own,
DECIDER/BEGAN-NUMBER.tape, locked (flock(2)) while they are written; files put one behind the other, but for MAGIC and
FORMAT, make a tape, too.

A reader that meets damage goes on at the next head of that source; where the stream itself is damaged, at the next
bytes that look like the beginning of one.

Evolution: Head and End get fields with a default. Anything else raises FORMAT.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import zstandard
from msgspec import Meta, Struct

from bus.config import Config
from bus.schema import Count, Probe
from bus.tunables import Tunable

MAGIC = "trimtab-tape"
FORMAT = 1
SUFFIX = ".tape"
SIZE_MAX = 32 << 20
"""More than the memory of any decider takes. A frame that claims more is damage, not data."""
PACKED_MAX = 8 << 20
SOURCES_MAX = 1 << 16
"""Recorded processes in one file: more is damage, too."""
RECORDS_MAX = 1 << 18
"""In one block. What a process can gather before it has folded it all is far below."""
BLOCK_BYTES = 256 << 10
"""A block is written when so much has been gathered, or some seconds have passed."""
LEVEL = 1

T = TypeVar("T")
Kind = Literal["head", "block", "end"]
BATCH = 1
ASKED = 2
_RECORD = struct.Struct("<IB")
_AT = struct.Struct("<Q")


class TapeError(ValueError):
    """A tape that cannot be read any further: says which file, where in it, and what is wrong there."""


class Machine(Struct, frozen=True):
    """The host that a tape was recorded on."""

    name: str
    release: str
    machine: str
    cpus: int
    mem_bytes: int
    boot_id: str


class Memory(Struct, frozen=True):
    """A decider at one moment: enough to go on from there."""

    events: Count
    """Folded so far, since the process began."""
    lanes: dict[str, tuple[int, int]]
    """Publisher -> when it began, and its next number (see bus.numbering)."""
    state: bytes = b""
    """MessagePack of the decider's state; empty: it has none that can be kept (then only number 0 can begin)."""
    sent: bytes = b""
    """MessagePack of what the engine remembers of its wishes."""


class Head(Struct, frozen=True, kw_only=True):
    """What a segment begins with. Times in ns."""

    schema: int
    decider: str
    module: str
    """Where its code is, as Python names it."""
    code: str
    """Revision of the code: a digest over what decides (see bus.revision)."""
    session: str
    """Names this run of the process, among all of all hosts."""
    number: Count
    """Of the segment in its session."""
    t_ns: Count
    """CLOCK_MONOTONIC, ..."""
    tai_ns: Count
    """... and CLOCK_TAI at the same moment."""
    tai_offset_s: Annotated[int, Meta(ge=-3600, le=3600)]
    """TAI - UTC as the kernel has it; 0: nobody has set it, and tai_ns is UTC."""
    host: Machine
    config: Config
    rows: list[Tunable]
    """Every tunable, as the configuration has narrowed it."""
    probes: list[Probe] = []
    """What was last heard of each probe."""
    memory: Memory


class End(Struct, frozen=True, kw_only=True):
    """What a segment ends with when it was closed in order."""

    t_ns: Count
    events: Count
    """Folded by then, since the process began."""
    why: str
    """full, old, stopped, cut"""


class Packed(Struct, frozen=True):
    """A frame as it stands in a file."""

    kind: Kind
    source: int
    size: int
    crc: int
    payload: bytes

    @property
    def sound(self) -> bool:
        """Whether the payload is as it was written."""
        return zlib.crc32(self.payload) == self.crc

    def unpack(self) -> bytes:
        """What it holds. TapeError when it is damaged, or is not what it says."""
        if not self.sound:
            raise TapeError("the checksum does not fit: damaged")
        try:
            claimed = zstandard.get_frame_parameters(self.payload).content_size
            # Looked at first: the library allocates what the frame claims.
            if claimed != self.size or claimed > SIZE_MAX:
                raise TapeError(f"claims to hold {claimed} bytes where {self.size} are announced, at most {SIZE_MAX}")
            return _decompressor().decompress(self.payload)
        except zstandard.ZstdError as error:
            raise TapeError(f"cannot be unpacked: {error}") from None


def opening() -> bytes:
    """What every tape begins with."""
    return msgspec.msgpack.encode(MAGIC) + msgspec.msgpack.encode(FORMAT)


def pack(kind: Kind, payload: bytes, source: int = 0, level: int = LEVEL) -> bytes:
    """One frame. TapeError when it would be larger than any reader takes."""
    packed = _compressor(level).compress(payload)
    if len(payload) > SIZE_MAX or len(packed) > PACKED_MAX:
        raise TapeError(f"a {kind} of {len(payload)} bytes is more than fits a frame")
    return msgspec.msgpack.encode((kind, source, len(payload), zlib.crc32(packed), packed))


@functools.cache
def _compressor(level: int) -> zstandard.ZstdCompressor:
    # Kept: to make its tables anew takes longer than to fill them.
    return zstandard.ZstdCompressor(level=level)


@functools.cache
def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=SIZE_MAX)


def record(kind: int, *parts: bytes) -> bytes:
    """One record of a block."""
    return b"".join(record_parts(kind, *parts))


def record_parts(kind: int, *parts: bytes) -> tuple[bytes, ...]:
    """The same in parts, for who joins many."""
    return (_RECORD.pack(sum(map(len, parts)), kind), *parts)


def asked_at(events: int) -> bytes:
    """What stands before a wish in its record."""
    return _AT.pack(events)


def split(block: bytes) -> list[tuple[int, int, bytes]]:
    """The records of a block: (kind, events folded by then where ASKED else 0, message). TapeError for none of ours."""
    found: list[tuple[int, int, bytes]] = []
    place, end = 0, len(block)
    while place < end:
        if end - place < _RECORD.size:
            raise TapeError(f"a record is cut off at byte {place} of its block")
        length, kind = _RECORD.unpack_from(block, place)
        place += _RECORD.size
        at = _AT.size if kind == ASKED else 0
        if kind not in (BATCH, ASKED) or not at < length <= end - place or len(found) == RECORDS_MAX:
            raise TapeError(f"no record of ours at byte {place - _RECORD.size} of its block")
        found.append((kind, _AT.unpack_from(block, place)[0] if at else 0, block[place + at : place + length]))
        place += length
    return found


def encode(what: Head | End | Any) -> bytes:
    """MessagePack of a head, an end, or a state."""
    return msgspec.msgpack.encode(what)


def head(payload: bytes) -> Head:
    """The head in a frame, or TapeError."""
    return _decoded(payload, Head)


def end(payload: bytes) -> End:
    """The end in a frame, or TapeError."""
    return _decoded(payload, End)


def _decoded(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TapeError(f"not a {kind.__name__.lower()} that is understood here: {error}") from None
