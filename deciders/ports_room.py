"""Room for connections in one namespace: its port range, its TIME_WAITs, and the one change most wanted now."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import VERSION, Counters, Evidence, Ports, Value, Wish
from deciders.limit import SECOND_NS, Limit, asked, may, worth

VALID_NS = SECOND_NS
LOW, HIGH = "net.ipv4.ip_local_port_range[0]", "net.ipv4.ip_local_port_range[1]"
REUSE = "net.ipv4.tcp_tw_reuse"
BUCKETS = "net.ipv4.tcp_max_tw_buckets"
NAMES = (LOW, HIGH, REUSE, BUCKETS)
LAST_PORT = 65535
GLOBALLY, LOOPBACK_ONLY = 1, 2
"""Of tcp_tw_reuse."""
MOST = 1 << 40
NEAR = 32
"""Nearer than one of so many the way back ends in one step."""

PortsEvent = Ports | Counters | Value


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.ports` in the configuration."""

    floor: Annotated[int, Meta(ge=1024, le=65535)] = 10240
    """ip_local_port_range never begins lower."""
    factor: Annotated[float, Meta(gt=1, le=2)] = 2.0
    """How many times as many ports, or buckets, at once."""
    idle_s: Annotated[float, Meta(ge=1)] = 3600.0
    """What was not needed for so long goes half the way back, and again after a quarter of it."""


class Place(Struct):
    """One namespace."""

    netns: int
    netns_ino: int
    limits: dict[str, Limit]
    """By tunable."""
    stepped_ns: dict[str, int] = {}
    """When each last went a step back."""
    timestamps: int = 0
    tw: int = 0
    exhausted: int = 0
    tw_full: int = 0
    overflows: int = -1
    """As net/netstat has them; -1: not read yet."""
    ports_ns: int = 0
    """When ports last ran out, or nobody knew."""
    ended_ns: int = 0
    """When they last did so at the end of the range; 0: never."""
    buckets_ns: int = 0
    """The same of buckets."""
    idle_times: int = 1
    came_down: bool = False


def widen(policy: Policy, place: Place, event: Ports) -> list[Wish]:
    """More ports: upwards, downwards, or sooner."""
    low, high, reuse = (place.limits[name] for name in (LOW, HIGH, REUSE))
    span = high.value - low.value + 1
    if not low.value or span < 1:
        return []
    found = f"no local port of {low.value} to {high.value} for a connect(), {place.exhausted} so far"
    more = max(1, int(span * (policy.factor - 1)))
    if high.value < LAST_PORT and not high.held:
        return _ask(place, HIGH, min(LAST_PORT, high.value + more), found, event)
    # Of one parity with what it was: the kernel looks through every second port first.
    down = max(policy.floor, low.value - (more + more % 2))
    if down < low.value and not low.held:
        return _ask(place, LOW, down, found, event)
    if reuse.value == LOOPBACK_ONLY and place.timestamps == 1:
        return _ask(place, REUSE, GLOBALLY, f"{found}, and the range ends here; {place.tw} in TIME_WAIT", event)
    return _fewer_buckets(place, f"{found}, and the range ends here; TIME_WAITs hold them", event)


def _fewer_buckets(place: Place, why: str, event: Ports) -> list[Wish]:
    """A connection that finds no bucket ends without TIME_WAIT, and its port is free at once: where there are no more
    ports, more buckets than at first would take away what there are."""
    place.ended_ns, limit = event.t_ns, place.limits[BUCKETS]
    grown = 0 < limit.original < limit.value and limit.low <= limit.original
    return _ask(place, BUCKETS, limit.original, why, event) if grown else []


def exhausted(policy: Policy, place: Place) -> str:
    """What people can do where the range has ended and was too small all the same; empty where it has not."""
    low, high = place.limits[LOW].value, place.limits[HIGH].value
    if not place.exhausted or not low or high < LAST_PORT or low > policy.floor:
        return ""
    return (
        f"netns {place.netns}: {place.exhausted} connect() calls found no port of {low} to {high}: more addresses,"
        " here or where they go to, or connections that are kept open"
    )


def more_buckets(policy: Policy, place: Place, event: Ports | Counters, found: str) -> list[Wish]:
    """Room for more TIME_WAITs, unless they would hold the last ports."""
    limit, idle_ns = place.limits[BUCKETS], int(policy.idle_s * SECOND_NS)
    if not limit.value or (place.ended_ns and event.t_ns - place.ended_ns < idle_ns):
        return []
    want = min(int(limit.value * policy.factor), limit.high or MOST, _harmless(place))
    return _ask(place, BUCKETS, want, found, event) if want > limit.value and worth(limit, want) else []


def _harmless(place: Place) -> int:
    """So many TIME_WAITs leave ports for others even if all go to one place. Where there are more than ports already,
    they go to many, or are a server's, which hold none."""
    low, high, reuse = (place.limits[name].value for name in (LOW, HIGH, REUSE))
    span = high - low + 1
    if not low or place.tw > span or (reuse == GLOBALLY and place.timestamps == 1):
        return MOST
    return span // 2


def back(policy: Policy, place: Place, event: Value) -> list[Wish]:
    """Half the way to the original, when that was enough for long."""
    name, limit = event.tunable, place.limits[event.tunable]
    idle_ns = int(policy.idle_s * place.idle_times * SECOND_NS)
    needed_ns = place.buckets_ns if name == BUCKETS else place.ports_ns
    quiet_ns = event.t_ns - needed_ns
    since_ns = event.t_ns - place.stepped_ns.get(name, 0)
    if limit.original < 0 or quiet_ns < idle_ns or since_ns < idle_ns // 4 or limit.value == limit.original:
        return []
    # More than trimtab made of it is somebody's wish, and not known to be too much.
    grown = limit.value < limit.original if name in (LOW, REUSE) else limit.value > limit.original
    if not grown or not limit.low <= limit.original <= limit.high:
        return []
    gap = limit.original - limit.value
    near = name == REUSE or abs(gap) * NEAR <= limit.value
    want = limit.original if near else limit.value + min(gap // 2, limit.value)
    found = f"none lacked for {quiet_ns // SECOND_NS} s; back towards {limit.original}"
    wishes = _ask(place, name, want, found, event)
    if wishes:
        place.stepped_ns[name], place.came_down = event.t_ns, True
    return wishes


def _ask(place: Place, name: str, want: int, why: str, event: PortsEvent) -> list[Wish]:
    limit = place.limits[name]
    if want == limit.value or want < limit.low or not may(limit, event.t_ns):
        return []
    asked(limit, event.t_ns)
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "low": place.limits[LOW].value,
        "high": place.limits[HIGH].value,
        "exhausted": place.exhausted,
        "tw": place.tw,
        "tw_max": place.limits[BUCKETS].value,
        "tw_full": place.tw_full,
        "tw_reuse": place.limits[REUSE].value,
    }
    return [Wish(VERSION, event.t_ns, VALID_NS, name, place.netns, place.netns_ino, limit.value, want, why, evidence)]
