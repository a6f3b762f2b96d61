"""The drawings: a card for each subject in each namespace, with its plots on one time axis, the tunables last."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from bus.tunables import Tunable, base, row_of
from deciders.signals import SIGNALS
from trimtab.report_page import plot, story
from trimtab.report_page.changes import Change
from trimtab.report_page.host import Host, Key, Line
from trimtab.report_page.plot import Axis, Scale
from trimtab.report_page.series import Bin, Series
from trimtab.report_page.subjects import MEASURES, Measure, Subject, guards, subject

CARDS_MAX = 12
"""Of one host; ..."""
CARDS_IN_ALL = 24
"""... and about so many of all, so that the page stays small."""
NEAR = 14.0
"""Changes of one state that lie so close on the axis (of plot.WIDE) share a mark."""
STEADY = 0.5
"""A signal that moves by no more than this share of its guard's margin is told in words alone."""
Id = int


class Curve(Struct):
    """A measure in a plot."""

    name: str
    lines: list[str]
    bands: list[str]


class StepLine(Struct):
    """A tunable in a plot."""

    name: str
    points: str
    values: str
    """x,value of each step, for the page's script."""
    original_y: float | None
    original: str
    bounds: list[float]
    """y of those bounds that can be shown."""
    bounds_text: str
    moved: str
    """From the first value to the last."""


class MarkView(Struct):
    """One or several changes at a place in a plot."""

    x: float
    y: float
    state: str
    ids: list[Id]
    label: str
    small: bool = False
    """What became of a change, not the change."""


class Panel(Struct):
    """One plot."""

    title: str
    unit: str
    label: str
    size: Scale
    ticks: list[tuple[float, str]]
    """(y, value)"""
    curves: list[Curve]
    steps: list[StepLine]
    marks: list[MarkView]


class Card(Struct):
    """One subject in one namespace."""

    title: str
    where: str
    summary: str
    panels: list[Panel]
    steady: list[str]


def cards(host: Host, axis: Axis, ids: dict[int, Id], most: int) -> tuple[list[Card], int]:
    """The drawings of a host, and how many more there would be."""
    groups: dict[tuple[str, int], list[Change]] = {}
    for change in host.changes:
        groups.setdefault((subject(change.tunable).tunables, change.netns), []).append(change)
    for tunable, netns in host.lines:
        key = (subject(tunable).tunables, netns)
        if key not in groups and len(host.lines[tunable, netns].steps.points()) > 1:
            groups[key] = []
    if not groups:
        groups = {(subject(tunable).tunables, netns): [] for tunable, netns in sorted(host.lines)[:most]}
    chosen = sorted(groups, key=lambda key: (-len(groups[key]), key))[:most]
    cards = [_card(host, axis, key, groups[key], ids) for key in sorted(chosen, key=lambda key: (key[1], key[0]))]
    return cards, len(groups) - len(chosen)


def _card(host: Host, axis: Axis, key: tuple[str, int], changes: list[Change], ids: dict[int, Id]) -> Card:
    pattern, netns = key
    keys = sorted(
        {(tunable, its) for tunable, its in host.lines if its == netns and subject(tunable).tunables == pattern}
        | {(change.tunable, netns) for change in changes}
    )
    row = subject(keys[0][0])
    panels = [
        _measured(host, axis, MEASURES[name], found)
        for name in row.above
        if (found := host.series.get((name, netns))) and found.bins
    ]
    steady: list[str] = []
    for name, number in _guards(host, [tunable for tunable, _ in keys]):
        found = _of(host, name, number, netns, keys[0][0])
        if found is None:
            continue
        if _is_steady(found, number):
            steady.append(f"{MEASURES[name].title} {_least(found, SIGNALS[number].unit)}")
        else:
            panels.append(_measured(host, axis, MEASURES[name], found, SIGNALS[number].absolute))
    panels.append(_tunables(host, axis, row, keys, changes, ids))
    return Card(row.title, story.where(host, netns), story.summary(changes), panels, list(dict.fromkeys(steady)))


def _guards(host: Host, tunables: Iterable[str]) -> list[tuple[str, int]]:
    names = dict.fromkeys(name for tunable in tunables if (row := row_of(host.rows, tunable)) for name in row.guards)
    return guards(tuple(names))


def _of(host: Host, name: str, number: int, netns: int, tunable: str) -> Series | None:
    """The series of a guard, wherever it is read."""
    per = SIGNALS[number].per
    place = {"host": 0, "family": 10 if ".ipv6." in tunable else 2}.get(per, netns)
    found = host.series.get((name, place))
    return found if found and found.bins else None


def _is_steady(series: Series, number: int) -> bool:
    least = min(one.low for one in series.bins.values())
    most = max(one.high for one in series.bins.values())
    return most - least <= STEADY * SIGNALS[number].absolute


def _least(series: Series, unit: str) -> str:
    high = max(one.high for one in series.bins.values())
    return plot.number(0, unit) if high <= 0 else f"at most {plot.number(high, unit)}"


