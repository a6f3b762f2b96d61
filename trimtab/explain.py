"""`trimtab explain KEY|ID`: what was done, on what evidence, and how to undo it."""

from __future__ import annotations

from pathlib import Path

from actuators.history import Filter
from actuators.records import Change
from bus.tunables import Tunable
from trimtab import exits, show, tables
from trimtab.tape.story import Story, document, stories

STORIES_MAX = 20
"""Of a key's changes, so many of the newest are looked up on tape."""
SCHEMA = "trimtab.explanation/v1"


class UnknownError(OSError):
    """Neither a tunable nor a change."""


def show_explanation(run_dir: Path, state_dir: Path, what: str, as_json: bool) -> int:
    """Print it. UnknownError when there is nothing of that name or number."""
    row, changes = _find(state_dir, what)
    known = [found for found in tables.rows(run_dir) if row and found.name == row.name]
    holds = [hold for hold in tables.holds(state_dir) if row and hold.spot.tunable == row.name]
    told = stories(state_dir, changes[-STORIES_MAX:])
    if as_json:
        show.as_json(
            {
                "schema": SCHEMA,
                "tunable": known[0] if known else None,
                "holds": [{"netns": hold.spot.netns, "why": hold.why} for hold in holds],
                "changes": [
                    {**tables.document(change), "story": document(told.get(change.id, Story()))} for change in changes
                ],
            }
        )
        return exits.FINE
    for found in known:
        _print_row(found)
    for hold in holds:
        print(f"  hands off   {_place(hold.spot.netns)}: {hold.why}; trimtab release {hold.spot.tunable}")
    for change in changes:
        _print_change(change, row, told.get(change.id, Story()))
    if not changes:
        print("never changed, as far as the journal knows")
    return exits.FINE


def _find(state_dir: Path, what: str) -> tuple[Tunable | None, list[Change]]:
    if what.isdecimal():
        found = [change for change in tables.changes(state_dir, Filter()) if change.id == int(what)]
        if not found:
            raise UnknownError(f"no change {what} in {state_dir}; `trimtab history` lists them")
        return tables.find(found[0].tunable), found
    row = tables.find(what)
    found = tables.changes(state_dir, Filter(tunable=row.name if row else what))
    if not row and not found:
        raise UnknownError(f"no tunable {what!r}; `trimtab tunables` lists them")
    return row, found


def _print_row(row: tables.Row) -> None:
    stands = "not on this kernel, or not in this namespace" if row.value is None else f"{row.value} {row.unit}"
    print(f"{row.name}: {row.summary}")
    print(f"  stands at   {stands}")
    print(f"  bounds      {row.low} to {row.high} {row.unit}, {row.step:.0%} at once, every {row.cooldown_s:g} s, "
          f"{row.per_hour} times an hour")  # fmt: skip
    print(f"  asked for   by {row.decider} alone; scope {row.scope}, risk {row.risk}")


def _place(netns: int) -> str:
    return f"in netns {netns}" if netns else "everywhere"


def _print_change(change: Change, row: Tunable | None, story: Story) -> None:
    unit = f" {row.unit}" if row else ""
    print(f"\nchange {change.id}, {tables.when(change)}: {change.old} -> {change.new}{unit} ({tables.where(change)})")
    print(f"  why       {change.why}")
    evidence = ", ".join(f"{name} {number}" for name, number in change.evidence.items())
    print(f"  evidence  {evidence or 'none'}")
    _print_story(change, row, story)
    ended = f": {change.detail}" if change.detail else ""
    print(f"  state     {change.state}{ended}")
    if change.state in tables.UNDOABLE:
        print(f"  undo      trimtab rollback {change.id}")


def _print_story(change: Change, row: Tunable | None, story: Story) -> None:
    if story.event:
        fields = ", ".join(f"{name} {_shown(value)}" for name, value in story.fields.items())
        print(f"  seen      {story.event}, {_ago(change.t_ns - story.t_ns)} before the change: {fields}")
    if story.rule:
        rule = ", ".join(f"{name} {value}" for name, value in story.rule.items())
        print(f"  rule      {change.decider} with {rule}")
    if story.low is not None and row:
        step = f"a step of {abs(change.new - change.old) / abs(change.old):.0%}, " if change.old else ""
        print(f"  gate      granted within {story.low} to {story.high} {row.unit}; {step}at most {row.step:.0%}")
    for words in story.guards:
        print(f"  guard     {words}")


def _shown(value: object) -> str:
    """A program's name may hold what steers a terminal."""
    text = str(value)
    return text if text and text.isprintable() else repr(text)


def _ago(span_ns: int) -> str:
    return f"{span_ns / 1e6:.1f} ms" if span_ns < 10**9 else f"{span_ns / 1e9:.1f} s"
