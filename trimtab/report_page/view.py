"""What stands where on the page: hosts, their drawings (a card each: plots on one time axis), marks, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from trimtab.report_page import plot, story
from trimtab.report_page.cards import CARDS_IN_ALL, CARDS_MAX, Card, Id, cards
from trimtab.report_page.host import Host
from trimtab.report_page.plot import Axis

ROWS_MAX = 1000


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
    most = max(1, min(CARDS_MAX, CARDS_IN_ALL // max(1, len(hosts))))
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
        hosts=[_host(host, axis, ids, most) for host, axis in named],
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


def _host(host: Host, axis: Axis, ids: dict[int, Id], most: int) -> HostView:
    drawn, left = cards(host, axis, ids, most)
    notes = [f"{left} more drawings are left out: those with the fewest changes"] if left else []
    for count, what in (
        (host.astray, "events were dated far away from all others, and are not drawn"),
        (host.broken, "segments of its tapes are damaged, or have no end"),
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
        cards=drawn,
        notes=notes,
    )


def _shade(host: Host, axis: Axis, from_ns: int, to_ns: int, what: str, why: str) -> Shade:
    x = axis.x(from_ns)
    kind = "restart" if what.endswith("began anew") else "gap"
    label = f"{plot.clock(to_ns, host.tai_offset_s, '%H:%M:%S')} {what}: {why}"
    return Shade(x, max(5.0, round(axis.x(to_ns) - x, 1)), kind, label)
