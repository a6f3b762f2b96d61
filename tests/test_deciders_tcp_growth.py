"""The rules of growth one by one: a limit, a flow with given averages, a sample, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from bus.schema import TcpRcvBuf, TcpSndBuf, Value, Wish
from deciders import tcp_buffer, tcp_felt
from deciders.flow import Before, Flow
from deciders.limit import Limit
from deciders.tcp_growth import come_down, go_back, weigh
from deciders.tcp_limit import Attempt, Knob, Policy, Sample, learn_limit
from deciders.tcp_side import Side, heard

SEC = 1_000_000_000
MS = 1_000_000
NOW = 1000 * SEC
LIMIT = 300_000
POLICY = Policy()


def knob(**known: Any) -> Knob:
    """A limit that was raised from 200000 to LIMIT two seconds ago."""
    row: dict[str, Any] = {
        "tunable": "net.ipv4.tcp_rmem[2]", "noun": "receive window", "netns": 7, "netns_ino": 8, "need_ns": NOW,
        "value": LIMIT, "t_ns": NOW, "original": 131072, "high": 64 << 20, "changed_ns": NOW - 2 * SEC,
    }  # fmt: skip
    return Knob(**(row | known))


def attempt(**known: Any) -> Attempt:
    row: dict[str, Any] = {
        "socket": 5, "old": 200_000, "new": LIMIT, "buffer_bytes": 200_000, "record_bytes": 100_000,
        "before": Before(1e6, 0.0001, 40_000.0), "soak_ns": 1500 * MS, "end_ns": NOW - MS, "taken": True,
    }  # fmt: skip
    return Attempt(**(row | known))


def flow(**known: Any) -> Flow:
    row: dict[str, Any] = {
        "epoch": 0, "samples": 10, "rate": 1e6, "last_rate": 1e6, "noise2": 0.0001, "used": 0.95, "rtt_us": 40_000.0,
        "base_rtt_us": 40_000.0,
    }  # fmt: skip
    return Flow(**(row | known))


def event(**known: Any) -> TcpRcvBuf:
    row: dict[str, Any] = {
        "t_ns": NOW, "netns": 7, "netns_ino": 8, "socket": 5, "family": 2, "sport": 5201, "dport": 40000,
        "rcvbuf_bytes": LIMIT, "limit_bytes": LIMIT, "locked": False, "rcv_wnd_bytes": 200_000,
        "window_clamp_bytes": 200_000, "wscale": 7, "copied_per_rtt_bytes": 100_000, "rcv_rtt_us": 40_000,
        "srtt_us": 40_000, "received_bytes": 10**9,
    }  # fmt: skip
    return TcpRcvBuf(**(row | known))


def sample(known: Flow, *, limiting: bool = True, buffer: int = LIMIT, record: int = 100_000, scale: int = 0,
           t_ns: int = NOW, socket: int = 5) -> Sample:  # fmt: skip
    return Sample(event(t_ns=t_ns, socket=socket), known, buffer, record, limiting, scale)


def wants(found: Any) -> list[tuple[int, int]]:
    assert all(isinstance(one, Wish) for one in found)
    return [(one.believed, one.want) for one in found]


UP = [(LIMIT, LIMIT * 3 // 2)]
DOWN = [(LIMIT, 200_000)]


def test_a_flow_that_the_limit_holds_back_gets_half_as_much_again() -> None:
    one = knob()
    assert wants(weigh(POLICY, one, sample(flow()))) == UP
    assert one.wished is not None
    assert (one.wished.old, one.wished.new, one.wished.before.rate) == (LIMIT, LIMIT * 3 // 2, 1e6)


def test_a_flow_that_it_does_not_hold_back_gets_nothing() -> None:
    assert weigh(POLICY, knob(), sample(flow(), limiting=False)) == ()


def test_two_changes_keep_their_distance() -> None:
    assert weigh(POLICY, knob(changed_ns=NOW - 119 * MS), sample(flow())) == ()
    assert wants(weigh(POLICY, knob(changed_ns=NOW - 120 * MS), sample(flow()))) == UP


@pytest.mark.parametrize(("high", "want"), [(LIMIT, 0), (LIMIT - 1, 0), (LIMIT + 5, LIMIT + 5), (0, LIMIT * 3 // 2)])
def test_the_bound_caps_the_step(high: int, want: int) -> None:
    assert wants(weigh(POLICY, knob(high=high), sample(flow()))) == ([(LIMIT, want)] if want else [])


def test_a_scaled_out_window_lets_the_limit_grow_so_far_only_and_is_not_judged() -> None:
    one = knob()
    assert wants(weigh(POLICY, one, sample(flow(), scale=LIMIT + 9))) == [(LIMIT, LIMIT + 9)]
    assert one.wished is None
    assert weigh(POLICY, knob(), sample(flow(), scale=LIMIT)) == ()


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_a_gain_ends_the_soak_and_all_rest_at_once() -> None:
    one = knob(attempt=attempt(end_ns=NOW + SEC), blind=3, rest_ns=SEC, rest_until_ns=NOW + SEC)
    assert wants(weigh(POLICY, one, sample(flow(rate=1.3e6)))) == UP
    assert (one.attempt, one.blind, one.rest_ns, one.rest_until_ns) == (None, 0, 0, 0)


def test_without_a_gain_the_soak_is_waited_for() -> None:
    one = knob(attempt=attempt(end_ns=NOW + 1))
    assert weigh(POLICY, one, sample(flow())) == ()
    assert one.attempt is not None


def test_a_new_record_with_a_faster_last_span_is_a_gain_before_the_average_is() -> None:
    for record, rate, rtt_us, gained in (
        (113_000, 1.2e6, 40_000.0, True),
        (111_000, 1.2e6, 40_000.0, False),
        (113_000, 1.1e6, 40_000.0, False),
        (113_000, 1.2e6, 60_000.0, False),
    ):
        one = knob(attempt=attempt(end_ns=NOW + SEC))
        seen = flow(samples=1, rate=1.05e6, last_rate=rate, rtt_us=rtt_us)
        assert bool(weigh(POLICY, one, sample(seen, record=record))) == gained


def test_one_step_without_a_gain_may_be_followed_by_a_second_and_then_growth_rests_longer_each_time() -> None:
    one = knob(attempt=attempt())
    assert wants(weigh(POLICY, one, sample(flow()))) == UP
    assert (one.blind, one.rest_until_ns) == (1, 0)
    rests = []
    for blind in (2, 3, 4, 5):
        one.attempt = attempt()
        one.asked_ns = 0
        assert weigh(POLICY, one, sample(flow())) == ()
        assert one.blind == blind
        rests.append((one.rest_until_ns - NOW) // SEC)
    assert rests == [5, 10, 20, 40]


def test_rests_do_not_grow_beyond_the_longest() -> None:
    one = knob(attempt=attempt(), blind=2, rest_ns=3000 * SEC)
    weigh(POLICY, one, sample(flow()))
    assert one.rest_until_ns == NOW + 3600 * SEC


def test_growth_rests_until_the_time_is_over_and_then_for_the_flow_that_was_judged_all_the_same() -> None:
    resting = {"blind": 2, "rest_until_ns": NOW + 1}
    assert weigh(POLICY, knob(**resting), sample(flow())) == ()
    resting = {"blind": 2, "rest_until_ns": NOW}
    assert wants(weigh(POLICY, knob(**resting), sample(flow()))) == UP
    assert weigh(POLICY, knob(**resting), sample(flow(judged_rate=1e6))) == ()
    one = knob(**resting)
    assert wants(weigh(POLICY, one, sample(flow(judged_rate=0.79e6)))) == UP
    assert one.blind == 0


def test_no_limit_goes_more_than_so_many_steps_beyond_what_helped() -> None:
    assert wants(weigh(POLICY, knob(blind=3), sample(flow()))) == UP
    assert weigh(POLICY, knob(blind=4), sample(flow())) == ()


@pytest.mark.parametrize(
    ("rate", "rtt_us", "back"),
    [
        (1.0e6, 52_000.0, True),
        (1.05e6, 52_000.0, True),
        (0.81e6, 52_000.0, True),
        (1.0e6, 50_000.0, False),
        (1.07e6, 52_000.0, False),
        (0.79e6, 52_000.0, False),
    ],
)
def test_a_step_is_taken_back_when_round_trips_rose_and_the_rate_stayed(rate: float, rtt_us: float, back: bool) -> None:
    one = knob(attempt=attempt())
    found = weigh(POLICY, one, sample(flow(rate=rate, rtt_us=rtt_us)))
    assert wants(found) == (DOWN if back else UP)
    if back:
        assert "no faster with 300000 bytes of receive window" in found[0].why
        assert (one.back, one.attempt, one.rest_until_ns) == (200_000, None, NOW + 3600 * SEC)


def test_two_milliseconds_more_are_nothing_however_short_the_round_trip() -> None:
    short = Before(1e6, 0.0001, 1_000.0)
    one = knob(attempt=attempt(before=short))
    assert wants(weigh(POLICY, one, sample(flow(rtt_us=3_000.0)))) == UP
    one = knob(attempt=attempt(before=short))
    assert wants(weigh(POLICY, one, sample(flow(rtt_us=3_001.0)))) == DOWN


def test_what_was_decided_to_go_back_is_asked_for_until_it_has() -> None:
    one = knob(attempt=attempt())
    seen = flow(rtt_us=60_000.0)
    assert wants(weigh(POLICY, one, sample(seen))) == DOWN
    assert weigh(POLICY, one, sample(seen, t_ns=NOW + SEC - 1)) == ()
    assert wants(weigh(POLICY, one, sample(seen, t_ns=NOW + SEC))) == DOWN
    value = Value(NOW + 3 * SEC, one.tunable, 7, 8, LIMIT, 131072, 65536, 1 << 30, False)
    assert wants(go_back(one, value)) == DOWN
    one.blind = 2
    learn_limit(one, 200_000, NOW + 4 * SEC)
    assert (one.back, one.blind) == (0, 1)
    assert weigh(POLICY, one, sample(seen, t_ns=NOW + 5 * SEC)) == ()


def test_within_the_hour_a_second_step_is_not_taken_back() -> None:
    one = knob(attempt=attempt(), backed_ns=NOW - 3599 * SEC)
    assert weigh(POLICY, one, sample(flow(rtt_us=60_000.0))) == ()
    assert (one.back, one.rest_until_ns, one.lenient) == (0, NOW + 3600 * SEC, False)
    one = knob(attempt=attempt(), backed_ns=NOW - 3600 * SEC)
    assert wants(weigh(POLICY, one, sample(flow(rtt_us=60_000.0)))) == DOWN


@pytest.mark.parametrize(
    ("lenient", "seen", "grows"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"used": 0.89}, False),
        (True, {"samples": 7}, False),
        (True, {"judged_rate": 0.9e6}, False),
    ],
)
def test_another_flow_that_has_no_queue_ends_the_rest_once(lenient: bool, seen: dict[str, Any], grows: bool) -> None:
    one = knob(rest_until_ns=NOW + SEC, lenient=lenient)
    assert wants(weigh(POLICY, one, sample(flow(**seen)))) == (UP if grows else [])


def test_a_buffer_that_has_not_grown_has_tried_nothing() -> None:
    one = knob(attempt=attempt(taken=False))
    assert weigh(POLICY, one, sample(flow(rtt_us=90_000.0), buffer=200_000, limiting=False)) == ()
    assert one.blind == 0
    assert one.attempt is not None
    assert wants(weigh(POLICY, one, sample(flow(), buffer=200_000))) == UP


def test_the_soak_begins_when_the_buffer_grows_and_what_was_before_does_not_count() -> None:
    one = knob(attempt=attempt(taken=False))
    seen = flow(rate=1.3e6)
    assert weigh(POLICY, one, sample(seen)) == ()
    assert one.attempt is not None
    assert (one.attempt.taken, one.attempt.end_ns, seen.samples) == (True, NOW + 1500 * MS, 0)


def test_a_flow_that_has_fallen_silent_makes_room_for_another_and_counts_as_no_gain() -> None:
    one = knob(attempt=attempt(end_ns=NOW - 2 * SEC))
    assert weigh(POLICY, one, sample(flow(), socket=6)) == ()
    one = knob(attempt=attempt(end_ns=NOW - 2 * SEC - 1))
    assert wants(weigh(POLICY, one, sample(flow(), socket=6))) == UP
    assert one.blind == 1


# --- the limit ---------------------------------------------------------------------------------------------------


def test_an_attempt_begins_when_the_limit_has_become_what_was_wished_for() -> None:
    one = knob()
    weigh(POLICY, one, sample(flow()))
    learn_limit(one, LIMIT * 3 // 2, NOW + 5 * MS)
    assert one.attempt is not None
    assert one.attempt.end_ns == NOW + 5 * MS + 1500 * MS
    assert (one.wished, one.changed_ns, one.epoch) == (None, NOW + 5 * MS, 1)


def test_long_round_trips_make_long_soaks() -> None:
    one = knob()
    weigh(POLICY, one, sample(flow(rtt_us=200_000.0)))
    assert one.wished is not None
    assert one.wished.soak_ns == 24 * 200 * MS


def test_another_hand_on_the_limit_ends_the_attempt() -> None:
    one = knob(attempt=attempt())
    learn_limit(one, 123_456, NOW + 1)
    assert one.attempt is None
    one = knob(wished=attempt(new=450_000))
    learn_limit(one, 123_456, NOW + 1)
    assert (one.attempt, one.wished) == (None, None)


def test_what_arrives_within_a_round_trip_of_a_change_is_of_the_time_before() -> None:
    side = Side("t", "p", "n", {}, {})
    one = side.knobs[7] = knob(changed_ns=NOW, epoch=3)
    assert heard(side, event(t_ns=NOW + 39 * MS), LIMIT, 10, 40_000) == (one, None)
    assert heard(side, event(t_ns=NOW + 41 * MS), LIMIT, 20, 40_000) == (one, None)
    _, begun = heard(side, event(t_ns=NOW + 141 * MS), LIMIT, 90, 40_000)
    assert begun is not None
    assert (begun.t_ns, begun.total) == (NOW + 41 * MS, 20)


def test_a_socket_that_counts_from_the_start_again_is_another() -> None:
    side = Side("t", "p", "n", {}, {})
    one = side.knobs[7] = knob(changed_ns=0)
    heard(side, event(t_ns=NOW), LIMIT, 1000, 40_000)
    side.flows[7, 5].judged_rate = 1e6
    assert heard(side, event(t_ns=NOW + 100 * MS), LIMIT, 10, 40_000) == (one, None)
    assert side.flows[7, 5].judged_rate == 0


def test_coming_down_never_passes_the_original() -> None:
    value = Value(NOW + 700 * SEC, "x", 7, 8, LIMIT, 280_000, 65536, 1 << 30, False)
    assert wants(come_down(POLICY, knob(original=280_000), value)) == [(LIMIT, 280_000)]
    assert wants(come_down(POLICY, knob(original=1000), value)) == [(LIMIT, 200_000)]
    one = knob(blind=3)
    come_down(POLICY, one, value)
    assert one.blind == 2
    for unchanged in (LIMIT, LIMIT + 1, -1, 0):
        assert come_down(POLICY, knob(original=unchanged), value) == ()


def test_limits_start_with_nothing_known() -> None:
    assert (Limit().value, Limit().original, Limit().high) == (0, -1, 0)


# --- what limits a sender, and a receiver early on ----------------------------------------------------------------


def sending(**known: Any) -> TcpSndBuf:
    row: dict[str, Any] = {
        "t_ns": NOW, "netns": 7, "netns_ino": 8, "socket": 5, "family": 2, "sport": 40000, "dport": 5201,
        "sndbuf_bytes": LIMIT, "limit_bytes": LIMIT, "locked": False, "srtt_us": 40_000, "min_rtt_us": 40_000,
        "cwnd_packets": 400, "mss_bytes": 1448, "in_flight_packets": 130, "snd_wnd_bytes": 10**6,
        "queued_bytes": 200_000, "acked_bytes": 10**6, "delivered_packets": 130, "delivered_us": 40_000,
        "limited_by": 1, "retransmits": 0,
    }  # fmt: skip
    return TcpSndBuf(**(row | known))


@pytest.mark.parametrize(
    ("known", "held"),
    [
        ({}, True),
        ({"queued_bytes": int(0.59 * LIMIT)}, False),
        ({"in_flight_packets": 80}, False),
        ({"cwnd_packets": 150}, False),
        ({"snd_wnd_bytes": 210_000}, False),
        ({"in_flight_packets": 1, "queued_bytes": 1000, "limited_by": 3}, True),
        ({"queued_bytes": 0, "in_flight_packets": 0, "sndbuf_bytes": 0}, False),
    ],
)
def test_the_send_buffer_limits_when_it_is_full_and_under_way_and_nothing_else_does(
    known: dict[str, Any], held: bool
) -> None:
    assert bool(tcp_felt.held_back(sending(**known))) == held


def stream(**known: Any) -> list[Any]:
    """A second of a sender at 4.7 MB/s, 100 ms apart."""
    return [sending(t_ns=NOW + n * 100 * MS, acked_bytes=10**6 + n * 470_000, **known) for n in range(11)]


def asked(events: list[Any]) -> list[Wish]:
    state = tcp_buffer.start(POLICY)
    wishes: list[Wish] = []
    for one in events:
        state, found = tcp_buffer.step(state, one)
        wishes += found
    return wishes


def test_a_sender_that_is_held_back_gets_more_unless_it_has_set_its_size() -> None:
    assert wants(asked(stream())) == UP
    assert asked(stream(locked=True)) == []


def test_while_losses_are_repaired_the_congestion_window_says_nothing() -> None:
    events = stream()
    for number in range(2, 11, 2):
        events[number] = sending(
            t_ns=events[number].t_ns, acked_bytes=events[number].acked_bytes, cwnd_packets=130, retransmits=number
        )
    assert wants(asked(events)) == UP
    still = [sending(t_ns=one.t_ns, acked_bytes=one.acked_bytes, cwnd_packets=one.cwnd_packets) for one in events]
    assert asked(still) == []


def receiving(records: list[int], totals: list[int], **known: Any) -> list[Any]:
    return [
        event(t_ns=NOW + n * 100 * MS, copied_per_rtt_bytes=record, received_bytes=total, **known)
        for n, (record, total) in enumerate(zip(records, totals, strict=True))
    ]


def test_a_flow_in_slow_start_gets_more_before_it_has_filled_its_window() -> None:
    assert wants(asked(receiving([15_000, 35_000, 90_000], [15_000, 52_000, 240_000]))) == UP
    # The same a moment later in its life: a large round trip once, the rate far from the window.
    assert asked(receiving([15_000, 35_000, 90_000], [10**7, 10**7 + 37_000, 10**7 + 225_000])) == []
    # The path is full: what comes is in a queue.
    full = receiving([15_000, 35_000, 90_000], [15_000, 52_000, 240_000], rcv_rtt_us=60_000)
    assert asked(full) == []
    # Not growing any more.
    assert asked(receiving([15_000, 130_000, 131_000], [15_000, 200_000, 330_000])) == []
