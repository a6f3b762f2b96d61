"""What stands where on the page: hosts, their drawings (a card each: plots on one time axis), marks, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from deciders.signals import SIGNALS
from trimtab.report_page import plot, story
from trimtab.report_page.changes import Change
from trimtab.report_page.host import Host, Key, Line
from trimtab.report_page.plot import Axis, Scale
from trimtab.report_page.series import Bin, Series
from trimtab.report_page.subjects import MEASURES, Measure, Subject, guards, subject

CARDS_MAX = 12
ROWS_MAX = 1000
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


class Shade(Struct):
    """A stretch that is shaded in every plot of a host."""

    x: float
    wide: float
    kind: str
    label: str


class HostView(Struct):
    """A host's column."""

    name: str
    facts: str
    headline: str
    ticks: list[tuple[float, str]]
    axis: Axis
    shades: list[Shade]
    cards: list[Card]
    notes: list[str]


class Page(Struct):
    """All of it."""

    headline: str
    beside: str
    """What was asked for and not written; empty where nothing was."""
    span: str
    hosts: list[HostView]
    rows: list[story.Row]
    details: list[story.Detail]
    states: list[tuple[str, int, str]]
    """(state, how many, what it means)"""
    notes: list[str]


def page(hosts: Sequence[Host]) -> Page:
    """Of what was gathered."""
    hosts = sorted((host for host in hosts if host.recorded.all), key=lambda host: host.machine.name)
    axes = _axes(hosts)
    named = list(zip(hosts, axes, strict=True))
    entries = sorted(((host, change) for host in hosts for change in host.changes), key=lambda pair: pair[1].t_ns)
    shown = story.choose(entries, ROWS_MAX)
    ids: dict[int, Id] = {id(change): place for place, (_, change) in enumerate(shown)}
    long = any(axis.to_ns - axis.from_ns > 20 * 3_600_000_000_000 for axis in axes)
    notes = [f"{len(entries) - len(shown):,} more refusals are not shown"] if len(shown) < len(entries) else []
    counted = Counter(change.state for _, change in entries)
    return Page(
        headline=story.headline(hosts),
        beside=story.beside(change for _, change in entries),
        span=_span(hosts),
        hosts=[_host(host, axis, ids) for host, axis in named],
        rows=[story.row(host, change, ids[id(change)], long) for host, change in shown],
        details=[story.detail(host, change) for host, change in shown],
        states=[(state, counted[state], told) for state, told in story.STATES.items() if counted[state]],
        notes=notes,
    )


def _axes(hosts: Sequence[Host]) -> list[Axis]:
    """One for all where they were recorded together; else each host has its own."""
    own = [Axis(host.recorded.all[0][0], max(end for _, end in host.recorded.all)) for host in hosts]
    if not own:
        return []
    whole = Axis(min(axis.from_ns for axis in own), max(axis.to_ns for axis in own))
    longest = max(axis.to_ns - axis.from_ns for axis in own)
    return [whole] * len(own) if whole.to_ns - whole.from_ns <= 2 * longest else own


def _span(hosts: Sequence[Host]) -> str:
    if not hosts:
        return "nothing recorded"
    first = min(hosts, key=lambda host: host.recorded.all[0][0])
    last = max(hosts, key=lambda host: host.recorded.all[-1][1])
    return (
        f"{plot.clock(first.recorded.all[0][0], first.tai_offset_s)} to "
        f"{plot.clock(last.recorded.all[-1][1], last.tai_offset_s)} UTC"
    )


