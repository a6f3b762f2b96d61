"""tcp_mem[0..2] and tcp_max_orphans, of the whole host: grow before TCP runs out of memory, come down long after.

What all TCP sockets of all namespaces hold stands in net/sockstat, in pages, each second. At three quarters of
tcp_mem[1] TCP nears pressure (windows stop growing), at three quarters of tcp_mem[2] exhaustion (packets are dropped,
connections reset: __sk_mem_raise_allocated in net/core/sock.c, tcp_check_oom in net/ipv4/tcp.c). Between two readings a
dropped packet (PROTO_MEM), TCPMemoryPressures and TCPAbortOnMemory tell, where at least half of a limit is known to be
used: PROTO_MEM is also said of UDP and of one socket's full buffer, TCPAbortOnMemory also of orphans. The three grow
from the top and come down from the bottom, so that they are in order at every instant, and end at shares of memory.
Where tcp_mem[2] can grow no more, deciders.tcp_scarce takes from the buffers' limits instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bus.schema import Counters, Drops, Netns, Outcome, Value, Wish
from deciders.limit import Limit, answered, bounds, learn
from deciders.tcp_pages import MEM, ORPHANS, Memory, Policy, next_wish

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "tcp_memory"
TOPICS = (Counters, Drops, Value, Outcome, Netns)

BLIND_NS = 60_000_000_000
"""Unread for longer than this, nobody knows that little was held in between."""
NETNS_MAX = 256
COUNTED = ("TcpExt.TCPMemoryPressures", "TcpExt.TCPAbortOnMemory")
PLACES = (f"{MEM}[0]", f"{MEM}[1]", f"{MEM}[2]", ORPHANS)


def start(policy: Policy) -> Memory:
    """Nothing known yet."""
    return Memory(policy, [Limit(), Limit(), Limit()], Limit())


def step(state: Memory, event: Any) -> tuple[Memory, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: Memory) -> list[str]:
    """See deciders.engine.Decider.advice."""
    full, most, orphans = state.policy.full, state.pages[2], state.orphans
    lines = []
    if most.high and most.value >= most.high and state.held_pages >= full * most.value:
        lines.append(
            f"TCP holds {state.held_pages} of {most.value} pages, and may have no more: fewer connections, or smaller"
            " buffers where programs set them (SO_RCVBUF, SO_SNDBUF)"
        )
    if orphans.high and orphans.value >= orphans.high and state.orphaned >= full * orphans.value:
        lines.append(
            f"{state.orphaned} of {orphans.value} TCP sockets without a program, and there may be no more: peers that"
            " do not take what is sent; tcp_orphan_retries, TCP_USER_TIMEOUT"
        )
    return lines


def _on_counters(state: Memory, event: Counters) -> Sequence[Wish]:
    match event.source:
        case "net/sockstat":
            return _on_sockets(state, event)
        case "net/netstat":
            return _on_totals(state, event)
        case "meminfo":
            total = event.values.get("MemTotal", 0)
            state.spare = event.values.get("MemAvailable", total) / total if total > 0 else 1.0
    return ()


def _on_sockets(state: Memory, event: Counters) -> Sequence[Wish]:
    held = event.values.get("TCP.mem")
    if held is None or event.t_ns < state.read_ns:
        return ()
    if event.t_ns - state.read_ns > BLIND_NS:
        state.quiet_ns = state.orphans_quiet_ns = event.t_ns
    state.read_ns, state.held_pages = event.t_ns, max(0, held)
    state.orphaned = max(0, event.values.get("TCP.orphan", 0))
    return next_wish(state, event)


def _on_totals(state: Memory, event: Counters) -> Sequence[Wish]:
    pressures, aborts = (event.values.get(name, 0) for name in COUNTED)
    before = state.totals.pop(event.netns, None)
    state.totals[event.netns] = (pressures, aborts)
    if len(state.totals) > NETNS_MAX:
        del state.totals[next(iter(state.totals))]
    if before is not None and (pressures > before[0] or aborts > before[1]):
        state.lost_ns = max(state.lost_ns, event.t_ns)
        return next_wish(state, event)
    return ()


def _on_drops(state: Memory, event: Drops) -> Sequence[Wish]:
    if event.reason != "PROTO_MEM":
        return ()
    state.lost_ns = max(state.lost_ns, event.t_ns)
    return next_wish(state, event)


def _on_value(state: Memory, event: Value) -> Sequence[Wish]:
    limit = _limit(state, event.tunable)
    if limit is None:
        return ()
    bounds(limit, event)
    return _told(state, limit, event)


def _on_outcome(state: Memory, event: Outcome) -> Sequence[Wish]:
    limit = _limit(state, event.tunable)
    if limit is None:
        return ()
    answered(limit, event)
    return _told(state, limit, event)


def _told(state: Memory, limit: Limit, event: Value | Outcome) -> Sequence[Wish]:
    learn(limit, event.value, event.t_ns)
    if not state.first[1]:
        state.first = (state.pages[0].value, state.pages[1].value)
    return next_wish(state, event)


def _on_netns(state: Memory, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        state.totals.pop(event.netns, None)
    return ()


def _limit(state: Memory, tunable: str) -> Limit | None:
    if tunable not in PLACES:
        return None
    return [*state.pages, state.orphans][PLACES.index(tunable)]


_HANDLERS: dict[type[Any], Callable[[Memory, Any], Sequence[Wish]]] = {
    Counters: _on_counters,
    Drops: _on_drops,
    Value: _on_value,
    Outcome: _on_outcome,
    Netns: _on_netns,
}
