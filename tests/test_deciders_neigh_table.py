"""neigh_table in a closed loop: a model of the kernel's table, its probe, its netlink report and the gate."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import decode, encode
from bus.schema import AnyEvent, Attached, Counters, NeighEntries, NeighMoves, NeighTable, Netns, Outcome, Value, Wish
from deciders import neigh_table
from deciders.engine import Decider
from deciders.neigh_room import Policy

SEC = 1_000_000_000
MS = 1_000_000
FAMILIES = {2: "ipv4", 10: "ipv6"}
HIGH = 1 << 20


def key(level: int, family: int = 2) -> str:
    return f"net.{FAMILIES[family]}.neigh.default.gc_thresh{level}"


@dataclass
class World:
    """One table of the kernel, in steps of a millisecond while it fills."""

    thresholds: list[int] = field(default_factory=lambda: [32, 64, 128])
    policy: Policy = field(default_factory=Policy)
    answer_ms: int = 4
    """From a wish to the value written: decoding, journal, write."""
    lose: float = 0.0
    held: tuple[int, ...] = ()
    high: int = HIGH
    chance: random.Random = field(default_factory=lambda: random.Random(3))
    probe: bool = True
    silent: float | None = None
    """The share of the entries that get no answer; None: the kernel's counts are not told."""

    def __post_init__(self) -> None:
        self.decider = Decider(neigh_table, self.policy)  # type: ignore[arg-type]
        self.original = list(self.thresholds)
        self.t_ns = 50 * SEC
        self.entries = 0
        self.refused = 0
        self.sent_ns = 0
        self.sent_entries = 0
        self.wishes: list[Wish] = []
        self.changes: list[tuple[int, int]] = []
        self.waiting: list[tuple[int, Wish]] = []
        self.made: list[int] = []
        self.failed = 0.0
        self.values()
        self.netlink()

    def fill(self, count: int, per_s: float) -> World:
        """Add entries at this rate; none is old enough to be collected."""
        due = 0.0
        added = 0
        while added < count:
            self.t_ns += MS
            due += per_s / 1000
            while due >= 1 and added < count:
                due -= 1
                added += 1
                self._create()
            if self.t_ns // (2 * SEC) != (self.t_ns - MS) // (2 * SEC):
                self.netlink()
            if self.t_ns % SEC < MS:
                self.stats()
            self._write()
        return self

    def quiet(self, seconds: float, step_s: float = 2.0) -> World:
        """Time passes; level state is told every other second."""
        end_ns = self.t_ns + int(seconds * SEC)
        while self.t_ns < end_ns:
            self.t_ns += int(step_s * SEC)
            self._write()
            self.values()
            self.netlink()
            self.stats()
            self._write()
        return self

    def values(self) -> None:
        for level in (1, 2, 3):
            now, was = self.thresholds[level - 1], self.original[level - 1]
            self.show(Value(self.t_ns, key(level), 0, 0, now, was, 16, self.high, level in self.held))

    def netlink(self) -> None:
        self.show(NeighTable(self.t_ns, 2, self.entries, *self.thresholds, self.refused, 0, 0, 0))

    def stats(self) -> None:
        """As /proc/net/stat/arp_cache has it: one that does not answer is given up after 3 s."""
        if self.silent is not None:
            self.made.append(self.entries)
            self.failed += self.silent * max(0, self.made[-4] - self.made[-5]) if len(self.made) > 4 else 0
            made = {"allocs": sum(max(0, b - a) for a, b in pairwise(self.made)), "res_failed": int(self.failed)}
            self.show(Counters(self.t_ns, 0, "net/stat/arp_cache", made))

    def entry(self) -> NeighEntries:
        return NeighEntries(self.t_ns, 2, self.entries, self.entries, *self.thresholds, 7, 7, 3, self.refused)

    def show(self, event: AnyEvent) -> None:
        for _ in range(self.chance.choice((0, 2)) if self.chance.random() < self.lose else 1):
            self.decider.state, asked = self.decider.fold(self.decider.state, event)
            for wish in self.decider.fresh(asked, event.t_ns):
                assert isinstance(wish, Wish)
                assert decode(Wish, encode(wish)) == wish
                assert wish.netns == 0
                self.wishes.append(wish)
                self.waiting.append((self.t_ns + self.answer_ms * MS, wish))

    def _create(self) -> None:
        """neigh_alloc and the probe (bpf/neigh_create.c)."""
        if self.entries >= self.thresholds[2]:
            self.refused += 1
        else:
            self.entries += 1
        limit = self.thresholds[2]
        if not self.probe or self.entries * 5 < limit * 2 or self.t_ns - self.sent_ns < MS:
            return
        if self.entries * 4 < limit * 3 and self.entries < self.sent_entries + limit // 16:
            return
        self.sent_ns, self.sent_entries = self.t_ns, self.entries
        self.show(self.entry())

    def _write(self) -> None:
        """The actuator: one wish after the other."""
        while self.waiting and self.waiting[0][0] <= self.t_ns:
            _, wish = self.waiting.pop(0)
            level = int(wish.tunable[-1])
            old = self.thresholds[level - 1]
            refusal = self._refusal(wish, level, old)
            if not refusal:
                self.thresholds[level - 1] = wish.want
                self.changes.append((level, wish.want))
                assert self.thresholds == sorted(self.thresholds)
            verdict: Literal["refused", "written"] = "refused" if refusal else "written"
            value = self.thresholds[level - 1]
            self.show(Outcome(self.t_ns, "neigh_table", wish.tunable, 0, wish.believed, wish.want, verdict, refusal,
                              value, 1))  # fmt: skip

    def _refusal(self, wish: Wish, level: int, old: int) -> str:
        if wish.believed != old:
            return "believed"
        if level in self.held:
            return "held"
        if not 16 <= wish.want <= self.high or abs(wish.want - old) > old:
            return "bounds or step"
        if (level < 3 and wish.want > self.thresholds[level]) or (level > 1 and wish.want < self.thresholds[level - 2]):
            return "relation"
        return ""


