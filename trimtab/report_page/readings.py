"""What collectors read, as series: the guard's signals, as the guard reads them; sockets near their limits; neighbour
tables. Times are TAI nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from bus.schema import AnyEvent, Counters, Host, NeighEntries, NeighTable, TcpRcvBuf, TcpSndBuf
from deciders.samples import Flows, FlowSample
from deciders.signals import BY_TOPIC, SIGNALS, SPEED_ROW, place
from trimtab.report_page.series import Series

SERIES_MAX = 400
FORGOTTEN_NS = 60_000_000_000
"""Totals that are further apart tell no rate."""


class _Meter(Struct, gc=False):
    """The last totals of a signal somewhere."""

    measure: str
    where: int
    t_ns: int = 0
    part: float = 0.0
    of: float = 0.0


class Readings:
    """Bounded by SERIES_MAX, and as Series and Flows are."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, int], Series] = {}
        """By measure (see subjects.MEASURES), and the namespace or table that it is of; 0: the host."""
        self.own = 0
        """The initial namespace."""
        self._flows = Flows()
        self._meters: dict[tuple[int, int], _Meter] = {}
        self._pages = 0
        self._take: dict[type[Any], Callable[[Any, int], None]] = {
            Counters: self._reading,
            NeighTable: self._table,
            NeighEntries: self._entries,
            TcpRcvBuf: self._receiver,
            TcpSndBuf: self._sender,
            Host: self._facts,
        }

    def take(self, event: AnyEvent, t_ns: int) -> None:
        """One event, once."""
        handler = self._take.get(type(event))
        if handler:
            handler(event, t_ns)

    def _add(self, measure: str, netns: int, t_ns: int, part: float, of: float = 1.0) -> None:
        found = self.series.get((measure, netns))
        if found is None:
            if len(self.series) >= SERIES_MAX:
                return
            found = self.series[measure, netns] = Series()
        found.add(t_ns, part, of)

    def _facts(self, event: Host, t_ns: int) -> None:
        self._pages = event.mem_bytes // max(1, event.page_bytes)

    def _entries(self, event: NeighEntries, t_ns: int) -> None:
        self._add(f"entries_{event.family}", 0, t_ns, event.entries)

    def _table(self, event: NeighTable, t_ns: int) -> None:
        self._add(f"entries_{event.family}", 0, t_ns, event.entries)
        self._reading(event, t_ns)

    def _receiver(self, event: TcpRcvBuf, t_ns: int) -> None:
        self._flow(event, t_ns, "in", event.rcvbuf_bytes, event.rcv_rtt_us or event.srtt_us)

    def _sender(self, event: TcpSndBuf, t_ns: int) -> None:
        self._flow(event, t_ns, "out", event.sndbuf_bytes, event.srtt_us)

    def _flow(self, event: TcpRcvBuf | TcpSndBuf, t_ns: int, way: str, size: int, rtt_us: int) -> None:
        if not event.locked:
            self._add("rcvbuf" if way == "in" else "sndbuf", event.netns, t_ns, size)
        if rtt_us:
            self._add(f"rtt_{way}", event.netns, t_ns, rtt_us)
        sample = self._flows.sample(event)
        if sample is None:
            return
        if sample.span_s > 0:
            self._add(f"speed_{way}", event.netns, t_ns, 8 * sample.transferred_bytes, sample.span_s)
        for number in BY_TOPIC[FlowSample, ""]:
            if number != SPEED_ROW:
                self._signal(number, sample, event.netns, t_ns)

    def _reading(self, event: Counters | NeighTable, t_ns: int) -> None:
        source = event.source if isinstance(event, Counters) else ""
        for number in BY_TOPIC.get((type(event), source), ()):
            self._signal(number, event, place(SIGNALS[number], event, self.own), t_ns)

    def _signal(self, number: int, reading: Any, where: int, t_ns: int) -> None:
        signal = SIGNALS[number]
        found = signal.read(reading, self._pages)
        if found is None:
            return
        part, of = found
        meter = self._meters.get((number, where))
        if meter is None:
            if len(self._meters) >= SERIES_MAX:
                return
            meter = self._meters[number, where] = _Meter(f"signal_{number}", where)
        if signal.grows:
            passed_ns, part, of = t_ns - meter.t_ns, part - meter.part, of - meter.of
            meter.t_ns, meter.part, meter.of = t_ns, found[0], found[1]
            # Out of order, begun anew, or after a stretch of which nothing is known: no rate.
            if not 0 < passed_ns < FORGOTTEN_NS or part < 0:
                return
        if of > 0:
            self._add(meter.measure, where, t_ns, part, of)
