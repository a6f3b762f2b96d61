"""Room in one neighbour table: how fast it fills, and the next change of gc_thresh1-3 that it needs, if any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import VERSION, Evidence, NeighEntries, NeighTable, Outcome, Value, Wish
from deciders.limit import Limit, asked, may, worth

SECOND_NS = 1_000_000_000
VALID_NS = SECOND_NS
RATE_MIN_NS = 5_000_000
"""Two observations nearer than this say nothing of a rate."""
RATE_NS = 100_000_000
"""The rate is that of the last one or two spans of this length."""
ASKED_NS = SECOND_NS * 9 // 10
"""So often the kernel's counts are looked at."""
LAG = 3
"""Readings, and seconds, until one that does not answer is given up; and of so many it is counted."""
DOUBT_NS = 6 * SECOND_NS
"""It takes that long, and a little more, to know whether new ones answer."""
SCAN_NS = 60 * SECOND_NS
"""What was seen of a scan holds for so long."""
FAMILIES = {2: "ipv4", 10: "ipv6"}
TABLES = {2: "ARP", 10: "ND"}

TableEvent = NeighEntries | NeighTable | Value | Outcome


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.neigh_table` in the configuration."""

    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """Grow when so much of gc_thresh3 is used."""
    filling: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """From this much on, grow when it would be full within headroom_s."""
    headroom_s: Annotated[float, Meta(ge=0, le=60)] = 0.5
    burst_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 200.0
    """A table in which entries are being made may fill at this rate at least: how fast it does, only the second event
    tells, and a small table is full soon after that."""
    scan: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Not beyond floor_ceiling while this share of the new entries get no answer ..."""
    scan_per_s: Annotated[float, Meta(ge=0)] = 100.0
    """... and so many a second."""
    factor: Annotated[float, Meta(gt=1, le=2)] = 2.0
    """Growth at once."""
    floor_ceiling: Annotated[int, Meta(ge=16)] = 8192
    """gc_thresh3 may always grow up to here."""
    per_host: Annotated[int, Meta(ge=1)] = 4
    """And up to this times the hosts that the attached prefixes can hold, each prefix counting for 256 at least."""
    empty: Annotated[float, Meta(ge=0, le=0.3)] = 0.1
    """Shrink when no more than this was used ..."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """... for so long; halve again after a quarter of it."""


@dataclass(slots=True)
class Table:
    """One of the two tables."""

    family: int
    levels: dict[int, Limit]
    first: tuple[int, int, int] = (0, 0, 0)
    """The thresholds as they were when first seen: their proportion holds until the originals are known."""
    t_ns: int = 0
    entries: int = 0
    refused: int = 0
    fill_per_s: float = 0.0
    marks: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Two earlier observations that the rate is measured from: time, entries, time, entries."""
    quiet_ns: int = 0
    """Since when the table has been empty."""
    goal: int = 0
    """Where gc_thresh3 is going down to; 0 when it is not."""
    asked: tuple[tuple[int, int, int], ...] = ()
    """The last readings: when, entries made until then, and those that got no answer."""
    scan_ns: int = 0
    """When most of the new ones got none; 0: never."""
    scan_per_s: float = 0.0
    doubt_ns: int = 0
    """Since when floor_ceiling has been too little; 0: it is not."""
    attached: int = 0
    """Hosts that the attached prefixes hold, all namespaces."""


def measure(table: Table) -> None:
    """Entries per second, the larger of the rates over the last one and the last two spans."""
    old_ns, old, new_ns, new = table.marks
    rates = [
        (table.entries - entries) * SECOND_NS / (table.t_ns - t_ns)
        for t_ns, entries in ((old_ns, old), (new_ns, new))
        if t_ns and table.t_ns - t_ns >= RATE_MIN_NS
    ]
    table.fill_per_s = max(0.0, *rates) if rates else table.fill_per_s
    if table.t_ns - new_ns >= RATE_NS:
        table.marks = (new_ns, new, table.t_ns, table.entries)


def count(policy: Policy, table: Table, made: int, failed: int, t_ns: int) -> None:
    """The kernel's totals. A scan, or packets to hosts that are not there, leave entries that nobody answers for."""
    if table.asked and t_ns - table.asked[-1][0] < ASKED_NS:
        return
    if table.asked and (made < table.asked[-1][1] or failed < table.asked[-1][2]):
        table.asked = ()
    table.asked = (*table.asked[-2 * LAG :], (t_ns, made, failed))
    if len(table.asked) <= 2 * LAG:
        return
    (_, first, _), _, _, (since_ns, then, failed_then), *_ = table.asked
    per_s = (failed - failed_then) * SECOND_NS / (t_ns - since_ns)
    if per_s >= policy.scan_per_s and failed - failed_then >= policy.scan * (then - first):
        table.scan_ns, table.scan_per_s = t_ns, per_s


def advice(policy: Policy, table: Table, t_ns: int) -> list[str]:
    """Of a scan."""
    if not scanned(table, t_ns):
        return []
    return [
        f"{TABLES[table.family]} table: {table.scan_per_s:.0f} new neighbours a second do not answer: a scan, or"
        f" packets to hosts that are not there; gc_thresh3 grows no further than {policy.floor_ceiling} for it"
    ]


def scanned(table: Table, t_ns: int) -> bool:
    """There is a scan, or was a moment ago."""
    return bool(table.scan_ns) and t_ns - table.scan_ns < SCAN_NS


def next_wish(policy: Policy, table: Table, event: TableEvent) -> Sequence[Wish]:
    """The one thing most wanted now: more room, then order among the thresholds, then less room."""
    three = table.levels[3]
    limit = three.value
    making = policy.burst_per_s if isinstance(event, NeighEntries) else 0.0
    left_s = _headroom_s(table, max(table.fill_per_s, making))
    if table.entries >= policy.full * limit or (table.entries >= policy.filling * limit and left_s < policy.headroom_s):
        table.goal = 0
        _doubt(policy, table)
        want = min(int(limit * policy.factor), _ceiling(policy, table))
        if want > limit and worth(three, want) and want >= three.low and may(three, event.t_ns):
            return (_wish(policy, table, 3, want, _why_full(policy, table), event),)
    if table.entries < policy.full / 2 * policy.floor_ceiling:
        table.doubt_ns = 0
    if not table.goal:
        return _follow(policy, table, event) or _shrink(policy, table, event)
    return _shrink(policy, table, event)


def _doubt(policy: Policy, table: Table) -> None:
    """For a moment nobody knows whether those that are to have more than floor_ceiling will answer."""
    if not table.doubt_ns and table.levels[3].value * policy.factor > policy.floor_ceiling:
        table.doubt_ns = table.t_ns


def _follow(policy: Policy, table: Table, event: TableEvent) -> Sequence[Wish]:
    """gc_thresh2 and then 1 rise after gc_thresh3."""
    three = table.levels[3].value
    for number in (2, 1):
        level = table.levels[number]
        want = min(_share(table, number, three), int(level.value * policy.factor))
        want = min(want, table.levels[number + 1].value, level.high or want)
        if want > level.value and want >= level.low and worth(level, want) and may(level, event.t_ns):
            why = f"{TABLES[table.family]} table: keeps its proportion to gc_thresh3, which is {three}"
            return (_wish(policy, table, number, want, why, event),)
    return ()


def _shrink(policy: Policy, table: Table, event: TableEvent) -> Sequence[Wish]:
    """Halfway back to the originals, 1 before 2 before 3."""
    three = table.levels[3]
    if any(level.original < 0 for level in table.levels.values()):
        return ()
    idle_ns = int(policy.idle_s * SECOND_NS)
    if not table.goal:
        least = max(three.original, three.low)
        if table.t_ns - table.quiet_ns < idle_ns or three.value <= least or three.held:
            return ()
        table.goal = max(least, (three.value + 1) // 2)
    for number in (1, 2, 3):
        level = table.levels[number]
        lowest = max(level.original, level.low, _share(table, number, table.goal))
        if number == 3:
            lowest = max(table.goal, table.levels[2].value)
        want = max(lowest, (level.value + 1) // 2)
        if want < level.value and worth(level, want) and not level.held:
            if not may(level, event.t_ns):
                return ()
            why = (
                f"{TABLES[table.family]} table: {table.entries} entries, and for {policy.idle_s:g} s no more than"
                f" {policy.empty:.0%} of {three.value}; back towards {level.original}"
            )
            return (_wish(policy, table, number, want, why, event),)
    # There: the next halving after another quarter.
    table.goal, table.quiet_ns = 0, table.t_ns - idle_ns + idle_ns // 4
    return ()


def _share(table: Table, number: int, three: int) -> int:
    """What belongs to gc_thresh3 = three, in the proportion of the originals (or of what was first seen)."""
    levels = table.levels
    known = levels[3].original > 0 and levels[2].original >= 0 and levels[1].original >= 0
    base = tuple(levels[n].original for n in (1, 2, 3)) if known else table.first
    return min(three, base[number - 1] * three // base[2])


def _ceiling(policy: Policy, table: Table) -> int:
    doubtful = bool(table.asked) and table.t_ns - table.doubt_ns < DOUBT_NS
    most = 0 if doubtful or scanned(table, table.t_ns) else policy.per_host * table.attached
    ceiling = max(policy.floor_ceiling, most)
    return min(ceiling, table.levels[3].high or ceiling)


def _headroom_s(table: Table, per_s: float) -> float:
    left = table.levels[3].value - table.entries
    return left / per_s if per_s > 0 else float("inf")


def _why_full(policy: Policy, table: Table) -> str:
    text = f"{TABLES[table.family]} table: {table.entries} of {table.levels[3].value} entries"
    left_s = _headroom_s(table, table.fill_per_s)
    if left_s < policy.headroom_s:
        return f"{text}, filling by {table.fill_per_s:.0f}/s: full in {left_s * 1000:.0f} ms"
    if table.entries < policy.full * table.levels[3].value:
        return f"{text}, and so small a table is soon full"
    return text


def _wish(policy: Policy, table: Table, number: int, want: int, why: str, event: TableEvent) -> Wish:
    asked(table.levels[number], event.t_ns)
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "entries": table.entries,
        "gc_thresh1": table.levels[1].value,
        "gc_thresh2": table.levels[2].value,
        "gc_thresh3": table.levels[3].value,
        "fill_per_s": int(table.fill_per_s),
        "refused": table.refused,
        "attached_hosts": min(table.attached, 2**63 - 1),
        "ceiling": min(_ceiling(policy, table), 2**63 - 1),
    }
    name = f"net.{FAMILIES[table.family]}.neigh.default.gc_thresh{number}"
    return Wish(VERSION, event.t_ns, VALID_NS, name, 0, 0, table.levels[number].value, want, why, evidence)
