"""net.ipv4.icmp_msgs_per_sec: doubled when ICMP messages are withheld, halved back to the original after a long quiet.

The kernel sends no more than so many ICMP messages of the kinds that it limits (icmp_global_allow in net/ipv4/icmp.c;
ip-sysctl.rst has them), and counts the others as Icmp.OutRateLimitGlobal (since 6.1). A router that forwards much, or a
host that many strangers try, so becomes silent to those who need the answer. Floods are answered no more than before:
growth ends at `most`, and the kernel's limit per destination holds as it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from bus.schema import VERSION, Counters, Netns, Value, Wish

NAME = "icmp_answers"
TOPICS = (Value, Counters, Netns)

TUNABLE = "net.ipv4.icmp_msgs_per_sec"
COUNTER = "Icmp.OutRateLimitGlobal"
SECOND_NS = 1_000_000_000


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.icmp_answers` in the configuration."""

    withheld: Annotated[int, Meta(ge=1)] = 8
    """Grow when at least so many messages were withheld between two readings, a second apart."""
    most: Annotated[int, Meta(ge=1)] = 8000
    quiet_s: Annotated[float, Meta(ge=1)] = 3600.0
    """Shrink when none did for so long."""


class _Space(Struct):
    """One network namespace."""

    value: Value | None = None
    withheld: int = -1
    """The counter at the last reading; below 0 before the first."""
    quiet_ns: int = 0
    """Since when nothing was withheld."""


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
    fresh = now - space.withheld if space.withheld >= 0 else 0
    space.withheld = now
    if fresh or not space.quiet_ns:
        space.quiet_ns = event.t_ns
    value = space.value
    if value is None or value.held:
        return ()
    if fresh >= policy.withheld:
        want = min(value.value * 2, value.high, policy.most)
        why = f"{fresh} ICMP messages in a second were withheld at {value.value} a second"
        return (_wish(value, want, why, fresh, event.t_ns),) if want > value.value else ()
    if event.t_ns - space.quiet_ns >= policy.quiet_s * SECOND_NS and value.value > value.original:
        want = max(value.original, value.low, value.value // 2)
        why = f"no ICMP message was withheld for {policy.quiet_s:g} s; back towards {value.original}"
        return (_wish(value, want, why, fresh, event.t_ns),) if want < value.value else ()
    return ()


def _wish(value: Value, want: int, why: str, fresh: int, t_ns: int) -> Wish:
    evidence: dict[str, int | str] = {"event": f"Counters@{t_ns}", "withheld": fresh}
    return Wish(VERSION, t_ns, SECOND_NS, TUNABLE, value.netns, value.netns_ino, value.value, want, why, evidence)
