"""The decider of congestion control: what it tries where, what it keeps, and what tries cost where nothing is won."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_deciders_properties import tries, waves

from bus.schema import Algorithms, AnyEvent, Flows, Netns, Outcome, Tick, Value, Wish
from bus.tunables import ALGORITHMS
from deciders import congestion
from deciders.congestion import Policy, State
from deciders.path_lines import Line, Score, put, score
from deciders.path_try import Try, judge
from trimtab.testing.loop import Loop
from trimtab.testing.waves import constant, noise
from trimtab.testing.worlds_path import Destination

SEC = 1_000_000_000
HERE, THERE = "10.1.2.0/24", "2001:db8:1::/48"
KEY, WINDOW = f"route.congctl@{HERE}", f"route.initcwnd@{HERE}"
BBR, CUBIC = ALGORITHMS.index("bbr"), ALGORITHMS.index("cubic")
MARGIN = 0.05
"""What tries may cost, of the goodput over an hour."""
LOSSY: dict[str, Any] = {"arrivals": constant(1.0), "loss": constant(0.01)}
Verdict = Literal["written", "advised", "refused", "failed", "reverted", "confirmed", "ceded"]


def tell(state: State, *events: AnyEvent) -> list[Wish]:
    return [wish for event in events for wish in congestion.step(state, event)[1]]


def algorithms(t_ns: int, standing: str = "cubic", *available: str) -> Algorithms:
    return Algorithms(t_ns, 9, 5, available or ("reno", "bbr", "cubic"), standing)


class Probe:
    """Connections of 1 MB, one a second, with so many us of sending each."""

    def __init__(self, prefix: str = HERE, algorithm: str = "cubic", rtt_us: int = 40_000, netns: int = 9) -> None:
        self.about = (netns, 5, 2, prefix, algorithm)
        self.rtt_us, self.count = rtt_us, 0
        self.totals = [0] * 8

    def after(self, t_ns: int, busy_us: int, resent: int = 10, count: int = 1) -> Flows:
        more = (count, count << 20, count * busy_us, 0, count * 1000, count * resent, count, count * self.rtt_us)
        self.totals = [old + new for old, new in zip(self.totals, more, strict=True)]
        return Flows(t_ns, *self.about, *self.totals, self.rtt_us)


def outcome(t_ns: int, what: Verdict, value: int, believed: int = 0, want: int = BBR, key: str = KEY) -> Outcome:
    return Outcome(t_ns, "congestion", key, 9, believed, want, what, "made up", value, 1)


def slow(seconds: int = 15) -> tuple[State, Probe, list[Wish]]:
    """A state in which cubic has lost a hundredth of what it sent for so long; what was wished for."""
    state, probe = congestion.start(Policy()), Probe()
    wishes = tell(state, algorithms(0))
    for at in range(1, seconds + 1):
        wishes += tell(state, probe.after(at * SEC, 2_000_000))
    return state, probe, wishes


# --- one try -------------------------------------------------------------------------------------------------------


def test_where_cubic_loses_bbr_is_tried_with_the_numbers_and_no_word_of_where() -> None:
    _, _, wishes = slow()
    wish = wishes[0]
    assert (wish.tunable, wish.netns, wish.netns_ino, wish.believed, wish.want) == (KEY, 9, 5, 0, BBR)
    assert wish.why == "cubic: 524 kB/s, 1.00% sent again; a try of bbr for at most 120 s"
    assert (wish.evidence["before_resent_ppm"], wish.evidence["min_rtt_us"]) == (10_000, 40_000)
    # What makes a recording anonymous knows where destinations are: in the key, and nowhere else.
    assert "10.1." not in wish.why + str(wish.evidence)


@pytest.mark.parametrize(
    "what",
    [
        {"standing": "bbr"},
        {"available": ("reno", "cubic")},
        {"available": ()},
        {"busy_us": 40_000_000},
        {"resent": 1},
        {"rtt_us": 900},
        {"rtt_us": 0},
    ],
)
def test_none_is_tried_that_stands_or_is_not_there_nor_for_long_connections_nor_where_nothing_is_lost_or_all_is_near(
    what: dict[str, Any],
) -> None:
    state = congestion.start(Policy(candidates=("bbr",)))
    standing = what.get("standing", "cubic")
    probe = Probe(algorithm=standing, rtt_us=what.get("rtt_us", 40_000))
    available = what.get("available", ("reno", "bbr", "cubic"))
    wishes = tell(state, Algorithms(0, 9, 5, available, standing))
    for at in range(1, 60):
        wishes += tell(state, probe.after(at * SEC, what.get("busy_us", 2_000_000), what.get("resent", 10)))
    assert wishes == []


@pytest.mark.parametrize(("busy_us", "tried"), [(100_000, False), (8_000_000, True)])
def test_where_bbr_stands_cubic_is_tried_only_if_losses_leave_it_as_much(busy_us: int, tried: bool) -> None:
    """1 % of losses and 40 ms leave it some 600 kB/s."""
    state, probe = congestion.start(Policy()), Probe(algorithm="bbr")
    wishes = tell(state, algorithms(0, "bbr"), *(probe.after(at * SEC, busy_us) for at in range(1, 30)))
    assert {wish.want for wish in wishes} == ({CUBIC} if tried else set())


def kept(state: State, at: int = 16) -> list[Wish]:
    """bbr is written, and five times as fast; what was wished for."""
    fast = Probe(algorithm="bbr")
    wishes = tell(state, outcome(at * SEC, "written", BBR))
    for more in range(1, 40):
        wishes += tell(state, fast.after((at + more) * SEC, 400_000))
    return wishes


def test_what_is_far_better_stays_and_what_comes_of_its_end_is_measured_anew() -> None:
    state, probe, _ = slow()
    assert kept(state) == []
    assert state.paths[9, HERE].tries["congctl"].phase == "kept"
    assert state.places[9].trying == ""
    # Its time is over: cubic again, and then the same.
    end_s = 16 + 3600
    wishes = tell(state, outcome(end_s * SEC, "reverted", 0, BBR, 0))
    for at in range(1, 90):
        wishes += tell(state, probe.after((end_s + at) * SEC, 2_000_000))
    assert {wish.want for wish in wishes} == {BBR}
    assert wishes[0].t_ns >= (end_s + 60) * SEC


def test_what_is_worse_ends_at_once_and_rests_for_longer_each_time() -> None:
    state, probe, _ = slow()
    bad, at = Probe(algorithm="bbr"), 16
    for rest_s in (3600, 7200, 14_400):
        assert tell(state, outcome(at * SEC, "written", BBR)) == []
        wishes = tell(state, *(bad.after((at + more) * SEC, 9_000_000) for more in range(1, 6)))
        assert [(wish.believed, wish.want) for wish in wishes[:1]] == [(BBR, 0)]
        assert wishes[0].why == "bbr: 117 kB/s instead of 524 kB/s"
        assert wishes[0].t_ns <= (at + 5) * SEC
        ended_s = at + 6
        tell(state, outcome(ended_s * SEC, "written", 0, BBR, 0))
        again: list[Wish] = []
        at = ended_s + rest_s - 100
        while not again:
            at += 1
            again = tell(state, probe.after(at * SEC, 2_000_000))
        assert ended_s + rest_s <= at <= ended_s + rest_s + 10


def test_of_a_try_that_nothing_comes_of_the_end_is_after_its_time() -> None:
    state, _, _ = slow()
    tell(state, outcome(16 * SEC, "written", BBR))
    assert tell(state, *(Tick(at * SEC, at) for at in range(17, 136))) == []
    (wish, *_) = tell(state, *(Tick(at * SEC, at) for at in range(136, 140)))
    assert (wish.want, wish.why) == (0, "bbr: not enough to be seen of it in 120 s")


@pytest.mark.parametrize("what", ["advised", "refused", "failed"])
def test_what_is_not_done_is_not_asked_for_again_within_the_hour(what: Verdict) -> None:
    state, probe, _ = slow()
    tell(state, outcome(16 * SEC, what, 0))
    assert tell(state, *(probe.after((16 + at) * SEC, 2_000_000) for at in range(1, 3600))) == []
    assert tell(state, *(probe.after((16 + at) * SEC, 2_000_000) for at in range(3600, 3700)))


def test_what_somebody_takes_back_is_not_asked_for_again_within_the_hour() -> None:
    state, probe, _ = slow()
    kept(state)
    tell(state, outcome(100 * SEC, "reverted", 0, BBR, 0))
    assert tell(state, *(probe.after((100 + at) * SEC, 2_000_000) for at in range(1, 3600))) == []


def test_a_key_that_is_held_is_left_alone() -> None:
    state, probe, _ = slow()
    kept(state)
    tell(state, Value(100 * SEC, KEY, 9, 5, BBR, 0, 0, 17, True))
    assert tell(state, *(probe.after((100 + at) * SEC, 2_000_000) for at in range(1, 60)), Tick(200 * SEC, 1)) == []
    assert state.paths[9, HERE].tries == {}


def test_bbr_goes_at_once_where_the_path_turns_out_to_be_short() -> None:
    state, _, _ = slow()
    kept(state)
    (wish, *_) = tell(state, Probe(algorithm="bbr", rtt_us=700).after(100 * SEC, 400_000))
    assert (wish.want, wish.why) == (0, "bbr on a path of 0.7 ms")


def test_what_a_process_before_this_one_has_left_stays_for_its_time() -> None:
    state, fast = congestion.start(Policy()), Probe(algorithm="bbr")
    tell(state, algorithms(0), Value(SEC, KEY, 9, 5, BBR, 0, 0, 17, False))
    assert tell(state, *(fast.after(at * SEC, 400_000) for at in range(2, 60))) == []
    (wish, *_) = tell(state, algorithms(60 * SEC, "bbr"), Tick(60 * SEC, 1))
    assert wish.want == 0


def test_one_destination_of_a_namespace_is_tried_at_a_time() -> None:
    state = congestion.start(Policy())
    here, there, other = Probe(), Probe(THERE), Probe(netns=8)
    tell(state, algorithms(0), Algorithms(0, 8, 5, ("reno", "bbr", "cubic"), "cubic"))
    wishes = [
        wish
        for at in range(1, 16)
        for wish in tell(state, *(probe.after(at * SEC, 2_000_000) for probe in (here, there, other)))
    ]
    assert {(wish.netns, wish.tunable) for wish in wishes} == {(9, KEY), (8, KEY)}
    kept(state)
    wishes = tell(state, *(there.after((60 + at) * SEC, 2_000_000) for at in range(15)))
    assert {wish.tunable for wish in wishes} == {f"route.congctl@{THERE}"}


def test_a_namespace_that_has_gone_is_forgotten() -> None:
    state, _, _ = slow()
    tell(state, Netns(20 * SEC, 9, 5, "", False))
    assert (state.paths, state.places) == ({}, {})


def test_where_the_kernel_has_no_other_people_are_told() -> None:
    state, probe = congestion.start(Policy()), Probe()
    tell(state, algorithms(0, "cubic", "cubic"), *(probe.after(at * SEC, 2_000_000) for at in range(1, 16)))
    assert congestion.advice(state) == [
        "netns 9: 10.1.2.0/24: 1.00% sent again, and the kernel has cubic alone: others come with their module"
        " (tcp_bbr)"
    ]


# --- the check -----------------------------------------------------------------------------------------------------


def line(rate: float, count: int = 2, loss: float = 0.0, srtt_us: int = 40_000) -> Line:
    made = Line()
    for at in range(count * 6):
        put(made, at * SEC, (int(rate), 1_000_000, 0, 1000, int(1000 * loss), 1, srtt_us, 1), 5.0)
    return made


def known(rate: float, **more: Any) -> Score:
    found = score(line(rate, **more).done)
    assert found
    return found


@pytest.mark.parametrize(
    ("found", "phase", "word"),
    [
        (line(250e3), "kept", "250 kB/s"),
        (line(130e3), "check", "130 kB/s"),
        (line(105e3), "try", ""),
        (line(105e3, 4), "leave", "no better"),
        (line(85e3), "leave", "85 kB/s instead of 100 kB/s"),
        (line(250e3, loss=0.1), "leave", "10.00% sent again"),
        (line(250e3, srtt_us=90_000), "leave", "round trips of 90 ms"),
        (line(101e3, srtt_us=15_000), "check", "round trips of 15 ms"),
        (line(99e3, srtt_us=15_000), "try", ""),
    ],
)
def test_what_is_measured_decides_what_becomes_of_a_try(found: Line, phase: str, word: str) -> None:
    one = Try("congctl", "bbr", BBR, known(100e3), 0, "", "try", True, 0, found)
    judge(Policy(), one, 60 * SEC)
    assert one.phase == phase
    assert word in one.why


@pytest.mark.parametrize(("without", "phase"), [(100e3, "kept"), (110e3, "kept"), (125e3, "leave")])
def test_what_is_little_better_stays_only_if_it_is_worse_again_without_it(without: float, phase: str) -> None:
    one = Try("congctl", "bbr", BBR, known(100e3), 0, "", "check", True, 0, line(without), known(130e3))
    judge(Policy(), one, 60 * SEC)
    assert (one.phase, one.stands) == (phase, phase == "leave")


# --- worlds --------------------------------------------------------------------------------------------------------


def test_on_a_path_with_losses_connections_are_ten_times_as_fast_and_the_hours_go_on_so() -> None:
    alone, world = Destination(**LOSSY), Destination(**LOSSY)
    loop = Loop(["congestion"], [world]).run(3900)
    run(alone, 3900)
    assert world.goodput > 10 * alone.goodput
    assert [change.new for change in loop.of(KEY)] == [BBR, BBR]
    assert loop.refused == []


def test_short_connections_over_a_long_path_begin_with_a_larger_window() -> None:
    world = Destination(constant(10.0), size=25_000, rtt_s=0.08)
    loop = Loop(["congestion"], [world]).run(120)
    assert [change.new for change in loop.of(WINDOW)] == [20]
    assert loop.of(KEY) == []
    alone = Destination(constant(10.0), size=25_000, rtt_s=0.08)
    run(alone, 120)
    assert world.goodput > 1.5 * alone.goodput


@st.composite
def destinations(draw: st.DrawFn) -> dict[str, Any]:
    """Paths that lose, that are long and fat, that have a deep queue or none, that are near; and perhaps an algorithm
    that is of no use on any of them."""
    standing = draw(st.sampled_from(("cubic", "bbr", "reno")))
    dirt = noise(draw(st.integers(0, 1 << 30)), draw(st.sampled_from((0.0, 0.3))), 7.0)
    return {
        "arrivals": dirt * draw(st.sampled_from((0.5, 2.0, 6.0))),
        "size": draw(st.sampled_from((3e4, 3e5, 2e6, 3e7))),
        "bandwidth": (draw(waves()) + 0.3) * draw(st.sampled_from((2e6, 2e7, 1e9))),
        "rtt_s": draw(st.sampled_from((0.0002, 0.01, 0.04, 0.2))),
        "loss": (draw(waves()) + 0.1) * draw(st.sampled_from((0.0, 0.0005, 0.01, 0.1))),
        "queue_s": draw(st.sampled_from((0.0, 0.05, 1.0))),
        "standing": standing,
        "bad": draw(st.sampled_from(tuple({"", "bbr", "cubic"} - {standing}))),
        "seed": draw(st.integers(0, 1 << 30)),
    }


def run(world: Destination, seconds: int) -> None:
    """An hour without trimtab."""
    for at in range(seconds):
        for _ in world.turn(float(at), at * SEC, {}):
            pass


@tries(5)
@given(destinations())
def test_on_no_path_is_the_goodput_over_an_hour_less_than_the_defaults_by_more_than_the_margin(
    path: dict[str, Any],
) -> None:
    alone, world = Destination(**path), Destination(**path)
    loop = Loop(["congestion"], [world]).run(3600)
    run(alone, 3600)
    assert world.goodput >= (1 - MARGIN) * alone.goodput, loop.changes
    assert world.delivered >= (1 - MARGIN) * alone.delivered, loop.changes
    assert loop.refused == []
    if path["rtt_s"] < 0.001:
        assert all(change.new != BBR for change in loop.changes)
