"""What successive events about one TCP socket tell of it: what it sent again, how fast it was, how long its queue."""

from __future__ import annotations

from msgspec import Struct

from bus.schema import TcpRcvBuf, TcpSndBuf

SLACK_US = 10_000
"""A queue counts in relation to the path's own round trip and this: 5 ms of it on a short path are half a unit."""
QUEUE_MAX = 3.0
"""A receiver's round trips hold the sender's pauses, too: one such must not outweigh a window."""
FLOWS_MAX = 4096
APART_NS = 10_000_000_000
"""Events of one socket further apart than this make no span."""


class FlowSample(Struct, frozen=True, gc=False):
    """From one event about a socket to the next."""

    t_ns: int
    netns: int
    resent: int
    segments: float
    """Sent in between, those sent again included; 0 on a receiver."""
    queue: float
    """Round trip above the least that this socket has seen, in relation to that and SLACK_US. Not in relation to what
    other sockets see: a flow to somewhere further away is no regression."""
    transferred_bytes: int
    span_s: float


class _Seen(Struct, gc=False):
    t_ns: int
    total: int
    resent: int
    mss_bytes: int
    rtt_us: int
    floor_us: int


class Flows(Struct):
    """The sockets that events tell of. Bounded: the one silent longest is forgotten first."""

    seen: dict[tuple[int, int, bool], _Seen] = {}
    """By namespace, socket, and whether it was heard of as a sender."""

    def __len__(self) -> int:
        return len(self.seen)

    def sample(self, event: TcpSndBuf | TcpRcvBuf) -> FlowSample | None:
        """What the event adds to the one before about the same socket; None where it is the first."""
        # Each event of a replay comes through here.
        seen = _seen(event)
        if not seen.rtt_us:
            return None
        known, key = self.seen, (event.netns, event.socket, type(event) is TcpSndBuf)
        last = known.pop(key, None)
        if last is None:
            known[key] = seen
            if len(known) > FLOWS_MAX:
                del known[next(iter(known))]
            return None
        if seen.t_ns <= last.t_ns:
            known[key] = last
            return None
        known[key] = seen
        # Another socket may get the id of one that has gone.
        if seen.total < last.total or seen.resent < last.resent:
            return None
        if last.floor_us < seen.floor_us:
            seen.floor_us = last.floor_us
        return _between(event.netns, last, seen) if seen.t_ns - last.t_ns <= APART_NS else None

    def forget(self, netns: int) -> None:
        """A namespace has gone."""
        for key in [key for key in self.seen if key[0] == netns]:
            del self.seen[key]


def _seen(event: TcpSndBuf | TcpRcvBuf) -> _Seen:
    if isinstance(event, TcpRcvBuf):
        rtt_us = event.rcv_rtt_us or event.srtt_us
        return _Seen(event.t_ns, event.received_bytes, 0, 0, rtt_us, rtt_us)
    rtt_us = floor_us = event.srtt_us
    if 0 < event.min_rtt_us < floor_us:
        floor_us = event.min_rtt_us
    return _Seen(event.t_ns, event.acked_bytes, event.retransmits, event.mss_bytes, rtt_us, floor_us)


def _between(netns: int, last: _Seen, seen: _Seen) -> FlowSample:
    again, more_bytes = seen.resent - last.resent, seen.total - last.total
    queue = (seen.rtt_us - seen.floor_us) / (seen.floor_us + SLACK_US)
    if queue > QUEUE_MAX:
        queue = QUEUE_MAX
    return FlowSample(
        seen.t_ns,
        netns,
        again,
        more_bytes / seen.mss_bytes + again if seen.mss_bytes else 0.0,
        queue,
        more_bytes,
        (seen.t_ns - last.t_ns) / 1e9,
    )
