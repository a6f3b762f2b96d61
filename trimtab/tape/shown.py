"""Which fields of events show the value of a tunable: one row each."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from actuators.records import Spot
from bus.schema import NeighEntries, NeighTable, TcpRcvBuf, TcpSndBuf

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


ROWS = (
    Shown(TcpRcvBuf, "limit_bytes", "net.ipv4.tcp_rmem[2]"),
    Shown(TcpSndBuf, "limit_bytes", "net.ipv4.tcp_wmem[2]"),
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
    return families.get(event.family, ()) if found is None else found


def spot(row: Shown, event: Any) -> Spot:
    """Which key the field shows."""
    return Spot(row.tunable, 0 if row.host else event.netns)


def about(event: Any, wanted: Spot) -> bool:
    """Whether the event tells of this key."""
    if hasattr(event, "tunable"):
        return (event.tunable, event.netns) == (wanted.tunable, wanted.netns)
    return any(spot(row, event) == wanted for row in rows(event))
