"""The gate: grants one wish or refuses it, and trusts nobody. Pure: a function of its arguments.

Nothing is clamped: a wish that is not right as it stands is refused with the numbers. The bounds come from the
tunables table, the facts (`View`) from the actuator's own reading of the kernel and of its journal, and only the value
asked for from the decider, whose name is the lane that the wish came in on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from bus import prefix
from bus.schema import Wish
from bus.tunables import AT, INT_MAX, Bounds, Tunable, base

FUTURE_NS = 100_000_000
"""A wish's time may be this far ahead: a time namespace or a late reading of the clock, not a lie."""
HOUR_NS = 3_600_000_000_000
TURNS_MAX = 2
"""A key turns round so often within an hour; the next time it is parked."""
DECIDER_PER_HOUR = 3600
HOST_PER_HOUR = 7200


class View(Struct, frozen=True):
    """What the actuator itself knows of the key that a wish is about."""

    value: int
    """What stands there now, read a moment ago."""
    original: int
    """What stood there before trimtab's first write."""
    held: str = ""
    """Why hands are off this key; empty when they are not."""
    related: Mapping[str, int] = {}
    """The values of the tunables that the row's at_most, at_least and twin name."""
    changed_ns: tuple[int, ...] = ()
    """When this key was last written, CLOCK_MONOTONIC, oldest first; an hour's worth."""
    fence: Collection[int] = ()
    """Cookies of the only namespaces to touch; empty for no fence."""
    turns: int = 0
    """How often this key has turned round within the hour, up after down or down after up."""
    rising: bool | None = None
    """Which way it went last."""
    asked: int = 0
    """How many wishes of this decider were carried out within the hour."""
    all_asked: int = 0
    """And of all deciders."""
    twin_ours: bool = False
    """A value of ours stands in its twin."""
    others: int = 0
    """At how many other destinations of its namespace something of ours stands, of the same row."""


class Refused(Struct, frozen=True):
    """No, and why."""

    kind: str
    """A short stable word, to count by."""
    reason: str
    """One sentence with the numbers."""


class Grant(Struct, frozen=True):
    """Yes: this value, at this place, in place of that one."""

    tunable: str
    netns: int
    old: int
    new: int
    beside: int = 0
    """What its twin is, which the change makes 0."""


class _Case(Struct, frozen=True):
    row: Tunable
    bounds: Bounds
    wish: Wish
    view: View
    now_ns: int


def screen(row: Tunable | None, wish: Wish, asker: str, fence: Collection[int], now_ns: int) -> Refused | None:
    """What can be refused before anything is read in the kernel; None when nothing can."""
    found = _screened(row, wish, asker, fence, now_ns)
    return found if isinstance(found, Refused) else None


def admit(row: Tunable | None, bounds: Bounds, wish: Wish, asker: str, view: View, now_ns: int) -> Grant | Refused:
    """Grant the wish, or refuse it for the first thing that is wrong. now_ns: CLOCK_MONOTONIC."""
    found = _screened(row, wish, asker, view.fence, now_ns)
    if isinstance(found, Refused):
        return found
    case = _Case(found, bounds, wish, view, now_ns)
    for check in _CHECKS:
        refused = check(case)
        if refused is not None:
            return refused
    return Grant(found.name, wish.netns, view.value, wish.want, view.related.get(found.twin, 0))


def _screened(row: Tunable | None, wish: Wish, asker: str, fence: Collection[int], now_ns: int) -> Tunable | Refused:
    if row is None or row.name != wish.tunable:
        return _unknown(wish)
    if asker != row.decider:
        return Refused("owner", f"{row.name} is {row.decider}'s to ask for, not {asker}'s")
    return (
        _manual(row)
        or _prefix(row)
        or _scope(row, wish)
        or _fence(wish, fence)
        or _text(wish)
        or _age(wish, now_ns)
        or row
    )


def _unknown(wish: Wish) -> Refused:
    return Refused("unknown", f"no tunable {wish.tunable!r} in the table")


def _manual(row: Tunable) -> Refused | None:
    if row.risk == "manual":
        return Refused("manual", f"{row.name} is for people to set: trimtab only advises on it")
    return None


def _prefix(row: Tunable) -> Refused | None:
    if row.instances and (fault := prefix.fault(row.prefix)):
        return Refused("prefix", f"{base(row.name)} is set as {base(row.name)}{AT}PREFIX: {fault}")
    return None


def _scope(row: Tunable, wish: Wish) -> Refused | None:
    if row.scope == "host" and wish.netns:
        return Refused("scope", f"{row.name} is the host's, not of a network namespace ({wish.netns})")
    if row.scope == "netns" and not wish.netns:
        return Refused("scope", f"{row.name} is of a network namespace, and none is named")
    return None


def _fence(wish: Wish, fence: Collection[int]) -> Refused | None:
    if fence and wish.netns not in fence:
        where = f"namespace {wish.netns}" if wish.netns else "the host as a whole"
        return Refused("fence", f"{where} lies outside the namespaces that the configuration names")
    return None


def _text(wish: Wish) -> Refused | None:
    # The sentence and the evidence end up in logs and on terminals.
    words = (wish.why, *wish.evidence, *(word for word in wish.evidence.values() if isinstance(word, str)))
    if not wish.why.strip() or not all(word.isprintable() for word in words):
        return Refused("text", "the reason or the evidence is empty or holds control characters")
    return None


