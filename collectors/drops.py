"""What drops packets most, for the collector's STATUS: the Drops events added up by namespace, device and reason.

A row is a list, [netns, netns_ino, ifindex, reason, per_s, dropped], so that MOST of them and all else still fit the
4096 bytes that systemd takes. per_s is over the last 5 to 10 s. The probe tells at most ten times a second, and not
again when it stops: the last 100 ms before a silence are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bus.drops import NO_LOSS
from bus.schema import AnyEvent, Drops

SECOND_NS = 1_000_000_000
MOST = 12
KINDS_MAX = 1024
"""The one that has been silent longest is forgotten first."""
SPAN_NS = 5 * SECOND_NS

DropRow = tuple[int, int, int, str, float, int]
Kind = tuple[int, int, str]


@dataclass(slots=True)
class _Count:
    netns_ino: int
    told: int
    """What the probe said last; from 0 again when it forgot this kind, or was loaded anew."""
    dropped: int
    marks: tuple[int, int] = (0, 0)
    """`dropped` at the beginning of the span before this one, and of this one."""


class Tally:
    """Bounded by KINDS_MAX."""

    def __init__(self) -> None:
        self._counts: dict[Kind, _Count] = {}
        self._spans_ns = (0, 0)
        """When the span before this one began, and this one."""

    def take(self, events: Iterable[AnyEvent]) -> None:
        """Add what is a Drops event."""
        for event in events:
            if type(event) is Drops:
                self._add(event)

    def _add(self, event: Drops) -> None:
        kind = (event.netns, event.ifindex, event.reason)
        count = self._counts.pop(kind, None) or _Count(event.netns_ino, 0, 0)
        more = event.dropped - count.told
        count.dropped += more if more >= 0 else event.dropped
        count.told = event.dropped
        self._counts[kind] = count
        if len(self._counts) > KINDS_MAX:
            del self._counts[next(iter(self._counts))]

    def most(self, t_ns: int) -> list[DropRow]:
        """Those that drop most now, and then those that ever did; what is no loss last."""
        before_ns, since_ns = self._spans_ns = self._spans_ns if self._spans_ns[1] else (t_ns, t_ns)
        passed_s = max(1.0, (t_ns - before_ns) / SECOND_NS)
        rows: list[DropRow] = []
        for (netns, ifindex, reason), count in self._counts.items():
            per_s = round((count.dropped - count.marks[0]) / passed_s, 1)
            rows.append((netns, count.netns_ino, ifindex, reason, per_s, count.dropped))
        if t_ns - since_ns >= SPAN_NS:
            self._spans_ns = (since_ns, t_ns)
            for count in self._counts.values():
                count.marks = (count.marks[1], count.dropped)
        rows.sort(key=lambda row: (row[3] in NO_LOSS, -row[4], -row[5], row))
        return rows[:MOST]
