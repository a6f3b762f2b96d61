"""Congestion control for each destination, by what was measured there, as metrics of a route of its own.

TCP's counters of each /24 and /48 (bpf/flows.c) tell how fast a connection is that has something to send, how much is
sent again, and how long the round trips are: for each algorithm by itself, so that two are told apart even when both
are in use. Where there is something to win (losses, much on the way at once, a queue) another algorithm that the kernel
has is tried for new connections, once an hour at most, at one destination of a namespace at a time (path_try); it stays
only where it is better, and never longer than the row's life_s. Then the same begins anew, so that what is the default
is measured again each hour.

rto_min is left alone: a smaller one helps only where whole windows are lost, tail loss probes having gone before, and
its price are the acknowledgements that the other end delays, which no counter here tells of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from bus.schema import VERSION, Algorithms, Evidence, Flows, Netns, Outcome, Tick, Value, Wish
from bus.tunables import ALGORITHMS, AT, TUNABLES
from deciders import path_state
from deciders.limit import SECOND_NS, Limit, answered, asked, bounds, learn, may
from deciders.path_lines import Score, Slice
from deciders.path_state import KEYS, Path, Place
from deciders.path_try import Policy, Try, go, judge

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "congestion"
TOPICS = (Flows, Algorithms, Tick, Value, Outcome, Netns)

VALID_NS = SECOND_NS
PATHS_MAX = 512
PLACES_MAX = 1024
AGAIN_NS = 60 * SECOND_NS
"""After its time was over a value may be wished for again so soon."""
LIFE_NS = next(row.life_s for row in TUNABLES if row.name == "route.congctl") * SECOND_NS
UNKNOWN = Score(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, Slice(0), 0)
EVIDENCE_MAX = 1 << 62
LOSSES_MAX = 5
"""A word rests twice as long after each try in vain, up to so many times."""
ROW = "route."
ADVICE_MAX = 8


class State(Struct):
    """Bounded: PATHS_MAX destinations, PLACES_MAX namespaces; those heard of longest ago go first."""

    policy: Policy
    paths: dict[tuple[int, str], Path]
    places: dict[int, Place]


def start(policy: Policy) -> State:
    """Nothing known yet."""
    return State(policy, {}, {})


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """See deciders.engine.Decider.advice."""
    found: list[str] = []
    for path in list(state.paths.values())[-ADVICE_MAX:]:
        place = state.places.get(path.netns, Place())
        arm = path.arms.get(place.standing)
        now = path_state.fresh(state.policy, arm.line, arm.t_ns) if arm else None
        if now and len(place.available) == 1 and (reason := path_state.why(state.policy, path, place, now)):
            found.append(
                f"netns {path.netns}: {path.prefix}: {reason}, and the kernel has {place.standing} alone:"
                " others come with their module (tcp_bbr)"
            )
    return found


def _place(state: State, netns: int) -> Place:
    place = state.places.pop(netns, None) or Place()
    if len(state.places) >= PLACES_MAX:
        del state.places[next(iter(state.places))]
    state.places[netns] = place
    return place


def _path(state: State, netns: int, netns_ino: int, prefix: str) -> Path:
    path = state.paths.pop((netns, prefix), None)
    if path is None:
        path = Path(netns, netns_ino, prefix, {key: Limit() for key in KEYS})
        if len(state.paths) >= PATHS_MAX:
            # What stands there is taken back when its time is over, but better is to know of it.
            idle = next((key for key, one in state.paths.items() if not one.tries), next(iter(state.paths)))
            _forget(state, idle)
    path.netns_ino = netns_ino or path.netns_ino
    state.paths[netns, prefix] = path
    return path


def _forget(state: State, key: tuple[int, str]) -> None:
    del state.paths[key]
    place = state.places.get(key[0])
    if place and place.trying == key[1]:
        place.trying = ""


# --- what is told --------------------------------------------------------------------------------------------------


def _on_flows(state: State, event: Flows) -> Sequence[Wish]:
    path = _path(state, event.netns, event.netns_ino, event.prefix)
    place = _place(state, event.netns)
    more = path_state.told(path, event)
    if more:
        path_state.measured(state.policy, path, place, event, more)
    return _tend(state, path, place, event)


def _on_algorithms(state: State, event: Algorithms) -> Sequence[Wish]:
    place = _place(state, event.netns)
    place.available, place.standing = event.available, event.standing
    return ()


def _on_tick(state: State, event: Tick) -> Sequence[Wish]:
    wishes: list[Wish] = []
    for path in [path for path in state.paths.values() if path.tries]:
        wishes += _tend(state, path, state.places.setdefault(path.netns, Place()), event)
    return wishes


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    return _stands(state, event, event.netns_ino)


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    return _stands(state, event, 0)


def _stands(state: State, event: Value | Outcome, netns_ino: int) -> Sequence[Wish]:
    row, _, prefix = event.tunable.partition(AT)
    key = row.removeprefix(ROW)
    known = (event.netns, prefix) in state.paths
    if not prefix or key not in KEYS or not (known or event.value):
        return ()
    path = _path(state, event.netns, netns_ino, prefix)
    place = _place(state, event.netns)
    limit = path.limits[key]
    if isinstance(event, Value):
        bounds(limit, event)
    else:
        answered(limit, event)
    learn(limit, event.value, event.t_ns)
    one = path.tries.get(key)
    if one:
        _compare(state.policy, path, place, one, event)
    elif limit.value and not limit.held:
        _adopt(path, key, event.t_ns)
    return ()


def _adopt(path: Path, key: str, t_ns: int) -> None:
    """Of a value whose try is not known (of a process before this one) nothing is known to be worse than it."""
    value = path.limits[key].value
    if key == "congctl" and 0 < value < len(ALGORITHMS):
        path.tries[key] = Try("congctl", ALGORITHMS[value], value, UNKNOWN, t_ns, "", "kept", True, t_ns)
    elif key == "initcwnd":
        path.tries[key] = Try("initcwnd", key, value, UNKNOWN, t_ns, "", "kept", True, t_ns)


def _compare(policy: Policy, path: Path, place: Place, one: Try, event: Value | Outcome) -> None:
    """What stands there, beside what a try wants there."""
    value, t_ns = path.limits[one.key].value, event.t_ns
    refused = isinstance(event, Outcome) and event.verdict in ("refused", "failed", "advised", "ceded")
    if value == one.target:
        if one.phase == "leave":
            _end(policy, path, place, one, t_ns)
        elif not one.stands:
            one.stands, one.phase_ns = True, t_ns
    elif not value and one.stands:
        # Somebody took it back: its time was over, or the guard, or whoever stopped trimtab did.
        _end(policy, path, place, one, t_ns)
    elif refused and one.target:
        _end(policy, path, place, one, t_ns)


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        for key in [key for key in state.paths if key[0] == event.netns]:
            del state.paths[key]
        state.places.pop(event.netns, None)
    return ()


# --- what is done --------------------------------------------------------------------------------------------------


def _tend(state: State, path: Path, place: Place, event: Flows | Tick) -> list[Wish]:
    """Go on with what is being tried there, or begin."""
    policy, t_ns = state.policy, event.t_ns
    for one in list(path.tries.values()):
        judge(policy, one, t_ns)
        if one.key == "congctl" and one.phase != "leave":
            if path_state.forbidden(path, one.word):
                go(one, "leave", f"{one.word} on a path of {path.rtt_us / 1e3:.3g} ms", t_ns)
            elif place.standing == one.word:
                go(one, "leave", f"{one.word} is what connections have without it", t_ns)
        limit = path.limits[one.key]
        if limit.held or (one.phase == "leave" and not limit.value):
            _end(policy, path, place, one, t_ns)
        _free(path, place)
    if isinstance(event, Flows) and not any(one.phase != "kept" for one in path.tries.values()):
        one_more = path_state.worth(policy, path, place, t_ns)
        if one_more and not path.limits[one_more.key].value and may(path.limits[one_more.key], t_ns):
            path.tries[one_more.key] = one_more
            place.trying = path.prefix
    return [wish for one in path.tries.values() for wish in _ask(path, one, event)]


def _free(path: Path, place: Place) -> None:
    """Another destination's turn."""
    if place.trying == path.prefix and all(one.phase == "kept" for one in path.tries.values()):
        place.trying = ""


