"""Local ports and TIME_WAITs of each network namespace: more of them when they ran out, fewer long after.

A connect() that finds no port (EADDRNOTAVAIL) doubles ip_local_port_range: upwards to 65535 first, then downwards, not
below `floor`: lower ones are where services listen, and a service that restarts would find its port taken. What
ip_local_reserved_ports names is never given out, whatever the range (__inet_hash_connect in
net/ipv4/inet_hashtables.c). Where the range ends, tcp_tw_reuse goes from 2 (loopback only) to 1: a port in TIME_WAIT
may serve again after a second where timestamps tell old segments from new ones (RFC 6191); 0 is somebody's word and
stays. Near tcp_max_tw_buckets that is doubled: what finds no room there ends without TIME_WAIT. Where ports run out and
there can be no more of them, that is taken back, and not done again for `idle_s`: each TIME_WAIT more holds a port.
tcp_fin_timeout stays as it is, since no TIME_WAIT depends on it (TCP_TIMEWAIT_LEN is 60 s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from bus.schema import Counters, Netns, Outcome, Ports, Probe, Value, Wish
from deciders.limit import SECOND_NS, answered, bounds, learn, of_row
from deciders.ports_room import BUCKETS, HIGH, LOW, NAMES, REUSE, Place, Policy, back, exhausted, more_buckets, widen

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "ports"
TOPICS = (Ports, Counters, Value, Outcome, Netns, Probe)

PLACES_MAX = 1024
DEAF_NS = 60 * SECOND_NS
"""A probe unheard of for longer says nothing of what happened in between."""
ADVICE_MAX = 8
"""Namespaces that advice is given on, those heard of last."""
IDLE_MAX = 24
"""A range that was too small again after it had come down waits twice as long the next time, up to so many times."""
OVERFLOWS = "TcpExt.TCPTimeWaitOverflow"


class State(Struct):
    """Bounded: PLACES_MAX namespaces; the one heard of longest ago goes first."""

    policy: Policy
    places: dict[int, Place]
    heard_ns: int = 0
    """When the probe was last known to work."""


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """See deciders.engine.Decider.advice."""
    found = (exhausted(state.policy, place) for place in list(state.places.values())[-ADVICE_MAX:])
    return [line for line in found if line]


def _place(state: State, netns: int, netns_ino: int, t_ns: int) -> Place:
    place = state.places.pop(netns, None)
    if place is None:
        limits = {name: of_row(name) for name in NAMES}
        place = Place(netns, netns_ino, limits, ports_ns=t_ns, buckets_ns=t_ns)
        if len(state.places) >= PLACES_MAX:
            del state.places[next(iter(state.places))]
    state.places[netns] = place
    place.netns_ino = netns_ino or place.netns_ino
    return place


def _on_ports(state: State, event: Ports) -> Sequence[Wish]:
    place = _place(state, event.netns, event.netns_ino, event.t_ns)
    now = {LOW: event.low, HIGH: event.high, REUSE: event.tw_reuse, BUCKETS: event.tw_max}
    for name, value in now.items():
        learn(place.limits[name], value, event.t_ns)
    out, full = event.exhausted != place.exhausted, event.tw_full != place.tw_full
    place.exhausted, place.tw_full = event.exhausted, event.tw_full
    place.tw, place.timestamps = event.tw, event.timestamps
    wishes: list[Wish] = []
    if out and event.exhausted:
        place.ports_ns = event.t_ns
        _patience(place)
        wishes += widen(state.policy, place, event)
    if full or event.tw * 4 >= event.tw_max * 3 > 0:
        place.buckets_ns = event.t_ns
        found = f"{event.tw} connections in TIME_WAIT, of {event.tw_max}; {event.tw_full} ended while none was free"
        wishes += more_buckets(state.policy, place, event, found)
    return wishes


def _patience(place: Place) -> None:
    """What had come down was needed: the next time, it stays longer."""
    if place.came_down:
        place.idle_times, place.came_down = min(IDLE_MAX, 2 * place.idle_times), False


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    """Where there is no probe: the initial namespace, and those with a change on trial."""
    place, overflows = state.places.get(event.netns), event.values.get(OVERFLOWS)
    if event.source != "net/netstat" or place is None or overflows is None:
        return ()
    before, place.overflows = place.overflows, overflows
    if not 0 <= before < overflows:
        return ()
    place.buckets_ns = event.t_ns
    found = f"{overflows - before} connections ended in a second without TIME_WAIT, for want of buckets"
    return more_buckets(state.policy, place, event, found)


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    if event.tunable not in NAMES:
        return ()
    place = _place(state, event.netns, event.netns_ino, event.t_ns)
    limit = place.limits[event.tunable]
    bounds(limit, event)
    learn(limit, event.value, event.t_ns)
    if event.t_ns - state.heard_ns > DEAF_NS:
        # Who does not hear does not know what lacked.
        place.ports_ns = place.buckets_ns = event.t_ns
    return back(state.policy, place, event)


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    place = state.places.get(event.netns)
    if place is not None and event.tunable in NAMES:
        answered(place.limits[event.tunable], event)
        learn(place.limits[event.tunable], event.value, event.t_ns)
    return ()


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        state.places.pop(event.netns, None)
    return ()


def _on_probe(state: State, event: Probe) -> Sequence[Wish]:
    if event.name == NAME:
        state.heard_ns = event.t_ns if event.road else 0
    return ()


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    Ports: _on_ports,
    Counters: _on_counters,
    Value: _on_value,
    Outcome: _on_outcome,
    Netns: _on_netns,
    Probe: _on_probe,
}