def _age(wish: Wish, now_ns: int) -> Refused | None:
    age_ms = (now_ns - wish.t_ns) // 1_000_000
    if wish.t_ns > now_ns + FUTURE_NS:
        return Refused("future", f"the wish is dated {-age_ms} ms ahead")
    if wish.t_ns + wish.valid_ns < now_ns:
        return Refused("stale", f"the wish is {age_ms} ms old and was valid for {wish.valid_ns // 1_000_000} ms")
    return None


def _held(case: _Case) -> Refused | None:
    if case.view.held:
        return Refused("held", f"hands off {case.row.name}: {case.view.held}")
    return None


def _believed(case: _Case) -> Refused | None:
    if case.wish.believed != case.view.value:
        stands, believed = case.row.shown(case.view.value), case.row.shown(case.wish.believed)
        return Refused("believed", f"{stands} stands there, not {believed}")
    return None


def _range(case: _Case) -> Refused | None:
    if not -INT_MAX - 1 <= case.wish.want <= INT_MAX:
        return Refused("range", f"{case.wish.want} does not fit the kernel's int")
    return None


def _bounds(case: _Case) -> Refused | None:
    if not case.bounds.low <= case.wish.want <= case.bounds.high and not _gives_back(case):
        want, low, high = map(case.row.shown, (case.wish.want, case.bounds.low, case.bounds.high))
        return Refused("bounds", f"{want} lies outside {low} to {high}")
    return None


def _gives_back(case: _Case) -> bool:
    """Of a destination, that nothing of ours be set there: always within the bounds, and never too soon."""
    return bool(case.row.instances) and not case.wish.want


def _step(case: _Case) -> Refused | None:
    value = abs(case.view.value)
    change = abs(case.wish.want - case.view.value)
    if change == 0:
        return Refused("nothing", f"{case.row.shown(case.view.value)} stands there already")
    if _unmeasured(case):
        return None
    ends = (case.bounds.low, case.bounds.high, case.view.original)
    if change < int(case.row.dead_band * value) and case.wish.want not in ends:
        return Refused("dead-band", f"a change by {change} is less than {case.row.dead_band:g} of {case.view.value}")
    if change > max(1, case.row.step * value):
        return Refused("step", f"a change by {change} is more than {case.row.step:g} of {case.view.value}")
    return None


def _unmeasured(case: _Case) -> bool:
    """No step can be measured, so that the bounds are all that limits this one: between words; where the twin counts;
    from nothing of ours, or to nothing."""
    if case.row.instances and not (case.view.value and case.wish.want):
        return True
    return bool(case.row.words) or (bool(case.row.twin) and not case.view.value)


def _patience(case: _Case) -> Refused | None:
    if _gives_back(case):
        return None
    return _pace(case) or _turns(case) or _crowd(case) or _instances(case)


def _pace(case: _Case) -> Refused | None:
    recent = [t_ns for t_ns in case.view.changed_ns if t_ns > case.now_ns - HOUR_NS]
    if recent and case.now_ns - recent[-1] < case.row.cooldown_s * 1e9:
        ago_ms = (case.now_ns - recent[-1]) // 1_000_000
        return Refused("cool-down", f"last changed {ago_ms} ms ago, at most once in {case.row.cooldown_s:g} s")
    if len(recent) >= case.row.per_hour:
        return Refused("per-hour", f"changed {len(recent)} times within the hour, at most {case.row.per_hour}")
    return None


def _turns(case: _Case) -> Refused | None:
    view, rises = case.view, case.wish.want > case.view.value
    if view.rising not in (None, rises) and view.turns >= TURNS_MAX:
        way = "up" if rises else "down"
        return Refused("turns", f"{way} again would be turn {view.turns + 1} within the hour, at most {TURNS_MAX}")
    return None


def _crowd(case: _Case) -> Refused | None:
    if case.view.asked >= DECIDER_PER_HOUR:
        return Refused("decider-per-hour", f"{case.row.decider} has changed {case.view.asked} values within the hour")
    if case.view.all_asked >= HOST_PER_HOUR:
        return Refused("host-per-hour", f"{case.view.all_asked} values have been changed within the hour")
    return None


def _instances(case: _Case) -> Refused | None:
    most = case.row.instances
    if most and case.view.others >= most:
        return Refused(
            "instances", f"{case.view.others} other destinations of {case.wish.netns} have one, at most {most}"
        )
    return None


def _relations(case: _Case) -> Refused | None:
    want, related = case.wish.want, case.view.related
    if case.view.twin_ours:
        return Refused("twin", f"a value of trimtab's stands in {case.row.twin}, the twin of {case.row.name}")
    for name in case.row.related:
        if name not in related:
            return Refused("relation", f"the value of {name}, which bounds {case.row.name}, is not known")
    for name in case.row.at_most:
        if want > related[name]:
            return Refused("relation", f"{want} would pass {name}, which is {related[name]}")
    for name in case.row.at_least:
        if want < related[name]:
            return Refused("relation", f"{want} would fall below {name}, which is {related[name]}")
    return None


_CHECKS: tuple[Callable[[_Case], Refused | None], ...] = (
    _held,
    _believed,
    _range,
    _bounds,
    _step,
    _patience,
    _relations,
)
