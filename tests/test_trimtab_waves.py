"""Waves, worlds, the closed loop, and tapes made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.records import Spot
from bus import tape_reader
from bus.codec import encode
from bus.schema import AnyEvent, Counters, Gap, NeighEntries, NeighTable, Tick, Verdict
from bus.tape import End
from deciders.engine import decide
from trimtab.tape.playback import Playback, decider
from trimtab.testing import made_tape
from trimtab.testing.loop import START_NS, Loop
from trimtab.testing.waves import Wave, burst, chance, constant, noise, ramp, sawtooth, square, step
from trimtab.testing.worlds import CounterFile, Neighbours, TcpFlow
from trimtab.testing.worlds import Path as Wire

RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
GC3 = "net.ipv4.neigh.default.gc_thresh3"


@pytest.mark.parametrize(
    ("wave", "values"),
    [
        (constant(7), (7, 7, 7, 7, 7)),
        (step(2, 10), (0, 0, 10, 10, 10)),
        (ramp(1, 3, 10), (0, 0, 5, 10, 10)),
        (square(2, 4), (4, 0, 4, 0, 4)),
        (square(4, 4, 0.75), (4, 4, 4, 0, 4)),
        (sawtooth(4, 8), (0, 2, 4, 6, 0)),
        (burst(1, 2, 3), (0, 3, 3, 0, 0)),
        (step(1, 2) + burst(2, 1, 5) + 1, (1, 3, 8, 3, 3)),
        (2 * step(1, 2) * sawtooth(4, 4), (0, 4, 8, 12, 0)),
        (ramp(0, 4, 8).clip(1, 5), (1, 2, 4, 5, 5)),
        (constant(3).until(2), (3, 3, 0, 0, 0)),
    ],
)
def test_each_shape_has_its_value_at_each_second(wave: Wave, values: tuple[float, ...]) -> None:
    assert tuple(wave(second) for second in range(5)) == values


@pytest.mark.parametrize("wrong", [lambda: ramp(2, 2, 1), lambda: square(0, 1), lambda: sawtooth(-1, 1)])
def test_a_wave_without_time_is_refused(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=r"takes no time|is none"):
        wrong()


def test_noise_is_the_same_each_time_spread_evenly_and_no_matter_of_order_or_of_other_dice() -> None:
    wave = noise(seed=3, share=0.2)
    first = [wave(second / 10) for second in range(1000)]
    random.seed(1)
    assert [wave(second / 10) for second in reversed(range(1000))] == first[::-1]
    assert random.random() == random.Random(1).random()
    assert first != [noise(seed=4, share=0.2)(second / 10) for second in range(1000)]
    assert 0.8 <= min(first) < 0.82
    assert 1.18 < max(first) <= 1.2
    assert abs(sum(first) / 1000 - 1) < 0.01
    assert wave(0.05) == wave(0.09)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 70), st.integers(0, 1 << 70))
def test_a_throw_is_a_share(seed: int, number: int) -> None:
    assert 0 <= chance(seed, number) < 1


# --- worlds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("congestion", ["bbr", "fill"])
def test_with_the_decider_a_flow_fills_the_path_that_it_would_not_fill_without(congestion: str) -> None:
    def flow() -> TcpFlow:
        return TcpFlow(Wire(constant(50e6), congestion=congestion))  # type: ignore[arg-type]

    alone, tuned = flow(), flow()
    Loop(["guard"], [alone]).run(20)
    loop = Loop(["tcp_buffer"], [tuned]).run(20)
    assert alone.rate < 6e6
    assert tuned.rate > 0.95 * 50e6
    assert loop.final(RMEM) == loop.peak(RMEM) > 2e6
    assert (loop.reversals(RMEM), loop.refused) == (0, [])


def test_a_path_that_is_full_has_a_queue_and_no_more_rate() -> None:
    flow = TcpFlow(Wire(constant(1e6), congestion="fill", queue_bytes=1e5), limits=(4 << 20, 4 << 20))
    Loop(["guard"], [flow]).run(10)
    assert flow.rate == pytest.approx(1e6)
    assert flow.rtt_now_s == pytest.approx(0.14)


def test_an_application_that_asks_little_gets_what_it_asks() -> None:
    flow = TcpFlow(Wire(constant(50e6), demand=square(10, 1e6)))
    loop = Loop(["tcp_buffer"], [flow]).run(4)
    assert flow.rate == pytest.approx(1e6)
    loop.run(4)
    assert flow.rate == 0
    assert loop.changes == []


def test_a_table_takes_as_many_as_its_hard_limit_lets_it_and_tells_when_it_fills() -> None:
    table = Neighbours(ramp(1, 3, 2000), thresholds=(128, 512, 1024))
    loop = Loop(["guard"], [table]).run(4)
    assert table.entries == 1024
    assert table.refused
    told = [event for event in loop.events if isinstance(event, NeighEntries)]
    assert 0.4 <= told[0].entries / 1024 < 0.5
    assert [event.entries for event in loop.events if isinstance(event, NeighTable)] == [1000, 1024]

    table = Neighbours(ramp(1, 3, 2000), thresholds=(128, 512, 1024))
    loop = Loop(["neigh_table"], [table]).run(4)
    assert (table.entries, table.refused) == (2000, 0)
    assert loop.final(GC3) == 4096


def test_counters_grow_by_their_rates_and_levels_stand() -> None:
    file = CounterFile("net/snmp", {"Tcp.OutSegs": step(2, 100)}, {"TCP.mem": constant(7)}, netns=9)
    told = [event for event in Loop(["guard"], [file]).run(5).events if isinstance(event, Counters)]
    assert [event.values for event in told] == [
        {"Tcp.OutSegs": segments, "TCP.mem": 7} for segments in (0, 100, 200, 300, 400)
    ]
    assert {(event.netns, event.source) for event in told} == {(9, "net/snmp")}


def test_time_goes_on_in_seconds_and_a_key_of_no_world_is_named() -> None:
    loop = Loop(["neigh_table"], []).run(2.5).run(0.5)
    assert [event.t_ns for event in loop.events if isinstance(event, Tick)] == [
        START_NS + second * 1_000_000_000 for second in (1, 2, 3)
    ]
    with pytest.raises(LookupError, match="none of the worlds has"):
        loop.peak(RMEM)


def test_what_the_guard_puts_back_stays_back() -> None:
    flow = TcpFlow(Wire(constant(50e6), loss=step(40, 0.1)))
    snmp = CounterFile("net/snmp", {"Tcp.OutSegs": constant(3e4), "Tcp.RetransSegs": step(40, 3000)}, netns=11)
    loop = Loop(["tcp_buffer", "guard"], [flow, snmp]).run(120)
    assert any(isinstance(wish, Verdict) and not wish.confirm for wish in loop.wishes)
    assert loop.final(WMEM) < loop.peak(WMEM)
    assert loop.of(WMEM)[-1].new == loop.final(WMEM)


# --- tapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tcp_buffer", "guard"])
def test_a_tape_of_events_replays_exactly_and_is_the_same_each_time(tmp_path: Path, name: str) -> None:
    events = Loop([name], [TcpFlow(Wire(constant(50e6)))]).run(300).events
    for file in ("one.tape", "two.tape"):
        made_tape.write(tmp_path / file, [events[0], Gap(1, "x", 3, False), *events[1:]], name)
    assert (tmp_path / "one.tape").read_bytes() == (tmp_path / "two.tape").read_bytes()
    (segment,) = tape_reader.segments(tmp_path / "one.tape")
    playback, asked = Playback(segment), []
    for number, (_, wishes) in enumerate(decide(playback.events(), [decider(segment.head)]), 1):
        asked += [(number, encode(wish)) for wish in wishes]
    assert playback.asked == asked
    assert (playback.damage, playback.end) == ([], End(t_ns=events[-1].t_ns, events=len(events), why="stopped"))
    assert bool(asked) == (name == "tcp_buffer")
    assert list(Playback(segment).events()) == events


def test_a_tape_of_nothing_is_a_tape_and_none_is_overwritten(tmp_path: Path) -> None:
    made_tape.write(tmp_path / "empty.tape", [])
    (segment,) = tape_reader.segments(tmp_path / "empty.tape")
    assert list(Playback(segment).events()) == []
    with pytest.raises(FileExistsError):
        made_tape.write(tmp_path / "empty.tape", [])


class FullTable:
    """Of 64 neighbours 60 are there; what it sees of the limit after it has told that."""

    every_s = 1.0
    values: ClassVar[dict[Spot, int]] = {Spot(GC3[:-1] + level, 0): 16 << int(level) for level in "123"}

    def __init__(self) -> None:
        self.seen: list[int] = []

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        limits = [now[spot] for spot in self.values]
        yield NeighEntries(t_ns, 2, limits[2] - 4, limits[2] - 4, *limits, 7, 7, 3, 0)
        self.seen += [limits[2], now[Spot(GC3, 0)]]


def test_a_world_sees_at_once_what_came_of_what_it_has_told() -> None:
    """Else a second event of the same moment would tell what no longer stands, and the decider would believe it."""
    table = FullTable()
    assert Loop(["neigh_table"], [table]).run(1.5).refused == []
    assert table.seen == [128, 256, 256, 512]