def _end(policy: Policy, path: Path, place: Place, one: Try, t_ns: int) -> None:
    path.tries.pop(one.key, None)
    explore_ns = int(policy.explore_s * SECOND_NS)
    served = one.phase == "kept" and t_ns - one.began_ns >= LIFE_NS - AGAIN_NS
    path.next_ns = t_ns + (AGAIN_NS if served else explore_ns)
    if one.lost:
        path.losses[one.word] = min(LOSSES_MAX, path.losses.get(one.word, 0) + 1)
        path.rest_ns[one.word] = t_ns + explore_ns * 2 ** (path.losses[one.word] - 1)
    elif served:
        path.losses.pop(one.word, None)
    _free(path, place)


def _ask(path: Path, one: Try, event: Flows | Tick) -> list[Wish]:
    limit = path.limits[one.key]
    if limit.value == one.target or not may(limit, event.t_ns):
        return []
    asked(limit, event.t_ns)
    base, now = one.base, one.found or one.base
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "phase": one.phase,
        "tried": one.word,
        "before_bytes_per_s": _int(base.rate),
        "before_best_bytes_per_s": _int(base.best),
        "before_resent_ppm": _int(base.loss * 1e6),
        "before_srtt_us": _int(base.srtt_us),
        "found_bytes_per_s": _int(now.rate),
        "min_rtt_us": path.rtt_us,
        "connections": base.sums.connections,
    }
    name = f"{ROW}{one.key}{AT}{path.prefix}"
    about = (name, path.netns, path.netns_ino, limit.value, one.target, one.why, evidence)
    return [Wish(VERSION, event.t_ns, VALID_NS, *about)]


def _int(value: float) -> int:
    return int(min(EVIDENCE_MAX, value))


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    Flows: _on_flows,
    Algorithms: _on_algorithms,
    Tick: _on_tick,
    Value: _on_value,
    Outcome: _on_outcome,
    Netns: _on_netns,
}
