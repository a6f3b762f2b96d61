"""A flow's averages: what counts as a rate, as noise, as a gain, as a queue."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.schema import Outcome, Value
from deciders.flow import SAMPLES_MIN, UNKNOWN, Flow, add, before, begin, gained
from deciders.limit import Limit, answered, asked, bounds, learn, may

MS = 1_000_000
SEC = 1_000_000_000


def feed(flow: Flow, rates: list[float], rtt_us: int = 40_000, held: float = 0, best_us: int = 0) -> Flow:
    """Samples of these rates, in bytes/s."""
    for rate in rates:
        add(flow, flow.t_ns + 100 * MS, flow.total + int(rate / 10), rtt_us, best_us, held)
    return flow


def fresh() -> Flow:
    flow = Flow()
    begin(flow, 0, SEC, 10**6)
    return flow


def test_the_rate_is_what_was_transferred_in_the_span() -> None:
    assert feed(fresh(), [5e6]).rate == 5e6
    assert feed(fresh(), [4e6, 6e6]).rate == 5e6


def test_the_average_follows_a_lasting_change() -> None:
    flow = feed(fresh(), [5e6] * 10 + [10e6] * 10)
    assert flow.rate == pytest.approx(10e6, rel=0.03)


def test_a_steady_climb_is_not_noise() -> None:
    climbing = feed(fresh(), [1e6 * 1.05**number for number in range(60)])
    assert climbing.noise2**0.5 < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_measured(seed: int) -> None:
    chance = random.Random(seed)
    flow = feed(fresh(), [1e6 * (1 + 0.2 * chance.uniform(-1, 1)) for _ in range(300)])
    assert flow.noise2**0.5 == pytest.approx(0.2 / 3**0.5, rel=0.4)


def test_a_gain_must_stand_out_of_the_noise() -> None:
    quiet = feed(fresh(), [1e6] * 60)
    earlier = before(quiet)
    begin(quiet, 1, quiet.t_ns, quiet.total)
    assert gained(feed(quiet, [1.2e6] * 3), earlier, 0.12, 3)

    chance = random.Random(1)
    noisy = feed(fresh(), [1e6 * (1 + 0.3 * chance.uniform(-1, 1)) for _ in range(60)])
    earlier = before(noisy)
    begin(noisy, 1, noisy.t_ns, noisy.total)
    assert not gained(feed(noisy, [1.2e6] * 3), earlier, 0.12, 3)
    assert gained(feed(noisy, [2e6] * 10), earlier, 0.12, 3)


def test_too_little_is_no_gain_and_too_few_samples_are_none() -> None:
    flow = feed(fresh(), [1e6] * 60)
    earlier = before(flow)
    begin(flow, 1, flow.t_ns, flow.total)
    assert not gained(feed(flow, [3e6] * (SAMPLES_MIN - 1)), earlier, 0.12, 3)
    begin(flow, 2, flow.t_ns, flow.total)
    assert not gained(feed(flow, [1.1e6] * 30), earlier, 0.12, 3)


def test_pure_noise_seldom_passes_for_a_gain() -> None:
    chance = random.Random(5)
    wrong = 0
    for _ in range(300):
        flow = feed(fresh(), [1e6 * (1 + 0.2 * chance.uniform(-1, 1)) for _ in range(20)])
        earlier = before(flow)
        begin(flow, 1, flow.t_ns, flow.total)
        wrong += gained(feed(flow, [1e6 * (1 + 0.2 * chance.uniform(-1, 1)) for _ in range(15)]), earlier, 0.12, 3)
    assert wrong <= 15


def test_a_window_is_used_when_the_rate_fills_it_each_round_trip() -> None:
    assert feed(fresh(), [5e6] * 5, held=200_000).used == pytest.approx(1.0)
    assert feed(fresh(), [5e6] * 5, held=400_000).used == pytest.approx(0.5)


def test_a_queue_does_not_count_as_use() -> None:
    flow = feed(fresh(), [5e6] * 10, rtt_us=40_000, held=200_000)
    feed(flow, [5e6] * 20, rtt_us=80_000, held=400_000)
    assert flow.used == pytest.approx(0.5, abs=0.01)
    assert flow.base_rtt_us == pytest.approx(40_000, rel=0.01)
    feed(flow, [5e6] * 20, rtt_us=80_000, held=0.9)
    assert flow.used == pytest.approx(0.45, abs=0.01)


def test_a_queue_from_the_first_moment_on_is_told_by_the_best_round_trip() -> None:
    flow = feed(fresh(), [5e6] * 10, rtt_us=80_000, held=400_000)
    assert flow.used == pytest.approx(1.0)
    flow = feed(fresh(), [5e6] * 10, rtt_us=80_000, held=400_000, best_us=40_000)
    assert flow.used == pytest.approx(0.55)
    # Some jitter is no queue.
    flow = feed(fresh(), [5e6] * 10, rtt_us=44_000, held=220_000, best_us=40_000)
    assert flow.used == pytest.approx(1.0)


def test_a_route_that_has_become_longer_is_believed_within_the_hour() -> None:
    flow = feed(fresh(), [5e6] * 10, rtt_us=40_000)
    # As many bytes under way take so much longer.
    feed(flow, [5e6 * 40 / 60] * 36_000, rtt_us=60_000)
    assert flow.base_rtt_us > 52_000


def test_a_queue_that_stands_for_an_hour_is_still_no_part_of_the_path() -> None:
    flow = feed(fresh(), [5e6] * 10, rtt_us=40_000, held=200_000)
    feed(flow, [5e6] * 36_000, rtt_us=60_000, held=300_000)
    assert flow.base_rtt_us == pytest.approx(40_000, rel=0.01)
    assert flow.used == pytest.approx(0.67, abs=0.01)


def test_what_is_not_known_leaves_the_use_as_it_was() -> None:
    flow = feed(fresh(), [5e6] * 10, held=1.0)
    assert feed(flow, [5e6] * 10, held=UNKNOWN).used == pytest.approx(1.0)
    assert feed(flow, [5e6] * 30, held=0).used < 0.01


NUMBERS = st.integers(0, 2**63)


@given(st.lists(st.tuples(st.integers(1, 10**11), NUMBERS, st.integers(1, 2**40), st.floats(-1, 2**40)), max_size=30))
def test_no_number_breaks_the_averages(rows: list[tuple[int, int, int, float]]) -> None:
    flow = fresh()
    for span_ns, total, rtt_us, held in rows:
        add(flow, flow.t_ns + span_ns, max(total, flow.total), rtt_us, 0, held)
        assert flow.rate >= 0
        assert flow.used >= 0
        assert flow.noise2 >= 0
        assert gained(flow, before(flow), 0.12, 3) is False


def outcome(verdict: str, t_ns: int = SEC, value: int = 100, believed: int = 100) -> Outcome:
    return Outcome(t_ns, "d", "a.b", 0, believed, 150, verdict, "", value, 1)  # type: ignore[arg-type]


def test_the_newest_value_holds_whatever_order_the_news_come_in() -> None:
    limit = Limit()
    assert learn(limit, 100, 5)
    assert not learn(limit, 50, 4)
    assert limit.value == 100
    assert not learn(limit, 100, 6)
    assert learn(limit, 50, 7)


def test_bounds_come_from_the_actuator() -> None:
    limit = Limit()
    bounds(limit, Value(SEC, "a.b", 0, 0, 100, 90, 1, 1000, True))
    assert (limit.original, limit.high, limit.held) == (90, 1000, True)
    assert not may(limit, 2 * SEC)


def test_a_wish_is_not_made_again_before_an_answer_or_a_second_has_come() -> None:
    limit = Limit()
    learn(limit, 100, SEC)
    asked(limit, 2 * SEC)
    assert not may(limit, 2 * SEC + SEC - 1)
    assert may(limit, 3 * SEC)
    learn(limit, 150, 2 * SEC + 1)
    assert may(limit, 2 * SEC + 2)


@pytest.mark.parametrize(
    ("verdict", "wait_s"),
    [("written", 0), ("confirmed", 0), ("advised", 5), ("refused", 1), ("failed", 1), ("reverted", 60)],
)
def test_every_answer_has_its_wait(verdict: str, wait_s: int) -> None:
    limit = Limit()
    answered(limit, outcome(verdict))
    assert may(limit, SEC + wait_s * SEC)
    assert wait_s == 0 or not may(limit, SEC + wait_s * SEC - 1)


def test_refusals_in_a_row_wait_longer_each_time_up_to_a_minute_and_a_grant_ends_that() -> None:
    limit = Limit()
    waits = []
    for number in range(9):
        answered(limit, outcome("refused", number * 100 * SEC))
        waits.append((limit.retry_ns - number * 100 * SEC) // SEC)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    answered(limit, outcome("written"))
    answered(limit, outcome("refused"))
    assert limit.backoff_ns == SEC


def test_a_refusal_that_tells_another_value_is_no_reason_to_wait() -> None:
    limit = Limit()
    answered(limit, outcome("refused", believed=90, value=100))
    assert may(limit, SEC)


def test_what_was_ceded_is_left_alone_until_the_actuator_says_otherwise() -> None:
    limit = Limit()
    answered(limit, outcome("ceded"))
    assert not may(limit, 10**15)
    bounds(limit, Value(SEC, "a.b", 0, 0, 100, 90, 1, 1000, False))
    assert may(limit, 10**15)
