"""Memory for datagrams that wait to be read: of one socket, and of all UDP sockets together. What is known of both.

A socket that sets nothing has rmem_default at its making (sock_init_data in net/core/sock.c). One that sets SO_RCVBUF
has twice what it asks for, at most twice rmem_max (sock_setsockopt). Either changes only what is made or set later.

All together may hold udp_mem[0] pages: below it everything is taken, above it only what keeps a socket below
udp_rmem_min, for UDP knows no pressure and udp_mem[1], [2] leave no more room (__sk_mem_raise_allocated; seen on 6.18).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import Counters, UdpDrop
from deciders.climb import Climb
from deciders.limit import SECOND_NS, Limit

KINDS_MAX = 512
PAST_MAX = 16
NEW_NS = 5 * SECOND_NS
"""A refusal of memory is news for so long."""
GOAL_NS = 10 * SECOND_NS
CLIMB_NS = 3600 * SECOND_NS
"""A growth shows only in sockets that are made after it, some of them at the next restart of their program."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.udp_buffer` in the configuration."""

    datagram_bytes: Annotated[int, Meta(ge=256, le=65536)] = 2304
    """What one that was dropped would have taken: a frame of 1500 bytes with its sk_buff."""
    burst_s: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """There is to be room for what is dropped in so long."""
    reach: Annotated[float, Meta(ge=2, le=64)] = 16.0
    """But for no more than so many times the buffer that was full."""
    patience: Annotated[int, Meta(ge=1)] = 3
    """Growths that do not help, one after the other; then it rests."""
    helps: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """A growth helps where sockets made after it drop no more than this share of what was dropped before."""
    rest_s: Annotated[float, Meta(ge=0)] = 3600.0
    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """udp_mem grows when so much of it is held."""
    factor: Annotated[float, Meta(gt=1, le=1.5)] = 1.5
    """By this, at once."""
    spare: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Nothing grows while less than this share of the host's memory is available."""
    empty: Annotated[float, Meta(ge=0, le=0.5)] = 0.3
    """udp_mem comes down where no more than this was held ..."""
    idle_s: Annotated[float, Meta(ge=1)] = 3600.0
    """... for so long, the buffers where nothing was dropped: halfway, and again after each quarter of it."""


@dataclass(slots=True)
class Kind:
    """Sockets of one namespace with a buffer of one size, set or not."""

    port: int
    """Of the one last told of."""
    dropped: int
    t_ns: int
    begun_ns: int
    """Since when this burst is counted."""
    burst: int = 1
    per_s: float = 0.0
    """Of the burst before; 0: not known, as the probe tells at once only that one has begun."""


@dataclass(slots=True)
class Buffer:
    """rmem_default or rmem_max."""

    climb: Climb = field(default_factory=lambda: Climb(0, span_ns=CLIMB_NS))
    past: tuple[int, ...] = ()
    """Values that it has had, the newest last: sockets of that time have them still."""
    goal: int = 0
    until_ns: int = 0
    why: str = ""
    full_ns: int = 0
    """When a socket that has its value last dropped something."""
    slow: tuple[int, int, str] = (0, 0, "")
    """Namespace and port of a socket that no size of it helps, and in words how little."""


@dataclass(slots=True)
class Pages:
    """udp_mem."""

    limits: list[Limit] = field(default_factory=lambda: [Limit(), Limit(), Limit()])
    held: int = 0
    """Pages, as last read."""
    refused_ns: int = 0
    refused: int = 0
    quiet_ns: int = 0
    goals: tuple[int, ...] = ()
    """Where they are going down to; empty when they are not."""


class State(Struct):
    """Everything known. Bounded: five tunables, KINDS_MAX kinds of sockets."""

    policy: Policy
    default: Buffer
    most: Buffer
    pages: Pages
    kinds: dict[tuple[int, int, bool], Kind]
    owners: dict[tuple[int, int], tuple[str, int]]
    """Namespace and port -> program and pid."""
    seen: dict[int, int] = {}
    """Namespaces where something was dropped: when they were last there."""
    spare: float = 1.0
    """Share of the host's memory that is available."""
    t_ns: int = 0
    """Of the newest event."""


def many(dropped: int) -> str:
    """How many datagrams. Of what follows the first within a tenth of a second is told only later, if at all."""
    return "one datagram or more" if dropped == 1 else f"{dropped} datagrams"


def stands(buffer: Buffer, value: int) -> None:
    """A value that is there, or was."""
    if value and (not buffer.past or buffer.past[-1] != value):
        buffer.past = (*(one for one in buffer.past[1 - PAST_MAX :] if one != value), value)


def count(state: State, event: UdpDrop) -> Kind:
    """Take a drop in: how many there were in this burst."""
    key = (event.netns, event.rcvbuf_bytes, event.locked)
    before = state.kinds.pop(key, None)
    burst_ns = int(state.policy.burst_s * SECOND_NS)
    kind = before or Kind(event.port, event.dropped - 1, event.t_ns, event.t_ns, 0)
    # From 1 again where the probe forgot it. The first that is heard of may be the sum of days.
    more = event.dropped - kind.dropped if event.dropped >= kind.dropped else 1
    if (passed_ns := event.t_ns - kind.begun_ns) > burst_ns:
        # What was not told of any more belongs to the burst before, but for the one told of now.
        lasted_ns = passed_ns if passed_ns < 2 * burst_ns else burst_ns
        kind.per_s = (kind.burst + more - 1) * SECOND_NS / lasted_ns
        kind.begun_ns, kind.burst = event.t_ns, 0
    kind.burst += more
    kind.port, kind.dropped, kind.t_ns = event.port, event.dropped, max(kind.t_ns, event.t_ns)
    state.kinds[key] = kind
    if len(state.kinds) > KINDS_MAX:
        del state.kinds[next(iter(state.kinds))]
    state.seen.pop(event.netns, None)
    state.seen[event.netns] = event.t_ns
    if len(state.seen) > KINDS_MAX:
        del state.seen[next(iter(state.seen))]
    return kind


def read(state: State, event: Counters) -> None:
    """What is held, and what is left, each second."""
    held = event.values.get("UDP.mem")
    if held is not None:
        state.pages.held = max(0, held)
        limit = state.pages.limits[0].value
        if not state.pages.quiet_ns or state.pages.held > state.policy.empty * limit:
            state.pages.quiet_ns = event.t_ns
    total, available = event.values.get("MemTotal", 0), event.values.get("MemAvailable")
    if total > 0 and available is not None:
        state.spare = available / total