def test_two_thousand_entries_at_a_thousand_a_second_and_none_is_refused() -> None:
    world = World().fill(2000, 1000)
    assert world.refused == 0
    assert world.entries == 2000
    assert world.thresholds == [1024, 2048, 4096]


@pytest.mark.parametrize("answer_ms", [1, 15, 30])
@pytest.mark.parametrize("per_s", [200, 1000, 2000])
def test_none_is_refused_however_slow_a_good_actuator_is(answer_ms: int, per_s: int) -> None:
    assert World(answer_ms=answer_ms).fill(2000, per_s).refused == 0


def test_the_first_wish_comes_at_the_first_event_of_a_small_table_and_is_for_the_hard_limit() -> None:
    world = World().fill(64, 1000)
    first = world.wishes[0]
    assert (first.tunable, first.believed, first.want) == (key(3), 128, 256)
    assert first.evidence["entries"] == 52
    assert first.why.startswith("ARP table: 52 of 128 entries, ")
    slow = World().fill(64, 20).wishes[0]
    assert slow.why == "ARP table: 52 of 128 entries, and so small a table is soon full"


def test_a_larger_table_grows_at_the_rate_at_which_it_fills() -> None:
    world = World(thresholds=[128, 256, 512]).fill(300, 2000)
    first = world.wishes[0]
    assert (first.tunable, first.believed, first.want) == (key(3), 512, 1024)
    assert first.why == "ARP table: 205 of 512 entries, filling by 1990/s: full in 154 ms"
    assert World(thresholds=[128, 256, 512]).fill(300, 100).wishes == []


def test_a_slow_fill_waits_until_three_quarters_are_used() -> None:
    world = World(thresholds=[128, 512, 1024]).fill(760, 100)
    assert world.wishes == []
    world.fill(20, 100)
    assert [(wish.tunable, wish.want) for wish in world.wishes[:1]] == [(key(3), 2048)]


