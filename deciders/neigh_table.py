"""gc_thresh1-3 of the ARP and the ND table: grow before the table is full, shrink long after it emptied.

The kernel refuses a new neighbour when gc_thresh3 entries are there and none of them is older than five seconds
(neigh_alloc and neigh_forced_gc in net/core/neighbour.c). So gc_thresh3 grows first and by a full step, as soon as the
table is 75 % full or, from 40 % on, would be full within half a second at the rate at which it fills. The other two
follow in the proportion that the originals have: raised after gc_thresh3, lowered before it, so that they are in order
at every instant. While most of the new entries get no answer it grows no further than any host may: a scan of a large
network, or of an IPv6 one, would fill any table. One wish at a time, each made from the newest limits that any event
has told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from bus.schema import Attached, Counters, NeighEntries, NeighMoves, NeighTable, Netns, Outcome, Value, Wish
from deciders import neigh_flood, neigh_room
from deciders.limit import answered, bounds, learn, of_row
from deciders.neigh_flood import Floods
from deciders.neigh_room import FAMILIES, Policy, Table, measure, next_wish

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "neigh_table"
TOPICS = (NeighEntries, NeighTable, NeighMoves, Attached, Counters, Netns, Value, Outcome)
STATS = {"net/stat/arp_cache": 2, "net/stat/ndisc_cache": 10}

BLIND_NS = 60_000_000_000
"""Unobserved for longer than this, nobody knows that the table was empty in between."""
PREFIX_MIN = 256
ATTACHED_MAX = 8192
HOSTS_MAX = 1 << 32
"""More than any table holds; what is counted of one namespace stays a number that can be kept."""


class State(Struct):
    """Everything known. Bounded: two tables, ATTACHED_MAX namespaces, neigh_flood.FLOODS_MAX floods."""

    policy: Policy
    tables: dict[int, Table]
    hosts: dict[tuple[int, int], int]
    floods: Floods = {}


def start(policy: Policy) -> State:
    """Nothing known yet."""
    tables = {family: Table(family, {}) for family in FAMILIES}
    for tunable, (family, level) in _PLACES.items():
        tables[family].levels[level] = of_row(tunable)
    return State(policy, tables, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """See deciders.engine.Decider.advice."""
    scans = [line for table in state.tables.values() for line in neigh_room.advice(state.policy, table, table.t_ns)]
    return scans + neigh_flood.advice(state.floods)


def _on_moves(state: State, event: NeighMoves) -> Sequence[Wish]:
    neigh_flood.on_moves(state.floods, event)
    return ()


def _on_table(state: State, event: NeighEntries | NeighTable) -> Sequence[Wish]:
    neigh_flood.forget_old(state.floods, event.t_ns)
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
    measure(table)
    if event.entries > state.policy.empty * event.gc_thresh3:
        table.quiet_ns, table.goal = event.t_ns, 0
    return next_wish(state.policy, table, event)


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    table, values = state.tables.get(STATS.get(event.source, 0)), event.values
    if table is not None and "allocs" in values and "res_failed" in values:
        neigh_room.count(state.policy, table, values["allocs"], values["res_failed"], event.t_ns)
    return ()


def _on_attached(state: State, event: Attached) -> Sequence[Wish]:
    table = state.tables.get(event.family)
    if table is not None:
        key = (event.netns, event.family)
        hosts = min(HOSTS_MAX, max(event.hosts, PREFIX_MIN * event.prefixes))
        table.attached += hosts - state.hosts.pop(key, 0)
        state.hosts[key] = hosts
        if len(state.hosts) > ATTACHED_MAX:
            _detach(state, next(iter(state.hosts)))
    return ()


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        neigh_flood.forget_netns(state.floods, event.netns)
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
    return next_wish(state.policy, table, event) if table.t_ns else ()


_PLACES = {
    f"net.{family}.neigh.default.gc_thresh{level}": (number, level)
    for number, family in FAMILIES.items()
    for level in (1, 2, 3)
}

_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    NeighEntries: _on_table,
    NeighTable: _on_table,
    NeighMoves: _on_moves,
    Attached: _on_attached,
    Counters: _on_counters,
    Netns: _on_netns,
    Value: _on_value,
    Outcome: _on_outcome,
}
