"""net.core.somaxconn: doubled when accept queues overflow, halved back to the original after a long quiet.

The kernel cuts listen(2)'s backlog down to somaxconn (__sys_listen in net/socket.c), and counts a connection that
found the queue full as TcpExt.ListenOverflows. A program gets the longer queue with its next listen(2), so the row's
cool-down leaves it time, and a program that asked for little keeps overflowing: growth ends at `most`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from bus.schema import VERSION, Counters, Netns, Value, Wish

NAME = "listen_backlog"
TOPICS = (Value, Counters, Netns)

TUNABLE = "net.core.somaxconn"
COUNTER = "TcpExt.ListenOverflows"
SECOND_NS = 1_000_000_000


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.listen_backlog` in the configuration."""

    overflows: Annotated[int, Meta(ge=1)] = 8
    """Grow when at least so many connections found a full queue between two readings, a second apart."""
    most: Annotated[int, Meta(ge=1)] = 16384
    quiet_s: Annotated[float, Meta(ge=1)] = 3600.0
    """Shrink when none did for so long."""


class _Space(Struct):
    """One network namespace."""

    value: Value | None = None
    overflows: int = -1
    """The counter at the last reading; below 0 before the first."""
    quiet_ns: int = 0
    """Since when nothing has overflowed."""


class State(Struct):
    """Everything known."""

    policy: Policy
    spaces: dict[int, _Space]


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    wishes: Sequence[Wish] = ()
    if type(event) is Netns:
        if not event.alive:
            state.spaces.pop(event.netns, None)
    elif type(event) is Value:
        if event.tunable == TUNABLE:
            state.spaces.setdefault(event.netns, _Space()).value = event
    elif COUNTER in event.values:
        wishes = _on_counters(state.policy, state.spaces.setdefault(event.netns, _Space()), event)
    return state, wishes


def _on_counters(policy: Policy, space: _Space, event: Counters) -> Sequence[Wish]:
    now = event.values[COUNTER]
    fresh = now - space.overflows if space.overflows >= 0 else 0
    space.overflows = now
    if fresh or not space.quiet_ns:
        space.quiet_ns = event.t_ns
    value = space.value
    if value is None or value.held:
        return ()
    if fresh >= policy.overflows:
        want = min(value.value * 2, value.high, policy.most)
        why = f"{fresh} connections in a second found an accept queue full at somaxconn {value.value}"
        return (_wish(value, want, why, fresh, event.t_ns),) if want > value.value else ()
    if event.t_ns - space.quiet_ns >= policy.quiet_s * SECOND_NS and value.value > value.original:
        want = max(value.original, value.low, value.value // 2)
        why = f"no accept queue was full for {policy.quiet_s:g} s; back towards {value.original}"
        return (_wish(value, want, why, fresh, event.t_ns),) if want < value.value else ()
    return ()


def _wish(value: Value, want: int, why: str, fresh: int, t_ns: int) -> Wish:
    evidence: dict[str, int | str] = {"event": f"Counters@{t_ns}", "overflows": fresh}
    return Wish(VERSION, t_ns, SECOND_NS, TUNABLE, value.netns, value.netns_ino, value.value, want, why, evidence)