def test_growth_stops_as_soon_as_there_is_room() -> None:
    world = World().fill(100, 50).quiet(10)
    assert world.thresholds == [64, 128, 256]
    asked = len(world.wishes)
    assert len(world.quiet(300).wishes) == asked


def test_the_other_two_keep_their_proportion_and_order() -> None:
    world = World(thresholds=[100, 300, 1000]).fill(900, 2000).quiet(6)
    one, two, three = world.thresholds
    assert (one, two) == (three // 10, three * 3 // 10)
    risen = [change for change in world.changes if change[0] == 3]
    assert world.changes[0] == risen[0]


def test_without_the_probe_the_netlink_report_is_enough_for_a_slow_fill() -> None:
    world = World(thresholds=[128, 512, 1024], probe=False).fill(1500, 80)
    assert world.refused == 0


def test_the_ceiling_is_the_floor_when_little_is_attached() -> None:
    world = World(thresholds=[1024, 4096, 8000])
    world.show(Attached(world.t_ns, 1, 2, 254, 1))
    world.fill(8000, 5000).quiet(10)
    assert world.thresholds[2] == 8192
    assert len([wish for wish in world.wishes if wish.tunable == key(3)]) == 1
    asked = len(world.wishes)
    assert len(world.quiet(60).wishes) == asked


def test_the_ceiling_rises_with_the_networks_attached_and_falls_when_they_go() -> None:
    world = World(thresholds=[2048, 4096, 8192])
    for netns, hosts in ((1, 4094), (2, 10)):
        world.show(Attached(world.t_ns, netns, 2, hosts, 1))
        world.show(Attached(world.t_ns, netns, 2, hosts, 1))
    state = world.decider.state
    assert state.tables[2].attached == 4094 + 256
    world.fill(8000, 4000)
    assert world.thresholds[2] == 16384
    world.show(Netns(world.t_ns, 1, 1, "", False))
    assert state.tables[2].attached == 256


@pytest.mark.parametrize(
    ("silent", "seconds", "grown"), [(1.0, 20, 8192), (0.6, 20, 8192), (0.1, 20, 131072), (1.0, 5, 8192)]
)
def test_a_scan_grows_it_no_further_than_any_host_may_have_it(silent: float, seconds: int, grown: int) -> None:
    world = World([128, 512, 1024], silent=silent)
    world.show(Attached(world.t_ns, 7, 2, 65536, 1))
    world.quiet(10, 1.0)
    world.fill(4000 * seconds, 4000)
    assert world.thresholds[2] == grown
    lines = neigh_table.advice(world.decider.state)
    assert len(lines) == (grown == 8192)
    assert all(" new neighbours a second do not answer: a scan" in line for line in lines)


def test_a_minute_after_a_scan_it_may_grow_again_and_nothing_is_told() -> None:
    world = World([128, 512, 1024], silent=1.0)
    world.show(Attached(world.t_ns, 7, 2, 65536, 1))
    world.quiet(10, 1.0)
    world.fill(40_000, 4000)
    world.entries, world.silent = 0, 0.0
    world.quiet(70)
    assert neigh_table.advice(world.decider.state) == []
    world.fill(30_000, 2000)
    assert world.thresholds[2] == 32768


def test_the_rows_bound_is_the_last_word() -> None:
    world = World(thresholds=[256, 512, 1024], high=1500).fill(1400, 2000)
    assert world.thresholds[2] == 1500
    assert all(wish.want <= 1500 for wish in world.wishes)


def test_held_thresholds_are_not_asked_for() -> None:
    world = World(held=(1, 2)).fill(500, 1000).quiet(10)
    assert world.thresholds[:2] == [32, 64]
    assert world.thresholds[2] >= 500
    assert {wish.tunable for wish in world.wishes} == {key(3)}


def test_gc_thresh2_follows_before_gc_thresh1() -> None:
    world = World()
    world.t_ns += SEC
    for level in (1, 2, 3):
        now = [32, 64, 256][level - 1]
        world.show(Value(world.t_ns, key(level), 0, 0, now, world.original[level - 1], 16, HIGH, False))
    assert [(wish.tunable, wish.want) for wish in world.wishes] == [(key(2), 128)]


def test_a_threshold_never_passes_the_one_above_it_that_is_held() -> None:
    world = World(thresholds=[60, 64, 128], held=(2,)).fill(500, 1000).quiet(10)
    assert world.thresholds[:2] == [64, 64]
    assert {want for wish, want in ((wish, wish.want) for wish in world.wishes) if wish.tunable == key(1)} == {64}


def test_a_held_hard_limit_leaves_all_as_it_is() -> None:
    world = World(held=(3,)).fill(500, 1000).quiet(10)
    assert world.wishes == []


def test_a_believed_value_that_was_stale_is_put_right_at_once() -> None:
    world = World(thresholds=[128, 512, 1024])
    world.entries = 900
    old = world.entry()
    world.thresholds[2] = 1100
    world.show(old)
    world.t_ns += 5 * MS
    world._write()
    world.t_ns += 5 * MS
    world._write()
    assert world.thresholds[2] == 2200


def test_an_empty_table_goes_back_to_its_originals_by_halves_in_good_order() -> None:
    world = World().fill(2000, 1000).quiet(4)
    assert world.thresholds == [1024, 2048, 4096]
    grown = len(world.changes)
    world.entries = 10
    world.quiet(590)
    assert world.thresholds == [1024, 2048, 4096]
    world.quiet(30)
    assert world.thresholds == [512, 1024, 2048]
    assert [level for level, _ in world.changes[grown:]] == [1, 2, 3]
    world.quiet(130)
    assert world.thresholds == [512, 1024, 2048]
    world.quiet(150 * 8)
    assert world.thresholds == world.original
    threes = [value for level, value in world.changes[grown - 1 :] if level == 3]
    assert all(after >= before / 2 for before, after in pairwise(threes))
    asked = len(world.wishes)
    assert len(world.quiet(3600).wishes) == asked


def test_on_the_way_down_nothing_is_asked_for_that_the_gate_takes_for_no_change() -> None:
    """The soft limit is held, so that the hard one could come down by one."""
    world = World(thresholds=[32, 64, 128], held=(2,))
    world.thresholds[1:] = [3640, 3641]
    assert key(3) not in [wish.tunable for wish in world.quiet(1300).wishes]
    world.thresholds[2] = 8000
    threes = [wish.want for wish in world.quiet(1300).wishes if wish.tunable == key(3)]
    assert threes == [4000, 3640]


def test_a_table_in_use_does_not_shrink() -> None:
    world = World().fill(2000, 1000).quiet(4)
    world.entries = 450
    before = list(world.thresholds)
    assert world.quiet(3600).thresholds == before


def test_nobody_knows_that_an_unseen_table_was_empty() -> None:
    world = World().fill(2000, 1000).quiet(4)
    world.entries = 0
    before = list(world.thresholds)
    for _ in range(20):
        world.t_ns += 100 * SEC
        world.values()
        world.netlink()
        assert world.waiting == []
    assert world.thresholds == before


def test_shrinking_stops_when_entries_come_back() -> None:
    world = World().fill(2000, 1000).quiet(4)
    world.entries = 10
    world.quiet(590)
    world.entries = 1500
    before = list(world.thresholds)
    assert world.quiet(600).thresholds == before


def test_the_nd_table_is_its_own() -> None:
    state = neigh_table.start(Policy())
    event = NeighEntries(SEC, 10, 120, 120, 32, 64, 128, 1, 1, 2, 0)
    state, wishes = neigh_table.step(state, event)
    assert [wish.tunable for wish in wishes] == [key(3, 10)]
    assert "ND table" in wishes[0].why


def test_attached_namespaces_are_bounded() -> None:
    state = neigh_table.start(Policy())
    for netns in range(20_000):
        state, _ = neigh_table.step(state, Attached(SEC, netns, 2, 1, 1))
    assert len(state.hosts) <= 8192
    assert state.tables[2].attached == 256 * len(state.hosts)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.4), st.integers(1, 10))
