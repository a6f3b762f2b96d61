"""The engine: who sees which event, and which wishes are repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.schema import VERSION, AnyEvent, Beat, Event, Gap, Netns, Tick, Verdict, Wish
from deciders.engine import ADVICE_MAX, SENT_MAX, Decider, asking, decide, decide_apart

SEC = 1_000_000_000


def wish(t_ns: int, want: int = 2, netns: int = 1, tunable: str = "a.b", believed: int = 1) -> Wish:
    return Wish(VERSION, t_ns, SEC, tunable, netns, 1, believed, want, "why", {})


def decider(topics: tuple[type[Event], ...], step: Any, name: str = "test") -> Decider:
    module: Any = SimpleNamespace(NAME=name, TOPICS=topics, Policy=None, start=lambda policy: policy, step=step)
    return Decider(module, [])


def asks(*wishes: Wish) -> Decider:
    """Asks for the same at every tick."""

    def step(state: Any, event: Tick) -> tuple[Any, Sequence[Wish]]:
        return state, [Wish(VERSION, event.t_ns, SEC, *_what(one)) for one in wishes]

    return decider((Tick,), step)


def _what(one: Wish) -> tuple[Any, ...]:
    return (one.tunable, one.netns, one.netns_ino, one.believed, one.want, one.why, one.evidence)


def wanted(events: list[AnyEvent], *deciders: Decider) -> list[list[int]]:
    return [[one.want for one in found if isinstance(one, Wish)] for _, found in decide(events, deciders)]


def test_what_a_decider_would_have_people_do_comes_from_its_state() -> None:
    module: Any = SimpleNamespace(NAME="x", TOPICS=(Tick,), Policy=None, start=lambda policy: policy, step=None)
    assert Decider(module, []).advice() == []
    module.advice = lambda state: [f"line {number}" for number in range(state)]
    assert Decider(module, 2).advice() == ["line 0", "line 1"]
    assert len(Decider(module, 1000).advice()) == ADVICE_MAX


def test_each_decider_sees_its_topics_in_order_and_every_event_comes_out() -> None:
    seen: dict[str, list[AnyEvent]] = {"ticks": [], "both": []}

    def watch(name: str, *topics: type[Event]) -> Decider:
        def step(state: Any, event: AnyEvent) -> tuple[Any, Sequence[Wish]]:
            seen[name].append(event)
            return state, ()

        return decider(topics, step, name)

    events: list[AnyEvent] = [Tick(1, 1), Gap(2, "x", 1, False), Netns(3, 1, 1, "", True), Tick(4, 2)]
    out = [event for event, _ in decide(events, [watch("ticks", Tick), watch("both", Tick, Gap)])]
    assert out == events
    assert seen == {"ticks": [events[0], events[3]], "both": [events[0], events[1], events[3]]}


def test_the_state_that_a_step_returns_is_what_the_next_one_gets() -> None:
    states: list[Any] = []

    def step(state: Any, event: Tick) -> tuple[Any, Sequence[Wish]]:
        states.append(state)
        return event.seq, ()

    list(decide([Tick(1, 11), Tick(2, 12), Tick(3, 13)], [decider((Tick,), step)]))
    assert states == [[], 11, 12]


def test_wishes_come_in_the_order_of_the_deciders() -> None:
    assert wanted([Tick(1, 1)], asks(wish(0, 5), wish(0, 4)), asks(wish(0, 9))) == [[5, 4, 9]]


def test_a_replay_hears_of_the_same_wishes_after_as_many_events() -> None:
    events: list[AnyEvent] = [
        Gap(1, "x", 1, False), Tick(1, 1), Tick(2, 1), Netns(3, 1, 1, "", False), Tick(4, 1), Gap(5, "x", 1, False),
        Tick(2 * SEC, 1),
    ]  # fmt: skip

    def deciders() -> list[Decider]:
        return [asks(wish(0, 5)), asks(), asks(wish(0, 7), wish(0, 9, netns=2))]

    found = [(at, [wishes for _, wishes in asked]) for at, asked in asking(events, deciders())]
    apart = enumerate(decide_apart(events, deciders()), 1)
    assert found == [(at, [wishes for _, wishes in asked]) for at, (_, asked) in apart if asked]
    assert [at for at, _ in found] == [2, 5, 7]


def test_events_are_taken_one_by_one_as_they_come() -> None:
    taken: list[int] = []

    def source() -> Any:
        for number in range(3):
            taken.append(number)
            yield Tick(number, number)

    stream = decide(source(), [])
    next(stream)
    assert taken == [0]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, SEC // 2, SEC - 1], [[2], [], []]),
        ([0, SEC, 2 * SEC], [[2], [2], [2]]),
        ([0, SEC // 2, SEC, SEC + SEC // 2], [[2], [], [2], []]),
        ([SEC, SEC // 2, 1], [[2], [], []]),
        ([3 * SEC, SEC], [[2], [2]]),
    ],
)
def test_a_repeated_wish_goes_out_once_a_second(times: list[int], expected: list[list[int]]) -> None:
    events: list[AnyEvent] = [Tick(t_ns, 1) for t_ns in times]
    assert wanted(events, asks(wish(0))) == expected


@pytest.mark.parametrize("other", [wish(0, netns=9), wish(0, want=9), wish(0, tunable="c.d"), wish(0, believed=9)])
def test_a_wish_that_differs_in_anything_is_no_repetition(other: Wish) -> None:
    assert [len(found) for found in wanted([Tick(1, 1), Tick(2, 1)], asks(wish(0), other))] == [2, 0]


def test_two_deciders_do_not_silence_each_other() -> None:
    assert wanted([Tick(1, 1)], asks(wish(0)), asks(wish(0))) == [[2, 2]]


def test_verdicts_pass_and_are_not_repeated_either() -> None:
    def step(state: Any, event: Tick) -> tuple[Any, Sequence[Any]]:
        return state, [Verdict(VERSION, event.t_ns, SEC, change, change == 1, "why", {}) for change in (1, 2)]

    out = [found for _, found in decide([Tick(1, 1), Tick(2, 1), Tick(2 * SEC, 1)], [decider((Tick,), step)])]
    assert [len(found) for found in out] == [2, 0, 2]
    assert not any(isinstance(one, Beat) for found in out for one in found)


def test_a_namespace_that_has_gone_is_forgotten_and_others_are_not() -> None:
    one = asks(wish(0, netns=1), wish(0, netns=2))
    list(decide([Tick(1, 1), Netns(2, 1, 1, "", True)], [one]))
    assert one.remembered == 2
    list(decide([Netns(3, 1, 1, "", False)], [one]))
    assert one.remembered == 1


def test_what_is_remembered_is_bounded() -> None:
    def step(state: Any, event: Tick) -> tuple[Any, Sequence[Wish]]:
        return state, [wish(event.t_ns, want=event.seq)]

    one = decider((Tick,), step)
    assert sum(len(found) for _, found in decide([Tick(n, n) for n in range(3 * SENT_MAX)], [one])) == 3 * SENT_MAX
    assert one.remembered == SENT_MAX


@given(st.lists(st.tuples(st.integers(0, 5 * SEC), st.integers(1, 3)), max_size=50))
def test_no_wish_goes_out_twice_within_a_second(asked: list[tuple[int, int]]) -> None:
    def step(state: Any, event: Tick) -> tuple[Any, Sequence[Wish]]:
        return state, [wish(event.t_ns, want=event.seq)]

    last: dict[int, int] = {}
    for event, found in decide([Tick(t_ns, want) for t_ns, want in asked], [decider((Tick,), step)]):
        assert isinstance(event, Tick)
        repeated = event.seq in last and abs(event.t_ns - last[event.seq]) < SEC
        assert bool(found) != repeated
        if found:
            last[event.seq] = event.t_ns
