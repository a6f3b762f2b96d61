"""Room for connections that are being set up in one namespace: what is known, and whether more of it would help.

Two queues may be too short. A connection that is set up waits in the accept queue of its listener, one that is not yet
in the listener's SYN queue; each holds as many as listen(2) asked for, at most somaxconn (inet_csk_reqsk_queue_is_full
in include/net/inet_connection_sock.h). tcp_max_syn_backlog counts only where cookies are off: then the last quarter of
it is kept for peers that are known (tcp_conn_request in net/ipv4/tcp_input.c).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import ListenQueues
from deciders.climb import Climb
from deciders.limit import SECOND_NS

SPACING_NS = 0
"""The rows have no cool-down."""
SOCKETS_MAX = 32
"""Remembered of a namespace."""
HALF_LIFE_S = 1.0
"""Sums forget by half in so long."""
FEW = 64.0
"""Of fewer no flood is made."""
GOAL_NS = 10 * SECOND_NS
"""What was wanted a moment ago is gone for, step by step, for so long."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.listen_queue` in the configuration."""

    valid: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """A flood: of the cookies sent, less than this share comes back with an acknowledgement."""
    opened: Annotated[float, Meta(gt=0, le=1)] = 1 / 16
    """A flood, where cookies are off: of the SYNs dropped, less than this share of connections is set up meanwhile."""
    served: Annotated[float, Meta(gt=0, le=1)] = 1 / 256
    """An accept queue that overflows gets longer only while at least this share of what it drops is set up."""
    suspect_s: Annotated[float, Meta(ge=0)] = 2.0
    """It is a flood when it has looked like one for so long: a cookie comes back a round trip later."""
    calm_s: Annotated[float, Meta(ge=0)] = 60.0
    """After a flood nothing grows for so long."""
    most: Annotated[int, Meta(ge=128)] = 16384
    """Neither grows above this."""
    patience: Annotated[int, Meta(ge=1)] = 3
    """Growths that do not help, one after the other; then it rests."""
    helps: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """A growth helps where what is dropped falls to this share."""
    rest_s: Annotated[float, Meta(ge=0)] = 3600.0
    idle_s: Annotated[float, Meta(ge=1)] = 3600.0
    """Come down halfway when there was room for so long, and again after each quarter of it. Rushes are rare, and a
    program that listens anew gets what stands there then."""


@dataclass(slots=True)
class Socket:
    """A socket that listens."""

    port: int
    backlog: int
    dropped: int = 0
    told_ns: int = 0
    fresh: int = 0
    """Dropped since it was told of before."""
    hurt_ns: int = 0
    """When it was last seen to have dropped more."""
    pid: int = 0
    program: str = ""


@dataclass(slots=True)
class Totals:
    """Of ListenQueues, as they were at t_ns, or how much more of each there is since."""

    t_ns: int = 0
    overflows: int = 0
    full_cookies: int = 0
    full_drops: int = 0
    """SYNs dropped because their listener's queue for them was full."""
    refused: int = 0
    """SYNs dropped because three quarters of tcp_max_syn_backlog were in use (and a few for other reasons)."""
    sent: int = 0
    valid: int = 0
    opened: int = 0


def totals(event: ListenQueues) -> Totals:
    """What of an event counts here."""
    return Totals(
        event.t_ns,
        event.overflows,
        event.full_cookies,
        event.full_drops,
        max(0, event.drops - event.overflows - event.full_drops),
        event.cookies_sent,
        event.cookies_valid,
        event.opened,
    )


@dataclass(slots=True)
class Sums:
    """The same over the last seconds, the older the less."""

    overflows: float = 0.0
    uncookied: float = 0.0
    """SYNs dropped without a cookie."""
    sent: float = 0.0
    valid: float = 0.0
    opened: float = 0.0


@dataclass(slots=True)
class Place:
    """One namespace."""

    inode: int = 0
    queue: Climb = field(default_factory=lambda: Climb(SPACING_NS))
    """somaxconn."""
    syn: Climb = field(default_factory=lambda: Climb(SPACING_NS))
    """tcp_max_syn_backlog."""
    before: Totals | None = None
    fresh: Totals = field(default_factory=Totals)
    span_s: float = 1.0
    """How long `fresh` took."""
    sums: Sums = field(default_factory=Sums)
    suspect_ns: int = 0
    """Since when it looks like a flood; 0: it does not."""
    flood_ns: int = 0
    """When there was last a flood."""
    full_ns: dict[str, int] = field(default_factory=dict)
    """When each queue was last full; at first, when the place was first heard of."""
    goals: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where each goes up to, and until when."""
    whys: dict[str, str] = field(default_factory=dict)
    sockets: dict[int, Socket] = field(default_factory=dict)


def count(policy: Policy, place: Place, now: Totals) -> bool:
    """Take the totals in. False where they are late, or the first."""
    before = place.before
    if before and now.t_ns <= before.t_ns:
        return False
    place.before = now
    if not before or now.opened < before.opened or now.overflows < before.overflows:
        return False
    place.span_s = (now.t_ns - before.t_ns) / SECOND_NS
    place.fresh = fresh = Totals(
        now.t_ns,
        now.overflows - before.overflows,
        max(0, now.full_cookies - before.full_cookies),
        max(0, now.full_drops - before.full_drops),
        max(0, now.refused - before.refused),
        max(0, now.sent - before.sent),
        max(0, now.valid - before.valid),
        now.opened - before.opened,
    )
    keep = 0.5 ** (place.span_s / HALF_LIFE_S)
    sums = place.sums
    place.sums = Sums(
        sums.overflows * keep + fresh.overflows,
        sums.uncookied * keep + fresh.full_drops + fresh.refused,
        sums.sent * keep + fresh.sent,
        sums.valid * keep + fresh.valid,
        sums.opened * keep + fresh.opened,
    )
    _watch_for_floods(policy, place, now.t_ns)
    return True


def _watch_for_floods(policy: Policy, place: Place, t_ns: int) -> None:
    sums = place.sums
    unanswered = sums.sent >= FEW and sums.valid < policy.valid * sums.sent
    unopened = sums.uncookied >= FEW and sums.opened < policy.opened * sums.uncookied
    if not unanswered and not unopened:
        place.suspect_ns = 0
        return
    place.suspect_ns = place.suspect_ns or t_ns
    if t_ns - place.suspect_ns >= policy.suspect_s * SECOND_NS:
        place.flood_ns = t_ns


def flooded(policy: Policy, place: Place, t_ns: int) -> bool:
    """There is a flood, or was a moment ago, or may be."""
    return bool(place.suspect_ns) or (place.flood_ns > 0 and t_ns - place.flood_ns < policy.calm_s * SECOND_NS)


def power_of_two(number: int) -> int:
    """The least that is no less."""
    return 1 << max(0, number - 1).bit_length()
