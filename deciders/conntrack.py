"""nf_conntrack_max: room for more connections before the kernel says "table full", and less of it long after.

The limit is the host's, the count is each namespace's: what is read, once a second, is the initial namespace's
(net/stat/nf_conntrack). At the limit the kernel gives up a connection that is not yet confirmed for each new one
(early_drop), or, where there is none, drops the packet (drop; __nf_conntrack_alloc in
net/netfilter/nf_conntrack_core.c). A flood is no reason to grow: while SYN cookies are sent, or memory
is short, it stays. The hash table does not grow with it: all of it is copied when nf_conntrack_buckets is changed, so
that is advice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from bus.schema import VERSION, Counters, Evidence, Outcome, Value, Wish
from deciders.limit import SECOND_NS, Limit, answered, asked, bounds, learn, may, worth

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "conntrack"
TOPICS = (Counters, Value, Outcome)

MAX = "net.netfilter.nf_conntrack_max"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
VALID_NS = SECOND_NS
BLIND_NS = 60 * SECOND_NS
"""Unread for longer than this, nobody knows that there were few in between."""
FLOOD_NS = 10 * SECOND_NS
"""A SYN cookie says for so long that there is a flood."""
LONG_CHAIN = 4.0
"""Entries in a bucket, on the average, from which on looking one up takes long."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.conntrack` in the configuration."""

    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """Grow when so much of the limit is used."""
    filling: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """From this much on, grow when it would be full within headroom_s."""
    headroom_s: Annotated[float, Meta(ge=0, le=60)] = 3.0
    factor: Annotated[float, Meta(gt=1, le=2)] = 2.0
    """Growth at once."""
    spare: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Never grow while less than this share of the host's memory is available."""
    empty: Annotated[float, Meta(ge=0, le=0.3)] = 0.2
    """Come down when no more than this was used ..."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """... for so long; halve again after a quarter of it."""


class State(Struct):
    """Everything known."""

    policy: Policy
    limit: Limit = field(default_factory=Limit)
    buckets: int = 0
    entries: int = 0
    read_ns: int = 0
    per_s: float = 0.0
    lost: int = 0
    """Packets dropped and connections given up, as last read."""
    lost_ns: int = 0
    """When these grew."""
    cookies: int = -1
    flood_ns: int = 0
    """When a SYN cookie was last sent; 0: never."""
    spare: float = 1.0
    quiet_ns: int = 0


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy)


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """See deciders.engine.Decider.advice."""
    if not state.buckets or state.entries < LONG_CHAIN * state.buckets:
        return []
    return [
        f"{BUCKETS} is {state.buckets} for {state.entries} connections: each is looked for among"
        f" {state.entries / state.buckets:.0f}; {state.entries} buckets would cost {state.entries * 8 >> 10} KiB"
    ]


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    match event.source:
        case "net/stat/nf_conntrack":
            return _on_table(state, event)
        case "net/netstat":
            cookies = event.values.get("TcpExt.SyncookiesSent", 0)
            if 0 <= state.cookies < cookies:
                state.flood_ns = event.t_ns
            state.cookies = cookies
        case "meminfo":
            total = event.values.get("MemTotal", 0)
            state.spare = event.values.get("MemAvailable", total) / total if total > 0 else 1.0
    return ()


def _on_table(state: State, event: Counters) -> Sequence[Wish]:
    if event.t_ns <= state.read_ns:
        return ()
    entries = max(0, event.values.get("entries", 0))
    lost = max(0, event.values.get("drop", 0)) + max(0, event.values.get("early_drop", 0))
    span_ns, known = event.t_ns - state.read_ns, state.read_ns > 0
    if span_ns > BLIND_NS:
        state.quiet_ns = event.t_ns
    if known and lost > state.lost:
        state.lost_ns = event.t_ns
    state.per_s = max(0.0, (entries - state.entries) * SECOND_NS / span_ns) if known else 0.0
    state.entries, state.lost, state.read_ns = entries, lost, event.t_ns
    # At the first reading nobody knows yet whether there is a flood.
    return _next_wish(state, event) if known else ()


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    if event.tunable == BUCKETS:
        state.buckets = max(0, event.value)
    if event.tunable != MAX:
        return ()
    bounds(state.limit, event)
    learn(state.limit, event.value, event.t_ns)
    return ()


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    if event.tunable == MAX:
        answered(state.limit, event)
        learn(state.limit, event.value, event.t_ns)
    return ()


def _next_wish(state: State, event: Counters) -> Sequence[Wish]:
    limit, policy = state.limit, state.policy
    if not limit.value:
        return ()
    left_s = (limit.value - state.entries) / state.per_s if state.per_s > 0 else float("inf")
    used = state.entries / limit.value
    if used > policy.empty:
        state.quiet_ns = event.t_ns
    lost = state.lost_ns == event.t_ns
    if not (used >= policy.full or lost or (used >= policy.filling and left_s < policy.headroom_s)):
        return _come_down(state, event)
    flooded = state.flood_ns and event.t_ns - state.flood_ns < FLOOD_NS
    if flooded or state.spare < policy.spare:
        return ()
    want = min(int(limit.value * policy.factor), limit.high or limit.value)
    why = f"{state.entries} of {limit.value} connections tracked, {state.per_s:.0f} more a second"
    if lost:
        why += "; some were given up or refused"
    return _ask(state, want, why, event) if want > limit.value else ()


def _come_down(state: State, event: Counters) -> Sequence[Wish]:
    limit, idle_ns = state.limit, int(state.policy.idle_s * SECOND_NS)
    least = max(limit.original, limit.low)
    if limit.original < 0 or limit.value <= least or event.t_ns - state.quiet_ns < idle_ns:
        return ()
    why = (
        f"{state.entries} connections tracked, and for {state.policy.idle_s:g} s no more than {state.policy.empty:.0%}"
        f" of {limit.value}; back towards {limit.original}"
    )
    wishes = _ask(state, max(least, (limit.value + 1) // 2), why, event)
    if wishes:
        state.quiet_ns = event.t_ns - idle_ns + idle_ns // 4
    return wishes


def _ask(state: State, want: int, why: str, event: Counters) -> Sequence[Wish]:
    limit = state.limit
    if not worth(limit, want) or want < limit.low or not may(limit, event.t_ns):
        return ()
    asked(limit, event.t_ns)
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "entries": state.entries,
        "per_s": min(int(state.per_s), 2**62),
        "lost": min(state.lost, 2**62),
        "buckets": state.buckets,
        "available_percent": int(state.spare * 100),
    }
    return (Wish(VERSION, event.t_ns, VALID_NS, MAX, 0, 0, limit.value, want, why, evidence),)


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    Counters: _on_counters,
    Value: _on_value,
    Outcome: _on_outcome,
}
