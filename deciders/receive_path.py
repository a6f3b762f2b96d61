"""The receive path below the sockets: netdev_max_backlog, netdev_budget, netdev_budget_usecs, all of them the host's.

See deciders.receive_backlog and deciders.receive_budget for when they grow and come down. Left alone: dev_weight, since
it parts one run among devices and makes none longer; and flow_limit_cpu_bitmap, which is no number but a list of CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from bus.schema import VERSION, Counters, Drops, Evidence, Host, Outcome, Value, Wish
from deciders import receive_backlog, receive_budget
from deciders.climb import Climb, told
from deciders.limit import SECOND_NS, answered, asked, bounds
from deciders.receive_backlog import Backlog
from deciders.receive_budget import Budget
from deciders.receive_policy import Policy

__all__ = ["NAME", "TOPICS", "Policy", "start", "step"]

NAME = "receive_path"
TOPICS = (Drops, Counters, Host, Value, Outcome)
VALID_NS = SECOND_NS
SOFTNET, PRESSURE = "net/softnet_stat", "pressure/cpu"


class State(Struct):
    """Everything known. Bounded: three tunables, and as Backlog is."""

    policy: Policy
    backlog: Backlog
    budget: Budget


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, Backlog(), Budget())


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def _on_drops(state: State, event: Drops) -> Sequence[Wish]:
    if event.reason != receive_backlog.REASON:
        return ()
    receive_backlog.on_drops(state.policy, state.backlog, event)
    return _backlog(state, event)


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    if event.source == PRESSURE:
        receive_budget.on_pressure(state.policy, state.budget, event)
        return ()
    if event.source != SOFTNET:
        return ()
    receive_backlog.on_counters(state.policy, state.backlog, event)
    receive_budget.on_softnet(state.policy, state.budget, event)
    return (*_backlog(state, event), *_budget(state, event))


def _on_host(state: State, event: Host) -> Sequence[Wish]:
    receive_backlog.on_host(state.backlog, event.mem_bytes, event.cpus)
    return ()


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    climb = _climb(state, event.tunable)
    if climb:
        bounds(climb.limit, event)
        told(climb, event.value, event.t_ns)
    return ()


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    climb = _climb(state, event.tunable)
    if climb:
        answered(climb.limit, event)
        told(climb, event.value, event.t_ns)
    return ()


def _climb(state: State, tunable: str) -> Climb | None:
    return state.backlog.climb if tunable == receive_backlog.NAME else state.budget.keys.get(tunable)


def _backlog(state: State, event: Drops | Counters) -> Sequence[Wish]:
    backlog = state.backlog
    want, why = receive_backlog.want(state.policy, backlog, event.t_ns)
    if not want:
        return ()
    return (_wish(receive_backlog.NAME, backlog.climb, want, why, event, receive_backlog.evidence(backlog)),)


def _budget(state: State, event: Counters) -> Sequence[Wish]:
    budget = state.budget
    name, want, why = receive_budget.want(state.policy, budget, event.t_ns)
    return (_wish(name, budget.keys[name], want, why, event, receive_budget.evidence(budget)),) if want else ()


def _wish(name: str, climb: Climb, want: int, why: str, event: Drops | Counters, evidence: Evidence) -> Wish:
    asked(climb.limit, event.t_ns)
    numbers: Evidence = {"event": f"{type(event).__name__}@{event.t_ns}", **evidence}
    return Wish(VERSION, event.t_ns, VALID_NS, name, 0, 0, climb.limit.value, want, why, numbers)


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    Drops: _on_drops,
    Counters: _on_counters,
    Host: _on_host,
    Value: _on_value,
    Outcome: _on_outcome,
}
