"""What is drawn of one host, gathered event by event. Times are TAI nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from msgspec import Struct

from bus.schema import (
    AnyEvent,
    Gap,
    NeighTable,
    Netns,
    Outcome,
    Trial,
    Value,
)
from bus.tape import Head, Machine
from bus.tunables import Tunable, resolve, row_of
from trimtab.report_page.changes import Change, Ledger
from trimtab.report_page.readings import Readings
from trimtab.report_page.series import Series, Spans, Steps

LINES_MAX = 2000
MARKS_MAX = 300
ALIKE_NS = 100_000_000
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
        self.readings = Readings()
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
        self._gaps: dict[tuple[str, bool, int, int], tuple[int, int, list[str]]] = {}
        self._take: dict[type[Any], Callable[[Any, int], None]] = {
            NeighTable: self._table,
            Value: self._value,
            Outcome: self._outcome,
            Trial: self._trial,
            Netns: self._namespace,
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
        key = (boot_id, publisher, epoch_ns)
        if key not in self._known and len(self._known) >= LINES_MAX:
            del self._known[next(iter(self._known))]
        return self._known.setdefault(key, Spans())

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

    @property
    def series(self) -> dict[Key, Series]:
        """The measures, with where they are of."""
        return self.readings.series

    def take(self, event: AnyEvent, t_ns: int) -> None:
        """One event, once."""
        self.readings.take(event, t_ns)
        handler = self._take.get(type(event))
        if handler:
            handler(event, t_ns)

    def line(self, tunable: str, netns: int) -> Line | None:
        """The line of a tunable; None where there are too many."""
        found = self.lines.get((tunable, netns))
        if found is None and len(self.lines) < LINES_MAX:
            found = self.lines[tunable, netns] = Line(Steps())
        return found

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
                self.readings.own = event.netns
        elif not event.alive:
            self.ledger.gone(t_ns, event.netns)

    def _table(self, event: NeighTable, t_ns: int) -> None:
        version = "ipv6" if event.family == 10 else "ipv4"
        for name in THRESHOLDS:
            self._stand(f"net.{version}.neigh.default.{name}", 0, t_ns, getattr(event, name))

    def bounds(self, tunable: str, line: Line) -> tuple[int, int] | None:
        """The bounds in force, from the actuator's word or from the row."""
        if line.low is not None and line.high is not None:
            return line.low, line.high
        row = row_of(self.rows, tunable)
        if row is None:
            return None
        found = resolve(row, self.machine.mem_bytes)
        return found.low, found.high
