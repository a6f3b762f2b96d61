"""Damaged copies of a tape, of every kind, by a seed."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import msgpack  # type: ignore[import-untyped]
import msgspec
import zstandard

from bus.tape import SIZE_MAX, Head, encode, head, opening, pack, record

OPENING = opening()
Frame = tuple[str, int, int, int, bytes]


def frames(raw: bytes) -> list[Frame]:
    """The frames of a sound tape."""
    return list(msgpack.Unpacker(io.BytesIO(raw[len(OPENING) :]), use_list=False))


def join(found: list[Frame]) -> bytes:
    return OPENING + b"".join(msgpack.packb(frame) for frame in found)


def bounds(raw: bytes) -> list[int]:
    """Where each frame begins, and the end."""
    places = [len(OPENING)]
    for frame in frames(raw):
        places.append(places[-1] + len(msgpack.packb(frame)))
    return places


def _frame(kind: str, payload: bytes, size: int | None = None, crc: int | None = None) -> bytes:
    return bytes(msgpack.packb((kind, 0, len(payload) if size is None else size, crc or zlib.crc32(payload), payload)))


def bomb(size: int = SIZE_MAX) -> bytes:
    """A few KiB that hold 32 MiB."""
    return zstandard.ZstdCompressor(level=19).compress(bytes(size))


def huge_window() -> bytes:
    """A frame that asks for a window of 3.75 TiB: RFC 8878, 3.1.1.1.2, with a content size of 100."""
    return struct.pack("<IBBI", 0xFD2FB528, 0b10_0_0_0_0_00, 0xFF, 100) + bytes(20)


def wild(chance: random.Random, raw: bytes) -> bytes:
    """One damaged copy."""
    return chance.choice(KINDS)(chance, raw)


def truncated(chance: random.Random, raw: bytes) -> bytes:
    place = chance.choice(bounds(raw)) + chance.choice((-30, -3, -1, 0, 1, 2, 7, 12, 40))
    return raw[: max(0, place)]


def flipped(chance: random.Random, raw: bytes) -> bytes:
    copy = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 3, 40))):
        place = chance.choice((chance.randrange(len(copy)), chance.choice(bounds(raw)[:-1]) + chance.randrange(20)))
        copy[min(place, len(copy) - 1)] ^= 1 << chance.randrange(8)
    return bytes(copy)


def zeroed(chance: random.Random, raw: bytes) -> bytes:
    place = chance.randrange(len(raw))
    return raw[:place] + bytes(min(4096, len(raw) - place)) + raw[place + 4096 :]


def removed(chance: random.Random, raw: bytes) -> bytes:
    found = frames(raw)
    del found[chance.randrange(len(found))]
    return join(found)


def duplicated(chance: random.Random, raw: bytes) -> bytes:
    found = frames(raw)
    place = chance.randrange(len(found))
    return join([*found[:place], found[place], *found[place:]])


def swapped(chance: random.Random, raw: bytes) -> bytes:
    found = frames(raw)
    chance.shuffle(found)
    return join(found)


def inserted(chance: random.Random, raw: bytes) -> bytes:
    place = chance.choice(bounds(raw))
    return raw[:place] + chance.choice(LIES)() + raw[place:]


def reheaded(chance: random.Random, raw: bytes) -> bytes:
    """Heads that are well packed, and say what no head of ours says."""
    found = frames(raw)
    _, source, _, _, payload = found[0]
    what = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(payload))
    key = chance.choice(list(what))
    what[key] = chance.choice((None, -1, 2**64 - 1, -(2**63), "", "x" * 1000, [], {}, b"\xff", [[[[]]]], 0.5))
    return OPENING + pack("head", msgspec.msgpack.encode(what), source) + join(found[1:])[len(OPENING) :]


def rememberless(chance: random.Random, raw: bytes) -> bytes:
    """A head with another memory or configuration than its decider understands."""
    found = frames(raw)
    sound: Head = head(zstandard.ZstdDecompressor().decompress(found[0][4]))
    memory = msgspec.structs.replace(
        sound.memory, events=chance.choice((0, 5, 2**63)), state=chance.choice((b"", b"\xc0", bytes(99))), sent=b"\x90"
    )
    policy = chance.choice(({}, {"tcp_buffer": {"no such": 1}}, {"tcp_buffer": {"grow": "x"}}))
    other = msgspec.structs.replace(
        sound, memory=memory, decider=chance.choice(("tcp_buffer", "nobody's", "")),
        config=msgspec.structs.replace(sound.config, policy=policy),
    )  # fmt: skip
    return OPENING + pack("head", encode(other)) + join(found[1:])[len(OPENING) :]


KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    truncated, flipped, flipped, zeroed, removed, duplicated, swapped, inserted, reheaded, rememberless,
)  # fmt: skip

LIES: tuple[Callable[[], bytes], ...] = (
    lambda: b"\x95\xa5block\x00\xce\xff\xff\xff\xff\x00\xc6\xff\xff\xff\xff",
    lambda: b"\x95\xa5block\x00\xce\xff\xff\xff\xff\x00\xdb\xff\xff\xff\xff",
    lambda: b"\xdd\xff\xff\xff\xff",
    lambda: b"\xdf\xff\xff\xff\xff",
    lambda: b"\xc9\xff\xff\xff\xff\x00",
    lambda: b"\x91" * 5000,
    lambda: b"\x95\xa4head",
    lambda: _frame("block", bomb(), SIZE_MAX),
    lambda: _frame("block", bomb(SIZE_MAX + 1), SIZE_MAX + 1),
    lambda: _frame("block", bomb(), 100),
    lambda: _frame("head", bomb(), SIZE_MAX),
    lambda: _frame("block", huge_window(), 100),
    lambda: _frame("block", b"", 0),
    lambda: _frame("block", b"x" * 40, 40, crc=1),
    lambda: _frame("other", b"x"),
    lambda: bytes(msgpack.packb(("block", -1, 0, 0, b""))),
    lambda: bytes(msgpack.packb(("block", 2**63, 0, 0, b""))),
    lambda: bytes(msgpack.packb(("block", "0", None, 1.5, "x"))),
    lambda: pack("block", b"\x01\x00\x00\x00\x01x" * 400_000),
    lambda: pack("block", record(1, b"\x95\x01")),
    lambda: pack("block", record(1, b"\x95\x01\xa1x\x00\x00\x91\x92\xa4Tick\x00")),
    lambda: pack("block", record(2, bytes(8), b"\xc0")),
    lambda: pack("block", b"\xff\xff\xff\xff\x01"),
    lambda: pack("head", b"\x80"),
    lambda: pack("head", b"\x91" * 100_000),
    lambda: pack("end", b"\xc0"),
)
"""Frames that are none of ours, or lie about what they hold."""
