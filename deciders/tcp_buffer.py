"""tcp_rmem[2] and tcp_wmem[2] of each network namespace: grow while that makes a flow faster, and no further.

A flow that fills its receive window, or that its send buffer holds back (in the kernel's own word), and whose buffer is
near the limit gets half as much again; deciders.tcp_growth has the rules of what happens then. A limit that nothing has
needed for long comes down by the same steps, never below the original; so does one when TCP runs out of memory
(deciders.tcp_scarce). Sockets whose size the application has set (SO_RCVBUF, SO_SNDBUF) do not depend on the limit and
are no evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field

from bus.schema import Counters, Netns, Outcome, Probe, TcpRcvBuf, TcpSndBuf, Value, Wish
from deciders.flow import SAMPLES_MIN, SPAN_MIN_NS, UNKNOWN, Flow, add
from deciders.limit import answered, bounds, may
from deciders.tcp_growth import come_down, go_back, weigh
from deciders.tcp_limit import Policy, Sample, learn_limit
from deciders.tcp_queue import SPARE, watch
from deciders.tcp_scarce import TCP_MEM, Scarcity, bound, give_way, read, scarce
from deciders.tcp_side import Side, flow_of, forget, knob_of, needed, seen

__all__ = ["NAME", "TOPICS", "Policy", "start", "step"]

NAME = "tcp_buffer"
TOPICS = (TcpRcvBuf, TcpSndBuf, Counters, Value, Outcome, Netns, Probe)

DEAF_NS = 60_000_000_000
"""A probe unheard of for longer says nothing of what was needed in between."""
SLOW_START = 6
"""A flow that has received less than so many times what came in its last round trip is in slow start; ..."""
ACCELERATES = 1.25
"""... while that has grown by this factor since the last sample (it doubles each round trip)."""
QUEUED = 1.25
WSCALE_FULL = 0.9
"""A window at this share of 65535 << wscale is as large as it gets (RFC 7323, section 2.2)."""
WSCALE_MAX = 14
READS = 0.5
"""A window below this share of the clamp: the application is slow to read, and more room would hold more unread."""
SNDBUF_LIMITED = 3
"""TCP_CHRONO_SNDBUF_LIMITED, include/linux/tcp.h."""
FULL = 0.6
ON_ITS_WAY = 0.6
"""Of the memory charged to the buffer; the rest is overhead, or data that waits to be paced out."""
FREE = 0.85
"""Below this share of the congestion window, or of the peer's, that is not what limits."""


class State(Struct):
    """Everything known."""

    policy: Policy
    receive: Side
    send: Side
    scarcity: Scarcity = field(default_factory=Scarcity)


def start(policy: Policy) -> State:
    """Nothing known yet."""
    receive = Side("net.ipv4.tcp_rmem[2]", "tcp_rcvbuf", "receive window", {}, {})
    return State(policy, receive, Side("net.ipv4.tcp_wmem[2]", "tcp_sndbuf", "send buffer", {}, {}))


def step(state: State, event: Any) -> tuple[State, Sequence[Wish]]:
    """See deciders.engine.DeciderModule."""
    return state, _HANDLERS[type(event)](state, event)


def _on_receive(state: State, event: TcpRcvBuf) -> Sequence[Wish]:
    if event.locked:
        return ()
    side, policy = state.receive, state.policy
    t_ns, total, rtt_us = event.t_ns, event.received_bytes, event.rcv_rtt_us or event.srtt_us
    knob = seen(side, event, event.rcvbuf_bytes)
    flow = flow_of(side, knob, event, total, rtt_us)
    if flow is None:
        return ()
    window, buffer = event.rcv_wnd_bytes, event.rcvbuf_bytes
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
    limiting = _fills(policy, flow, event, largest) and near
    needed = limiting or flow.used * buffer >= SPARE * policy.window_used / policy.factor * knob.value
    queues = near and knob.value > knob.original > 0 and watch(knob, flow, t_ns, needed)
    if not (knob.attempt or knob.back or ((limiting or queues) and may(knob, t_ns))):
        return ()
    widest = 65535 << min(event.wscale, WSCALE_MAX)
    scale_bytes = 2 * widest if window >= WSCALE_FULL * widest else 0
    return weigh(policy, knob, Sample(event, flow, buffer, event.copied_per_rtt_bytes, limiting, scale_bytes))


