"""The signals that tell whether a host got worse: one row each, with how to read it from events and its noise margins.

A tunable's row names its guards by these names. Higher is worse. A reading is (how much, of how much): all averages are
sums of the one over sums of the other, so that a busy second counts for more than an idle one. Several rows may have
one name; then each is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from bus.schema import Counters, Drops, NeighTable, Trial
from deciders.samples import FlowSample

Reading = tuple[float | int, float | int]


class Signal(Struct, frozen=True, kw_only=True):
    """One way to read one signal."""

    name: str
    topic: type[Any]
    source: str = ""
    """Counters: which."""
    per: Literal["netns", "host", "family"] = "netns"
    """What it is a signal of: a network namespace, the host, a neighbour table."""
    grows: bool = True
    """Readings are totals since the beginning; else each stands for itself."""
    read: Callable[[Any, int], Reading | None]
    """(event, memory pages of the host) -> a reading; None where this kernel does not say."""
    relative: float
    """Worse only when this share above what it was (1: twice) ..."""
    absolute: float
    """... and by this much."""
    weight: float
    """A window holds at least so much (the second part of its reading); a tenth will do for what was before."""
    counts: bool = True
    """The first part of a reading counts events: of a few in little, one cannot be sure."""
    unit: Literal["%", "/s"]
    paid: bool = False
    """No worse where flows got faster in proportion: a path that is filled has a queue."""
    what: str

    @property
    def always(self) -> bool:
        """There are readings whether or not there is traffic, or anything wrong."""
        return self.topic not in (FlowSample, Drops)

    def show(self, value: float) -> str:
        """A value for people."""
        return f"{value * 100:.3g} %" if self.unit == "%" else f"{value:.3g}/s"


def place(signal: Signal, event: Any, own: int = 0) -> int:
    """Which of the namespaces (tables) a signal's event, or a Trial, is about; own: the initial namespace."""
    if signal.per == "host":
        return 0
    if signal.per == "netns":
        return event.netns or own
    if isinstance(event, Trial):
        return 10 if ".ipv6." in event.tunable else 2
    family: int = event.family
    return family


def _share(part: tuple[str, ...], of: tuple[str, ...]) -> Callable[[Counters, int], Reading | None]:
    """Of `part` and `of` together, `part`."""

    def read(event: Counters, pages: int) -> Reading | None:
        values = event.values
        if not all(name in values for name in (*part, *of)):
            return None
        much = sum(values[name] for name in part)
        return much, much + sum(values[name] for name in of)

    return read


def _counted(*names: str) -> Callable[[Counters, int], Reading | None]:
    """Events per second: time is a total, too."""

    def read(event: Counters, pages: int) -> Reading | None:
        found = [event.values[name] for name in names if name in event.values]
        return (sum(found), event.t_ns / 1e9) if found else None

    return read


def _stalled(event: Counters, pages: int) -> Reading | None:
    us = event.values.get("some.total_us")
    return None if us is None else (us / 1e6, event.t_ns / 1e9)


def _memory(event: Counters, pages: int) -> Reading | None:
    mem = event.values.get("TCP.mem")
    return None if mem is None or not pages else (mem, pages)


