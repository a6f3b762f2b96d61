"""The guard's cases: the changes on trial that it has heard of, what each is measured by and compared with.

Thousands may be open at once, and most have a signal of the host's in common: so they are also found by what measures
them.
"""

from __future__ import annotations

from msgspec import Struct

from bus.schema import Trial
from deciders import measures
from deciders.measures import Key, Measures
from deciders.series import SECOND_NS, Baseline
from deciders.signals import BY_NAME, ROWS, SPEED_ROW
from deciders.trials import Case, Policy, Watch

CASES_MAX = 4096


class State(Struct):
    """Everything known. Bounded by CASES_MAX and as Measures is."""

    policy: Policy
    measures: Measures
    cases: dict[int, Case]
    """By the change's number, in the order in which they were first heard of."""
    now_ns: int = 0
    measured: dict[Key, dict[int, int]] = {}
    """By what measures them: the numbers of these cases, in the same order, and which of their watches it is."""

    def __post_init__(self) -> None:
        # What was remembered before there was such an index has none.
        for number, case in () if self.measured else self.cases.items():
            _index(self, number, case)


def take(state: State, event: Trial) -> None:
    """The actuator says that a change is on trial. Of too many the one heard of first is forgotten."""
    case = state.cases.get(event.change)
    if case is not None:
        case.seen_ns = max(case.seen_ns, event.t_ns)
        return
    if len(state.cases) >= CASES_MAX:
        forget(state, next(iter(state.cases)))
    state.cases[event.change] = case = _case(state, event)
    _index(state, event.change, case)


def _case(state: State, event: Trial) -> Case:
    needs: list[list[Key]] = []
    keys: dict[Key, None] = {}
    for name in dict.fromkeys(event.guards):
        rows = BY_NAME.get(name, ())
        mine = [measures.key_of(state.measures, row, event) for row in rows]
        # What excuses comes before what it excuses.
        keys.update(((SPEED_ROW, key[1]), None) for key in mine if ROWS[key[0]].paid)
        keys.update(dict.fromkeys(mine))
        if not rows or any(ROWS[row].always for row in rows):
            needs.append([key for key in mine if ROWS[key[0]].always])
    watches = [Watch(key, _baseline(state, key, event), event.since_ns) for key in keys]
    return Case(event, watches, needs, event.t_ns)


def _baseline(state: State, key: Key, event: Trial) -> Baseline | None:
    policy = state.policy
    # A regression shows within so long; a step that comes sooner after another may stand on one.
    quiet_ns = int(2 * policy.worse_windows * policy.window_s * SECOND_NS)
    for number, at in state.measured.get(key, {}).items():
        case = state.cases[number]
        watch = case.watches[at]
        if watch.streak or event.since_ns - case.trial.since_ns < quiet_ns:
            return watch.baseline
    return measures.earlier(state.measures, key, event.since_ns)


def _index(state: State, number: int, case: Case) -> None:
    for at, watch in enumerate(case.watches):
        state.measured.setdefault(watch.key, {})[number] = at


def forget(state: State, number: int) -> None:
    """A case is closed."""
    for watch in state.cases.pop(number).watches:
        numbers = state.measured[watch.key]
        del numbers[number]
        if not numbers:
            del state.measured[watch.key]
