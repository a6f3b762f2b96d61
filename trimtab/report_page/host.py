"""What is drawn of one host, gathered event by event. Times are TAI nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from msgspec import Struct

from bus.schema import (
    AnyEvent,
    Counters,
    Gap,
    NeighEntries,
    NeighTable,
    Netns,
    Outcome,
    TcpRcvBuf,
    TcpSndBuf,
    Trial,
    Value,
)
from bus.schema import Host as Facts
from bus.tape import Head, Machine
from bus.tunables import Tunable, resolve
from deciders.samples import Flows, FlowSample
from deciders.signals import BY_TOPIC, SIGNALS, SPEED_ROW, place
from trimtab.report_page.changes import Change, Ledger
from trimtab.report_page.series import Series, Spans, Steps

SERIES_MAX = 400
LINES_MAX = 2000
MARKS_MAX = 300
ALIKE_NS = 100_000_000
FORGOTTEN_NS = 60_000_000_000
"""Totals that are further apart tell no rate."""
THRESHOLDS = ("gc_thresh1", "gc_thresh2", "gc_thresh3")
Key = tuple[str, int]
"""A tunable or a measure, and the namespace it is of; 0: the host."""


class Mark(Struct, frozen=True):
    """A stretch in which something was not heard, or was begun anew."""

    from_ns: int
    to_ns: int
    what: str
    why: str


class Line(Struct):
    """A tunable over time."""

    steps: Steps
    original: int | None = None
    low: int | None = None
    high: int | None = None
    held: bool = False


class _Meter(Struct, gc=False):
    """The last totals of a signal somewhere."""

    measure: str
    where: int
    t_ns: int = 0
    part: float = 0.0
    of: float = 0.0


class Host:
    """Bounded by the constants above, and as Series, Steps and Ledger are."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.boots: dict[str, int] = {}
        self.deciders: dict[str, str] = {}
        """Decider -> revision of its code, the last one."""
        self.tai_offset_s = 0
        self.mode = ""
        self.rows: dict[str, Tunable] = {}
        self.names: dict[int, str] = {}
        self.lines: dict[Key, Line] = {}
        self.series: dict[Key, Series] = {}
        self.ledger = Ledger()
        self.changes: list[Change] = []
        self.recorded = Spans(slack=1_000_000_000)
        self.marks: list[Mark] = []
        self.marks_more = 0
        self.astray = 0
        """Events that were dated far away from all others."""
        self.broken = 0
        """Segments that are damaged."""
        self._known: dict[tuple[str, str, int], Spans] = {}
        self._sessions: dict[str, str] = {}
        self._flows = Flows()
        self._meters: dict[tuple[int, int], _Meter] = {}
        self._gaps: dict[tuple[str, bool, int, int], tuple[int, int, list[str]]] = {}
        self._own = 0
        self._pages = 0
        self._take: dict[type[Any], Callable[[Any, int], None]] = {
            Counters: self._reading,
            NeighTable: self._table,
            NeighEntries: self._entries,
            TcpRcvBuf: self._receiver,
            TcpSndBuf: self._sender,
            Value: self._value,
            Outcome: self._outcome,
            Trial: self._trial,
            Netns: self._namespace,
            Facts: self._facts,
        }

    # --- from the heads -------------------------------------------------------------------------------------------

    def begin(self, head: Head) -> None:
        """A segment begins."""
        self.boots.setdefault(head.host.boot_id, head.tai_ns)
        self.deciders[head.decider] = head.code
        self.tai_offset_s = head.tai_offset_s or self.tai_offset_s
        self.mode = head.config.mode
        self.rows.update((row.name, row) for row in head.rows)
        before = self._sessions.get(head.decider)
        self._sessions[head.decider] = head.session
        if before not in (None, head.session):
            self._mark(
                head.tai_ns, head.tai_ns, f"{head.decider} began anew", "the decider's process was started again"
            )

    def known(self, boot_id: str, publisher: str, epoch_ns: int) -> Spans:
        """Which numbers of a publisher have been taken."""
        return self._known.setdefault((boot_id, publisher, epoch_ns), Spans())

    def gap(self, from_ns: int, to_ns: int, decider: str, event: Gap) -> None:
        """Events were lost on the way to a decider. What several have lost alike is one stretch."""
        # Each process has measured by itself how far its clock is from TAI.
        key = (event.publisher, event.restarted, event.lost, to_ns // ALIKE_NS)
        if key in self._gaps or len(self._gaps) < MARKS_MAX:
            self._gaps.setdefault(key, (from_ns, to_ns, []))[2].append(decider)
        else:
            self.marks_more += 1

    def finish(self, pause_ns: int) -> None:
        """All has been read: changes are settled, and where nothing was recorded is marked."""
        for (publisher, restarted, lost, _), (from_ns, to_ns, deciders) in self._gaps.items():
            to = ", ".join(dict.fromkeys(deciders))
            if restarted:
                self._mark(from_ns, to_ns, f"{publisher} began anew", f"{lost} of its events were lost to {to}")
            else:
                self._mark(from_ns, to_ns, f"{lost} events lost", f"of {publisher}, on the way to {to}")
        spans = self.recorded.all
        for (_, left), (right, _) in pairwise(spans):
            if right - left > pause_ns:
                self._mark(left, right, "not recorded", "no tape of this host tells of this time")
        self.changes = self.ledger.settle()
        self.marks.sort(key=lambda mark: mark.from_ns)

    def _mark(self, from_ns: int, to_ns: int, what: str, why: str) -> None:
        if len(self.marks) < MARKS_MAX:
            self.marks.append(Mark(from_ns, to_ns, what, why))
        else:
            self.marks_more += 1

    # --- from the events ------------------------------------------------------------------------------------------

    def take(self, event: AnyEvent, t_ns: int) -> None:
        """One event, once."""
        handler = self._take.get(type(event))
        if handler:
            handler(event, t_ns)

    def line(self, tunable: str, netns: int) -> Line | None:
        """The line of a tunable; None where there are too many."""
        found = self.lines.get((tunable, netns))
        if found is None and len(self.lines) < LINES_MAX:
            found = self.lines[tunable, netns] = Line(Steps())
        return found

    def _add(self, measure: str, netns: int, t_ns: int, part: float, of: float = 1.0) -> None:
        found = self.series.get((measure, netns))
        if found is None:
            if len(self.series) >= SERIES_MAX:
                return
            found = self.series[measure, netns] = Series()
        found.add(t_ns, part, of)

    def _stand(self, tunable: str, netns: int, t_ns: int, value: int) -> None:
        line = self.line(tunable, netns)
        if line:
            line.steps.add(t_ns, value)

    def _value(self, event: Value, t_ns: int) -> None:
        line = self.line(event.tunable, event.netns)
        if line:
            line.steps.add(t_ns, event.value)
            line.low, line.high, line.held = event.low, event.high, event.held
            if line.original is None:
                line.original = event.original

    def _outcome(self, event: Outcome, t_ns: int) -> None:
        self.ledger.outcome(t_ns, event)
        if event.verdict == "written":
            line = self.line(event.tunable, event.netns)
            if line and not line.steps.seen:
                line.steps.add(t_ns - 1, event.believed)
            if line and line.original is None:
                line.original = event.believed
        if event.verdict in ("written", "reverted", "ceded"):
            self._stand(event.tunable, event.netns, t_ns, event.value)

    def _trial(self, event: Trial, t_ns: int) -> None:
        self.ledger.trial(t_ns - event.t_ns + event.since_ns, event)

    def _namespace(self, event: Netns, t_ns: int) -> None:
        if event.alive and event.name and len(self.names) < LINES_MAX:
            self.names[event.netns] = event.name
            if event.name == "host":
                self._own = event.netns
        elif not event.alive:
            self.ledger.gone(t_ns, event.netns)

    def _facts(self, event: Facts, t_ns: int) -> None:
        self._pages = event.mem_bytes // max(1, event.page_bytes)

    def _entries(self, event: NeighEntries, t_ns: int) -> None:
        self._add(f"entries_{event.family}", 0, t_ns, event.entries)

    def _table(self, event: NeighTable, t_ns: int) -> None:
        self._add(f"entries_{event.family}", 0, t_ns, event.entries)
        version = "ipv6" if event.family == 10 else "ipv4"
        for name in THRESHOLDS:
            self._stand(f"net.{version}.neigh.default.{name}", 0, t_ns, getattr(event, name))
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
            self._signal(number, event, place(SIGNALS[number], event, self._own), t_ns)

    def _signal(self, number: int, reading: Any, where: int, t_ns: int) -> None:
        signal = SIGNALS[number]
        found = signal.read(reading, self._pages)
        if found is None:
            return
        part, of = found
        meter = self._meters.get((number, where))
        if meter is None:
            meter = self._meters[number, where] = _Meter(f"signal_{number}", where)
        if signal.grows:
            passed_ns, part, of = t_ns - meter.t_ns, part - meter.part, of - meter.of
            meter.t_ns, meter.part, meter.of = t_ns, found[0], found[1]
            # Out of order, begun anew, or after a stretch of which nothing is known: no rate.
            if not 0 < passed_ns < FORGOTTEN_NS or part < 0:
                return
        if of > 0:
            self._add(meter.measure, where, t_ns, part, of)

    def bounds(self, tunable: str, line: Line) -> tuple[int, int] | None:
        """The bounds in force, from the actuator's word or from the row."""
        if line.low is not None and line.high is not None:
            return line.low, line.high
        row = self.rows.get(tunable)
        if row is None:
            return None
        found = resolve(row, self.machine.mem_bytes)
        return found.low, found.high
