"""Whether a TCP flow feels the limit of its buffer: what the two kinds of event say of that."""

from __future__ import annotations

from bus.schema import TcpRcvBuf, TcpSndBuf
from deciders.flow import SAMPLES_MIN, Flow
from deciders.tcp_limit import Policy

SLOW_START = 6
"""A flow that has received less than so many times what came in its last round trip is in slow start; ..."""
ACCELERATES = 1.25
"""... while that has grown by this factor since the last sample (it doubles each round trip)."""
QUEUED = 1.25
SNDBUF_LIMITED = 3
"""TCP_CHRONO_SNDBUF_LIMITED, include/linux/tcp.h."""
FULL = 0.6
ON_ITS_WAY = 0.6
"""Of the memory charged to the buffer; the rest is overhead, or data that waits to be paced out."""
READS = 0.5
"""A window below this share of the clamp: the application is slow to read, and more room would hold more unread."""
FREE = 0.85
"""Below this share of the congestion window, or of the peer's, that is not what limits."""


def fills(policy: Policy, flow: Flow, event: TcpRcvBuf, largest: int) -> bool:
    """Whether the flow fills the largest window that the limit allows, or is about to.

    Early matters: the kernel enlarges a receive buffer only when more is copied in a round trip than ever before
    (tcp_rcv_space_adjust), so a flow that has stayed at its limit for long seldom takes what a raised limit allows.
    """
    record, before = event.copied_per_rtt_bytes, flow.record
    flow.record = record
    starting = record > ACCELERATES * before > 0 and event.received_bytes < SLOW_START * record
    # A queue: the path is full already, and the next round trip brings no more.
    if starting and not 0 < QUEUED * event.srtt_us < event.rcv_rtt_us:
        return record * min(2.0, record / before) >= policy.window_used * largest
    if flow.samples >= SAMPLES_MIN:
        return flow.used >= policy.window_used
    return flow.last_used >= policy.window_used and record >= policy.window_used * largest


def held_back(event: TcpSndBuf) -> float:
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