def test_lost_and_doubled_news_never_refuses_a_slow_fill(seed: int, lose: float, answer_ms: int) -> None:
    world = World(chance=random.Random(seed), lose=lose, answer_ms=answer_ms, thresholds=[128, 256, 512])
    world.fill(1000, 100).quiet(10)
    assert world.refused == 0
    assert world.thresholds[2] in (1024, 2048)


COUNT = st.one_of(st.integers(0, 300), st.sampled_from([0, 1024, 2**31 - 1, 2**63 - 1]))
TIME = st.integers(0, 10**12)
FAMILY = st.sampled_from([2, 10, 3])
KEYS = st.sampled_from([*(key(level, family) for level in (1, 2, 3) for family in FAMILIES), "x.y"])
VERDICTS = st.sampled_from(["written", "advised", "refused", "failed", "reverted", "confirmed", "ceded"])
ANY: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(NeighEntries, TIME, FAMILY, *([COUNT] * 9)),
    st.builds(NeighTable, TIME, FAMILY, *([COUNT] * 8)),
    st.builds(Attached, TIME, COUNT, FAMILY, COUNT, COUNT),
    st.builds(Netns, TIME, COUNT, COUNT, st.just(""), st.booleans()),
    st.builds(Value, TIME, KEYS, st.just(0), st.just(0), COUNT, COUNT, COUNT, COUNT, st.booleans()),
    st.builds(
        Outcome, TIME, st.just("neigh_table"), KEYS, st.just(0), COUNT, COUNT, VERDICTS, st.just(""), COUNT, COUNT
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=60))
def test_no_events_lead_to_a_wish_that_is_no_step(events: list[AnyEvent]) -> None:
    state = neigh_table.start(Policy())
    for event in events:
        state, wishes = neigh_table.step(state, event)
        assert len(wishes) <= 1
        for wish in wishes:
            assert decode(Wish, encode(wish)) == wish
            assert wish.tunable in neigh_table._PLACES
            assert wish.t_ns == event.t_ns
            assert 0 < abs(wish.want - wish.believed) <= max(1, wish.believed)