def _fills(policy: Policy, flow: Flow, event: TcpRcvBuf, largest: int) -> bool:
    """Whether the flow fills the largest window that the limit allows, or is about to.

    Early matters: the kernel enlarges a receive buffer only when more is copied in a round trip than ever before
    (tcp_rcv_space_adjust), so a flow that has stayed at its limit for long seldom takes what a raised limit allows.
    """
    record, before = event.copied_per_rtt_bytes, flow.record
    flow.record = record
    starting = event.received_bytes < SLOW_START * record and record > ACCELERATES * before > 0
    # A queue: the path is full already, and the next round trip brings no more.
    if starting and not 0 < QUEUED * event.srtt_us < event.rcv_rtt_us:
        return record * min(2.0, record / before) >= policy.window_used * largest
    if flow.samples >= SAMPLES_MIN:
        return flow.used >= policy.window_used
    return flow.last_used >= policy.window_used and record >= policy.window_used * largest


def _on_send(state: State, event: TcpSndBuf) -> Sequence[Wish]:
    if event.locked:
        return ()
    side, policy = state.send, state.policy
    t_ns, total, rtt_us = event.t_ns, event.acked_bytes, event.srtt_us
    knob = seen(side, event, event.sndbuf_bytes)
    flow = flow_of(side, knob, event, total, rtt_us)
    if flow is None:
        return ()
    span_ns = t_ns - flow.t_ns
    if span_ns < SPAN_MIN_NS or span_ns < rtt_us * 1000 or not rtt_us:
        return ()
    # While losses are repaired, the congestion window is cut to what is in flight, whatever had limited that.
    repairs, flow.retransmits = event.retransmits > flow.retransmits, event.retransmits
    add(flow, t_ns, total, rtt_us, event.min_rtt_us, _held_back(event) or (UNKNOWN if repairs else 0))
    buffer = event.sndbuf_bytes
    near = buffer >= policy.near * event.limit_bytes
    limiting = near and flow.samples >= SAMPLES_MIN and flow.used >= policy.send_used
    needed = limiting or flow.used * buffer >= SPARE * policy.send_used / policy.factor * knob.value
    queues = near and knob.value > knob.original > 0 and watch(knob, flow, t_ns, needed)
    if not (knob.attempt or knob.back or ((limiting or queues) and may(knob, t_ns))):
        return ()
    return weigh(policy, knob, Sample(event, flow, buffer, 0, limiting, 0))


def _held_back(event: TcpSndBuf) -> float:
    """How far the send buffer, and neither the network nor the peer, keeps there from being more in flight; 0 to 1.

    The kernel's own word is true but short: between an ACK and the sender's next write it says "busy". So: the buffer
    is full (a sender is woken at two thirds, sk_stream_is_writeable), and this share of what fills it is on its way.
    """
    if event.limited_by == SNDBUF_LIMITED:
        return 1.0
    in_flight = event.in_flight_packets * event.mss_bytes
    if event.queued_bytes < FULL * event.sndbuf_bytes or in_flight < ON_ITS_WAY * event.queued_bytes:
        return 0.0
    if event.in_flight_packets >= FREE * event.cwnd_packets or in_flight >= FREE * event.snd_wnd_bytes:
        return 0.0
    return min(1.0, in_flight / event.queued_bytes) if event.queued_bytes else 0.0


def _on_value(state: State, event: Value) -> Sequence[Wish]:
    side = _side(state, event.tunable)
    if side is None:
        if event.tunable == TCP_MEM:
            bound(state.scarcity, event)
        return ()
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


def _on_counters(state: State, event: Counters) -> Sequence[Wish]:
    read(state.scarcity, event)
    return ()


def _on_outcome(state: State, event: Outcome) -> Sequence[Wish]:
    side = _side(state, event.tunable)
    knob = side.knobs.get(event.netns) if side else None
    if knob is not None:
        answered(knob, event)
        learn_limit(knob, event.value, event.t_ns)
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
    return ()


def _side(state: State, tunable: str) -> Side | None:
    for side in (state.receive, state.send):
        if side.tunable == tunable:
            return side
    return None


_HANDLERS: dict[type[Any], Callable[[State, Any], Sequence[Wish]]] = {
    TcpRcvBuf: _on_receive,
    TcpSndBuf: _on_send,
    Counters: _on_counters,
    Value: _on_value,
    Outcome: _on_outcome,
    Netns: _on_netns,
    Probe: _on_probe,
}
