"""tcp_rmem[1] and tcp_wmem[1] of each network namespace: what a connection begins with, learnt from those that ended.

Needs (deciders.tcp_needs) are remembered by service. What three quarters of a namespace's connections needed at least,
all that ended counted, is what the next ones are to begin with: in small steps, at most a share of the largest size,
and down again when they need less, or when there are none. It never grows while TCP holds much of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from bus.schema import VERSION, Evidence, Outcome, TcpEnd, Value, Wish
from bus.tunables import INT_MAX
from deciders.limit import SECOND_NS, Limit, answered, asked, bounds, learn, may
from deciders.tcp_limit import Policy
from deciders.tcp_needs import Need, Use, needed, record
from deciders.tcp_scarce import Scarcity, pressed, scarce

RMEM, WMEM = "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"
TUNABLES = (f"{RMEM}[1]", f"{WMEM}[1]")
LARGEST = (f"{RMEM}[2]", f"{WMEM}[2]")
SERVICES_MAX = 16
NETNS_MAX = 1024
VALID_NS = SECOND_NS
ENOUGH = 8.0
"""Connections, before they say anything; ..."""
NONE = 1.0
"""... and when so few are left of them, they say nothing any more."""
SPACING_NS = 30 * SECOND_NS
"""Between two changes of one of them: connections must have begun with the last one, and ended."""
WEIGHED_NS = 2 * SECOND_NS
"""Nothing is worked out more often."""
WORTH = 1.1
"""A rise by less is not worth a change; ..."""
SPARE = 1.5
"""... and neither is a way down by less."""


class Side(Struct):
    """One of the two sizes of a namespace."""

    limit: Limit = field(default_factory=Limit)
    largest: int = 0
    """[2]; 0: not known."""
    changed_ns: int = 0
    weighed_ns: int = 0
    spare_ns: int = 0
    """Since when less would do; 0: it would not."""


class Start(Struct):
    """One namespace: both initial sizes, and what they are learnt from. Bounded: SERVICES_MAX services, the one silent
    longest goes first."""

    inode: int
    sides: tuple[Side, Side]
    uses: dict[int, Use] = {}
    """By port."""


Starts = dict[int, Start]
"""By namespace."""


def ended(starts: Starts, scarcity: Scarcity, policy: Policy, event: TcpEnd) -> Sequence[Wish]:
    """One more connection, which stands for all that ended since the last."""
    start, port = _start(starts, event), min(event.sport, event.dport)
    use = start.uses.pop(port, None) or Use(event.t_ns, ({}, {}))
    start.uses[port] = use
    if len(start.uses) > SERVICES_MAX:
        del start.uses[next(iter(start.uses))]
    record(use, event)
    sizes = (
        (event.rcvbuf_initial_bytes, event.rcvbuf_limit_bytes),
        (event.sndbuf_initial_bytes, event.sndbuf_limit_bytes),
    )
    wishes: list[Wish] = []
    for number, (initial, largest) in enumerate(sizes):
        _learn(start.sides[number], initial, event.t_ns)
        start.sides[number].largest = largest
        wishes += _weigh(start, scarcity, policy, number, event)
    return wishes


def told(starts: Starts, scarcity: Scarcity, policy: Policy, event: Value) -> Sequence[Wish]:
    """The value of [1], and the change that follows from what is known."""
    start, number = _start(starts, event), TUNABLES.index(event.tunable)
    side = start.sides[number]
    bounds(side.limit, event)
    _learn(side, event.value, event.t_ns)
    return _weigh(start, scarcity, policy, number, event)


def largest(starts: Starts, event: Value) -> None:
    """The value of [2]."""
    _start(starts, event).sides[LARGEST.index(event.tunable)].largest = event.value


def answer(starts: Starts, event: Outcome) -> None:
    """What became of a wish."""
    start = starts.get(event.netns)
    if start is not None and event.tunable in TUNABLES:
        side = start.sides[TUNABLES.index(event.tunable)]
        answered(side.limit, event)
        _learn(side, event.value, event.t_ns)


def _learn(side: Side, value: int, t_ns: int) -> None:
    known = side.limit.value
    if learn(side.limit, value, t_ns) and known:
        side.changed_ns = t_ns


def _weigh(start: Start, scarcity: Scarcity, policy: Policy, number: int, event: Value | TcpEnd) -> Sequence[Wish]:
    side, t_ns = start.sides[number], event.t_ns
    if t_ns - side.weighed_ns < WEIGHED_NS or t_ns - side.changed_ns < SPACING_NS or not may(side.limit, t_ns):
        return ()
    side.weighed_ns = t_ns
    found = needed(start.uses, number, policy.initial_less, t_ns)
    want, why = _wanted(policy, scarcity, side, found, t_ns)
    if not want or want == side.limit.value:
        return ()
    return (_wish(start, number, want, why, found, event),)


def _start(starts: Starts, event: Value | TcpEnd) -> Start:
    start = starts.get(event.netns)
    if start is None:
        start = starts[event.netns] = Start(event.netns_ino, (Side(), Side()))
        if len(starts) > NETNS_MAX:
            del starts[next(iter(starts))]
    return start


def _wanted(policy: Policy, scarcity: Scarcity, side: Side, found: Need, t_ns: int) -> tuple[int, str]:
    """The next value and why; 0: as it is."""
    limit, idle_ns = side.limit, int(policy.idle_s * SECOND_NS)
    value = limit.value
    # Where the original is not known yet, nothing has been changed.
    least = max(limit.original, limit.low) if limit.original > 0 else value
    goal = min(found.size, int(side.largest * policy.initial_share), limit.high or INT_MAX)
    down = max(least, -int(-value // policy.factor))
    if scarce(scarcity, t_ns):
        return (down, f"TCP runs out of memory: back towards {limit.original}") if value > least else (0, "")
    if found.connections >= ENOUGH and goal > WORTH * value:
        side.spare_ns = 0
        want = min(goal, int(value * policy.factor))
        return (0, "") if want < limit.low or pressed(scarcity, t_ns) else (want, _why(policy, found, value))
    if value <= least or goal * SPARE >= value or NONE < found.connections < ENOUGH:
        side.spare_ns = 0
        return 0, ""
    side.spare_ns = side.spare_ns or t_ns
    if t_ns - side.spare_ns < idle_ns:
        return 0, ""
    side.spare_ns = t_ns - idle_ns + idle_ns // 4
    return max(down, goal), f"connections have needed less than {value} bytes for long: back towards {limit.original}"


def _why(policy: Policy, found: Need, value: int) -> str:
    return (
        f"{1 - policy.initial_less:.0%} of {found.connections:.0f} connections, most of them to port {found.port},"
        f" needed {found.size} bytes or more and began with {value}"
    )


def _wish(start: Start, number: int, want: int, why: str, found: Need, event: Value | TcpEnd) -> Wish:
    side = start.sides[number]
    asked(side.limit, event.t_ns)
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "needed_bytes": found.size,
        "connections": int(found.connections),
        "port": found.port,
        "largest_bytes": side.largest,
    }
    return Wish(
        VERSION, event.t_ns, VALID_NS, TUNABLES[number], event.netns, start.inode, side.limit.value, want, why, evidence
    )