# --- floods of gratuitous ARP ---------------------------------------------------------------------------------------


def moved(seconds: int, family: int = 2, netns: int = 7, per_s: int = 50) -> neigh_table.State:
    """So long a flood."""
    state = neigh_table.start(Policy())
    for second in range(seconds + 1):
        event = NeighMoves(100 * SEC + second * SEC, netns, 900 + netns, family, 3, 1000 + per_s * second)
        state, wishes = neigh_table.step(state, event)
        assert wishes == ()
    return state


@pytest.mark.parametrize(
    ("family", "cure"), [(2, "net.ipv4.conf.all.drop_gratuitous_arp"), (10, "drop_unsolicited_na")]
)
def test_of_neighbours_that_claim_another_address_for_long_people_are_told_and_nothing_is_written(
    family: int, cure: str
) -> None:
    (line,) = neigh_table.advice(moved(8, family))
    assert cure in line
    assert "device 3 of netns 907" in line
    assert "50/s" in line


def test_a_fail_over_is_no_flood() -> None:
    assert neigh_table.advice(moved(3)) == []
    state = moved(3)
    # Another one, a minute later.
    for event in (NeighMoves(160 * SEC + n * SEC, 7, 907, 2, 3, 5000 + n) for n in range(3)):
        neigh_table.step(state, event)
    assert neigh_table.advice(state) == []


def test_a_flood_that_is_long_over_or_whose_namespace_has_gone_is_not_told_of() -> None:
    state = moved(8)
    neigh_table.step(state, NeighTable(700 * SEC, 2, 5, 128, 512, 1024, 0, 0, 5, 0))
    assert neigh_table.advice(state)
    neigh_table.step(state, NeighTable(709 * SEC, 2, 5, 128, 512, 1024, 0, 0, 5, 0))
    assert neigh_table.advice(state) == []
    state = moved(8)
    neigh_table.step(state, Netns(109 * SEC, 7, 907, "", False))
    assert neigh_table.advice(state) == []