SIGNALS: tuple[Signal, ...] = (
    Signal(
        name="retransmit_share",
        topic=Counters,
        source="net/snmp",
        read=_share(("Tcp.RetransSegs",), ("Tcp.OutSegs",)),
        relative=2.0,
        absolute=0.005,
        weight=1000,
        unit="%",
        what="of all TCP segments were sent again",
    ),
    Signal(
        name="retransmit_share",
        topic=FlowSample,
        grows=False,
        read=lambda sample, _: (sample.resent, sample.segments) if sample.segments else None,
        relative=2.0,
        absolute=0.005,
        weight=1000,
        unit="%",
        what="of the segments of flows near their limit were sent again",
    ),
    Signal(
        # What a receiver sees of loss and of reordering. TCPHPHits: segments that came in order and were taken at once.
        name="out_of_order_share",
        topic=Counters,
        source="net/netstat",
        read=_share(("TcpExt.TCPOFOQueue",), ("TcpExt.TCPHPHits",)),
        relative=2.0,
        absolute=0.05,
        weight=1000,
        unit="%",
        what="of the TCP segments came after a hole",
    ),
    Signal(
        name="srtt_us",
        topic=FlowSample,
        grows=False,
        counts=False,
        read=lambda sample, _: (sample.queue, 1),
        relative=0.0,
        absolute=0.5,
        weight=3,
        unit="%",
        paid=True,
        what="queue in the round trips, of the path's own and 10 ms",
    ),
    Signal(
        # By default the kernel calls 6.25 % of memory pressure (tcp_init_mem in net/ipv4/tcp.c). The number is the
        # host's, whichever namespace it is read in.
        name="tcp_memory",
        topic=Counters,
        source="net/sockstat",
        per="host",
        grows=False,
        counts=False,
        read=_memory,
        relative=1.0,
        absolute=0.03,
        weight=1,
        unit="%",
        what="of memory is in TCP buffers",
    ),
    Signal(
        name="tcp_memory",
        topic=Counters,
        source="net/netstat",
        read=_counted("TcpExt.TCPMemoryPressures"),
        relative=1.0,
        absolute=0.1,
        weight=1,
        unit="/s",
        what="times TCP ran into its memory limit",
    ),
    Signal(
        name="tcp_prunes",
        topic=Counters,
        source="net/netstat",
        read=_counted("TcpExt.PruneCalled", "TcpExt.TCPRcvCollapsed"),
        relative=2.0,
        absolute=20,
        weight=1,
        unit="/s",
        what="times a receive buffer had to be squeezed",
    ),
    Signal(
        name="neigh_table_fulls",
        topic=NeighTable,
        per="family",
        read=lambda table, _: (table.table_fulls, table.t_ns / 1e9),
        relative=1.0,
        absolute=1,
        weight=1,
        unit="/s",
        what="neighbours refused by a full table",
    ),
    Signal(
        name="listen_overflows",
        topic=Counters,
        source="net/netstat",
        read=_counted("TcpExt.ListenOverflows"),
        relative=1.0,
        absolute=1,
        weight=1,
        unit="/s",
        what="connections that found the accept queue full",
    ),
    Signal(
        name="backlog_drops",
        topic=Counters,
        source="net/netstat",
        read=_counted("TcpExt.TCPBacklogDrop"),
        relative=1.0,
        absolute=1,
        weight=1,
        unit="/s",
        what="packets that found a socket's backlog full",
    ),
    Signal(
        name="softnet_drops",
        topic=Counters,
        source="net/softnet_stat",
        per="host",
        read=_counted("dropped"),
        relative=1.0,
        absolute=1,
        weight=1,
        unit="/s",
        what="packets that found a CPU's backlog full",
    ),
    Signal(
        # The probe tells of what happens alone: where nothing is told, nothing is dropped, or nobody counts.
        name="drops",
        topic=Drops,
        read=lambda total, _: total,
        relative=1.0,
        absolute=20,
        weight=1,
        unit="/s",
        what="packets dropped for want of room that a tunable can give",
    ),
    *(
        Signal(
            name=f"psi_{what}",
            topic=Counters,
            source=f"pressure/{what}",
            per="host",
            counts=False,
            read=_stalled,
            relative=1.0,
            absolute=0.1,
            weight=1,
            unit="%",
            what=f"of the time some task waited for {what}",
        )
        for what in ("cpu", "io", "memory")
    ),
)

SPEED = Signal(
    name="tcp_speed",
    topic=FlowSample,
    grows=False,
    counts=False,
    read=lambda sample, _: (sample.transferred_bytes, sample.span_s),
    relative=0.0,
    absolute=0.0,
    weight=0.5,
    unit="/s",
    what="bytes of a flow near its limit",
)
"""No signal of its own (demand comes and goes), but what excuses a signal that is `paid`."""

ROWS = (*SIGNALS, SPEED)
SPEED_ROW = len(SIGNALS)


def _by_name() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, signal in enumerate(SIGNALS):
        found[signal.name] = (*found.get(signal.name, ()), number)
    return found


def _by_topic() -> dict[tuple[type[Any], str], tuple[int, ...]]:
    found: dict[tuple[type[Any], str], tuple[int, ...]] = {}
    for number, signal in enumerate(ROWS):
        key = (signal.topic, signal.source)
        found[key] = (*found.get(key, ()), number)
    return found


BY_NAME = _by_name()
"""Signal -> its rows in ROWS."""
BY_TOPIC = _by_topic()
"""(topic, source) -> the rows that are read from it."""
