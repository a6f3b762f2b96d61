"""The guard: watches every change on trial, and says whether it may stay or must go. Owns no tunable.

The signals that the changed tunable's row names (deciders.signals) are compared with what they were before the change
(deciders.series): a regression puts the change back (deciders.trials says when and which), a soak without one confirms
it. Time is that of Ticks, and counts only while the signals are heard: events that are lost, late, doubled or out of
order only delay. A verdict is repeated until an Outcome tells that it was carried out: each second at first, for one
may be lost, and then seldom, for what stands in its way (a relation to a key that stays) will not go in a second.

Steps of one key that follow each other closely are each a trial, but have one baseline, that of the first: the later
ones began in the midst of what the first ones did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bus.schema import (
    VERSION,
    Counters,
    Drops,
    Host,
    NeighTable,
    Netns,
    Outcome,
    TcpRcvBuf,
    TcpSndBuf,
    Tick,
    Trial,
    Verdict,
)
from deciders import measures
from deciders.guard_cases import State, forget, take
from deciders.measures import Key, Measures
from deciders.samples import Flows
from deciders.series import SECOND_NS, Window
from deciders.signals import ROWS, SPEED_ROW
from deciders.trials import (
    Case,
    Decision,
    Policy,
    Speed,
    Watch,
    confirmation,
    judge,
    may_confirm,
    regression,
    speed_of,
    to_blame,
    unmeasured,
)

__all__ = ["NAME", "TOPICS", "Policy", "State", "start", "step"]

NAME = "guard"
TOPICS = (Tick, Trial, Outcome, Netns, Host, Counters, NeighTable, Drops, TcpSndBuf, TcpRcvBuf)

VALID_NS = 3 * SECOND_NS
TICK_MAX_NS = 2 * SECOND_NS
"""A second that took longer was not all watched."""
SEEN_NS = 15 * SECOND_NS
"""The actuator names each trial every few seconds; of one unheard of for longer nothing is said."""
FORGET_NS = 300 * SECOND_NS
INSIST_NS = 10 * SECOND_NS
"""So long a verdict is said each second, ..."""
PAUSE_NS = 30 * SECOND_NS
"""... and then once in so long."""
PATIENCE = 3
"""After so many soaks, a change of which not enough could be measured is put back."""


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, Measures(policy.window_s, policy.baseline_s, Flows(), {}), {})


def step(state: State, event: Any) -> tuple[State, Sequence[Verdict]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def _on_reading(state: State, event: Counters | NeighTable) -> Sequence[Verdict]:
    measures.read(state.measures, event)
    return ()


def _on_drops(state: State, event: Drops) -> Sequence[Verdict]:
    measures.read_drops(state.measures, event)
    return ()


def _on_flow(state: State, event: TcpSndBuf | TcpRcvBuf) -> Sequence[Verdict]:
    measures.read_flow(state.measures, event)
    return ()


def _on_fact(state: State, event: Host | Netns) -> Sequence[Verdict]:
    measures.learn(state.measures, event)
    if isinstance(event, Netns) and not event.alive:
        for number in [number for number, case in state.cases.items() if case.trial.netns == event.netns]:
            forget(state, number)
    return ()


# --- trials that begin and end ------------------------------------------------------------------------------------


def _on_trial(state: State, event: Trial) -> Sequence[Verdict]:
    take(state, event)
    return ()


def _on_outcome(state: State, event: Outcome) -> Sequence[Verdict]:
    if event.verdict == "written":
        measures.mark(state.measures, event.netns, event.t_ns)
    if event.verdict not in ("reverted", "confirmed", "ceded"):
        return ()
    ours = [case for case in state.cases.values() if case.key == (event.tunable, event.netns)]
    for case in ours:
        # Which changes of the key have ended with it, the actuator tells by naming only the others from now on.
        case.doubt_ns = max(case.doubt_ns, event.t_ns)
    if event.verdict == "reverted":
        _recover(state, [watch.key for case in ours for watch in case.watches], event.t_ns)
    return ()


def _recover(state: State, keys: Sequence[Key], t_ns: int) -> None:
    """Something was put back: what was worse until now tells nothing of those that remain, and what stood in the way
    of a verdict may have gone."""
    for case in state.cases.values():
        case.urged_ns = 0
        for watch in case.watches:
            if watch.key in keys:
                watch.streak, watch.from_ns = 0, max(watch.from_ns, t_ns)


# --- each second --------------------------------------------------------------------------------------------------


def _on_tick(state: State, event: Tick) -> Sequence[Verdict]:
    passed_ns = event.t_ns - state.now_ns if state.now_ns else 0
    if state.now_ns and passed_ns <= 0:
        return ()
    state.now_ns = event.t_ns
    windows = measures.windows(state.measures, event.t_ns)
    for number in [number for number, case in state.cases.items() if _gone(case, event.t_ns)]:
        forget(state, number)
    going: set[tuple[str, int]] = set()
    waiting: set[tuple[str, int]] = set()
    for case in sorted(state.cases.values(), key=lambda case: case.trial.change):
        # With a change that is to be put back go all later ones of its key; and none stays before those before it do.
        if case.decision is None and case.key not in going:
            since_ns = max(0, event.t_ns - case.trial.since_ns)
            _tend(state, case, windows, min(passed_ns, TICK_MAX_NS, since_ns), case.key not in waiting)
        if case.decision is None:
            waiting.add(case.key)
        elif not case.decision.confirm:
            going.add(case.key)
    return [_verdict(case, event) for case in state.cases.values() if _due(case, event.t_ns)]


def _tend(state: State, case: Case, windows: dict[Key, Window], passed_ns: int, first: bool) -> None:
    """first: nothing of the same key is older and undecided."""
    now_ns, soak_ns = state.now_ns, int(state.policy.soak_s * SECOND_NS)
    for worse in _look(state, case, windows):
        if case.decision is None:
            _blame(state, worse)
    if case.decision:
        return
    case.waited_ns += passed_ns
    deaf = [keys for keys in case.needs if not measures.heard(state.measures, keys, now_ns)]
    if not deaf and _seen(case, now_ns):
        case.soaked_ns += passed_ns
    if case.soaked_ns >= soak_ns:
        if first and may_confirm(state.policy, case, now_ns):
            case.decision = confirmation(case, now_ns)
    elif case.waited_ns >= PATIENCE * soak_ns:
        case.decision = unmeasured(case, case.trial.guards)


def _look(state: State, case: Case, windows: dict[Key, Window]) -> list[Watch]:
    """What got worse."""
    mine = {watch.key: watch for watch in case.watches}
    found: list[Watch] = []
    for key, watch in mine.items():
        window = windows.get(key)
        if window is None:
            continue
        if watch.baseline is None:
            watch.baseline = measures.much_earlier(state.measures, key)
        if key[0] == SPEED_ROW:
            watch.latest = window.value if window.start_ns >= watch.from_ns else watch.latest
        elif judge(state.policy, watch, window, speed_of(mine, key[1]) if ROWS[key[0]].paid else Speed()):
            found.append(watch)
    return found


def _blame(state: State, worse: Watch) -> None:
    cases = list(state.cases.values())
    going = [case for case in cases if case.decision and not case.decision.confirm and _seen(case, state.now_ns)]
    if any(watch.key == worse.key for case in going for watch in case.watches):
        # One at a time: perhaps that was it.
        return
    blamed = to_blame(cases, worse, int(state.policy.window_s * SECOND_NS))
    blamed.decision = regression(blamed, worse, state.now_ns)


def _seen(case: Case, now_ns: int) -> bool:
    return case.seen_ns > case.doubt_ns and now_ns - case.seen_ns < SEEN_NS


def _due(case: Case, now_ns: int) -> bool:
    """Whether its verdict is said now."""
    if not case.decision or not _seen(case, now_ns):
        return False
    case.urged_ns = case.urged_ns or now_ns
    if now_ns - case.urged_ns >= INSIST_NS and now_ns - case.asked_ns < PAUSE_NS:
        return False
    case.asked_ns = now_ns
    return True


def _gone(case: Case, now_ns: int) -> bool:
    ended = case.seen_ns <= case.doubt_ns < now_ns - SEEN_NS
    return ended or now_ns - case.seen_ns > FORGET_NS


def _verdict(case: Case, event: Tick) -> Verdict:
    decision = case.decision
    assert isinstance(decision, Decision)
    return Verdict(
        VERSION, event.t_ns, VALID_NS, case.trial.change, decision.confirm, decision.why, dict(decision.evidence)
    )


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Verdict]]] = {
    Tick: _on_tick,
    Trial: _on_trial,
    Outcome: _on_outcome,
    Netns: _on_fact,
    Host: _on_fact,
    Counters: _on_reading,
    NeighTable: _on_reading,
    Drops: _on_drops,
    TcpSndBuf: _on_flow,
    TcpRcvBuf: _on_flow,
}
