"""Decoding is strict: whatever is no message of ours is a CodecError, and nothing but a CodecError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import CodecError, decode, encode
from bus.schema import Answer, Ask, Batch, Counters, Netns, Tick, Wish

KINDS: tuple[Any, ...] = (Batch, Wish, Ask, Answer)
WISH = ["Wish", 1, 2, 3, "net.x", 4, 5, 6, 7, "why", {"a": 1}]
TICK = ["Tick", 1, 2]


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def batch(*events: Any) -> list[Any]:
    return [1, "p", 1, 0, list(events)]


def wish(position: int, value: Any) -> list[Any]:
    return [*WISH[: position + 1], value, *WISH[position + 2 :]]


WRONG: dict[str, tuple[Any, Any, str]] = {
    "unknown topic": (Batch, batch(["Tock", 1, 2]), "Tock"),
    "no topic": (Batch, batch([]), "array"),
    "topic of another kind": (Batch, batch([7, 1, 2]), "str"),
    "field missing": (Batch, batch(["Tick", 1]), "at least length"),
    "field too many": (Batch, batch(["Tick", 1, 2, 3]), "at most length"),
    "number as text": (Batch, batch(["Tick", 1, "2"]), "Expected `int`, got `str`"),
    "number as fraction": (Batch, batch(["Tick", 1, 2.0]), "Expected `int`, got `float`"),
    "number as truth": (Batch, batch(["Tick", 1, True]), "Expected `int`, got `bool`"),
    "nothing": (Batch, batch(["Tick", 1, None]), "got `None`"),
    "truth as number": (Batch, batch(["Netns", 1, 1, 1, "n", 1]), "Expected `bool`, got `int`"),
    "count below zero": (Batch, batch(["Tick", 1, -1]), ">= 0"),
    "name too long": (Batch, batch(["Netns", 1, 1, 1, "n" * 129, True]), "<= 128"),
    "verdict unheard of": (
        Batch,
        batch(["Outcome", 1, "d", "t", 0, 1, 2, "blessed", "", 1, 0]),
        "Invalid enum value 'blessed'",
    ),
    "counter as text": (Batch, batch(["Counters", 1, 0, "s", {"a": "1"}]), "Expected `int`, got `str`"),
    "another version": (Batch, [2, "p", 1, 0, [TICK]], "Invalid enum value 2"),
    "version as text": (Batch, ["1", "p", 1, 0, [TICK]], "Expected `int`"),
    "batch with more": (Batch, [*batch(TICK), 9], "at most length"),
    "batch as map": (Batch, {"version": 1}, "Expected `array`"),
    "wish of another version": (Wish, wish(0, 2), "Invalid enum value 2"),
    "wish valid for ever": (Wish, wish(2, 60_000_000_001), "<= 60000000000"),
    "wish valid for less than nothing": (Wish, wish(2, -1), ">= 0"),
    "wish for a name too long": (Wish, wish(3, "n" * 129), "<= 128"),
    "wish for half a value": (Wish, wish(7, 1.5), "Expected `int`, got `float`"),
    "wish without a why": (Wish, wish(8, ""), ">= 1"),
    "wish with too long a why": (Wish, wish(8, "w" * 401), "<= 400"),
    "evidence that is a list": (Wish, wish(9, [1]), "Expected `object`, got `array`"),
    "evidence that nests": (Wish, wish(9, {"a": {"b": 1}}), "got `object`"),
    "evidence too large": (Wish, wish(9, {str(n): n for n in range(25)}), "<= 24"),
    "evidence with too long a word": (Wish, wish(9, {"a": "x" * 129}), "<= 128"),
    "unknown verb": (Ask, {"verb": "shutdown"}, "Invalid enum value 'shutdown'"),
    "unknown field": (Ask, {"verb": "ping", "force": True}, "unknown field `force`"),
    "no verb": (Ask, {}, "missing required field `verb`"),
    "a change below zero": (Ask, {"verb": "rollback", "change": -1}, ">= 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_misshapen_is_refused_with_the_reason(name: str) -> None:
    kind, value, reason = WRONG[name]
    with pytest.raises(CodecError) as caught:
        decode(kind, pack(value))
    assert str(caught.value).startswith(f"not a {kind.__name__}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


BOMBS = {
    "arrays in arrays": b"\x91" * 500_000,
    "maps in maps": b"\x81\xa1a" * 200_000,
    "arrays in an event": pack(batch())[:-1] + b"\x91" * 500_000,
    "maps in counters": pack(batch())[:-1] + b"\x91\x95\xa8Counters\x01\x00\xa1s" + b"\x81\xa1a" * 200_000,
    "an array of four billion": pack(batch())[:-1] + b"\xdd\xff\xff\xff\xff",
    "a map of four billion": pack(batch())[:-1] + b"\x91\x95\xa8Counters\x01\x00\xa1s\xdf\xff\xff\xff\xff",
    "a text of four billion": b"\x95\x01\xdb\xff\xff\xff\xff",
    "bytes for text": b"\x95\x01\xc4\x01p\x01\x00\x90",
    "text that is not UTF-8": b"\x95\x01\xa1\xff\x01\x00\x90",
    "a type that does not exist": b"\xc1",
    "an extension": b"\xd4\x01\x00",
    "a time stamp": b"\x95\x01\xa1p\xd6\xff\x00\x00\x00\x01\x00\x90",
    "nothing at all": b"",
    "one byte too few": pack(batch(TICK))[:-1],
    "one byte too many": pack(batch(TICK)) + b"\x00",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_bytes_do_more_than_be_refused(kind: Any, name: str) -> None:
    with pytest.raises(CodecError):
        decode(kind, BOMBS[name])


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_random_bytes_are_refused(kind: Any, raw: bytes) -> None:
    with pytest.raises(CodecError):
        decode(kind, raw)


SAMPLES = (
    Batch(1, "p", 1, 0, [Tick(1, 2), Netns(1, 2, 3, "n", True), Counters(1, 0, "s", {"a": -1})]),
    Wish(1, 2, 3, "net.x", 4, 5, 6, 7, "why", {"a": 1}),
    Ask("mode", mode="advise"),
    Answer(False, ["no"], {"a": {"b": 1}}),
)


@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_a_good_message_with_bytes_flipped_is_a_good_message_or_refused(
    sample: Any, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(encode(sample))
    for where, what in flips:
        raw[where % len(raw)] = what
    try:
        message = decode(type(sample), bytes(raw))
    except CodecError:
        return
    assert isinstance(message, type(sample))
    assert decode(type(sample), encode(message)) == message


def test_what_the_largest_counter_of_the_kernel_holds_fits() -> None:
    batch = Batch(1, "p", 1, 0, [Counters(1, 0, "s", {"top": 2**64 - 1, "bottom": -(2**63)})])
    assert decode(Batch, encode(batch)) == batch
