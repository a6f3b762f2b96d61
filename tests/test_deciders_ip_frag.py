"""The decider of fragment memory: it grows where the limit is what fails, brakes where it is not, and comes back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bus.schema import Counters, FragMemory, Host, Netns, Probe, Value, Wish
from bus.tunables import TUNABLES, resolve
from deciders import ip_frag
from deciders.frag_room import USUAL_BYTES, Policy
from deciders.ip_frag import ROOMS_MAX, State
from trimtab.testing.loop import MEM_BYTES, Loop
from trimtab.testing.waves import burst, constant, step
from trimtab.testing.worlds_frag import FRAG4, Fragments

SEC = 1_000_000_000
MIB = 1 << 20
ROW = {row.name: row for row in TUNABLES}[FRAG4]


def test_a_limit_far_too_small_reaches_what_is_needed_within_two_seconds() -> None:
    world = Fragments(step(3.05, 3 * MIB), limit=65_536, early=False)
    loop = Loop(["ip_frag"], [world]).run(5.1)
    assert world.lately == 0
    assert loop.final(FRAG4) == USUAL_BYTES
    assert loop.refused == []
    assert {change.spot.netns for change in loop.changes} == {7}


def test_where_fragments_are_seen_as_they_come_it_grows_before_one_is_refused() -> None:
    world = Fragments(step(3, 100_000) + step(5, 60_000), limit=131_072)
    Loop(["ip_frag"], [world]).run(10)
    assert world.refused == 0 or world.refused * 2304 < 40_000


def test_beyond_the_kernels_own_default_it_grows_as_long_as_fewer_fail() -> None:
    world = Fragments(constant(30 * MIB), early=False)
    loop = Loop(["ip_frag"], [world]).run(60)
    assert loop.final(FRAG4) == 32 * MIB
    assert world.lately == 0
    assert [change.new // MIB for change in loop.changes] == [8, 16, 32]


def test_what_never_becomes_whole_fills_any_limit_so_it_goes_back_and_is_not_tried_again_for_an_hour() -> None:
    world = Fragments(constant(MIB), junk=constant(5_000 * MIB), early=False)
    loop = Loop(["ip_frag"], [world]).run(600)
    assert loop.peak(FRAG4) <= 64 * MIB
    assert loop.final(FRAG4) == USUAL_BYTES
    assert max(change.seconds for change in loop.changes) < 60
    assert any("the rest of their fragments does not come" in wish.why for wish in loop.wishes)


@pytest.mark.parametrize(("limit", "early"), [(131_072, False), (131_072, True), (USUAL_BYTES, False)])
def test_where_no_datagram_becomes_whole_it_never_stays_above_the_kernels_own_default(limit: int, early: bool) -> None:
    # What is let in fails only a minute later: until then nothing seems to be lost with a larger limit.
    world = Fragments(constant(0.0), junk=step(3, 100 * MIB), limit=limit, early=early, gives_up_s=60)
    loop = Loop(["ip_frag"], [world]).run(300)
    assert loop.peak(FRAG4) <= 4 * USUAL_BYTES
    assert loop.final(FRAG4) == USUAL_BYTES


def test_a_limit_full_of_what_never_becomes_whole_is_told_of() -> None:
    told = Told()
    told.value(3, USUAL_BYTES, USUAL_BYTES)
    for seconds in range(7):
        values = {"Ip.ReasmReqds": 1000 * seconds, "Ip.ReasmFails": 0, "Ip.ReasmOKs": 7}
        told(Counters(told.t_ns + seconds * SEC, 3, "net/snmp", values))
    assert ip_frag.advice(told.state) == []
    assert told.full(3, USUAL_BYTES) == ()
    (line,) = ip_frag.advice(told.state)
    assert "netns 3: fragments fill the 4194304 bytes of net.ipv4.ipfrag_high_thresh, and no datagram" in line
    told(Host(told.t_ns + 61 * SEC, "b", "r", "m", 2, 4 << 30, 4096, 37))
    assert ip_frag.advice(told.state) == []


def test_where_fragments_fail_with_room_left_nothing_grows() -> None:
    # 3.2 of 4 MiB: near enough to grow, were it not for what fails.
    world = Fragments(constant(0.2 * MIB), junk=constant(2 * MIB) + step(60, MIB))
    loop = Loop(["ip_frag"], [world]).run(180)
    assert loop.changes == []


def test_what_has_grown_goes_back_when_fragments_fail_with_room_left() -> None:
    world = Fragments(burst(5, 3, 7 * MIB), junk=step(60, MIB), early=False)
    loop = Loop(["ip_frag"], [world]).run(20)
    assert loop.final(FRAG4) == 8 * MIB
    loop.run(60)
    assert loop.final(FRAG4) == USUAL_BYTES
    assert "with room left" in loop.wishes[-1].why


def test_after_a_long_quiet_it_comes_back_to_the_original_and_no_further() -> None:
    world = Fragments(burst(5, 20, MIB), limit=100_000)
    loop = Loop(["ip_frag"], [world]).run(590)
    assert loop.final(FRAG4) > 1_000_000
    loop.run(1500)
    assert loop.final(FRAG4) == 100_000
    assert loop.reversals(FRAG4) == 1


def test_what_is_in_use_stays_however_long() -> None:
    loop = Loop(["ip_frag"], [Fragments(constant(2.6 * MIB), limit=MIB)]).run(2000)
    assert loop.final(FRAG4) == USUAL_BYTES
    assert loop.reversals(FRAG4) == 0


def test_the_bounds_are_shares_of_memory_and_the_decider_keeps_below_them() -> None:
    assert resolve(ROW, 8 << 30).high == 64 * MIB
    world = Fragments(constant(2_000 * MIB), early=False)
    loop = Loop(["ip_frag"], [world]).run(60)
    assert loop.peak(FRAG4) <= resolve(ROW, MEM_BYTES).high
    assert loop.refused == []


class Told:
    """A decider that is told by hand."""

    def __init__(self, mem_bytes: int = 4 << 30) -> None:
        self.state: State = ip_frag.start(Policy())
        self.t_ns = 100 * SEC
        self(Host(self.t_ns, "b", "r", "m", 2, mem_bytes, 4096, 37))
        self(Probe(self.t_ns, "ip_frag", "fentry", ""))

    def __call__(self, event: object) -> Sequence[Wish]:
        self.state, wishes = ip_frag.step(self.state, event)
        return wishes

    def full(self, netns: int, limit: int, family: int = 2) -> Sequence[Wish]:
        self.t_ns += 10 * SEC
        return self(FragMemory(self.t_ns, netns, netns + 900, family, limit, limit, 1))

    def value(self, netns: int, value: int, original: int) -> None:
        self(Value(self.t_ns, FRAG4, netns, netns + 900, value, original, 65536, 1 << 28, False))


def test_the_wish_is_for_the_namespace_and_family_of_the_fragments() -> None:
    told = Told()
    (wish,) = told.full(5, 131_072, 10)
    assert (wish.tunable, wish.netns, wish.netns_ino) == ("net.ipv6.ip6frag_high_thresh", 5, 905)
    assert (wish.believed, wish.want) == (131_072, 262_144)
    assert wish.evidence["held_bytes"] == 131_072


def test_all_namespaces_together_add_no_more_than_their_share_of_memory() -> None:
    told = Told(mem_bytes=4 << 30)
    for netns in range(1, 5):
        told.value(netns, 32 * MIB, USUAL_BYTES)
    # 128 MiB for all; 112 are given.
    (wish,) = told.full(9, USUAL_BYTES)
    assert wish.want == 8 * MIB
    told.value(9, 20 * MIB, USUAL_BYTES)
    assert told.full(10, USUAL_BYTES) == ()


def test_one_takes_no_more_than_its_share_also_before_the_bounds_are_told() -> None:
    assert Told(mem_bytes=1 << 30).full(3, 8 * MIB) == ()


def test_in_the_initial_namespace_proc_alone_will_do() -> None:
    told = Told()
    told.value(1, USUAL_BYTES, USUAL_BYTES)
    assert told(Counters(told.t_ns, 1, "net/sockstat", {"FRAG.memory": MIB})) == ()
    (wish,) = told(Counters(told.t_ns + SEC, 1, "net/sockstat", {"FRAG.memory": 4 * MIB}))
    assert (wish.want, wish.netns) == (8 * MIB, 1)


def test_a_second_growth_beyond_the_usual_waits_for_what_the_first_has_shown() -> None:
    told = Told()
    told.value(3, 8 * MIB, USUAL_BYTES)
    told.value(3, 16 * MIB, USUAL_BYTES)
    assert told.full(3, 16 * MIB) == ()
    for seconds, failed in enumerate((0, 10)):
        values = {"Ip.ReasmReqds": 1000 * seconds, "Ip.ReasmFails": failed, "Ip.ReasmOKs": 0}
        told(Counters(told.t_ns + seconds * 2 * SEC, 3, "net/snmp", values))
    assert told.full(3, 16 * MIB)


def test_zero_means_that_fragments_are_not_wanted_and_is_left_alone() -> None:
    assert Told().full(3, 0) == ()


def test_a_namespace_that_has_gone_is_forgotten_and_there_are_never_too_many() -> None:
    told = Told()
    told.full(3, MIB)
    told(Netns(told.t_ns, 3, 903, "", False))
    assert told.state.rooms == {}
    for netns in range(ROOMS_MAX + 10):
        told.full(netns, MIB)
    assert len(told.state.rooms) == ROOMS_MAX


@pytest.mark.parametrize("road", ["", "fentry"])
def test_silence_of_a_probe_that_is_not_there_is_no_quiet(road: str) -> None:
    told = Told()
    wishes: list[Wish] = []
    for _ in range(400):
        told.t_ns += 5 * SEC
        told(Probe(told.t_ns, "ip_frag", road, ""))
        told.state, more = ip_frag.step(
            told.state, Value(told.t_ns, FRAG4, 3, 903, 8 * MIB, 5 * MIB, 65536, 1 << 28, False)
        )
        wishes += more
    assert {wish.want for wish in wishes} == ({5 * MIB} if road else set())
