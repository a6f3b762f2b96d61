"""When TCP's memory is nearly used up and tcp_mem can grow no more: buffer limits that were raised come down a step.

The memory is that of all namespaces together (TCP.mem in net/sockstat, tcp_mem[2]), the limits are each namespace's. A
limit never goes below its original, and is not raised again for policy.rest_max_s.
"""

from __future__ import annotations

from msgspec import Struct

from bus.schema import Counters, Value, Wish
from deciders import tcp_wish
from deciders.limit import may
from deciders.tcp_limit import Knob, Policy

SECOND_NS = 1_000_000_000
TCP_MEM = "net.ipv4.tcp_mem[2]"
FULL = 0.75
"""Of tcp_mem[2], as deciders.tcp_memory counts it near exhaustion."""
HALF = 0.5
"""Of tcp_mem[2]: from there on connections are not to begin with more."""
SPACING_NS = 10 * SECOND_NS
"""Between two steps of one limit: so long it takes until sockets that hold more have been read empty."""
STALE_NS = 10 * SECOND_NS
"""What was read longer ago says nothing of now."""


class Scarcity(Struct):
    """What is known of TCP's memory. In pages."""

    limit: int = 0
    """tcp_mem[2]; 0: not known, and then nothing is done about it."""
    ceiling: bool = False
    """It can grow no more: at its bound, or hands are off it."""
    held: int = 0
    read_ns: int = 0


def read(scarcity: Scarcity, event: Counters) -> None:
    """How much is held."""
    held = event.values.get("TCP.mem")
    if event.source == "net/sockstat" and held is not None:
        scarcity.held, scarcity.read_ns = max(0, held), event.t_ns


def bound(scarcity: Scarcity, event: Value) -> None:
    """How much may be."""
    scarcity.limit = max(0, event.value)
    scarcity.ceiling = event.held or event.value >= event.high


def scarce(scarcity: Scarcity, t_ns: int) -> bool:
    """Memory is nearly used up, and there will be no more; or it is used up."""
    if not scarcity.limit or not 0 <= t_ns - scarcity.read_ns <= STALE_NS:
        return False
    return scarcity.held >= (FULL if scarcity.ceiling else 1.0) * scarcity.limit


def pressed(scarcity: Scarcity, t_ns: int) -> bool:
    """So much is held that nothing is to begin with more; also where that is not known."""
    if not scarcity.limit or not 0 <= t_ns - scarcity.read_ns <= STALE_NS:
        return True
    return scarcity.held >= HALF * scarcity.limit


def give_way(policy: Policy, scarcity: Scarcity, knob: Knob, event: Value) -> list[Wish]:
    """A step down for this limit, when there is one to take."""
    t_ns, least = event.t_ns, max(knob.original, knob.low)
    if knob.value <= least:
        # Nothing to give; nothing to take either, for as long as this lasts.
        knob.retry_ns = max(knob.retry_ns, t_ns + SPACING_NS)
    if knob.original <= 0 or knob.value <= least or not may(knob, t_ns):
        return []
    if (knob.gave_ns and t_ns - knob.gave_ns < SPACING_NS) or t_ns - knob.changed_ns < SECOND_NS:
        return []
    knob.gave_ns, knob.attempt, knob.wished, knob.back = t_ns, None, None, 0
    want = max(least, -int(-knob.value // policy.factor))
    return [tcp_wish.scarce(knob, want, scarcity.held, scarcity.limit, event)]


def gave_way(policy: Policy, knob: Knob, t_ns: int) -> bool:
    """This limit has come down for want of memory, not long ago."""
    return bool(knob.gave_ns) and t_ns - knob.gave_ns < policy.rest_max_s * SECOND_NS
