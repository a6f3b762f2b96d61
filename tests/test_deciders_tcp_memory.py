"""The decider of tcp_mem and tcp_max_orphans: order, proportion, bounds, evidence, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest

from bus.config import Config
from bus.schema import Counters, Drops, Outcome, Value, Wish
from bus.tunables import PAGE_BYTES, TUNABLES, resolve
from deciders import tcp_memory
from deciders.tcp_pages import Memory, Policy
from trimtab.testing.loop import MEM_BYTES, Loop
from trimtab.testing.waves import burst, constant, ramp, step
from trimtab.testing.worlds_room import ORPHANS, TCP_MEM, TcpMemory

SEC = 1_000_000_000
ROWS = {row.name: row for row in TUNABLES}
PAGES = MEM_BYTES // PAGE_BYTES


def thresholds(loop: Loop) -> list[int]:
    return [loop.final(name) for name in TCP_MEM]


def in_order_at_every_instant(loop: Loop, world: TcpMemory) -> bool:
    now = dict(zip(TCP_MEM, world.limits, strict=True))
    for change in loop.changes:
        if change.spot.tunable in now:
            now[change.spot.tunable] = change.new
            if sorted(now.values()) != list(now.values()):
                return False
    return True


def test_the_bounds_are_shares_of_memory_in_pages_of_this_machine() -> None:
    highs = [resolve(ROWS[name], MEM_BYTES).high for name in TCP_MEM]
    assert highs == [PAGES // 16, PAGES // 8, PAGES // 4]
    assert resolve(ROWS[ORPHANS], MEM_BYTES).high == MEM_BYTES // 2 // 65536


def test_memory_that_is_wanted_is_never_refused_when_it_is_asked_for_slowly_enough() -> None:
    world = TcpMemory(ramp(2, 12, 30_000))
    loop = Loop(["tcp_memory"], [world]).run(20)
    assert world.refused == 0
    assert world.held == 30_000
    assert loop.refused == []
    assert loop.changes[0].spot.tunable == TCP_MEM[1]
    assert 30_000 / 0.75 <= loop.final(TCP_MEM[2]) <= 1.5 * 30_000 / 0.75
    assert in_order_at_every_instant(loop, world)


def test_a_burst_is_met_at_the_first_drop_and_has_its_room_within_three_seconds() -> None:
    world = TcpMemory(constant(4000) + step(5.45, 50_000))
    loop = Loop(["tcp_memory"], [world]).run(20)
    assert world.held == 54_000
    # Half is in use, so that a single drop is believed at once; then each reading brings a step or two.
    assert world.refused <= 30
    assert next(change.seconds for change in loop.changes if change.seconds > 5) < 5.7


def test_the_three_keep_their_proportion_and_rise_from_the_top() -> None:
    world = TcpMemory(constant(20_000))
    loop = Loop(["tcp_memory"], [world]).run(30)
    zero, one, two = thresholds(loop)
    assert zero == pytest.approx(one * 3 / 4, rel=0.02)
    assert one <= two
    assert next(change.spot.tunable for change in loop.changes) == TCP_MEM[2]
    assert in_order_at_every_instant(loop, world)


def test_each_ends_at_its_share_of_memory() -> None:
    world = TcpMemory(constant(float(PAGES)))
    loop = Loop(["tcp_memory"], [world]).run(60)
    assert thresholds(loop) == [PAGES // 16, PAGES // 8, PAGES // 4]
    assert loop.refused == []
    many = len(loop.wishes)
    assert len(loop.run(60).wishes) == many


def test_nothing_grows_while_the_host_is_short_of_memory() -> None:
    world = TcpMemory(constant(20_000), constant(990), spare=constant(0.05))
    assert Loop(["tcp_memory"], [world]).run(30).changes == []


def test_after_a_long_quiet_all_is_as_it_was_and_not_zero() -> None:
    world = TcpMemory(burst(2, 30, 40_000), burst(2, 30, 3000))
    loop = Loop(["tcp_memory"], [world]).run(60)
    assert loop.final(TCP_MEM[2]) > 40_000
    assert loop.final(ORPHANS) > 3000
    raised = thresholds(loop)
    loop.run(500)
    assert thresholds(loop) == raised
    loop.run(2000)
    assert thresholds(loop) == [3000, 4000, 6000]
    assert loop.final(ORPHANS) == 1000
    assert loop.refused == []
    assert in_order_at_every_instant(loop, world)
    many = len(loop.wishes)
    assert len(loop.run(1200).wishes) == many


def test_where_the_way_back_begins_soon_nothing_turns_round_on_it() -> None:
    world = TcpMemory(burst(2, 5, 40_000))
    loop = Loop(["tcp_memory"], [world], Config(policy={"tcp_memory": {"idle_s": 4.0}})).run(60)
    first_down = next(n for n, change in enumerate(loop.changes) if change.new < change.old)
    assert all(change.new < change.old for change in loop.changes[first_down:])
    assert thresholds(loop) == [3000, 4000, 6000]
    assert loop.refused == []
    assert in_order_at_every_instant(loop, world)


def test_what_is_in_use_does_not_come_down() -> None:
    world = TcpMemory(constant(12_000))
    loop = Loop(["tcp_memory"], [world]).run(60)
    raised = thresholds(loop)
    loop.run(2000)
    assert thresholds(loop) == raised


def test_orphans_get_room_ahead_of_the_first_reset_up_to_what_memory_bears() -> None:
    world = TcpMemory(constant(100), ramp(2, 20, 5000))
    loop = Loop(["tcp_memory"], [world]).run(30)
    assert world.reset == 0
    assert loop.final(ORPHANS) >= 5000
    world = TcpMemory(constant(100), constant(1e9))
    assert Loop(["tcp_memory"], [world]).run(60).peak(ORPHANS) == MEM_BYTES // 2 // 65536


def test_orphans_get_no_room_while_it_is_tcps_memory_that_is_short() -> None:
    shares = (PAGES // 16, PAGES // 8, PAGES // 4)
    world = TcpMemory(constant(float(PAGES)), constant(990), limits=shares, max_orphans=1000)
    loop = Loop(["tcp_memory"], [world]).run(60)
    assert loop.of(ORPHANS) == []


# --- evidence ------------------------------------------------------------------------------------------------------


def known(held: int, high: int = 100_000) -> Memory:
    state = tcp_memory.start(Policy())
    for name, value in zip(TCP_MEM, (3000, 4000, 6000), strict=True):
        tcp_memory.step(state, Value(SEC, name, 0, 0, value, value, 96, high, False))
    assert not tell(state, sockets(2, held))
    return state


def sockets(seconds: int, held: int) -> Counters:
    return Counters(seconds * SEC, 1, "net/sockstat", {"TCP.mem": held, "TCP.orphan": 0})


def totals(seconds: int, pressures: int, aborts: int, netns: int = 1) -> Counters:
    found = {"TcpExt.TCPMemoryPressures": pressures, "TcpExt.TCPAbortOnMemory": aborts}
    return Counters(seconds * SEC, netns, "net/netstat", found)


def tell(state: Memory, event: object) -> Sequence[Wish]:
    return tcp_memory.step(state, event)[1]


@pytest.mark.parametrize(("held", "wanted"), [(100, []), (2200, [TCP_MEM[1]]), (2990, [TCP_MEM[1]])])
def test_a_dropped_packet_counts_where_half_of_a_limit_is_used(held: int, wanted: list[str]) -> None:
    state = known(held)
    assert not tell(state, Drops(2 * SEC + 1, 7, 7, 0, "SOCKET_RCVBUFF", 1))
    assert [wish.tunable for wish in tell(state, Drops(2 * SEC + 1, 7, 7, 0, "PROTO_MEM", 1))] == wanted


def test_a_reset_counts_from_its_second_reading_on_and_for_two_seconds() -> None:
    state = known(2200)
    assert not tell(state, totals(2, 5, 100))
    assert not tell(state, totals(3, 5, 100))
    assert not tell(state, totals(3, 90, 900, netns=8))
    (wish,) = tell(state, totals(4, 5, 101))
    assert (wish.tunable, wish.believed, wish.want) == (TCP_MEM[1], 4000, 6000)
    assert wish.why == ("TCP memory near pressure: 2200 pages held of the 4000 in tcp_mem[1], and memory was refused")
    assert not tell(state, sockets(7, 2200))


def test_the_sentence_and_the_numbers_say_why() -> None:
    state = known(100)
    (wish,) = tell(state, sockets(3, 5000))
    assert (wish.tunable, wish.believed, wish.want, wish.netns) == (TCP_MEM[2], 6000, 9000, 0)
    assert wish.why == "TCP memory near exhaustion: 5000 pages held of the 6000 in tcp_mem[2]"
    assert wish.evidence["held_pages"] == 5000


def test_where_nothing_can_grow_people_are_told() -> None:
    state = known(100, high=6000)
    assert tcp_memory.advice(state) == []
    tell(state, Value(2 * SEC, ORPHANS, 0, 0, 1000, 1000, 64, 1000, False))
    tell(state, Counters(3 * SEC, 1, "net/sockstat", {"TCP.mem": 5000, "TCP.orphan": 800}))
    memory, orphans = tcp_memory.advice(state)
    assert memory.startswith("TCP holds 5000 of 6000 pages, and may have no more: ")
    assert orphans.startswith("800 of 1000 TCP sockets without a program, and there may be no more: ")
    assert tcp_memory.advice(known(100, high=6001)) == []


def test_hands_off_one_leaves_the_others_in_order() -> None:
    state = known(100)
    tell(state, Value(3 * SEC, TCP_MEM[2], 0, 0, 6000, 6000, 192, 100_000, True))
    (wish,) = tell(state, sockets(4, 5900))
    assert (wish.tunable, wish.want) == (TCP_MEM[1], 6000)
    tell(state, Outcome(4 * SEC, "tcp_memory", TCP_MEM[1], 0, 4000, 6000, "written", "", 6000, 1))
    assert all(wish.tunable == TCP_MEM[0] for wish in tell(state, sockets(5, 5900)))


def test_nobody_knows_that_little_was_held_while_nobody_read() -> None:
    state = known(100)
    tell(state, Value(3 * SEC, TCP_MEM[2], 0, 0, 12_000, 6000, 192, 100_000, False))
    for seconds in range(100, 2000, 100):
        assert not tell(state, sockets(seconds, 10))
    for seconds in range(2000, 2400, 50):
        assert not tell(state, sockets(seconds, 10))
    later = (wish.want for seconds in range(2400, 2700, 50) for wish in tell(state, sockets(seconds, 10)))
    assert next(later) == 6000


def test_the_way_back_stops_above_one_that_is_held() -> None:
    state = tcp_memory.start(Policy(idle_s=10))
    now = {TCP_MEM[0]: 9000, TCP_MEM[1]: 12_000, TCP_MEM[2]: 12_000}
    originals = dict(zip(TCP_MEM, (3000, 4000, 6000), strict=True))
    for seconds, name in product(range(1, 200), TCP_MEM):
        told = Value(seconds * SEC, name, 0, 0, now[name], originals[name], 96, 100_000, name == TCP_MEM[0])
        for wish in [*tell(state, told), *tell(state, sockets(seconds, 10))]:
            assert now[wish.tunable] == wish.believed
            now[wish.tunable] = wish.want
            tell(state, Outcome(seconds * SEC, "tcp_memory", wish.tunable, 0, 0, 0, "written", "", wish.want, 1))
    assert list(now.values()) == [9000, 9000, 9000]
