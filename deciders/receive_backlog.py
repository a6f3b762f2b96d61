"""net.core.netdev_max_backlog: the queue of received packets that each CPU has, where no card's own ring is polled.

Packets of veth pairs, of loopback and those that RPS hands to another CPU wait there, and one that finds the queue full
is dropped (enqueue_to_backlog in net/core/dev.c). So the queue grows when packets were dropped, by doubling, as long as
that helps: a burst fits in sooner or later, but a CPU that gets more than it can do fills any queue. Packets that the
flow limit dropped (one flow had more than its share) are no reason: a longer queue is not what they lack.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.schema import Counters, Drops, Evidence
from deciders.climb import Climb, go_down, higher, judge, lower, may_change
from deciders.limit import SECOND_NS
from deciders.receive_policy import Policy

NAME = "net.core.netdev_max_backlog"
REASON = "CPU_BACKLOG"
PACKET_BYTES = 2048
"""What a packet of up to 1500 bytes takes in memory, its sk_buff included: half a page and a little."""
RAM_SHARE = 64
FLOOR_CEILING = 4096
"""So much is always allowed: 8 MiB for each CPU."""
JUDGE_NS = SECOND_NS
"""A growth is given so long to show whether it helps."""
PROBE_NS = SECOND_NS // 10
"""As often the probe tells of a place, while packets are dropped there."""
PLACES_MAX = 1024
FLOW_LIMIT_SHARE = 0.5


@dataclass(slots=True)
class Backlog:
    """Bounded by PLACES_MAX."""

    climb: Climb = field(default_factory=lambda: Climb(JUDGE_NS))
    ceiling: int = FLOOR_CEILING
    """What memory allows."""
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    """(namespace, device) -> packets that the probe has told of."""
    totals: tuple[int, int] = (-1, -1)
    """Of softnet_stat: dropped, flow_limit."""
    told: int = 0
    """Packets that the probe told of since softnet_stat was last read, which has them as well."""
    dropped: int = 0
    """Packets dropped since since_ns."""
    since_ns: int = 0
    active_ns: int = 0
    """Of that time, so much in which some were: bursts are compared with bursts, however much quiet is between them."""
    dropped_ns: int = 0
    """When the last one was."""
    quiet_ns: int = 0
    """Since when none was."""
    flow_limited: bool = False
    """Most of the last drops were the flow limit's."""


def on_host(backlog: Backlog, mem_bytes: int, cpus: int) -> None:
    """Each CPU has such a queue; all of them full may take a share of memory."""
    backlog.ceiling = max(FLOOR_CEILING, mem_bytes // RAM_SHARE // PACKET_BYTES // max(1, cpus))


def on_drops(policy: Policy, backlog: Backlog, event: Drops) -> None:
    """What the probe tells, at once, of drops for REASON."""
    place = (event.netns, event.ifindex)
    before = backlog.places.pop(place, 0)
    backlog.places[place] = event.dropped
    if len(backlog.places) > PLACES_MAX:
        del backlog.places[next(iter(backlog.places))]
    # From 1 again where the probe forgot it. The first that is heard of may be the sum of days.
    more = event.dropped - before if before and event.dropped >= before else 1
    backlog.told += more
    _count(policy, backlog, more, event.t_ns, PROBE_NS)


def on_counters(policy: Policy, backlog: Backlog, event: Counters) -> None:
    """softnet_stat each second: the drops of which no probe told, and how many were the flow limit's."""
    totals = (event.values.get("dropped", 0), event.values.get("flow_limit", 0))
    before, backlog.totals = backlog.totals, totals
    told, backlog.told = backlog.told, 0
    more, limited = totals[0] - before[0], totals[1] - before[1]
    if before[0] < 0:
        return
    if more > 0:
        backlog.flow_limited = limited > FLOW_LIMIT_SHARE * more
    _count(policy, backlog, max(0, more - told), event.t_ns, SECOND_NS)


def _count(policy: Policy, backlog: Backlog, more: int, t_ns: int, span_ns: int) -> None:
    """span_ns: these were dropped within so long before t_ns."""
    backlog.quiet_ns = t_ns if more or not backlog.quiet_ns else backlog.quiet_ns
    if backlog.since_ns < backlog.climb.grown_ns:
        backlog.dropped, backlog.since_ns, backlog.active_ns = 0, backlog.climb.grown_ns, 0
    if t_ns - backlog.since_ns > policy.window_s * SECOND_NS:
        backlog.dropped, backlog.since_ns, backlog.active_ns = 0, t_ns, 0
    if more:
        backlog.dropped += more
        backlog.active_ns += min(span_ns, max(0, t_ns - max(backlog.dropped_ns, backlog.climb.grown_ns)))
        backlog.dropped_ns = max(backlog.dropped_ns, t_ns)


def want(policy: Policy, backlog: Backlog, t_ns: int) -> tuple[int, str]:
    """The value wanted now and why; 0 for none."""
    climb, limit = backlog.climb, backlog.climb.limit
    if not limit.value or not may_change(climb, t_ns):
        return 0, ""
    _come_down(policy, backlog, t_ns)
    if down := lower(climb):
        return down, climb.why
    if backlog.dropped < policy.dropped or backlog.flow_limited:
        return 0, ""
    rate = backlog.dropped * SECOND_NS / max(SECOND_NS, backlog.active_ns)
    if not climb.judged:
        # What it is compared with may be the first few of many: the first growth does not wait for the others.
        climb.rate = max(climb.rate, rate)
    judge(climb, rate, t_ns, policy.backlog_helps)
    if climb.useless >= policy.backlog_patience:
        why = (
            f"a queue of {limit.value} is full as often as one of {climb.start}: {rate:.0f} packets/s dropped,"
            f" before {climb.rate:.0f}; a longer one only delays"
        )
        climb.useless = 0
        go_down(climb, climb.start, why, t_ns, policy.rest_s)
        return lower(climb), why
    climb.asked_rate = rate
    up = higher(climb, policy.backlog_factor, backlog.ceiling, t_ns)
    return up, f"{backlog.dropped} packets found a CPU's queue of {limit.value} full"


def _come_down(policy: Policy, backlog: Backlog, t_ns: int) -> None:
    """Halfway back after a long quiet, and again after each quarter of it."""
    climb, limit = backlog.climb, backlog.climb.limit
    quiet_ns, idle_ns = t_ns - backlog.quiet_ns, int(policy.idle_s * SECOND_NS)
    if climb.goal or not 0 <= limit.original < limit.value or not backlog.quiet_ns or quiet_ns < idle_ns:
        return
    why = f"for {policy.idle_s:g} s no packet found a CPU's queue of {limit.value} full; back towards {limit.original}"
    go_down(climb, max(limit.original, (limit.value + 1) // 2), why, t_ns)
    backlog.quiet_ns = t_ns - idle_ns + idle_ns // 4


def evidence(backlog: Backlog) -> Evidence:
    """The numbers, for a wish."""
    return {
        "dropped": backlog.dropped,
        "since_ns": backlog.since_ns,
        "softnet_dropped": max(0, backlog.totals[0]),
        "flow_limit": max(0, backlog.totals[1]),
        "ceiling": min(backlog.ceiling, 2**63 - 1),
    }