def _host(host: Host, axis: Axis, ids: dict[int, Id]) -> HostView:
    cards, left = _cards(host, axis, ids)
    notes = [f"{left} more drawings are left out: those with the fewest changes"] if left else []
    for count, what in (
        (host.astray, "events were dated far away from all others, and are not drawn"),
        (host.broken, "damaged places in its tapes"),
        (host.marks_more, "more gaps and restarts are not shaded"),
        (host.ledger.dropped, "more refusals were too many to keep"),
    ):
        if count:
            notes.append(f"{count:,} {what}")
    machine = host.machine
    facts = [
        f"Linux {machine.release}",
        machine.machine,
        f"{machine.cpus} CPUs",
        plot.number(machine.mem_bytes, "bytes"),
    ]
    return HostView(
        name=machine.name,
        facts=" · ".join([*facts, f"mode {host.mode}"]),
        headline=story.summary(host.changes),
        ticks=axis.ticks(host.tai_offset_s),
        axis=axis,
        shades=[_shade(host, axis, mark.from_ns, mark.to_ns, mark.what, mark.why) for mark in host.marks],
        cards=cards,
        notes=notes,
    )


def _shade(host: Host, axis: Axis, from_ns: int, to_ns: int, what: str, why: str) -> Shade:
    x = axis.x(from_ns)
    kind = "restart" if what.endswith("began anew") else "gap"
    label = f"{plot.clock(to_ns, host.tai_offset_s, '%H:%M:%S')} {what}: {why}"
    return Shade(x, max(2.0, round(axis.x(to_ns) - x, 1)), kind, label)


# --- cards ----------------------------------------------------------------------------------------------------------


def _cards(host: Host, axis: Axis, ids: dict[int, Id]) -> tuple[list[Card], int]:
    """The drawings of a host, and how many more there would be."""
    groups: dict[tuple[str, int], list[Change]] = {}
    for change in host.changes:
        groups.setdefault((subject(change.tunable).tunables, change.netns), []).append(change)
    for tunable, netns in host.lines:
        key = (subject(tunable).tunables, netns)
        if key not in groups and len(host.lines[tunable, netns].steps.points()) > 1:
            groups[key] = []
    if not groups:
        groups = {(subject(tunable).tunables, netns): [] for tunable, netns in sorted(host.lines)[:CARDS_MAX]}
    chosen = sorted(groups, key=lambda key: (-len(groups[key]), key))[:CARDS_MAX]
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
    names = dict.fromkeys(name for tunable in tunables if (row := host.rows.get(tunable)) for name in row.guards)
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


def _ticks(size: Scale, unit: str) -> list[tuple[float, str]]:
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
    unit = next((host.rows[tunable].unit for tunable, _ in keys if tunable in host.rows), "")
    curves = [_curve(axis, size, measure.title, series, points)] if measure and series and points else []
    drawn = [_step_line(host, axis, size, key, line, unit) for key, line in lines]
    names = ", ".join(tunable for tunable, _ in keys)
    label = f"{names} over time: " + "; ".join(f"{one.name} {one.moved}" for one in drawn)
    marks = _marks(axis, size, changes, ids, unit)
    return Panel("", unit, label, size, _ticks(size, unit), curves, drawn, marks)


def _place(row: Subject, netns: int) -> int:
    return 0 if row.inside.startswith("entries") else netns


def _step_line(host: Host, axis: Axis, size: Scale, key: Key, line: Line, unit: str) -> StepLine:
    tunable, netns = key
    points = line.steps.points()
    until_ns = host.ledger.gone_ns(netns) or host.recorded.all[-1][1]
    bounds = host.bounds(tunable, line)
    told = f"bounds {plot.move(*bounds, unit, ' to ')}" if bounds else ""
    return StepLine(
        name=tunable.rpartition(".")[2],
        points=plot.steps(axis, size, points, until_ns),
        values=" ".join(f"{axis.x(t_ns):g},{value}" for t_ns, value in points),
        original_y=None if line.original is None else size.y(line.original),
        original="" if line.original is None else plot.number(line.original, unit),
        bounds=[size.y(bound) for bound in bounds or () if size.holds(bound)],
        bounds_text=told,
        moved=plot.move(points[0][1], points[-1][1], unit) if points else "?",
    )


def _marks(axis: Axis, size: Scale, changes: list[Change], ids: dict[int, Id], unit: str) -> list[MarkView]:
    found: list[MarkView] = []
    for change in changes:
        if id(change) not in ids:
            continue
        text = f"{change.state}: {plot.move(change.old, change.new, unit)}"
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
