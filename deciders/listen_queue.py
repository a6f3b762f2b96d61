"""net.core.somaxconn and net.ipv4.tcp_max_syn_backlog of each namespace: longer in a rush, never in a flood.

somaxconn grows where a socket drops connections whose backlog is just somaxconn: it was cut down to it, so that its
program gains at its next listen(2). A socket with a smaller backlog has what its program asked for; that is for the
program to change, and `advice` says so by port and name. By how much: room for what was dropped in the worst moment, in
steps. tcp_syncookies and tcp_abort_on_overflow are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from bus.schema import VERSION, Evidence, Listener, ListenQueues, Netns, Outcome, Value, Wish
from deciders.climb import Climb, go_down, higher, judge, lower, may_change, told
from deciders.limit import SECOND_NS, answered, asked, bounds, of_row
from deciders.listen_room import (
    GOAL_NS,
    SOCKETS_MAX,
    SPACING_NS,
    Place,
    Policy,
    Socket,
    count,
    flooded,
    power_of_two,
    totals,
)

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "listen_queue"
TOPICS = (ListenQueues, Listener, Netns, Value, Outcome)
SOMAXCONN, SYN_BACKLOG = "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"
VALID_NS = SECOND_NS
PLACES_MAX = 256
ADVICE_NS = 3600 * SECOND_NS
"""A socket that dropped so long ago is spoken of no more."""
ADVICE_MAX = 16


class State(Struct):
    """Everything known. Bounded: PLACES_MAX namespaces, SOCKETS_MAX sockets in each."""

    policy: Policy
    places: dict[int, Place]


class Need(NamedTuple):
    """Why one of the two should grow."""

    room: int
    """For so many."""
    dropped: int
    """So many found none, in the time that the numbers are about."""
    why: str


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """What no tunable can cure: sockets whose programs ask for too short a queue, or have to listen anew."""
    short = [
        (netns, place, socket)
        for netns, place in state.places.items()
        for socket in place.sockets.values()
        if socket.hurt_ns and _age_ns(place, socket) < ADVICE_NS and socket.backlog < place.queue.limit.value
    ]
    return [_advice(*one) for one in short[:ADVICE_MAX]]


def _age_ns(place: Place, socket: Socket) -> int:
    return (place.before.t_ns if place.before else 0) - socket.hurt_ns


def _advice(netns: int, place: Place, socket: Socket) -> str:
    who = f" ({socket.program}, pid {socket.pid})" if socket.pid else ""
    somaxconn, first = place.queue.limit.value, place.queue.start or place.queue.limit.original
    where = f"netns {netns}: port {socket.port}{who}"
    if 0 < first <= socket.backlog:
        return (
            f"{where} was cut down to a backlog of {socket.backlog}, {socket.dropped} connections found it full;"
            f" somaxconn is {somaxconn} now, which its next listen(2) gets: restart it"
        )
    return (
        f"{where} listens with a backlog of {socket.backlog}, {socket.dropped} connections found it full; somaxconn is"
        f" {somaxconn}: raise the program's own"
    )


def _place(state: State, netns: int, inode: int, t_ns: int) -> Place:
    place = state.places.get(netns)
    if place is None:
        queue, syn = (Climb(SPACING_NS, of_row(tunable)) for tunable in (SOMAXCONN, SYN_BACKLOG))
        place = state.places[netns] = Place(inode, queue, syn, full_ns={SOMAXCONN: t_ns, SYN_BACKLOG: t_ns})
        if len(state.places) > PLACES_MAX:
            del state.places[next(iter(state.places))]
    place.inode = inode or place.inode
    return place


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        state.places.pop(event.netns, None)
    return ()


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    if event.tunable not in (SOMAXCONN, SYN_BACKLOG):
        return ()
    place = _place(state, event.netns, event.netns_ino, event.t_ns)
    climb = _climb(place, event.tunable)
    told(climb, event.value, event.t_ns)
    bounds(climb.limit, event)
    return _next(state.policy, place, event.netns, event)


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    place = state.places.get(event.netns)
    if place is None or event.tunable not in (SOMAXCONN, SYN_BACKLOG):
        return ()
    climb = _climb(place, event.tunable)
    told(climb, event.value, event.t_ns)
    answered(climb.limit, event)
    return _next(state.policy, place, event.netns, event)


def _on_queues(state: State, event: ListenQueues) -> Sequence[Wish]:
    place = _place(state, event.netns, event.netns_ino, event.t_ns)
    for tunable, value in ((SOMAXCONN, event.somaxconn), (SYN_BACKLOG, event.max_syn_backlog)):
        if value:
            told(_climb(place, tunable), value, event.t_ns)
    if not count(state.policy, place, totals(event)):
        return ()
    fresh = place.fresh
    if fresh.overflows or fresh.full_cookies or fresh.full_drops:
        _full(place, SOMAXCONN, event.t_ns)
    if fresh.refused:
        _full(place, SYN_BACKLOG, event.t_ns)
        _more_syns(state.policy, place, event.t_ns)
    if fresh.full_cookies and fresh.valid:
        _more_cookies(state.policy, place, event.t_ns)
    return _next(state.policy, place, event.netns, event)


def _on_listener(state: State, event: Listener) -> Sequence[Wish]:
    place = _place(state, event.netns, event.netns_ino, event.t_ns)
    socket = place.sockets.pop(event.socket, None)
    # Of one not heard of before, what the namespace as a whole has dropped lately is the most that is new.
    # What tcp_max_syn_backlog has dropped is counted as the socket's, too, but for none of its own queues.
    lately = place.fresh.overflows + place.fresh.full_drops
    before = max(0, event.dropped - lately) if socket is None else socket.dropped
    if socket and event.t_ns < socket.told_ns:
        place.sockets[event.socket] = socket
        return ()
    fresh = min(max(0, event.dropped - before), lately)
    hurt_ns = event.t_ns if fresh else socket.hurt_ns if socket else 0
    place.sockets[event.socket] = Socket(
        event.port, event.backlog, event.dropped, event.t_ns, fresh, hurt_ns, event.pid, event.program
    )
    if len(place.sockets) > SOCKETS_MAX:
        del place.sockets[next(iter(place.sockets))]
    if fresh and event.backlog == place.queue.limit.value:
        _more_queue(state.policy, place, event, fresh)
    return _next(state.policy, place, event.netns, event)


def _climb(place: Place, tunable: str) -> Climb:
    return place.queue if tunable == SOMAXCONN else place.syn


def _full(place: Place, tunable: str, t_ns: int) -> None:
    place.full_ns[tunable] = t_ns
    _climb(place, tunable).goal = 0


def _more_queue(policy: Policy, place: Place, event: Listener, fresh: int) -> None:
    """A socket that has all that it may have dropped so many."""
    if place.sums.opened < policy.served * fresh:
        return
    value = place.queue.limit.value
    why = f"port {event.port}: {fresh} connections found its queue full at {value}, which is all that somaxconn allows"
    _want(policy, place, SOMAXCONN, Need(value + fresh, fresh, why), event.t_ns)


def _more_cookies(policy: Policy, place: Place, t_ns: int) -> None:
    """A SYN queue was full, and those who came were real. Whose it was, the kernel does not say."""
    value = place.queue.limit.value
    if not any(socket.backlog == value for socket in place.sockets.values()):
        return
    fresh = place.fresh
    why = f"{fresh.full_cookies} connections found a SYN queue full and got a cookie, {fresh.valid} came back with it"
    _want(policy, place, SOMAXCONN, Need(value + fresh.valid, fresh.full_cookies, why), t_ns)


def _more_syns(policy: Policy, place: Place, t_ns: int) -> None:
    """SYNs were dropped for want of tcp_max_syn_backlog, where cookies are off."""
    value, fresh = place.syn.limit.value, place.fresh
    if fresh.opened < policy.opened * fresh.refused or fresh.sent:
        return
    why = f"{fresh.refused} SYNs found no room in a backlog of {value}, while {fresh.opened} connections were opened"
    # A quarter is kept for peers that are known.
    _want(policy, place, SYN_BACKLOG, Need((value + fresh.refused) * 4 // 3, fresh.refused, why), t_ns)


def _want(policy: Policy, place: Place, tunable: str, need: Need, t_ns: int) -> None:
    """Room for so many from now on, unless more has not helped before."""
    climb, rate = _climb(place, tunable), need.dropped / max(1.0, place.span_s)
    if flooded(policy, place, t_ns):
        place.goals.pop(tunable, None)
        return
    judge(climb, rate, t_ns, policy.helps)
    if climb.useless >= policy.patience:
        climb.useless, climb.rest_ns = 0, t_ns + int(policy.rest_s * SECOND_NS)
        return
    climb.asked_rate = rate
    before, until_ns = place.goals.get(tunable, (0, 0))
    goal = min(policy.most, max(power_of_two(need.room), before if t_ns < until_ns else 0))
    place.goals[tunable] = (goal, t_ns + GOAL_NS)
    place.whys[tunable] = need.why


def _next(policy: Policy, place: Place, netns: int, event: Any) -> Sequence[Wish]:
    """The next change of either, if any."""
    for tunable in (SOMAXCONN, SYN_BACKLOG):
        climb = _climb(place, tunable)
        if climb.limit.value and may_change(climb, event.t_ns):
            want, why = _wanted(policy, place, tunable, climb, event.t_ns)
            if want:
                asked(climb.limit, event.t_ns)
                return (_wish(place, netns, tunable, want, why, event),)
    return ()


def _wanted(policy: Policy, place: Place, tunable: str, climb: Climb, t_ns: int) -> tuple[int, str]:
    goal, until_ns = place.goals.get(tunable, (0, 0))
    if t_ns < until_ns and not flooded(policy, place, t_ns) and (want := higher(climb, 2.0, goal, t_ns)):
        return want, place.whys[tunable]
    limit, idle_ns = climb.limit, int(policy.idle_s * SECOND_NS)
    if not climb.goal and 0 <= limit.original < limit.value and t_ns - place.full_ns[tunable] >= idle_ns:
        what = "accept queue" if tunable == SOMAXCONN else "SYN queue"
        why = f"no {what} was full at {limit.value} for {policy.idle_s:g} s; back towards {limit.original}"
        go_down(climb, max(limit.original, (limit.value + 1) // 2), why, t_ns)
        place.full_ns[tunable] = t_ns - idle_ns + idle_ns // 4
    return lower(climb), climb.why


def _wish(place: Place, netns: int, tunable: str, want: int, why: str, event: Any) -> Wish:
    fresh = place.fresh
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "overflows": fresh.overflows,
        "syns_dropped": fresh.full_drops + fresh.refused,
        "cookies_sent": fresh.sent,
        "cookies_valid": fresh.valid,
        "opened": fresh.opened,
        "span_ms": min(int(place.span_s * 1000), 2**63 - 1),
    }
    value = _climb(place, tunable).limit.value
    return Wish(VERSION, event.t_ns, VALID_NS, tunable, netns, place.inode, value, want, why, evidence)


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    ListenQueues: _on_queues,
    Listener: _on_listener,
    Netns: _on_netns,
    Value: _on_value,
    Outcome: _on_outcome,
}
