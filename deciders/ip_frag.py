"""ipfrag_high_thresh and ip6frag_high_thresh, in the namespace where the fragments are: memory for fragments that wait
for the rest of their datagram. See deciders.frag_room for when it grows and comes back.

What waits is told by the probe; in the initial namespace by net/sockstat each second as well. What fails is told by
net/snmp and net/snmp6: of the initial namespace always, of another one from its first change on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from bus.schema import VERSION, Counters, Evidence, FragMemory, Host, Netns, Outcome, Probe, Value, Wish
from deciders.climb import Climb, told
from deciders.frag_room import FAST_NS, USUAL_BYTES, Policy, Room, evidence, on_memory, on_totals, want
from deciders.limit import SECOND_NS, answered, asked, bounds, of_row

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "ip_frag"
TOPICS = (FragMemory, Counters, Host, Value, Outcome, Netns, Probe)
VALID_NS = SECOND_NS
DEAF_NS = 60 * SECOND_NS
"""A probe unheard of for longer: what is not told of may be there."""
SHOWN_NS = 60 * SECOND_NS
ROOMS_MAX = 1024
TUNABLES = {2: "net.ipv4.ipfrag_high_thresh", 10: "net.ipv6.ip6frag_high_thresh"}
FAMILIES = {tunable: family for family, tunable in TUNABLES.items()}
HELD = {"net/sockstat": (2, "FRAG.memory"), "net/sockstat6": (10, "FRAG6.memory")}
TOTALS = {
    "net/snmp": (2, ("Ip.ReasmReqds", "Ip.ReasmFails", "Ip.ReasmOKs")),
    "net/snmp6": (10, ("Ip6ReasmReqds", "Ip6ReasmFails", "Ip6ReasmOKs")),
}


class State(Struct):
    """Everything known. Bounded by ROOMS_MAX; those longest unheard of are forgotten first."""

    policy: Policy
    rooms: dict[tuple[int, int], Room]
    """By namespace and family."""
    mem_bytes: int = 0
    heard_ns: int = 0
    """When the probe was last said to be there."""
    t_ns: int = 0
    """Of the newest event."""


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    state.t_ns = max(state.t_ns, event.t_ns)
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """See deciders.engine.Decider.advice: limits that are full of what no limit could hold."""
    return [
        f"netns {netns}: fragments fill the {room.climb.limit.value} bytes of {TUNABLES[family]}, and no datagram"
        " becomes whole: their rest is lost on its way, or it is an attack; a larger limit would not help"
        for (netns, family), room in state.rooms.items()
        if room.vain_ns and state.t_ns - room.vain_ns < SHOWN_NS
    ]


def _on_memory(state: State, event: FragMemory) -> Sequence[Wish]:
    if event.family not in TUNABLES:
        return ()
    room = _room(state, event.netns, event.family)
    told(room.climb, event.high_bytes, event.t_ns)
    room.refused = event.refused
    on_memory(state.policy, room, event.held_bytes, event.t_ns)
    return _wish(state, room, event.family, event)


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    family, names = TOTALS.get(event.source, (0, ()))
    at, held = HELD.get(event.source, (0, ""))
    room = state.rooms.get((event.netns, family or at))
    if room is None:
        return ()
    if family and all(name in event.values for name in names):
        asked_, failed, whole = (max(0, event.values[name]) for name in names)
        on_totals(state.policy, room, (asked_, failed, whole), event.t_ns)
    elif held in event.values:
        on_memory(state.policy, room, max(0, event.values[held]), event.t_ns)
        return _wish(state, room, at, event)
    return ()


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    family = FAMILIES.get(event.tunable)
    if family is None:
        return ()
    room = _room(state, event.netns, family)
    bounds(room.climb.limit, event)
    told(room.climb, event.value, event.t_ns)
    if not room.near_ns or event.t_ns - state.heard_ns > DEAF_NS:
        room.near_ns = event.t_ns
    return _wish(state, room, family, event)


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    room = state.rooms.get((event.netns, FAMILIES.get(event.tunable, 0)))
    if room is not None:
        answered(room.climb.limit, event)
        told(room.climb, event.value, event.t_ns)
    return ()


def _on_host(state: State, event: Host) -> Sequence[Wish]:
    state.mem_bytes = event.mem_bytes
    return ()


def _on_probe(state: State, event: Probe) -> Sequence[Wish]:
    if event.name == NAME and event.road:
        state.heard_ns = event.t_ns
    return ()


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        for family in TUNABLES:
            state.rooms.pop((event.netns, family), None)
    return ()


def _room(state: State, netns: int, family: int) -> Room:
    room = state.rooms.pop((netns, family), None) or Room(Climb(FAST_NS, of_row(TUNABLES[family])))
    state.rooms[(netns, family)] = room
    if len(state.rooms) > ROOMS_MAX:
        del state.rooms[next(iter(state.rooms))]
    return room


def _ceiling(state: State, room: Room) -> int:
    """What memory allows for this limit, with what was added elsewhere."""
    if not state.mem_bytes:
        return USUAL_BYTES
    limits = [other.climb.limit for other in state.rooms.values() if other is not room]
    added = sum(max(0, limit.value - limit.original) for limit in limits if limit.original >= 0)
    limit = room.climb.limit
    left = max(0, state.mem_bytes // state.policy.all_share - added)
    own = limit.original if limit.original >= 0 else limit.value
    return min(state.mem_bytes // state.policy.ram_share, own + left)


def _wish(state: State, room: Room, family: int, event: FragMemory | Counters | Value) -> Sequence[Wish]:
    limit = room.climb.limit
    value, why = want(state.policy, room, _ceiling(state, room), event.t_ns)
    if not value:
        return ()
    asked(limit, event.t_ns)
    numbers: Evidence = {"event": f"{type(event).__name__}@{event.t_ns}", **evidence(room)}
    return (
        Wish(
            VERSION,
            event.t_ns,
            VALID_NS,
            TUNABLES[family],
            event.netns,
            _inode(event),
            limit.value,
            value,
            why,
            numbers,
        ),
    )


def _inode(event: FragMemory | Counters | Value) -> int:
    """A hint for finding the namespace."""
    return 0 if isinstance(event, Counters) else event.netns_ino


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    FragMemory: _on_memory,
    Counters: _on_counters,
    Value: _on_value,
    Outcome: _on_outcome,
    Host: _on_host,
    Probe: _on_probe,
    Netns: _on_netns,
}
