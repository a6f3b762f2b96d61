"""When TCP's memory is used up and tcp_mem can grow no more, raised buffer limits come down, and only they."""

from __future__ import annotations

import pytest

from bus.schema import AnyEvent, Counters, Value, Wish
from bus.tunables import PAGE_BYTES
from deciders import tcp_buffer
from deciders.tcp_buffer import Policy, State
from deciders.tcp_scarce import TCP_MEM
from trimtab.testing.loop import MEM_BYTES, Loop
from trimtab.testing.waves import burst, constant
from trimtab.testing.worlds import Path, TcpFlow
from trimtab.testing.worlds_room import TcpMemory

SEC = 1_000_000_000
RMEM = "net.ipv4.tcp_rmem[2]"
SHARES = tuple(MEM_BYTES // PAGE_BYTES // share for share in (16, 8, 4))


def tell(state: State, *events: AnyEvent) -> list[Wish]:
    found: list[Wish] = []
    for event in events:
        found += tcp_buffer.step(state, event)[1]
    return found


def memory(seconds: int, held: int, limit: int = 10_000, high: int = 10_000, mine: bool = True) -> list[AnyEvent]:
    return [
        Value(seconds * SEC, TCP_MEM, 0, 0, limit, limit, 192, high, not mine),
        Counters(seconds * SEC, 1, "net/sockstat", {"TCP.mem": held}),
    ]


def raised(seconds: int, value: int = 900_000, held: bool = False) -> Value:
    return Value(seconds * SEC, RMEM, 22, 22, value, 262_144, 65_536, 1 << 28, held)


@pytest.mark.parametrize(
    ("events", "gives"),
    [
        (memory(100, 7600), True),
        (memory(100, 7400), False),
        # It can still grow, so that is what helps, ...
        (memory(100, 9900, high=20_000), False),
        # ... but not when it was used up all the same, or may not be touched.
        (memory(100, 10_000, high=20_000), True),
        (memory(100, 9900, high=20_000, mine=False), True),
        (memory(100, 9900)[:1], False),
        (memory(100, 9900)[1:], False),
        (memory(60, 9900), False),
    ],
)
def test_a_raised_limit_takes_a_step_back_only_when_there_is_no_other_way(events: list[AnyEvent], gives: bool) -> None:
    wishes = tell(tcp_buffer.start(Policy()), *events, raised(101))
    assert [(wish.tunable, wish.netns, wish.believed, wish.want) for wish in wishes] == (
        [(RMEM, 22, 900_000, 600_000)] if gives else []
    )


def test_the_sentence_says_why() -> None:
    (wish,) = tell(tcp_buffer.start(Policy()), *memory(100, 9000), raised(101))
    assert wish.why == "TCP holds 9000 of 10000 pages, and tcp_mem can grow no more: back towards 262144"
    assert wish.evidence["held_pages"] == 9000


def test_it_ends_at_the_original_step_by_step() -> None:
    state = tcp_buffer.start(Policy())
    value, steps = 900_000, []
    for seconds in range(100, 200, 2):
        for wish in tell(state, *memory(seconds, 9000), raised(seconds, value)):
            steps.append((seconds, wish.want))
            value = wish.want
    assert steps == [(100, 600_000), (110, 400_000), (120, 266_667), (130, 262_144)]


def test_a_limit_that_is_held_or_never_was_raised_stays() -> None:
    state = tcp_buffer.start(Policy())
    assert not tell(state, *memory(100, 9000), raised(100, held=True), raised(101, 262_144))


def test_a_flow_that_calls_for_more_gets_none_while_memory_lacks_and_what_came_down_stays_down() -> None:
    flow = TcpFlow(Path(bandwidth=constant(50e6)))
    full = TcpMemory(burst(20, 150, 2.0 * SHARES[2]), limits=(SHARES[0], SHARES[1], SHARES[2]))
    loop = Loop(["tcp_buffer"], [flow, full]).run(19)
    top = loop.final(RMEM)
    assert top > 1_000_000
    loop.run(150)
    assert loop.final(RMEM) == 262_144
    assert loop.refused == []
    loop.run(600)
    assert loop.final(RMEM) == 262_144
    assert loop.reversals(RMEM) == 1


def test_without_want_of_memory_nothing_changes_for_the_buffers() -> None:
    finals = []
    for pages in (0.0, 0.7 * SHARES[2]):
        full = TcpMemory(constant(pages), limits=(SHARES[0], SHARES[1], SHARES[2]))
        finals.append(Loop(["tcp_buffer"], [TcpFlow(Path(bandwidth=constant(50e6))), full]).run(60).final(RMEM))
    assert finals[0] == finals[1] > 1_000_000
