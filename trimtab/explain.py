"""`trimtab explain KEY|ID`: what was done, on what evidence, and how to undo it."""

from __future__ import annotations

from pathlib import Path

from actuators.history import Filter
from actuators.namespaces import Namespaces
from actuators.records import Change, Spot
from actuators.routes import Routes
from bus import prefix
from bus.tunables import AT, Tunable, base
from trimtab import exits, show, tables
from trimtab.tape.story import Story, document, stories

STORIES_MAX = 20
"""Of a key's changes, so many of the newest are looked up on tape."""
SCHEMA = "trimtab.explanation/v1"
AFTER, AFTER_ROW = 10, 12
"""The columns that a change's label takes, and a tunable's: on a terminal lines go on behind them."""


def show_explanation(run_dir: Path, state_dir: Path, what: str, as_json: bool) -> int:
    """Print it. tables.UnknownError when there is nothing of that name or number."""
    keys, changes = _find(state_dir, what)
    known = [(found, key) for found in tables.rows(run_dir) for key in keys if found.name == base(key.name)]
    holds = [hold for hold in tables.holds(state_dir) if any(_concerns(hold.spot.tunable, key.name) for key in keys)]
    told = stories(state_dir, changes[-STORIES_MAX:])
    if as_json:
        show.as_json(
            {
                "schema": SCHEMA,
                "tunable": known[0][0] if known else None,
                "tunables": [row for row, _ in known],
                "holds": [{"netns": hold.spot.netns, "why": hold.why} for hold in holds],
                "changes": [
                    {**tables.document(change), "story": document(told.get(change.id, Story()))} for change in changes
                ],
            }
        )
        return exits.FINE
    for row, key in known:
        _print_row(row, key)
    for hold in holds:
        show.say(f"  hands off   {_place(hold.spot.netns)}: {hold.why}; trimtab release {hold.spot.tunable}", AFTER_ROW)
    for change in changes:
        of = f" of {change.tunable}" if AT in change.tunable or len(keys) > 1 else ""
        _print_change(change, tables.find(change.tunable), of, told.get(change.id, Story()))
    if not changes:
        print("never changed, as far as the journal knows")
    return exits.FINE


def _find(state_dir: Path, what: str) -> tuple[list[Tunable], list[Change]]:
    if what.isdecimal() and len(what) < 19:
        change = tables.change(state_dir, int(what))
        if change is None:
            raise tables.UnknownError(f"no change {what} in {state_dir}; `trimtab history` lists them")
        return tables.family(change.tunable), [change]
    keys = tables.family(what)
    if keys and AT in keys[0].name and (fault := prefix.fault(keys[0].prefix)):
        raise tables.UnknownError(f"no key {what!r}: {fault}")
    found = tables.changes(state_dir, Filter(tunable=tables.asked(what)))
    if not keys and not found:
        raise tables.UnknownError(f"no tunable {what!r}; `trimtab tunables` lists them")
    return keys, found


def _concerns(held: str, name: str) -> bool:
    """A row of many keys is held with all of them, and explained with them."""
    return held in (name, base(name)) or base(held) == name


def _print_row(row: tables.Row, key: Tunable | None) -> None:
    show.say(f"{key.name if key else row.name}: {row.summary}", hang=2)
    show.say(f"  stands at   {_stands(row, key)}", AFTER_ROW)
    bounds = f"one of {', '.join(row.words)}" if row.words else f"{row.low} to {row.high} {row.unit}"
    step = "" if row.words else f"{row.step:.0%} at once, "
    pause = f"every {row.cooldown_s:g} s, " if row.cooldown_s else ""
    show.say(f"  bounds      {bounds}, {step}{pause}{row.per_hour} times an hour", AFTER_ROW)
    if row.life_s:
        show.say(
            f"  leased      never confirmed; stands while {row.decider} asks for it, {row.life_s} s at most", AFTER_ROW
        )
    show.say(f"  asked for   by {row.decider} alone; scope {row.scope}, risk {row.risk}", AFTER_ROW)


def _stands(row: tables.Row, key: Tunable | None) -> str:
    if key and key.prefix:
        routes, own = Routes(Namespaces().enter), Namespaces().own
        stands = routes.read(Spot(key.name, own), 0)
        return f"{key.shown(stands)}{key.after if stands else ''}"
    if row.instances:
        return f"{row.name}{AT}PREFIX, by destination"
    here = " in this network namespace" if row.scope == "netns" else ""
    return "not on this kernel, or not in this namespace" if row.value is None else f"{row.value} {row.unit}{here}"


def _place(netns: int) -> str:
    return f"in netns {netns}" if netns else "everywhere"


def _print_change(change: Change, row: Tunable | None, of: str, story: Story) -> None:
    old, new = tables.values(change, row)
    unit = row.after if row and new != "none" else ""
    print(f"\nchange {change.id}{of}, {tables.when(change)}: {old} -> {new}{unit} ({tables.where(change)})")
    show.say(f"  why       {change.why}", AFTER)
    evidence = ", ".join(f"{name} {number}" for name, number in change.evidence.items())
    show.say(f"  evidence  {evidence or 'none'}", AFTER)
    _print_story(change, row, story)
    ended = f": {change.detail}" if change.detail else ""
    show.say(f"  state     {change.state}{ended}", AFTER)
    if change.state in tables.UNDOABLE:
        show.say(f"  undo      trimtab rollback {change.id}", AFTER)


def _print_story(change: Change, row: Tunable | None, story: Story) -> None:
    if story.event:
        fields = ", ".join(f"{name} {_shown(value)}" for name, value in story.fields.items())
        show.say(f"  seen      {story.event}, {_ago(change.t_ns - story.t_ns)} before the change: {fields}", AFTER)
    if story.rule:
        rule = ", ".join(f"{name} {value}" for name, value in story.rule.items())
        show.say(f"  rule      {change.decider} with {rule}", AFTER)
    if story.low is not None and row:
        show.say(f"  gate      granted within {_granted(change, row, story)}", AFTER)
    for words in story.guards:
        show.say(f"  guard     {words}", AFTER)


def _granted(change: Change, row: Tunable, story: Story) -> str:
    if row.words:
        return f"{row.shown(story.low or 0)} to {row.shown(story.high or 0)}"
    step = f"a step of {abs(change.new - change.old) / abs(change.old):.0%}, " if change.old else ""
    return f"{story.low} to {story.high} {row.unit}; {step}at most {row.step:.0%}"


def _shown(value: object) -> str:
    """A program's name may hold what steers a terminal."""
    text = str(value)
    return text if text and text.isprintable() else repr(text)


def _ago(span_ns: int) -> str:
    return f"{span_ns / 1e6:.1f} ms" if span_ns < 10**9 else f"{span_ns / 1e9:.1f} s"
