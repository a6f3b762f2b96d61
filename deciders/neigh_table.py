"""gc_thresh1-3 of the ARP and the ND table: grow before the table is full, shrink long after it emptied.

The kernel refuses a new neighbour when gc_thresh3 entries are there and none of them is older than five seconds
(neigh_alloc and neigh_forced_gc in net/core/neighbour.c). So gc_thresh3 grows first and by a full step, as soon as the
table is 75 % full or, from 40 % on, would be full within half a second at the rate at which it fills. The other two
follow in the proportion that the originals have: raised after gc_thresh3, lowered before it, so that they are in order
at every instant. One wish at a time, each made from the newest limits that any event has told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from bus.schema import VERSION, Attached, NeighEntries, NeighTable, Netns, Outcome, Value, Wish
from deciders.limit import Limit, answered, bounds, learn, may

NAME = "neigh_table"
TOPICS = (NeighEntries, NeighTable, Attached, Netns, Value, Outcome)

SECOND_NS = 1_000_000_000
VALID_NS = SECOND_NS
RATE_MIN_NS = 5_000_000
"""Two observations nearer than this say nothing of a rate."""
RATE_NS = 100_000_000
"""The rate is that of the last one or two spans of this length."""
BLIND_NS = 60 * SECOND_NS
"""Unobserved for longer than this, nobody knows that the table was empty in between."""
DEAD_BAND = 128
"""Changes below a 128th are not worth a write (the gate refuses them, too)."""
PREFIX_MIN = 256
ATTACHED_MAX = 8192
FAMILIES = {2: "ipv4", 10: "ipv6"}
TABLES = {2: "ARP", 10: "ND"}


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.neigh_table` in the configuration."""

    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """Grow when so much of gc_thresh3 is used."""
    filling: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """From this much on, grow when it would be full within headroom_s."""
    headroom_s: Annotated[float, Meta(ge=0, le=60)] = 0.5
    factor: Annotated[float, Meta(gt=1, le=2)] = 2.0
    """Growth at once."""
    floor_ceiling: Annotated[int, Meta(ge=16)] = 8192
    """gc_thresh3 may always grow up to here."""
    per_host: Annotated[int, Meta(ge=1)] = 4
    """And up to this times the hosts that the attached prefixes can hold, each prefix counting for 256 at least."""
    empty: Annotated[float, Meta(ge=0, le=0.3)] = 0.1
    """Shrink when no more than this was used ..."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """... for so long; halve again after a quarter of it."""


class _Table(Struct):
    """One of the two tables."""

    family: int
    levels: dict[int, Limit]
    first: tuple[int, int, int] = (0, 0, 0)
    """The thresholds as they were when first seen: their proportion holds until the originals are known."""
    t_ns: int = 0
    entries: int = 0
    refused: int = 0
    fill_per_s: float = 0.0
    marks: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Two earlier observations that the rate is measured from: time, entries, time, entries."""
    quiet_ns: int = 0
    """Since when the table has been empty."""
    goal: int = 0
    """Where gc_thresh3 is going down to; 0 when it is not."""
    attached: int = 0
    """Hosts that the attached prefixes hold, all namespaces."""


class State(Struct):
    """Everything known. Bounded: two tables, and ATTACHED_MAX namespaces."""

    policy: Policy
    tables: dict[int, _Table]
    hosts: dict[tuple[int, int], int]


