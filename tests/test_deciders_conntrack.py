"""The decider of nf_conntrack_max: ahead of a full table, not in a flood, and back again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bus.schema import Counters, Outcome, Value, Wish
from bus.tunables import table
from deciders import conntrack
from deciders.conntrack import BUCKETS, MAX, Policy, State
from trimtab.testing.loop import MEM_BYTES, Loop
from trimtab.testing.waves import burst, constant, ramp, step
from trimtab.testing.worlds_room import CONNTRACK, Conntrack

SEC = 1_000_000_000
CEILING = MEM_BYTES // 64 // 512


def known(limit: int = 1000, high: int = 100_000) -> State:
    state = conntrack.start(Policy())
    tell(state, Value(SEC, MAX, 0, 0, limit, limit, 64, high, False))
    return state


def tell(state: State, *events: object) -> list[Wish]:
    return [wish for event in events for wish in conntrack.step(state, event)[1]]


def entries(seconds: int, count: int, drop: int = 0, early: int = 0) -> Counters:
    return Counters(seconds * SEC, 1, "net/stat/nf_conntrack", {"entries": count, "drop": drop, "early_drop": early})


@pytest.mark.parametrize(
    ("seen", "grows"),
    [
        ([entries(2, 740), entries(3, 749)], False),
        ([entries(2, 740), entries(3, 750)], True),
        # Full in 2.5 s at this rate, or in 3.5 s.
        ([entries(2, 250), entries(3, 465)], True),
        ([entries(2, 300), entries(3, 455)], False),
        ([entries(2, 10, 7), entries(3, 10, 8)], True),
        ([entries(2, 10, 0, 7), entries(3, 10, 0, 8)], True),
        ([entries(2, 10, 7, 7), entries(3, 10, 7, 7)], False),
        ([entries(2, 10, 7)], False),
    ],
)
def test_it_grows_when_it_is_nearly_full_soon_will_be_or_was(seen: Sequence[Counters], grows: bool) -> None:
    assert [(wish.tunable, wish.believed, wish.want) for wish in tell(known(), *seen)] == (
        [(MAX, 1000, 2000)] if grows else []
    )


def test_the_sentence_says_why() -> None:
    (wish,) = tell(known(), entries(2, 400), entries(3, 800, 5))
    assert wish.why == "800 of 1000 connections tracked, 400 more a second; some were given up or refused"
    assert (wish.evidence["entries"], wish.evidence["per_s"]) == (800, 400)


def test_ahead_of_a_table_that_fills_none_is_refused() -> None:
    world = Conntrack(ramp(3, 40, 100_000))
    loop = Loop(["conntrack"], [world]).run(60)
    assert world.refused == 0
    assert 100_000 <= loop.final(CONNTRACK) <= 2 * 100_000 / 0.75
    assert loop.refused == []


def test_it_ends_at_its_share_of_memory() -> None:
    loop = Loop(["conntrack"], [Conntrack(constant(1e8))]).run(60)
    assert loop.final(CONNTRACK) == CEILING
    many = len(loop.wishes)
    assert len(loop.run(60).wishes) == many


def test_a_flood_or_a_want_of_memory_is_no_reason_to_grow_and_what_remains_when_it_is_over_is() -> None:
    world = Conntrack(constant(4000), flood=burst(0, 60, 100))
    loop = Loop(["conntrack"], [world]).run(60)
    assert loop.changes == []
    assert len(loop.run(30).changes) == 1
    assert Loop(["conntrack"], [Conntrack(constant(4000), spare=constant(0.05))]).run(60).changes == []


def test_after_long_quiet_it_goes_back_by_halves() -> None:
    loop = Loop(["conntrack"], [Conntrack(burst(2, 60, 30_000))]).run(120)
    raised = loop.final(CONNTRACK)
    assert raised > 30_000
    assert loop.run(500).final(CONNTRACK) == raised
    assert loop.run(1500).final(CONNTRACK) == 4096
    assert loop.refused == []
    assert loop.reversals(CONNTRACK) == 1


def test_what_is_in_use_stays() -> None:
    loop = Loop(["conntrack"], [Conntrack(constant(3900))]).run(60)
    raised = loop.final(CONNTRACK)
    assert loop.run(3000).final(CONNTRACK) == raised


def test_a_refusal_is_taken_for_an_answer() -> None:
    state = known()
    assert tell(state, entries(1, 900), entries(2, 900))
    tell(state, Outcome(2 * SEC, "conntrack", MAX, 0, 1000, 2000, "ceded", "", 1000, 0))
    assert not tell(state, *(entries(at, 900) for at in range(3, 100)))


def test_long_chains_are_told_with_what_would_shorten_them() -> None:
    state = known(1 << 20)
    tell(state, Value(SEC, BUCKETS, 0, 0, 1024, 1024, 1024, 1 << 20, False), entries(2, 4000))
    assert conntrack.advice(state) == []
    tell(state, entries(3, 8192))
    assert conntrack.advice(state) == [
        "net.netfilter.nf_conntrack_buckets is 1024 for 8192 connections: each is looked for among 8; 8192 buckets"
        " would cost 64 KiB"
    ]


def test_the_buckets_are_nobodys_to_ask_for() -> None:
    assert table()[BUCKETS].risk == "manual"
    loop = Loop(["conntrack"], [Conntrack(step(2, 1e6))]).run(100)
    assert {change.spot.tunable for change in loop.changes} == {MAX}
