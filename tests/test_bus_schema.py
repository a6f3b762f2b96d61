"""The messages' table: what holds for every topic, and what the wire looked like at version 1."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import schema
from bus.codec import decode, encode
from bus.schema import TOPICS, AnyEvent, Batch, Event

COUNTS = st.integers(min_value=0, max_value=2**64 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(min_value=-(2**63), max_value=2**64 - 1),
    bool: st.booleans(),
    schema.Count: COUNTS,
    schema.Name: NAMES,
    schema.Text: NAMES,
    schema.Names: st.lists(NAMES, max_size=16).map(tuple),
    dict[str, int]: st.dictionaries(NAMES, st.integers(min_value=-(2**63), max_value=2**64 - 1), max_size=5),
    dict[schema.Name, schema.Count]: st.dictionaries(NAMES, COUNTS, max_size=5),
}


def field(kind: Any) -> st.SearchStrategy[Any]:
    return PLAIN[kind] if kind in PLAIN else st.sampled_from(get_args(kind))


def events() -> st.SearchStrategy[AnyEvent]:
    def of(topic: type[Event]) -> st.SearchStrategy[Any]:
        kinds = get_type_hints(topic, include_extras=True)
        return st.builds(topic, **{name: field(kinds[name]) for name in topic.__struct_fields__})

    return st.one_of([of(topic) for topic in TOPICS.values()])


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
def test_every_topic_begins_with_its_time_and_is_frozen_tagged_and_told(topic: type[Event]) -> None:
    info = msgspec.inspect.type_info(topic)
    assert isinstance(info, msgspec.inspect.StructType)
    assert info.fields[0].name == "t_ns"
    assert topic.__struct_config__.frozen
    assert info.array_like
    assert info.forbid_unknown_fields
    assert info.tag == topic.__name__
    assert topic.__doc__


def test_no_event_class_was_left_out_of_the_union() -> None:
    assert {topic.__name__ for topic in Event.__subclasses__()} == set(TOPICS)


def test_a_field_that_holds_a_quantity_says_its_unit() -> None:
    quantities = ("rtt", "buf", "bytes", "offset", "wnd", "mss")
    units = ("_ns", "_us", "_s", "_bytes", "_packets", "_kib")
    for topic in TOPICS.values():
        for name in topic.__struct_fields__:
            if any(word in name for word in quantities) and not name.endswith("_locked"):
                assert name.endswith(units), f"{topic.__name__}.{name}"


@given(st.lists(events(), min_size=1, max_size=8), COUNTS, COUNTS)
def test_every_event_comes_out_of_the_wire_as_it_went_in(some: list[AnyEvent], epoch_ns: int, number: int) -> None:
    batch = Batch(schema.VERSION, "collector-proc", epoch_ns, number, some)
    assert decode(Batch, encode(batch)) == batch


GOLDEN: dict[str, tuple[Any, str]] = {
    "batch": (
        Batch(1, "p", 5, 6, [schema.Tick(1, 2), schema.Netns(3, 4, 5, "n", True)]),
        "9501a170050692" + "93a45469636b0102" + "96a54e65746e73030405a16ec3",
    ),
    "wish": (
        schema.Wish(1, 2, 3, "net.x", 4, 5, -6, 7, "why", {"a": 1, "b": "c"}),
        "9ba457697368010203a56e65742e780405fa07a377687982a16101a162a163",
    ),
    "ask": (
        schema.Ask("ping"),
        "87a476657262a470696e67a46d6f6465a0a66368616e676500a774756e61626c65a0a56e65746e7300a377686fa0"
        + "a77365636f6e647300",
    ),
    "answer": (schema.Answer(True, ["x"], {"n": 1}), "83a26f6bc3a56c696e657391a178a46461746181a16e01"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_version_1_looks_on_the_wire_as_it_always_did(name: str) -> None:
    message, wire = GOLDEN[name]
    assert encode(message).hex() == wire
    assert decode(type(message), bytes.fromhex(wire)) == message


def test_a_message_cannot_be_changed() -> None:
    tick = schema.Tick(1, 2)
    with pytest.raises(AttributeError):
        tick.seq = 3  # type: ignore[misc]
