"""What the tapes know of changes: the event that tipped each, the gate's answer, what the guard thinks of it now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from actuators.records import ON_TRIAL, Change
from bus.config import ConfigError
from bus.roles import GUARD, tape_dir
from bus.schema import AnyEvent, Outcome, Value
from bus.tape import Head, TapeError
from bus.tape_reader import Segment, find, segments
from deciders import guard
from deciders.engine import decide
from trimtab.tape.playback import Playback, begins, decider

Spot = tuple[str, int]


class Story(Struct):
    """Of one change. Empty where no tape goes back so far."""

    event: str = ""
    """The topic of the event that tipped it, ..."""
    t_ns: int = 0
    fields: dict[str, Any] = {}
    """... and all that it said."""
    rule: dict[str, Any] = {}
    """The decider's settings in force then."""
    low: int | None = None
    high: int | None = None
    """The bounds in force."""
    answers: list[Outcome] = []
    """What the actuator said of it, oldest first."""
    guards: list[str] = []
    """While it is on trial: each signal now and before, in the guard's words."""


def stories(state_dir: Path, changes: Sequence[Change]) -> dict[int, Story]:
    """By the changes' ids. Tapes that are damaged or gone only leave stories shorter."""
    found = {change.id: Story() for change in changes}
    for name in sorted({change.decider for change in changes}):
        mine = [change for change in changes if change.decider == name]
        for segment, until_ns in _segments(state_dir, name):
            then = [change for change in mine if _on(segment.head, change, until_ns)]
            if then:
                _search(segment, then, found)
    for change, words in _on_trial(state_dir, changes):
        found[change].guards = words
    return found


def _on(head: Head, change: Change, until_ns: int) -> bool:
    return head.host.boot_id == change.boot_id and head.t_ns <= change.t_ns < until_ns


def _segments(state_dir: Path, name: str) -> Iterator[tuple[Segment, int]]:
    """A decider's segments in order of time, each with where the next one begins."""
    listed: list[Segment] = []
    with contextlib.suppress(TapeError, OSError):
        for path in find([tape_dir(state_dir, name)]):
            with contextlib.suppress(TapeError):
                listed += segments(path)
    # Boots by their names, as only what is of the same one is compared.
    listed.sort(key=lambda segment: (segment.head.host.boot_id, segment.head.t_ns))
    for segment, after in pairwise([*listed, None]):
        assert segment is not None
        same = after is not None and after.head.host.boot_id == segment.head.host.boot_id
        yield segment, after.head.t_ns if after and same else 1 << 63


def _search(segment: Segment, changes: Iterable[Change], found: dict[int, Story]) -> None:
    tipped = {str(change.evidence.get("event")): change for change in changes}
    spots: dict[Spot, list[Change]] = {}
    for change in changes:
        spots.setdefault((change.tunable, change.netns), []).append(change)
        found[change.id].rule = _rule(segment.head)
    with contextlib.suppress(TapeError):
        for event in Playback(segment).events():
            cause = tipped.get(f"{type(event).__name__}@{event.t_ns}")
            if cause is not None and _about(event, cause):
                story = found[cause.id]
                story.event, story.t_ns = type(event).__name__, event.t_ns
                story.fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "t_ns"}
            if isinstance(event, Value | Outcome):
                for change in spots.get((event.tunable, event.netns), ()):
                    _answered(found[change.id], change, event)


def _about(event: AnyEvent, change: Change) -> bool:
    """Two namespaces can have events of one topic in one nanosecond."""
    return not change.netns or getattr(event, "netns", change.netns) == change.netns


def _answered(story: Story, change: Change, event: Value | Outcome) -> None:
    if isinstance(event, Outcome):
        if event.change == change.id:
            story.answers.append(event)
    elif story.low is None or event.t_ns <= change.t_ns:
        story.low, story.high = event.low, event.high


def _rule(head: Head) -> dict[str, Any]:
    try:
        policy = getattr(decider(head, head.config).state, "policy", None)
    except (ConfigError, TapeError):
        return {}
    return {name: getattr(policy, name) for name in getattr(policy, "__struct_fields__", ())}


def _on_trial(state_dir: Path, changes: Iterable[Change]) -> Iterator[tuple[int, list[str]]]:
    """The guard's mind, by folding its newest segment once more."""
    waiting = [change for change in changes if change.state in ON_TRIAL]
    boots = {change.boot_id for change in waiting}
    heard = [segment for segment, _ in _segments(state_dir, GUARD) if segment.head.host.boot_id in boots]
    for segment in heard[-1:]:
        if not begins(segment.head):
            return
        try:
            mind = decider(segment.head)
            for _ in decide(Playback(segment).events(), [mind]):
                pass
        except (ConfigError, TapeError):
            return
        cases = mind.state.cases if isinstance(mind.state, guard.State) else {}
        for change in waiting:
            case = cases.get(change.id)
            if case and segment.head.host.boot_id == change.boot_id:
                yield change.id, [words for words in (watch.tell() for watch in case.watches) if words]


def document(story: Story) -> dict[str, Any]:
    """As --json shows it."""
    return {name: msgspec.to_builtins(getattr(story, name)) for name in story.__struct_fields__}
