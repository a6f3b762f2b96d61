"""net.core.netdev_budget and netdev_budget_usecs: how much one run of the receive softirq may do.

A run that has handled so many packets, or has taken so long, stops with work left and is counted as a time squeeze
(net_rx_action in net/core/dev.c): the rest waits for the next run, or for ksoftirqd behind other tasks. Which of the
two ended it the kernel does not say; but where there were fewer packets per squeeze than the budget, time did. One of
them grows at a time, so that it shows whether that helped. Meanwhile tasks on that CPU wait: where the host's tasks
wait clearly more for a CPU than before (PSI), both come down again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.schema import Counters, Evidence
from deciders.climb import Climb, go_down, higher, judge, lower, may_change
from deciders.limit import SECOND_NS
from deciders.receive_policy import Policy

PACKETS = "net.core.netdev_budget"
TIME = "net.core.netdev_budget_usecs"
UNITS = {PACKETS: "packets", TIME: "us"}
MARK_MAX_NS = 60 * SECOND_NS
"""Totals further apart than this say nothing of a rate."""
NEVER = -1.0
SPACING_NS = 4_500_000_000


@dataclass(slots=True)
class Budget:
    """Both keys, and what was measured over the last window."""

    keys: dict[str, Climb] = field(default_factory=lambda: {PACKETS: Climb(SPACING_NS), TIME: Climb(SPACING_NS)})
    mark: tuple[int, int, int] = (0, 0, 0)
    """When the window began, time_squeeze and processed then."""
    wait_mark: tuple[int, int] = (0, 0)
    """The same of pressure/cpu: when, us."""
    squeezes_per_s: float = NEVER
    packets_per_squeeze: float = 0.0
    wait: float = NEVER
    """Share of the time that some task waited for a CPU."""
    wait_before: float = NEVER
    """The same when the budgets began to grow."""
    quiet_ns: int = 0
    """Since when there have been few squeezes."""
    window_ns: int = 0
    """When the last window ended, if nothing has come of it yet; else 0."""


def on_softnet(policy: Policy, budget: Budget, event: Counters) -> None:
    """softnet_stat each second."""
    squeezes, processed = event.values.get("time_squeeze", 0), event.values.get("processed", 0)
    since_ns, old, old_processed = budget.mark
    passed_ns, more = event.t_ns - since_ns, squeezes - old
    if not since_ns or more < 0 or processed < old_processed or not 0 <= passed_ns <= MARK_MAX_NS:
        budget.mark = (event.t_ns, squeezes, processed)
        return
    if passed_ns < policy.squeeze_window_s * SECOND_NS:
        return
    budget.mark, budget.window_ns = (event.t_ns, squeezes, processed), event.t_ns
    budget.squeezes_per_s = more * SECOND_NS / passed_ns
    budget.packets_per_squeeze = (processed - old_processed) / more if more else 0.0
    if not budget.quiet_ns or budget.squeezes_per_s >= policy.squeezes_per_s / 4:
        budget.quiet_ns = event.t_ns


def on_pressure(policy: Policy, budget: Budget, event: Counters) -> None:
    """pressure/cpu each second."""
    total_us = event.values.get("some.total_us", -1)
    since_ns, old = budget.wait_mark
    passed_ns = event.t_ns - since_ns
    if not since_ns or total_us < old or not 0 <= passed_ns <= MARK_MAX_NS:
        budget.wait_mark = (event.t_ns, max(0, total_us))
    elif passed_ns >= policy.squeeze_window_s * SECOND_NS:
        budget.wait_mark = (event.t_ns, total_us)
        budget.wait = min(1.0, (total_us - old) * 1000 / passed_ns)


def want(policy: Policy, budget: Budget, t_ns: int) -> tuple[str, int, str]:
    """The key to change now, its value and why; 0 for none."""
    _come_down(policy, budget, t_ns)
    for name, climb in budget.keys.items():
        if (down := lower(climb)) and may_change(climb, t_ns):
            return name, down, climb.why
    window_ns, budget.window_ns = budget.window_ns, 0
    if not window_ns:
        return "", 0, ""
    for name, climb in budget.keys.items():
        # The window may have begun well before the growth: then the next one tells.
        if window_ns - climb.grown_ns >= 0.9 * policy.squeeze_window_s * SECOND_NS:
            judge(climb, budget.squeezes_per_s, t_ns, policy.budget_helps)
        if climb.useless >= policy.budget_patience:
            _give_up(policy, budget, name, t_ns)
    return _grow(policy, budget, t_ns)


def _grow(policy: Policy, budget: Budget, t_ns: int) -> tuple[str, int, str]:
    first = PACKETS if budget.packets_per_squeeze >= budget.keys[PACKETS].limit.value else TIME
    ready = all(climb.judged and not climb.goal for climb in budget.keys.values())
    if budget.squeezes_per_s < policy.squeezes_per_s or not ready or _is_busy(policy, budget):
        return "", 0, ""
    for name in (first, *(budget.keys.keys() - {first})):
        climb = budget.keys[name]
        up = higher(climb, policy.budget_factor, climb.limit.high, t_ns) if climb.limit.value else 0
        if up and may_change(climb, t_ns):
            climb.asked_rate = budget.squeezes_per_s
            if not _grown(budget):
                budget.wait_before = budget.wait
            why = (
                f"{budget.squeezes_per_s:.0f} times a second a run of the receive softirq ended with work left, after"
                f" {budget.packets_per_squeeze:.0f} packets on the average, at {climb.limit.value} {UNITS[name]}"
            )
            return name, up, why
    return "", 0, ""


def _give_up(policy: Policy, budget: Budget, name: str, t_ns: int) -> None:
    climb = budget.keys[name]
    climb.useless = 0
    why = (
        f"{budget.squeezes_per_s:.0f} squeezes/s with {climb.limit.value} {UNITS[name]}, {climb.rate:.0f} with"
        f" {climb.start}: more does not help; back to {climb.start}"
    )
    go_down(climb, climb.start, why, t_ns, policy.rest_s)


def _come_down(policy: Policy, budget: Budget, t_ns: int) -> None:
    """All the way where tasks wait for it; halfway after a long quiet, and again after each quarter of it."""
    idle_ns = int(policy.idle_s * SECOND_NS)
    idle = bool(budget.quiet_ns) and t_ns - budget.quiet_ns >= idle_ns
    busy = _grown(budget) and _is_busy(policy, budget)
    for climb in budget.keys.values():
        limit = climb.limit
        if climb.goal or not 0 <= limit.original < limit.value:
            continue
        if busy:
            why = (
                f"some task waited for a CPU {budget.wait:.0%} of the time, before the budgets grew"
                f" {max(0.0, budget.wait_before):.0%}; from {limit.value} back towards {limit.original}"
            )
            go_down(climb, limit.original, why, t_ns, policy.rest_s)
        elif idle:
            why = (
                f"for {policy.idle_s:g} s fewer than {policy.squeezes_per_s / 4:g} squeezes/s; from {limit.value} back"
                f" towards {limit.original}"
            )
            go_down(climb, max(limit.original, (limit.value + 1) // 2), why, t_ns)
    if idle:
        budget.quiet_ns = t_ns - idle_ns + idle_ns // 4


def _is_busy(policy: Policy, budget: Budget) -> bool:
    before = budget.wait_before if _grown(budget) else NEVER
    return budget.wait >= policy.cpu_wait and before >= 0 and budget.wait - before >= policy.cpu_wait_more


def _grown(budget: Budget) -> bool:
    return any(0 <= climb.limit.original < climb.limit.value for climb in budget.keys.values())


def evidence(budget: Budget) -> Evidence:
    """The numbers, for a wish."""
    return {
        "squeezes_per_s": int(budget.squeezes_per_s),
        "packets_per_squeeze": int(budget.packets_per_squeeze),
        "cpu_wait_percent": int(100 * budget.wait),
        "cpu_wait_before_percent": int(100 * budget.wait_before),
    }
