"""What TCP may hold in memory: tcp_mem[0..2] and tcp_max_orphans as they stand, and the one change most wanted now."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import VERSION, Counters, Drops, Evidence, Outcome, Value, Wish
from deciders.limit import SECOND_NS, Limit, asked, may

VALID_NS = SECOND_NS
MEM = "net.ipv4.tcp_mem"
ORPHANS = "net.ipv4.tcp_max_orphans"
LOST_NS = 2 * SECOND_NS
"""So long a refusal counts: what is read of memory is up to a second old."""
PLAUSIBLE = 0.5
"""A refusal is laid to a limit of which so much is used: the kernel's names for refusals fit other causes, too."""
FOLLOW_NS = 10 * SECOND_NS
"""tcp_mem[0] follows what has grown, not what has come down."""
DEAD_BAND = 128
"""As in the rows."""

MemoryEvent = Counters | Drops | Value | Outcome


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.tcp_memory` in the configuration."""

    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """Grow when so much of a limit is used."""
    factor: Annotated[float, Meta(gt=1, le=1.5)] = 1.5
    """One step."""
    spare: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Never grow while less than this share of the host's memory is available."""
    empty: Annotated[float, Meta(ge=0, le=0.3)] = 0.3
    """Come down when no more than this was used ..."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """... for so long; halve again after a quarter of it."""


class Memory(Struct):
    """Everything known. Bounded: four tunables, and the totals of NETNS_MAX namespaces (deciders.tcp_memory)."""

    policy: Policy
    pages: list[Limit]
    """tcp_mem[0], [1], [2]."""
    orphans: Limit
    first: tuple[int, int] = (0, 0)
    """tcp_mem[0] and [1] as they were at first: the proportion that is kept."""
    held_pages: int = 0
    """By TCP in all namespaces, as last read."""
    orphaned: int = 0
    """Sockets that no program holds any more, as last read."""
    read_ns: int = 0
    lost_ns: int = 0
    """When memory was last refused, or a connection reset for want of it."""
    spare: float = 1.0
    """Share of the host's memory that is available."""
    quiet_ns: int = 0
    """Since when the limits have hardly been used."""
    orphans_quiet_ns: int = 0
    goals: tuple[int, ...] = ()
    """Where tcp_mem is going down to; empty when it is not."""
    totals: dict[int, tuple[int, int]] = {}
    """TCPMemoryPressures and TCPAbortOnMemory of each namespace."""


def next_wish(memory: Memory, event: MemoryEvent) -> list[Wish]:
    """More room first, from the top, so that the three are in order at every instant; then less, from the bottom."""
    t_ns = event.t_ns
    if not memory.read_ns or not all(limit.value for limit in memory.pages):
        return []
    if _used(memory, 1, t_ns):
        memory.goals, memory.quiet_ns = (), t_ns
        return (_grow(memory, event) if memory.spare >= memory.policy.spare else []) or _orphans(memory, event)
    if memory.held_pages > memory.policy.empty * memory.pages[1].value:
        memory.goals, memory.quiet_ns = (), t_ns
    return _follow(memory, event) or _orphans(memory, event) or _shrink(memory, event)


def _used(memory: Memory, level: int, t_ns: int) -> bool:
    """Whether a limit is near: nearly used up, or memory was refused at half of it."""
    share = PLAUSIBLE if memory.lost_ns and t_ns - memory.lost_ns <= LOST_NS else memory.policy.full
    return memory.held_pages >= share * memory.pages[level].value


def _grow(memory: Memory, event: MemoryEvent) -> list[Wish]:
    two, one = memory.pages[2], memory.pages[1]
    if _used(memory, 2, event.t_ns):
        want = min(int(two.value * memory.policy.factor), two.high or two.value)
        if _worth(two, want) and may(two, event.t_ns):
            return [_wish(memory, 2, want, _why(memory, "exhaustion", 2), event)]
    want = min(int(one.value * memory.policy.factor), one.high or one.value, two.value)
    if _worth(one, want) and may(one, event.t_ns):
        return [_wish(memory, 1, want, _why(memory, "pressure", 1), event)]
    return _follow(memory, event)


def _follow(memory: Memory, event: MemoryEvent) -> list[Wish]:
    """tcp_mem[0] keeps its proportion to a tcp_mem[1] that has risen, and does not while it goes down ahead of it."""
    zero, one = memory.pages[0], memory.pages[1]
    if memory.goals or event.t_ns - memory.quiet_ns > FOLLOW_NS or memory.spare < memory.policy.spare:
        return []
    want = min(_share(memory, one.value), int(zero.value * memory.policy.factor), zero.high or zero.value)
    if _worth(zero, want) and may(zero, event.t_ns):
        why = f"TCP memory: keeps its proportion to tcp_mem[1], which is {one.value} pages"
        return [_wish(memory, 0, want, why, event)]
    return []


def _share(memory: Memory, one: int) -> int:
    """What belongs to tcp_mem[1] = one, in the proportion of the originals (or of what was first seen)."""
    zero, first = memory.pages[0].original, memory.pages[1].original
    base = (zero, first) if zero >= 0 and first > 0 else memory.first
    return min(one, base[0] * one // base[1]) if base[1] else 0


def _shrink(memory: Memory, event: MemoryEvent) -> list[Wish]:
    """Half the way down, never below the original: [0] before [1] before [2]."""
    idle_ns = int(memory.policy.idle_s * SECOND_NS)
    if any(limit.original < 0 for limit in memory.pages):
        return []
    least = [max(limit.original, limit.low) for limit in memory.pages]
    if not memory.goals:
        raised = any(limit.value > floor and not limit.held for limit, floor in zip(memory.pages, least, strict=True))
        if not raised or event.t_ns - memory.quiet_ns < idle_ns:
            return []
        halves = [
            limit.value if limit.held else min(limit.value, max(floor, (limit.value + 1) // 2))
            for limit, floor in zip(memory.pages, least, strict=True)
        ]
        halves[0] = max(halves[0], min(memory.pages[0].value, _share(memory, halves[1])))
        memory.goals = tuple(halves)
    for level, limit in enumerate(memory.pages):
        below = memory.pages[level - 1].value if level else 0
        want = max(memory.goals[level], (limit.value + 1) // 2, below)
        if want < limit.value and not limit.held and (want == limit.original or _far(limit, want)):
            if not may(limit, event.t_ns):
                return []
            why = (
                f"TCP memory: {memory.held_pages} pages held, and for {memory.policy.idle_s:g} s no more than"
                f" {memory.policy.empty:.0%} of tcp_mem[1]; back towards {limit.original}"
            )
            return [_wish(memory, level, want, why, event)]
    memory.goals, memory.quiet_ns = (), event.t_ns - idle_ns + idle_ns // 4
    return []


def _orphans(memory: Memory, event: MemoryEvent) -> list[Wish]:
    limit, policy, t_ns = memory.orphans, memory.policy, event.t_ns
    if memory.orphaned > policy.empty * limit.value:
        memory.orphans_quiet_ns = t_ns
    if not limit.value or not may(limit, t_ns):
        return []
    if memory.orphaned >= policy.full * limit.value:
        want = min(int(limit.value * policy.factor), limit.high or limit.value)
        # Where memory is short, it is not the number of sockets that must grow.
        room = memory.spare >= policy.spare and not _used(memory, 2, t_ns)
        if room and _worth(limit, want):
            why = f"{memory.orphaned} TCP sockets that no program holds any more, of {limit.value}"
            return [_orphan_wish(memory, want, why, event)]
        return []
    idle_ns, least = int(policy.idle_s * SECOND_NS), max(limit.original, limit.low)
    if limit.original >= 0 and limit.value > least and t_ns - memory.orphans_quiet_ns >= idle_ns:
        memory.orphans_quiet_ns = t_ns - idle_ns + idle_ns // 4
        want = max(least, (limit.value + 1) // 2)
        why = (
            f"{memory.orphaned} TCP sockets that no program holds, and for {policy.idle_s:g} s no more than"
            f" {policy.empty:.0%} of {limit.value}; back towards {limit.original}"
        )
        return [_orphan_wish(memory, want, why, event)]
    return []


def _worth(limit: Limit, want: int) -> bool:
    return want > limit.value and want >= limit.low and (want == limit.high or _far(limit, want))


def _far(limit: Limit, want: int) -> bool:
    return abs(want - limit.value) > limit.value // DEAD_BAND


def _why(memory: Memory, what: str, level: int) -> str:
    lost = ", and memory was refused" if memory.lost_ns and memory.read_ns - memory.lost_ns <= LOST_NS else ""
    value = memory.pages[level].value
    return f"TCP memory near {what}: {memory.held_pages} pages held of the {value} in tcp_mem[{level}]{lost}"


def _wish(memory: Memory, level: int, want: int, why: str, event: MemoryEvent) -> Wish:
    limit = memory.pages[level]
    asked(limit, event.t_ns)
    name = f"{MEM}[{level}]"
    return Wish(VERSION, event.t_ns, VALID_NS, name, 0, 0, limit.value, want, why, _numbers(memory, event))


def _orphan_wish(memory: Memory, want: int, why: str, event: MemoryEvent) -> Wish:
    limit = memory.orphans
    asked(limit, event.t_ns)
    return Wish(VERSION, event.t_ns, VALID_NS, ORPHANS, 0, 0, limit.value, want, why, _numbers(memory, event))


def _numbers(memory: Memory, event: MemoryEvent) -> Evidence:
    return {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "held_pages": memory.held_pages,
        "tcp_mem0": memory.pages[0].value,
        "tcp_mem1": memory.pages[1].value,
        "tcp_mem2": memory.pages[2].value,
        "orphans": memory.orphaned,
        "available_percent": int(memory.spare * 100),
        "pressures": sum(pressures for pressures, _ in memory.totals.values()) % 2**62,
        "aborts": sum(aborts for _, aborts in memory.totals.values()) % 2**62,
    }
