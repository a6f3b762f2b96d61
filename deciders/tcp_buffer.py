"""tcp_rmem and tcp_wmem of each network namespace: [2] grows while that makes a flow faster, and no further.

A flow that fills its receive window, or that its send buffer holds back (in the kernel's own word), and whose buffer is
near the limit gets half as much again; deciders.tcp_growth has the rules of what happens then. A limit that nothing has
needed for long comes down by the same steps, never below the original; so does one when TCP runs out of memory
(deciders.tcp_scarce), or where it only holds a queue (deciders.tcp_queue). Sockets whose size the application has set
(SO_RCVBUF, SO_SNDBUF) do not depend on the limit: they are no evidence for it, but may be worth advice
(deciders.tcp_locked). [1] is learnt from what connections used (deciders.tcp_initial).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field

from bus.schema import Counters, Netns, Outcome, Owner, Probe, TcpEnd, TcpRcvBuf, TcpSndBuf, Value, Wish
from deciders import tcp_initial, tcp_locked
from deciders.flow import SAMPLES_MIN, SPAN_MIN_NS, UNKNOWN, add
from deciders.limit import answered, bounds, may
from deciders.tcp_felt import READS, fills, held_back
from deciders.tcp_growth import come_down, go_back, weigh
from deciders.tcp_initial import Starts
from deciders.tcp_limit import Policy, Sample, learn_limit
from deciders.tcp_locked import Locked
from deciders.tcp_queue import SPARE, watch
from deciders.tcp_scarce import TCP_MEM, Scarcity, bound, give_way, read, scarce
from deciders.tcp_side import Side, forget, heard, knob_of, needed

__all__ = ["NAME", "TOPICS", "Policy", "advice", "start", "step"]

NAME = "tcp_buffer"
TOPICS = (TcpRcvBuf, TcpSndBuf, TcpEnd, Owner, Counters, Value, Outcome, Netns, Probe)

MODERATE = "net.ipv4.tcp_moderate_rcvbuf"
FIXED_MAX = 256
DEAF_NS = 60_000_000_000
"""A probe unheard of for longer says nothing of what was needed in between."""
WSCALE_FULL = 0.9
"""A window at this share of 65535 << wscale is as large as it gets (RFC 7323, section 2.2)."""
WSCALE_MAX = 14


class State(Struct):
    """Everything known."""

    policy: Policy
    receive: Side
    send: Side
    scarcity: Scarcity = field(default_factory=Scarcity)
    starts: Starts = {}
    locked: Locked = field(default_factory=Locked)
    fixed: dict[int, int] = {}
    """Namespaces whose receive buffers the kernel does not size (tcp_moderate_rcvbuf is 0) -> when that was last so."""
    t_ns: int = 0


def start(policy: Policy) -> State:
    """Nothing known yet."""
    spare = SPARE / policy.factor
    return State(
        policy,
        Side("net.ipv4.tcp_rmem[2]", "tcp_rcvbuf", "receive window", {}, {}, spare * policy.window_used),
        Side("net.ipv4.tcp_wmem[2]", "tcp_sndbuf", "send buffer", {}, {}, spare * policy.send_used),
    )


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def advice(state: State) -> list[str]:
    """What no tunable can cure, or none of ours: sizes that programs and administrators have set."""
    fastest: dict[int, float] = {}
    for side in (state.receive, state.send) if state.locked.held else ():
        for (netns, _), flow in side.flows.items():
            fastest[netns] = max(flow.best_rate, fastest.get(netns, 0.0))
    return [*tcp_locked.advice(state.locked, fastest, state.t_ns), *map(_fixed, state.fixed)]


def _fixed(netns: int) -> str:
    return (
        f"netns {netns}: {MODERATE} is 0, so receive buffers stay as they begin (tcp_rmem[1]), whatever tcp_rmem[2] is:"
        " set it to 1, unless that is meant"
    )


def _on_receive(state: State, event: TcpRcvBuf) -> Sequence[Wish]:
    if event.locked:
        state.t_ns = event.t_ns
        tcp_locked.receives(state.locked, event)
        return ()
    side, policy = state.receive, state.policy
    t_ns, total, rtt_us = event.t_ns, event.received_bytes, event.rcv_rtt_us or event.srtt_us
    window, buffer = event.rcv_wnd_bytes, event.rcvbuf_bytes
    knob, flow = heard(side, event, buffer, total, rtt_us)
    if flow is None:
        return ()
    if window < flow.window:
        window = flow.window
    span_ns = t_ns - flow.t_ns
    if span_ns < SPAN_MIN_NS or span_ns < rtt_us * 1000 or not rtt_us or not window or not buffer:
        flow.window = window
        return ()
    reads = window >= READS * event.window_clamp_bytes
    # What the window can become when the buffer has grown to the limit.
    largest = window * event.limit_bytes // buffer if buffer < event.limit_bytes else window
    # A receiver's smoothed round trip is that of its handshake, unless it sends, too.
    add(flow, t_ns, total, rtt_us, event.srtt_us, largest if reads else 0)
    near = reads and buffer >= policy.near * event.limit_bytes
    limiting = fills(policy, flow, event, largest) and near
    matters = limiting
    if near and knob.value > knob.original > 0:
        if limiting or flow.used * buffer >= side.spare * knob.value:
            knob.wanted_ns = t_ns
        matters = (t_ns >= knob.watch_ns and watch(knob, flow, t_ns)) or limiting
    if not (knob.attempt or knob.back or (matters and may(knob, t_ns))):
        return ()
    widest = 65535 << min(event.wscale, WSCALE_MAX)
    scale_bytes = 2 * widest if window >= WSCALE_FULL * widest else 0
    return weigh(policy, knob, Sample(event, flow, buffer, event.copied_per_rtt_bytes, limiting, scale_bytes))


def _on_send(state: State, event: TcpSndBuf) -> Sequence[Wish]:
    if event.locked:
        state.t_ns = event.t_ns
        tcp_locked.sends(state.locked, event)
        return ()
    side, policy = state.send, state.policy
    t_ns, total, rtt_us = event.t_ns, event.acked_bytes, event.srtt_us
    buffer = event.sndbuf_bytes
    knob, flow = heard(side, event, buffer, total, rtt_us)
    if flow is None:
        return ()
    span_ns = t_ns - flow.t_ns
    if span_ns < SPAN_MIN_NS or span_ns < rtt_us * 1000 or not rtt_us:
        return ()
    # While losses are repaired, the congestion window is cut to what is in flight, whatever had limited that.
    repairs, flow.retransmits = event.retransmits > flow.retransmits, event.retransmits
    add(flow, t_ns, total, rtt_us, event.min_rtt_us, held_back(event) or (UNKNOWN if repairs else 0))
    near = buffer >= policy.near * event.limit_bytes
    limiting = near and flow.samples >= SAMPLES_MIN and flow.used >= policy.send_used
    matters = limiting
    if near and knob.value > knob.original > 0:
        if limiting or flow.used * buffer >= side.spare * knob.value:
            knob.wanted_ns = t_ns
        matters = (t_ns >= knob.watch_ns and watch(knob, flow, t_ns)) or limiting
    if not (knob.attempt or knob.back or (matters and may(knob, t_ns))):
        return ()
    return weigh(policy, knob, Sample(event, flow, buffer, 0, limiting, 0))


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    side = _side(state, event.tunable)
    if side is None:
        return _on_other(state, event)
    tcp_initial.largest(state.starts, event)
    knob = knob_of(side, event)
    bounds(knob, event)
    learn_limit(knob, event.value, event.t_ns)
    if scarce(state.scarcity, event.t_ns):
        return give_way(state.policy, state.scarcity, knob, event)
    if knob.back:
        return go_back(knob, event)
    if event.t_ns - side.heard_ns > DEAF_NS:
        knob.need_ns = event.t_ns
    return come_down(state.policy, knob, event)


def _on_other(state: State, event: Value) -> Sequence[Wish]:
    if event.tunable in tcp_initial.TUNABLES:
        return tcp_initial.told(state.starts, state.scarcity, state.policy, event)
    if event.tunable == TCP_MEM:
        bound(state.scarcity, event)
    elif event.tunable == MODERATE:
        _moderated(state, event, bool(event.value))
    return ()


def _on_end(state: State, event: TcpEnd) -> Sequence[Wish]:
    _moderated(state, event, event.moderated)
    return tcp_initial.ended(state.starts, state.scarcity, state.policy, event)


def _moderated(state: State, event: Value | TcpEnd, moderated: bool) -> None:
    state.fixed.pop(event.netns, None)
    if not moderated and len(state.fixed) < FIXED_MAX:
        state.fixed[event.netns] = event.t_ns


def _on_owner(state: State, event: Owner) -> Sequence[Wish]:
    tcp_locked.owned(state.locked, event)
    return ()


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    state.t_ns = event.t_ns
    read(state.scarcity, event)
    return ()


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    side = _side(state, event.tunable)
    knob = side.knobs.get(event.netns) if side else None
    if knob is not None:
        answered(knob, event)
        learn_limit(knob, event.value, event.t_ns)
    tcp_initial.answer(state.starts, event)
    return ()


def _on_probe(state: State, event: Probe) -> Sequence[Wish]:
    for side in (state.receive, state.send):
        if event.name == side.probe:
            if event.t_ns - side.heard_ns > DEAF_NS:
                needed(side, event.t_ns)
            side.heard_ns = event.t_ns if event.road else 0
    return ()


def _on_netns(state: State, event: Netns) -> Sequence[Wish]:
    if not event.alive:
        forget(state.receive, event.netns)
        forget(state.send, event.netns)
        tcp_locked.forget(state.locked, event.netns)
        state.starts.pop(event.netns, None)
        state.fixed.pop(event.netns, None)
    return ()


def _side(state: State, tunable: str) -> Side | None:
    for side in (state.receive, state.send):
        if side.tunable == tunable:
            return side
    return None


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    TcpRcvBuf: _on_receive,
    TcpSndBuf: _on_send,
    TcpEnd: _on_end,
    Owner: _on_owner,
    Counters: _on_counters,
    Value: _on_value,
    Outcome: _on_outcome,
    Netns: _on_netns,
    Probe: _on_probe,
}
