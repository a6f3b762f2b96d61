"""Which fields of events show the value of a tunable: one row each."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from actuators.records import Spot
from bus.schema import FragMemory, ListenQueues, NeighEntries, NeighTable, Ports, TcpEnd, TcpRcvBuf, TcpSndBuf

FAMILIES = {"ipv4": 2, "ipv6": 10}


class Shown(Struct, frozen=True):
    """One field of one topic."""

    topic: type[Any]
    field: str
    tunable: str
    family: int = 0
    """Only in events of this address family; 0: in all."""
    host: bool = False
    """It is the host's, wherever the event happened."""
    told: str = ""
    """A field that is 0 where the event does not tell of it; empty: it always does."""


ROWS = (
    Shown(TcpRcvBuf, "limit_bytes", "net.ipv4.tcp_rmem[2]"),
    Shown(TcpSndBuf, "limit_bytes", "net.ipv4.tcp_wmem[2]"),
    Shown(TcpEnd, "rcvbuf_initial_bytes", "net.ipv4.tcp_rmem[1]"),
    Shown(TcpEnd, "rcvbuf_limit_bytes", "net.ipv4.tcp_rmem[2]"),
    Shown(TcpEnd, "sndbuf_initial_bytes", "net.ipv4.tcp_wmem[1]"),
    Shown(TcpEnd, "sndbuf_limit_bytes", "net.ipv4.tcp_wmem[2]"),
    Shown(ListenQueues, "somaxconn", "net.core.somaxconn", told="somaxconn"),
    Shown(ListenQueues, "max_syn_backlog", "net.ipv4.tcp_max_syn_backlog", told="max_syn_backlog"),
    Shown(FragMemory, "high_bytes", "net.ipv4.ipfrag_high_thresh", family=2),
    Shown(FragMemory, "high_bytes", "net.ipv6.ip6frag_high_thresh", family=10),
    # Where its probe cannot read the range, it reads none of the others.
    Shown(Ports, "low", "net.ipv4.ip_local_port_range[0]", told="high"),
    Shown(Ports, "high", "net.ipv4.ip_local_port_range[1]", told="high"),
    Shown(Ports, "tw_reuse", "net.ipv4.tcp_tw_reuse", told="high"),
    Shown(Ports, "tw_max", "net.ipv4.tcp_max_tw_buckets", told="tw_max"),
    *(
        Shown(topic, f"gc_thresh{level}", f"net.{name}.neigh.default.gc_thresh{level}", family, host=True)
        for topic in (NeighEntries, NeighTable)
        for name, family in FAMILIES.items()
        for level in (1, 2, 3)
    ),
)

BY_TOPIC: dict[type[Any], dict[int, tuple[Shown, ...]]] = {
    topic: {
        family: tuple(row for row in ROWS if row.topic is topic and row.family == family)
        for family in {row.family for row in ROWS if row.topic is topic}
    }
    for topic in {row.topic for row in ROWS}
}
"""Topic -> family -> its rows."""


def rows(event: Any) -> tuple[Shown, ...]:
    """The rows of an event."""
    families = BY_TOPIC.get(type(event))
    if families is None:
        return ()
    found = families.get(0)
    known = families.get(event.family, ()) if found is None else found
    return tuple(row for row in known if not row.told or getattr(event, row.told))


def spot(row: Shown, event: Any) -> Spot:
    """Which key the field shows."""
    return Spot(row.tunable, 0 if row.host else event.netns)


def about(event: Any, wanted: Spot) -> bool:
    """Whether the event tells of this key."""
    if hasattr(event, "tunable"):
        return (event.tunable, event.netns) == (wanted.tunable, wanted.netns)
    return any(spot(row, event) == wanted for row in rows(event))