def start(policy: Policy) -> State:
    """Nothing known yet."""
    tables = {family: _Table(family, {level: Limit() for level in (1, 2, 3)}) for family in FAMILIES}
    return State(policy, tables, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def _on_table(state: State, event: NeighEntries | NeighTable) -> Sequence[Wish]:
    table = state.tables.get(event.family)
    # Late news of another publisher: what is known is newer.
    if table is None or event.t_ns < table.t_ns or not event.gc_thresh3:
        return ()
    if event.t_ns - table.t_ns > BLIND_NS:
        table.quiet_ns = event.t_ns
    table.t_ns, table.entries = event.t_ns, event.entries
    if type(event) is NeighEntries:
        table.refused = event.refused
    thresholds = (event.gc_thresh1, event.gc_thresh2, event.gc_thresh3)
    table.first = table.first if table.first[2] else thresholds
    for number, value in enumerate(thresholds, 1):
        learn(table.levels[number], value, event.t_ns)
    _measure(table)
    if event.entries > state.policy.empty * event.gc_thresh3:
        table.quiet_ns, table.goal = event.t_ns, 0
    return _next(state, table, event)


def _on_attached(state: State, event: Attached) -> Sequence[Wish]:
    table = state.tables.get(event.family)
    if table is not None:
        key = (event.netns, event.family)
        hosts = max(event.hosts, PREFIX_MIN * event.prefixes)
        table.attached += hosts - state.hosts.pop(key, 0)
        state.hosts[key] = hosts
        if len(state.hosts) > ATTACHED_MAX:
            _detach(state, next(iter(state.hosts)))
    return ()


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        for family in FAMILIES:
            _detach(state, (event.netns, family))
    return ()


def _detach(state: State, key: tuple[int, int]) -> None:
    state.tables[key[1]].attached -= state.hosts.pop(key, 0)


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    place = _PLACES.get(event.tunable)
    if place is None:
        return ()
    bounds(state.tables[place[0]].levels[place[1]], event)
    return _told(state, place, event)


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    place = _PLACES.get(event.tunable)
    if place is None:
        return ()
    answered(state.tables[place[0]].levels[place[1]], event)
    return _told(state, place, event)


def _told(state: State, place: tuple[int, int], event: Value | Outcome) -> Sequence[Wish]:
    table = state.tables[place[0]]
    learn(table.levels[place[1]], event.value, event.t_ns)
    return _next(state, table, event) if table.t_ns else ()


def _measure(table: _Table) -> None:
    """Entries per second, the larger of the rates over the last one and the last two spans."""
    old_ns, old, new_ns, new = table.marks
    rates = [
        (table.entries - entries) * SECOND_NS / (table.t_ns - t_ns)
        for t_ns, entries in ((old_ns, old), (new_ns, new))
        if t_ns and table.t_ns - t_ns >= RATE_MIN_NS
    ]
    table.fill_per_s = max(0.0, *rates) if rates else table.fill_per_s
    if table.t_ns - new_ns >= RATE_NS:
        table.marks = (new_ns, new, table.t_ns, table.entries)


def _next(state: State, table: _Table, event: Any) -> Sequence[Wish]:
    """The one thing most wanted now: more room, then order among the thresholds, then less room."""
    three = table.levels[3]
    limit, policy = three.value, state.policy
    left_s = _headroom_s(table)
    if table.entries >= policy.full * limit or (table.entries >= policy.filling * limit and left_s < policy.headroom_s):
        table.goal = 0
        want = min(int(limit * policy.factor), _ceiling(state, table))
        if _worth(limit, want) and want > limit and may(three, event.t_ns):
            return (_wish(state, table, 3, want, _why_full(table, left_s), event),)
    if not table.goal:
        return _follow(state, table, event) or _shrink(state, table, event)
    return _shrink(state, table, event)


def _follow(state: State, table: _Table, event: Any) -> Sequence[Wish]:
    """gc_thresh2 and then 1 rise after gc_thresh3."""
    three = table.levels[3].value
    for number in (2, 1):
        level = table.levels[number]
        want = min(_share(table, number, three), int(level.value * state.policy.factor))
        want = min(want, table.levels[number + 1].value, level.high or want)
        if want > level.value and _worth(level.value, want) and may(level, event.t_ns):
            why = f"{TABLES[table.family]} table: keeps its proportion to gc_thresh3, which is {three}"
            return (_wish(state, table, number, want, why, event),)
    return ()


def _shrink(state: State, table: _Table, event: Any) -> Sequence[Wish]:
    """Halfway back to the originals, 1 before 2 before 3."""
    three, policy = table.levels[3], state.policy
    if any(not level.original for level in table.levels.values()):
        return ()
    idle_ns = int(policy.idle_s * SECOND_NS)
    if not table.goal:
        if table.t_ns - table.quiet_ns < idle_ns or three.value <= three.original or three.held:
            return ()
        table.goal = max(three.original, (three.value + 1) // 2)
    for number in (1, 2, 3):
        level = table.levels[number]
        lowest = max(level.original, _share(table, number, table.goal))
        if number == 3:
            lowest = max(table.goal, table.levels[2].value)
        want = max(lowest, (level.value + 1) // 2)
        if want < level.value and not level.held:
            if not may(level, event.t_ns):
                return ()
            why = (
                f"{TABLES[table.family]} table: {table.entries} entries, and for {policy.idle_s:g} s no more than"
                f" {policy.empty:.0%} of {three.value}; back towards {level.original}"
            )
            return (_wish(state, table, number, want, why, event),)
    # There: the next halving after another quarter.
    table.goal, table.quiet_ns = 0, table.t_ns - idle_ns + idle_ns // 4
    return ()


def _share(table: _Table, number: int, three: int) -> int:
    """What belongs to gc_thresh3 = three, in the proportion of the originals (or of what was first seen)."""
    levels = table.levels
    known = all(level.original for level in levels.values())
    base = tuple(levels[n].original for n in (1, 2, 3)) if known else table.first
    return min(three, base[number - 1] * three // base[2])


def _ceiling(state: State, table: _Table) -> int:
    ceiling = max(state.policy.floor_ceiling, state.policy.per_host * table.attached)
    return min(ceiling, table.levels[3].high or ceiling)


def _headroom_s(table: _Table) -> float:
    left = table.levels[3].value - table.entries
    return left / table.fill_per_s if table.fill_per_s > 0 else float("inf")


def _worth(value: int, want: int) -> bool:
    return abs(want - value) > value // DEAD_BAND


def _why_full(table: _Table, left_s: float) -> str:
    text = f"{TABLES[table.family]} table: {table.entries} of {table.levels[3].value} entries"
    if left_s < 60:
        text += f", filling by {table.fill_per_s:.0f}/s: full in {left_s * 1000:.0f} ms"
    return text


def _wish(state: State, table: _Table, number: int, want: int, why: str, event: Any) -> Wish:
    evidence: dict[str, int | str] = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "entries": table.entries,
        "gc_thresh1": table.levels[1].value,
        "gc_thresh2": table.levels[2].value,
        "gc_thresh3": table.levels[3].value,
        "fill_per_s": int(table.fill_per_s),
        "refused": table.refused,
        "attached_hosts": min(table.attached, 2**63 - 1),
        "ceiling": min(_ceiling(state, table), 2**63 - 1),
    }
    name = f"net.{FAMILIES[table.family]}.neigh.default.gc_thresh{number}"
    return Wish(VERSION, event.t_ns, VALID_NS, name, 0, 0, table.levels[number].value, want, why, evidence)


_PLACES = {
    f"net.{family}.neigh.default.gc_thresh{level}": (number, level)
    for number, family in FAMILIES.items()
    for level in (1, 2, 3)
}

_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    NeighEntries: _on_table,
    NeighTable: _on_table,
    Attached: _on_attached,
    Netns: _on_netns,
    Value: _on_value,
    Outcome: _on_outcome,
}
