"""One tunable that grows by steps as long as they help, and comes down again: what is common to such deciders.

A climb is a row of growths, none long after the one before. What it is to cure (so many a second) is looked at once
after each: where it has not become clearly less for several growths, growing does not help, and the value goes back to
where the climb began. A key may turn round twice within an hour (actuators.gate), then it is parked: so it goes down
only where it may go up once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deciders.limit import SECOND_NS, Limit, learn, may, worth

HOUR_NS = 3600 * SECOND_NS
CLIMB_NS = 60 * SECOND_NS
TURNS_DOWN, TURNS_UP = 0, 1
"""Turns that an hour may have seen before one more, down and up."""


@dataclass(slots=True)
class Climb:
    """One tunable at one place."""

    spacing_ns: int
    """At least so long between two changes: more than the cool-down of the tunable's row."""
    limit: Limit = field(default_factory=Limit)
    span_ns: int = CLIMB_NS
    """A growth so long after another begins a new climb."""
    start: int = 0
    """The value before the first growth."""
    rate: float = 0.0
    """What is to be cured, per second, when growing was last seen to help, or at the beginning."""
    asked_rate: float = 0.0
    """The same when growth was last wished for."""
    useless: int = 0
    """Growths since then that have not helped."""
    grown_ns: int = 0
    changed_ns: int = 0
    judged: bool = True
    """The last growth has been looked at."""
    rest_ns: int = 0
    """No growth before this."""
    goal: int = 0
    """Where it is going down to; 0: it is not."""
    why: str = ""
    """Why it is going down."""
    rising: bool | None = None
    """Which way it went last."""
    turned: tuple[int, ...] = ()
    """When it turned round, the last few."""


def told(climb: Climb, value: int, t_ns: int) -> None:
    """What stands there at t_ns."""
    before = climb.limit.value
    if not learn(climb.limit, value, t_ns) or not before:
        return
    rising, climb.changed_ns = value > before, t_ns
    if climb.rising not in (None, rising):
        climb.turned = (*climb.turned[-3:], t_ns)
    climb.rising = rising
    if rising:
        if t_ns - climb.grown_ns > climb.span_ns or not climb.start:
            climb.start, climb.rate, climb.useless = before, climb.asked_rate, 0
        climb.grown_ns, climb.judged = t_ns, False
    if value <= climb.goal:
        climb.goal = 0


def judge(climb: Climb, rate: float, t_ns: int, better: float) -> None:
    """What it is to cure is so much now. better: to this share of what it was it must have fallen."""
    if climb.judged:
        return
    climb.judged = True
    if t_ns - climb.grown_ns > climb.span_ns:
        climb.useless = 0
    elif rate <= better * climb.rate:
        climb.rate, climb.useless = rate, 0
    else:
        climb.useless += 1


def may_turn(climb: Climb, rising: bool, t_ns: int) -> bool:
    """Going this way now will not have the key parked."""
    if climb.rising in (None, rising):
        return True
    lately = sum(1 for turn_ns in climb.turned if t_ns - turn_ns < HOUR_NS)
    return lately <= (TURNS_UP if rising else TURNS_DOWN)


def go_down(climb: Climb, goal: int, why: str, t_ns: int, rest_s: float = 0.0) -> None:
    """Down to the goal from now on, where that is less than what stands there; and no growth for so long."""
    goal = max(goal, climb.limit.low)
    if goal < climb.limit.value and may_turn(climb, False, t_ns):
        climb.goal, climb.why = goal, why
    climb.rest_ns = max(climb.rest_ns, t_ns + int(rest_s * SECOND_NS))


def may_change(climb: Climb, t_ns: int) -> bool:
    """Whether to ask for any change of it now."""
    return may(climb.limit, t_ns) and t_ns - climb.changed_ns >= climb.spacing_ns


def higher(climb: Climb, factor: float, ceiling: int, t_ns: int) -> int:
    """The next value up; 0 for none."""
    limit = climb.limit
    want = min(int(limit.value * factor), ceiling, limit.high or ceiling)
    if climb.goal or t_ns < climb.rest_ns or want <= limit.value or want < limit.low:
        return 0
    return want if worth(limit, want) and may_turn(climb, True, t_ns) else 0


def lower(climb: Climb) -> int:
    """The next value down, no more than half; 0 for none."""
    limit = climb.limit
    return max(climb.goal, (limit.value + 1) // 2) if 0 < climb.goal < limit.value else 0
