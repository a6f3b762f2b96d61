"""The decider of local ports and TIME_WAITs: which way a range grows, where it ends, and how it comes down."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bus.config import Config
from bus.schema import Counters, Netns, Outcome, Ports, Probe, Value, Wish
from deciders import ports
from deciders.ports import State
from deciders.ports_room import BUCKETS, HIGH, LOW, REUSE, Policy
from trimtab.testing.loop import Loop
from trimtab.testing.waves import burst, constant, step
from trimtab.testing.worlds_room import LocalPorts

SEC = 1_000_000_000


def out(
    t_ns: int, low: int = 40_000, high: int = 40_099, count: int = 1, reuse: int = 2, stamps: int = 1, netns: int = 9
) -> Ports:
    return Ports(t_ns, netns, 5, low, high, count, reuse, stamps, 0, 1000, 0)


def tell(state: State, *events: object) -> list[Wish]:
    return [wish for event in events for wish in ports.step(state, event)[1]]


def asked(wishes: Sequence[Wish]) -> list[tuple[str, int, int]]:
    return [(wish.tunable, wish.believed, wish.want) for wish in wishes]


# --- events --------------------------------------------------------------------------------------------------------


def test_a_connection_without_a_port_doubles_the_range_upwards() -> None:
    (wish,) = tell(ports.start(Policy()), out(SEC))
    assert (wish.tunable, wish.netns, wish.netns_ino) == (HIGH, 9, 5)
    assert (wish.believed, wish.want) == (40_099, 40_199)
    assert wish.why == "no local port of 40000 to 40099 for a connect(), 1 so far"
    assert wish.evidence["exhausted"] == 1


@pytest.mark.parametrize(
    ("event", "wish"),
    [
        (out(SEC, 32_768, 60_999), (HIGH, 60_999, 65_535)),
        (out(SEC, 32_768, 65_535), (LOW, 32_768, 10_240)),
        (out(SEC, 60_000, 65_535), (LOW, 60_000, 54_464)),
        (out(SEC, 60_001, 65_535), (LOW, 60_001, 54_465)),
        (out(SEC, 10_240, 65_535), (REUSE, 2, 1)),
        (out(SEC, 5_000, 65_535), (REUSE, 2, 1)),
        (out(SEC, 10_240, 65_535, reuse=1), None),
        (out(SEC, 10_240, 65_535, reuse=0), None),
        (out(SEC, 10_240, 65_535, stamps=0), None),
        (out(SEC, 10_240, 65_535, stamps=2), None),
        (out(SEC, count=0), None),
        (out(SEC, 0, 0), None),
    ],
)
def test_what_comes_next(event: Ports, wish: tuple[str, int, int] | None) -> None:
    assert asked(tell(ports.start(Policy()), event)) == ([wish] if wish else [])


def test_where_the_end_is_held_the_range_grows_the_other_way() -> None:
    state = ports.start(Policy())
    tell(state, Probe(0, "ports", "raw", ""), Value(SEC, HIGH, 9, 5, 40_099, 40_099, 1024, 65_535, True))
    assert asked(tell(state, out(2 * SEC))) == [(LOW, 40_000, 39_900)]


def test_time_waits_near_their_limit_get_twice_as_many_and_no_more_than_may_be() -> None:
    state = ports.start(Policy())
    near = Ports(SEC, 9, 5, 1, 2, 0, 2, 1, 760, 1000, 0)
    (wish,) = tell(state, near)
    assert asked([wish]) == [(BUCKETS, 1000, 2000)]
    assert wish.why == "760 connections in TIME_WAIT, of 1000; 0 ended while none was free"
    assert not tell(state, Ports(5 * SEC, 9, 5, 1, 2, 0, 2, 1, 740, 1000, 0))
    tell(state, Value(6 * SEC, BUCKETS, 9, 5, 1000, 1000, 64, 1500, False))
    assert asked(tell(state, Ports(7 * SEC, 9, 5, 1, 2, 0, 2, 1, 1000, 1000, 4))) == [(BUCKETS, 1000, 1500)]


def test_a_want_of_ports_that_was_told_before_is_none_now() -> None:
    state = ports.start(Policy())
    assert tell(state, out(SEC))
    assert not tell(state, out(5 * SEC))
    assert tell(state, out(9 * SEC, count=2))


def test_without_the_probe_the_counter_of_the_initial_namespace_tells() -> None:
    state = ports.start(Policy())
    tell(state, Value(SEC, BUCKETS, 1, 1, 1000, 1000, 64, 1 << 20, False))
    totals = [Counters(at * SEC, 1, "net/netstat", {"TcpExt.TCPTimeWaitOverflow": n}) for at, n in ((2, 7), (3, 7))]
    assert not tell(state, *totals)
    (wish,) = tell(state, Counters(4 * SEC, 1, "net/netstat", {"TcpExt.TCPTimeWaitOverflow": 9}))
    assert asked([wish]) == [(BUCKETS, 1000, 2000)]
    assert wish.why == "2 connections ended in a second without TIME_WAIT, for want of buckets"


def test_namespaces_are_told_apart_forgotten_when_they_go_and_bounded() -> None:
    state = ports.start(Policy())
    assert {wish.netns for wish in tell(state, out(SEC), out(SEC, netns=10))} == {9, 10}
    tell(state, Netns(SEC, 9, 5, "", False))
    assert set(state.places) == {10}
    tell(state, *(out(SEC, netns=netns) for netns in range(20, 3000)))
    assert len(state.places) == ports.PLACES_MAX


def test_after_a_refusal_it_waits() -> None:
    state = ports.start(Policy())
    tell(state, out(SEC), Outcome(SEC, "ports", HIGH, 9, 40_099, 40_199, "refused", "held", 40_099, 0))
    assert not tell(state, out(SEC + SEC // 2, count=2))
    assert tell(state, out(3 * SEC, count=3))


def test_where_the_range_has_ended_people_are_told_what_else_there_is() -> None:
    state = ports.start(Policy())
    tell(state, out(SEC, 10_241, 65_535, count=7))
    assert ports.advice(state) == []
    tell(state, out(2 * SEC, 10_240, 65_535, count=8), out(2 * SEC, 10_240, 65_535, count=0, netns=10))
    assert ports.advice(state) == [
        "netns 9: 8 connect() calls found no port of 10240 to 65535: more addresses, here or where they go to, or"
        " connections that are kept open"
    ]


def near_buckets(at_s: int, tw: int, tw_max: int, count: int = 0, reuse: int = 0, stamps: int = 1) -> Ports:
    """Of a range of 55296 ports that can be no larger."""
    return Ports(at_s * SEC, 9, 5, 10_240, 65_535, count, reuse, stamps, tw, tw_max, 0)


@pytest.mark.parametrize(
    ("event", "want"),
    [
        (near_buckets(1, 15_000, 20_000), 27_648),
        (near_buckets(1, 21_000, 27_648), None),
        (near_buckets(1, 21_000, 27_648, reuse=1), 55_296),
        (near_buckets(1, 21_000, 27_648, reuse=1, stamps=0), None),
        (near_buckets(1, 55_000, 60_000), None),
        (near_buckets(1, 55_297, 60_000), 120_000),
    ],
)
def test_time_waits_that_all_may_go_to_one_place_are_let_have_half_of_the_ports(event: Ports, want: int | None) -> None:
    """Those that find no bucket end without, and leave their ports to others."""
    wishes = asked(tell(ports.start(Policy()), event))
    assert wishes == ([(BUCKETS, event.tw_max, want)] if want else [])


def test_where_ports_run_out_at_the_end_of_the_range_no_time_waits_are_held_but_those_of_before() -> None:
    state = ports.start(Policy())
    tell(state, Value(0, BUCKETS, 9, 5, 40_000, 40_000, 64, 1 << 20, False))
    assert asked(tell(state, near_buckets(1, 60_000, 80_000))) == [(BUCKETS, 80_000, 160_000)]
    (wish,) = tell(state, near_buckets(3, 130_000, 160_000, count=1))
    assert asked([wish]) == [(BUCKETS, 160_000, 40_000)]
    assert wish.why == (
        "no local port of 10240 to 65535 for a connect(), 1 so far, and the range ends here; TIME_WAITs hold them"
    )
    again = [near_buckets(at, 60_000, 40_000, count=1) for at in (10, 3600, 3610)]
    assert asked(tell(state, *again)) == [(BUCKETS, 40_000, 80_000)]


# --- worlds --------------------------------------------------------------------------------------------------------


def test_a_range_grows_until_each_connection_has_a_port_and_no_further_than_a_step() -> None:
    world = LocalPorts(step(2, 28_000), limits=(40_000, 40_099, 2, 65_536))
    loop = Loop(["ports"], [world]).run(10)
    assert not world.failing
    assert loop.final(HIGH) == 65_535
    assert 10_240 <= loop.final(LOW) <= 65_535 - 28_000
    assert loop.refused == []
    assert loop.changes[-1].seconds < 4
    many = len(loop.wishes)
    assert len(loop.run(600).wishes) == many


def test_the_range_ends_at_the_floor_and_time_wait_serves_again() -> None:
    world = LocalPorts(constant(100_000))
    loop = Loop(["ports"], [world]).run(30)
    assert (loop.final(LOW), loop.final(HIGH), loop.final(REUSE)) == (10_240, 65_535, 1)
    assert not world.failing


def test_after_long_quiet_all_goes_back_by_halves() -> None:
    world = LocalPorts(burst(2, 20, 100_000), burst(2, 20, 100_000))
    loop = Loop(["ports"], [world], Config(policy={"ports": {"idle_s": 100.0}})).run(90)
    assert loop.final(BUCKETS) == 4 * 65_536
    raised = [loop.final(name) for name in (LOW, HIGH, REUSE)]
    assert raised == [10_240, 65_535, 1]
    loop.run(1000)
    assert [loop.final(name) for name in (LOW, HIGH, REUSE, BUCKETS)] == [32_768, 60_999, 2, 65_536]
    assert loop.refused == []
    lows = [change.new for change in loop.of(LOW)]
    assert lows == sorted(lows)
    assert len(lows) > 4
    many = len(loop.wishes)
    assert len(loop.run(500).wishes) == many


def test_what_was_needed_again_stays_twice_as_long() -> None:
    state = ports.start(Policy(idle_s=100))
    wide = Value(0, HIGH, 9, 5, 65_000, 60_999, 1024, 65_535, False)
    tell(state, out(SEC, 32_768, 65_000))

    def first_step_back(from_s: int) -> int:
        for at in range(from_s, from_s + 1000, 5):
            tell(state, Probe(at * SEC, "ports", "raw", ""))
            value = Value(at * SEC, wide.tunable, 9, 5, 65_000, 60_999, 1024, 65_535, False)
            if tell(state, value):
                return at - from_s
        return 0

    assert first_step_back(1) == 100
    tell(state, out(200 * SEC, 32_768, 65_000, count=2))
    assert first_step_back(200) == 200


def test_nobody_knows_that_nothing_lacked_while_the_probe_was_off() -> None:
    state = ports.start(Policy(idle_s=100))
    tell(state, out(SEC, 32_768, 65_000))
    for at in range(2, 1000, 5):
        assert not tell(state, Value(at * SEC, HIGH, 9, 5, 65_000, 60_999, 1024, 65_535, False))


def test_what_the_administrator_has_widened_is_not_narrowed() -> None:
    state = ports.start(Policy(idle_s=100))
    for at in range(2, 1000, 5):
        tell(state, Probe(at * SEC, "ports", "raw", ""))
        assert not tell(state, Value(at * SEC, LOW, 9, 5, 20_000, 15_000, 1024, 65_535, False))
