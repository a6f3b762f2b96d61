"""A change in words: its row in the table, its details, and the one sentence that says what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from bus.tunables import Tunable, row_of
from trimtab.report_page import plot
from trimtab.report_page.changes import Change, State
from trimtab.report_page.host import Host

STATES: dict[State, str] = {
    "trial": "written, and on trial when the recording ends",
    "confirmed": "written, and found to do no harm",
    "reverted": "written, and put back",
    "ceded": "written, and left to somebody else who wrote there",
    "lost": "written, and gone with its namespace",
    "advised": "would have been written; the mode was advise",
    "failed": "granted, and the write did not succeed",
    "refused": "asked for, and not granted",
}
WRITTEN: tuple[State, ...] = ("confirmed", "reverted", "ceded", "trial", "lost")


class Row(Struct):
    """A line of the table."""

    id: int
    when: str
    sort_ns: int
    host: str
    where: str
    tunable: str
    moved: str
    sort_new: int
    state: str
    times: int
    why: str


class Detail(Struct):
    """What is shown of one change, for the page's script."""

    state: str
    title: str
    facts: list[tuple[str, str]]
    evidence: list[tuple[str, str]]
    later: list[tuple[str, str]]
    """What the guard's verdict stands on."""
    undo: str
    command: str


def headline(hosts: Sequence[Host]) -> str:
    """What happened, in one sentence."""
    changes = [change for host in hosts for change in host.changes]
    lasted = max((host.recorded.all[-1][1] - host.recorded.all[0][0] for host in hosts), default=0)
    count = f"{len(hosts)} host{'s' * (len(hosts) != 1)}"
    return f"{count}, {plot.duration(lasted)}: {tally(changes)}"


def tally(changes: Iterable[Change]) -> str:
    """How many changes, and what became of them."""
    counted = Counter(change.state for change in changes)
    written = sum(counted[state] for state in WRITTEN)
    words = [f"{written or 'no'} change{'s' * (written != 1)}"]
    named: dict[State, str] = {"trial": "on trial", "lost": "gone with a namespace"}
    return ", ".join(words + [f"{counted[state]:,} {named.get(state, state)}" for state in WRITTEN if counted[state]])


def beside(changes: Iterable[Change]) -> str:
    """What was asked for and not written, how often."""
    counted: Counter[State] = Counter()
    for change in changes:
        counted[change.state] += change.times
    named: dict[State, str] = {"advised": "advised", "failed": "failed", "refused": "refused"}
    return ", ".join(f"{counted[state]:,} {word}" for state, word in named.items() if counted[state])


def summary(changes: Sequence[Change]) -> str:
    """Both in one."""
    more = beside(changes)
    return tally(changes) + (f"; {more}" if more else "")


def choose(entries: Sequence[tuple[Host, Change]], most: int) -> list[tuple[Host, Change]]:
    """In their order, at most so many: refusals go first, the newest of them, then the newest of all."""
    if len(entries) <= most:
        return list(entries)
    ranked = sorted(range(len(entries)), key=lambda place: (entries[place][1].state == "refused", place))
    return [entries[place] for place in sorted(ranked[:most])]


def where(host: Host, netns: int) -> str:
    """A namespace in words."""
    if not netns:
        return "whole host"
    return host.names.get(netns, "") or f"netns {netns}"


def row(host: Host, change: Change, number: int, dated: bool) -> Row:
    """The change as a line of the table."""
    return Row(
        id=number,
        when=plot.clock(change.t_ns, host.tai_offset_s, "%m-%d %H:%M:%S" if dated else "%H:%M:%S"),
        sort_ns=change.t_ns,
        host=host.machine.name,
        where=where(host, change.netns),
        tunable=change.tunable,
        moved=move(row_of(host.rows, change.tunable), change.old, change.new),
        sort_new=change.new,
        state=change.state,
        times=change.times,
        why=change.why or change.end,
    )


def detail(host: Host, change: Change) -> Detail:
    """The change's whole story."""
    moved = move(row_of(host.rows, change.tunable), change.old, change.new)
    undo, command = _undo(change)
    asked = f"{change.decider}, {change.times} times" if change.times > 1 else change.decider
    facts = [
        ("when", f"{plot.clock(change.t_ns, host.tai_offset_s)} UTC"),
        ("where", f"{host.machine.name}, {where(host, change.netns)}"),
        ("asked for by", asked),
        ("why", change.why or "the recording does not hold the wish"),
        ("gate", change.gate),
        ("became of it", _end(host, change)),
    ]
    name = f"change {change.id}: " if change.id else ""
    return Detail(
        state=change.state,
        title=f"{name}{change.tunable}  {moved}",
        facts=facts,
        evidence=[(key, str(value)) for key, value in change.evidence.items()],
        later=[(key, str(value)) for key, value in change.end_evidence.items()],
        undo=undo,
        command=command,
    )


def value(row: Tunable | None, value: float) -> str:
    """A tunable's value, as its row has it told."""
    if row and row.words:
        return row.shown(int(value)) if float(value).is_integer() else ""
    return plot.number(value, row.unit if row else "")


def move(row: Tunable | None, old: int, new: int, arrow: str = " → ") -> str:
    """From one value to another."""
    if row and row.words:
        return f"{row.shown(old)}{arrow}{row.shown(new)}"
    return plot.move(old, new, row.unit if row else "", arrow)


def _end(host: Host, change: Change) -> str:
    if change.state == "trial":
        return STATES["trial"]
    if change.state in ("refused", "advised", "failed"):
        return f"{change.state}: {change.end}" if change.end else STATES[change.state]
    after = plot.duration(change.ended_ns - change.t_ns)
    return f"{change.state} after {after}: {change.end}"


def _undo(change: Change) -> tuple[str, str]:
    """A sentence, and the command that goes with it."""
    if change.state in ("trial", "confirmed"):
        return "To undo it, and those of its key after it, on that host:", f"trimtab rollback {change.id}"
    if change.state == "ceded":
        return "trimtab keeps its hands off until told otherwise:", f"trimtab release {change.tunable}"
    if change.state == "reverted":
        return "Nothing is left to undo: the value before it stands again.", ""
    if change.state == "lost":
        return "Nothing is left to undo: the namespace is gone.", ""
    return "Nothing was written, so there is nothing to undo.", ""
