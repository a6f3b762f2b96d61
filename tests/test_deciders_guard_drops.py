"""The guard and packets that are dropped: a change that makes a namespace drop more of what a tunable can cure goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bus.schema import AnyEvent, Drops, Netns, Tick, Trial, Verdict
from bus.tunables import table
from deciders import guard
from deciders.engine import Decider, decide
from deciders.guard import Policy
from deciders.measures import DROPS_MAX, PLACES_MAX

SECOND = 1_000_000_000
HERE = 7
BEGIN_S, SINCE_S = 1000, 1060
Dropped = Callable[[int], int]
"""Second -> packets dropped by then."""


def steadily(per_s: int, from_s: int = BEGIN_S) -> Dropped:
    return lambda second: per_s * max(0, second - from_s)


def stream(dropped: Dropped, until_s: int, reason: str = "CPU_BACKLOG", netns: int = HERE) -> Iterator[AnyEvent]:
    """A change on trial in one namespace, from SINCE_S on; what is dropped in one, told of when there is more."""
    before = 0
    for second in range(BEGIN_S, until_s):
        t_ns = second * SECOND
        if dropped(second) > before:
            before = dropped(second)
            yield Drops(t_ns - SECOND // 2, netns, 1, 2, reason, before)
        if second > SINCE_S:
            yield Trial(t_ns, 1, "tcp_buffer", "t", HERE, 1, 100, 150, SINCE_S * SECOND, ("drops",))
        yield Tick(t_ns, second)


def verdicts(events: Iterator[AnyEvent]) -> list[Verdict]:
    decider = Decider(guard, Policy(soak_s=100))
    return [wish for _, wishes in decide(events, [decider]) for wish in wishes if isinstance(wish, Verdict)]


def test_the_buffers_rows_name_it() -> None:
    assert "drops" in table()["net.ipv4.tcp_rmem[2]"].guards
    assert "drops" in table()["net.ipv4.tcp_wmem[2]"].guards


def test_silence_means_that_nothing_is_dropped_and_the_change_is_confirmed() -> None:
    found = verdicts(stream(steadily(0), SINCE_S + 120))
    assert found
    assert all(verdict.confirm for verdict in found)


@pytest.mark.parametrize("before", [0, 30])
def test_packets_dropped_from_then_on_put_it_back_within_a_minute(before: int) -> None:
    more, few = steadily(200, SINCE_S + 5), steadily(before)
    found = verdicts(stream(lambda second: few(second) + more(second), SINCE_S + 65))
    assert found
    assert not found[0].confirm
    assert "drops got worse" in found[0].why
    assert found[0].t_ns <= (SINCE_S + 60) * SECOND


def test_the_same_as_before_is_no_worse() -> None:
    assert all(verdict.confirm for verdict in verdicts(stream(steadily(500), SINCE_S + 120)))


def test_drops_that_no_tunable_cures_are_not_its_doing() -> None:
    found = verdicts(stream(steadily(1000, SINCE_S), SINCE_S + 120, "NETFILTER_DROP"))
    assert found
    assert all(verdict.confirm for verdict in found)


def test_nor_are_those_of_another_namespace() -> None:
    found = verdicts(stream(steadily(1000, SINCE_S), SINCE_S + 120, netns=HERE + 1))
    assert found
    assert all(verdict.confirm for verdict in found)


def test_a_burst_of_a_few_seconds_is_no_regression() -> None:
    burst = steadily(1000, SINCE_S)
    found = verdicts(stream(lambda second: min(8000, burst(second)), SINCE_S + 160))
    assert found
    assert all(verdict.confirm for verdict in found)


def test_what_the_probe_counted_before_anyone_listened_is_not_of_now() -> None:
    decider = Decider(guard, Policy())
    told = (10**9, 10**9 + 5, 2, 4)
    for _ in decide([Drops(n + 1, HERE, 1, 2, "PROTO_MEM", total) for n, total in enumerate(told)], [decider]):
        pass
    # One at least, then 5, at least one where the probe had forgotten, then 2.
    assert decider.state.measures.dropped == {HERE: 9}


def test_what_is_known_of_places_is_bounded_and_goes_with_the_namespace() -> None:
    decider = Decider(guard, Policy())
    many = (
        Drops(number * 1000 + 1, number // 2 + 1, 1, number % 2 + 1, reason, 1)
        for number in range(2 * DROPS_MAX)
        for reason in ("CPU_BACKLOG", "PROTO_MEM")
    )
    for _ in decide(many, [decider]):
        pass
    measures = decider.state.measures
    assert (len(measures.drops), len(measures.dropped)) == (DROPS_MAX, PLACES_MAX)
    for _ in decide([Netns(10**12, DROPS_MAX, 1, "", False)], [decider]):
        pass
    assert (len(measures.drops), len(measures.dropped)) == (DROPS_MAX - 4, PLACES_MAX - 1)
