"""rmem_default, rmem_max and udp_mem: room for datagrams, from the sockets that drop them.

Which socket drops says what would help: one that has the default, a larger default; one that asked for more than
rmem_max and was cut down to it, a larger rmem_max; one whose program chose a size below that, only its program, which
`advice` tells by port. What grows helps sockets that are made later. A socket made before counts as far as the room
that it lacked, and no further; where those made after drop as much as before, growing ends and what has grown goes
back: their programs read too slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bus.schema import VERSION, Counters, Evidence, Netns, Outcome, Owner, UdpDrop, Value, Wish
from deciders import udp_pages
from deciders.climb import go_down, higher, judge, lower, may_change, told
from deciders.limit import SECOND_NS, answered, asked, bounds, learn
from deciders.listen_room import power_of_two
from deciders.udp_room import GOAL_NS, KINDS_MAX, Buffer, Kind, Pages, Policy, State, count, many, read, stands

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "udp_buffer"
TOPICS = (UdpDrop, Owner, Counters, Netns, Value, Outcome)
DEFAULT, MOST = "net.core.rmem_default", "net.core.rmem_max"
BUFFER_FULL, MEMORY_FULL = "SOCKET_RCVBUFF", "PROTO_MEM"
UDP = 17
VALID_NS = SECOND_NS
ADVICE_NS = 3600 * SECOND_NS
RESTART_NS = 60 * SECOND_NS
"""A socket from before a change is spoken of for so long after it dropped something: by then it may have gone."""


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, Buffer(), Buffer(), Pages(), {}, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    state.t_ns = max(state.t_ns, event.t_ns)
    _HANDLERS[type(event)](state, event)
    return state, () if type(event) is Netns else _next(state, event)


def advice(state: State) -> list[str]:
    """What no tunable can cure: sockets whose programs set a small buffer, or have one from before."""
    lines = [_slow(state, buffer) for buffer in (state.default, state.most)]
    lately = {}
    for key, kind in state.kinds.items():
        there = state.t_ns - state.seen.get(key[0], 0) < RESTART_NS
        if there and state.t_ns - kind.t_ns < ADVICE_NS:
            # The newest last: those that it had before its program began anew are of no more use to anybody.
            lately[key[0], kind.port, key[2]] = (key, kind)
    lines += [_advice(state, *key, kind) for key, kind in lately.values()]
    return [line for line in lines if line]


def _slow(state: State, buffer: Buffer) -> str:
    netns, port, why = buffer.slow
    return f"netns {netns}: {_who(state, netns, port)}: {why}" if why and state.t_ns < buffer.climb.rest_ns else ""


def _who(state: State, netns: int, port: int) -> str:
    program, pid = state.owners.get((netns, port), ("", 0))
    return f"UDP port {port}" + (f" ({program}, pid {pid})" if pid else "")


def _advice(state: State, netns: int, rcvbuf: int, locked: bool, kind: Kind) -> str:
    who = f"netns {netns}: {_who(state, netns, kind.port)} has dropped {many(kind.dropped)}"
    most = state.most.climb.limit.value
    recent = state.t_ns - kind.t_ns < RESTART_NS
    if locked and most and rcvbuf < 2 * most:
        if rcvbuf // 2 in state.most.past:
            line = f"{who}: it was cut down to {rcvbuf // 2} bytes, rmem_max is {most} now: restart its program"
            return line if recent else ""
        return f"{who} with the {rcvbuf // 2} bytes that its program set; rmem_max is {most}: raise the program's own"
    default, high = state.default.climb.limit.value, state.default.climb.limit.high
    if not locked and 0 < high <= rcvbuf == default and recent:
        return f"{who} with {rcvbuf} bytes, all that rmem_default may be: its program reads too slowly"
    if not locked and rcvbuf < default and recent:
        return f"{who}: it has {rcvbuf} bytes, rmem_default is {default} now: restart its program"
    return ""


def _on_drop(state: State, event: UdpDrop) -> None:
    if event.reason == MEMORY_FULL:
        state.pages.refused_ns, state.pages.refused = event.t_ns, event.dropped
    elif event.reason == BUFFER_FULL:
        kind = count(state, event)
        if not event.locked:
            _more(state, state.default, event.rcvbuf_bytes, kind, event)
        elif event.rcvbuf_bytes // 2 in state.most.past:
            _more(state, state.most, event.rcvbuf_bytes // 2, kind, event)


def _more(state: State, buffer: Buffer, size: int, kind: Kind, event: UdpDrop) -> None:
    """A socket that has this value of rmem_default, or of rmem_max, has dropped something."""
    policy, climb, t_ns = state.policy, buffer.climb, event.t_ns
    if not climb.limit.value or state.spare < policy.spare:
        return
    buffer.full_ns = t_ns
    if t_ns < climb.rest_ns:
        return
    climb.goal = 0
    if not climb.judged and not _judged(state, buffer, size, kind, event):
        return
    climb.asked_rate = kind.per_s
    # rmem_max is half of what the kernel lets a socket hold.
    lacked = kind.burst * policy.datagram_bytes // (2 if buffer is state.most else 1)
    # By doubling, so that a burst that is told of ten times a second is not as many changes.
    # Where the last growth has not helped, this one is only to show that again, or not.
    reach = 2.0 if climb.useless and climb.rate else policy.reach
    room = min(size * power_of_two(max(2, -(-(size + lacked) // max(1, size)))), int(reach * size))
    buffer.goal = max(room, buffer.goal if t_ns < buffer.until_ns else 0)
    buffer.until_ns = t_ns + GOAL_NS
    what = "all that rmem_max allows" if buffer is state.most else "the default"
    buffer.why = f"UDP port {event.port}: {many(kind.burst)} dropped with a buffer of {size} bytes, {what}"


def _judged(state: State, buffer: Buffer, size: int, kind: Kind, event: UdpDrop) -> bool:
    """Growing may go on: a socket from before the last growth has dropped something, or one from after it fewer. Of
    the latter it takes a burst to know."""
    policy, climb, t_ns = state.policy, buffer.climb, event.t_ns
    if size != climb.limit.value:
        climb.useless = climb.useless if climb.rate else 0
        climb.rate = max(climb.rate, kind.per_s)
        return True
    if not kind.per_s:
        # Nor of the burst that the climb began with: a few growths are made without looking.
        climb.useless += not climb.rate
        return not climb.rate and climb.useless < policy.patience
    if not climb.rate:
        climb.rate, climb.useless, climb.judged = kind.per_s, 0, True
    judge(climb, kind.per_s, t_ns, policy.helps)
    if climb.useless < policy.patience:
        return True
    climb.useless, buffer.until_ns = 0, 0
    why = (
        f"{kind.per_s:.0f} datagrams/s are dropped with a buffer of {size} bytes, {climb.rate:.0f} with a smaller"
        " one: its program reads too slowly"
    )
    buffer.slow = (event.netns, event.port, why)
    go_down(climb, climb.start, f"UDP port {event.port}: {why}; back to {climb.start}", t_ns, policy.rest_s)
    return False


def _on_counters(state: State, event: Counters) -> None:
    read(state, event)


def _on_netns(state: State, event: Netns) -> None:
    if event.alive and event.netns in state.seen:
        # Of one that came and went unseen nobody says that it has gone.
        state.seen[event.netns] = max(event.t_ns, state.seen[event.netns])
    if not event.alive:
        state.seen.pop(event.netns, None)
        for key in [key for key in state.kinds if key[0] == event.netns]:
            del state.kinds[key]
        for socket in [socket for socket in state.owners if socket[0] == event.netns]:
            del state.owners[socket]


def _on_owner(state: State, event: Owner) -> None:
    if event.protocol != UDP:
        return
    state.owners.pop((event.netns, event.port), None)
    state.owners[event.netns, event.port] = (event.program, event.pid)
    if len(state.owners) > KINDS_MAX:
        del state.owners[next(iter(state.owners))]


def _on_value(state: State, event: Value) -> None:
    _told(state, event, event.value)
    for limit in (_buffer(state, event.tunable), udp_pages.limit(state.pages, event.tunable)):
        if limit:
            bounds(limit.climb.limit if isinstance(limit, Buffer) else limit, event)


def _on_outcome(state: State, event: Outcome) -> None:
    _told(state, event, event.value)
    for limit in (_buffer(state, event.tunable), udp_pages.limit(state.pages, event.tunable)):
        if limit:
            answered(limit.climb.limit if isinstance(limit, Buffer) else limit, event)


def _told(state: State, event: Value | Outcome, value: int) -> None:
    buffer, pages = _buffer(state, event.tunable), udp_pages.limit(state.pages, event.tunable)
    if buffer:
        buffer.full_ns = buffer.full_ns or event.t_ns
        told(buffer.climb, value, event.t_ns)
        stands(buffer, value)
    elif pages:
        learn(pages, value, event.t_ns)


def _buffer(state: State, tunable: str) -> Buffer | None:
    return state.default if tunable == DEFAULT else state.most if tunable == MOST else None


def _next(state: State, event: Any) -> Sequence[Wish]:
    for tunable, buffer in ((DEFAULT, state.default), (MOST, state.most)):
        limit = buffer.climb.limit
        if limit.value and may_change(buffer.climb, event.t_ns):
            want, why = _wanted(state, buffer, event.t_ns)
            if want:
                asked(limit, event.t_ns)
                evidence: Evidence = {"event": f"{type(event).__name__}@{event.t_ns}", "goal": buffer.goal}
                return (Wish(VERSION, event.t_ns, VALID_NS, tunable, 0, 0, limit.value, want, why, evidence),)
    return udp_pages.next_wish(state, event)


def _wanted(state: State, buffer: Buffer, t_ns: int) -> tuple[int, str]:
    climb, limit, idle_ns = buffer.climb, buffer.climb.limit, int(state.policy.idle_s * SECOND_NS)
    if t_ns < buffer.until_ns and (want := higher(climb, 2.0, buffer.goal, t_ns)):
        return want, buffer.why
    if not climb.goal and 0 <= limit.original < limit.value and t_ns - buffer.full_ns >= idle_ns:
        why = f"no UDP socket dropped anything with {limit.value} bytes for {state.policy.idle_s:g} s"
        why += f"; back towards {limit.original}"
        go_down(climb, max(limit.original, (limit.value + 1) // 2), why, t_ns)
        buffer.until_ns = 0
        buffer.full_ns = t_ns - idle_ns + idle_ns // 4
    return lower(climb), climb.why


_HANDLERS: dict[type[Any], Callable[[State, Any], None]] = {
    UdpDrop: _on_drop,
    Owner: _on_owner,
    Counters: _on_counters,
    Netns: _on_netns,
    Value: _on_value,
    Outcome: _on_outcome,
}