def _ticks(size: Scale, unit: str, row: Tunable | None = None) -> list[tuple[float, str]]:
    if row and row.words:
        return [(size.y(mark), story.value(row, mark)) for mark in plot.marks(size, False)]
    # A count needs no word at each tick.
    word = unit if unit in ("bytes", "bit/s", "us", "%", "/s") else ""
    return [(size.y(value), plot.number(value, word)) for value in plot.marks(size, unit == "bytes")]


def _measured(host: Host, axis: Axis, measure: Measure, series: Series, least: float = 0.0) -> Panel:
    points = series.points()
    size = plot.scale([edge for _, one in points for edge in (one.low, one.high)], least, even=True)
    low, high = min(one.low for _, one in points), max(one.high for _, one in points)
    told = f"between {plot.number(low, measure.unit)} and {plot.number(high, measure.unit)}"
    label = f"{measure.told or measure.title}: {told}"
    curve = _curve(axis, size, measure.title, series, points)
    return Panel(measure.title, measure.unit, label, size, _ticks(size, measure.unit), [curve], [], [])


def _curve(axis: Axis, size: Scale, name: str, series: Series, points: list[tuple[int, Bin]]) -> Curve:
    parts = plot.runs(points, series.width_ns)
    bands = [text for part in parts if (text := plot.band(axis, size, part))]
    return Curve(name, [plot.curve(axis, size, part) for part in parts], bands)


def _tunables(
    host: Host, axis: Axis, row: Subject, keys: list[Key], changes: list[Change], ids: dict[int, Id]
) -> Panel:
    lines = [(key, line) for key in keys if (line := host.lines.get(key))]
    measure = MEASURES.get(row.inside)
    series = host.series.get((row.inside, _place(row, keys[0][1])))
    points = series.points() if series else []
    written = [change for change in changes if change.state not in ("refused", "advised")]
    values: list[float] = [edge for _, one in points for edge in (one.high, max(one.mean, 1.0))]
    values += [value for _, line in lines for _, value in line.steps.points()]
    values += [line.original for _, line in lines if line.original is not None]
    values += [value for change in written for value in (change.old, change.new)]
    values += [change.after for change in written if change.ended_ns]
    values += [change.new for change in changes if change.state == "advised"]
    size = plot.scale(values)
    its = next((its for tunable, _ in keys if (its := row_of(host.rows, tunable))), None)
    unit = its.unit if its else ""
    curves = [_curve(axis, size, measure.title, series, points)] if measure and series and points else []
    drawn = [_step_line(host, axis, size, key, line, its) for key, line in lines]
    names = ", ".join(tunable for tunable, _ in keys)
    label = f"{names} over time: " + "; ".join(f"{one.name} {one.moved}" for one in drawn)
    marks = _marks(axis, size, changes, ids, its)
    return Panel("", unit, label, size, _ticks(size, unit, its), curves, drawn, marks)


def _place(row: Subject, netns: int) -> int:
    return 0 if row.inside.startswith("entries") else netns


def _step_line(host: Host, axis: Axis, size: Scale, key: Key, line: Line, row: Tunable | None) -> StepLine:
    tunable, netns = key
    points = line.steps.points()
    until_ns = host.ledger.gone_ns(netns) or host.recorded.all[-1][1]
    bounds = host.bounds(tunable, line)
    told = f"bounds {story.move(row, *bounds, ' to ')}" if bounds else ""
    return StepLine(
        name=base(tunable).rpartition(".")[2],
        points=plot.steps(axis, size, points, until_ns),
        values=" ".join(f"{axis.x(t_ns):g},{value}" for t_ns, value in points),
        original_y=None if line.original is None else size.y(line.original),
        original="" if line.original is None else story.value(row, line.original),
        bounds=[size.y(bound) for bound in bounds or () if size.holds(bound)],
        bounds_text=told,
        moved=story.move(row, points[0][1], points[-1][1]) if points else "?",
    )


def _marks(axis: Axis, size: Scale, changes: list[Change], ids: dict[int, Id], row: Tunable | None) -> list[MarkView]:
    found: list[MarkView] = []
    for change in changes:
        if id(change) not in ids:
            continue
        text = f"{change.state}: {story.move(row, change.old, change.new)}"
        _put(found, MarkView(axis.x(change.t_ns), size.y(change.new), change.state, [ids[id(change)]], text))
        if change.state in ("reverted", "ceded") and change.ended_ns:
            end = MarkView(
                axis.x(change.ended_ns), size.y(change.after), change.state, [ids[id(change)]], "", small=True
            )
            end.label = f"{change.state} here"
            _put(found, end)
    for mark in found:
        if len(mark.ids) > 1:
            mark.label = f"{len(mark.ids)} changes {mark.state}"
    return found


def _put(marks: list[MarkView], mark: MarkView) -> None:
    """Beside the others, or into one that is close and alike."""
    for other in reversed(marks[-24:]):
        alike = (other.state, other.small) == (mark.state, mark.small)
        if alike and abs(mark.x - other.x) < NEAR and (mark.small or abs(mark.y - other.y) < 25):
            if mark.ids[0] not in other.ids:
                other.ids.append(mark.ids[0])
            other.x, other.y = mark.x, mark.y
            return
    marks.append(mark)
