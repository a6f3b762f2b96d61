"""What successive events about one TCP socket tell of it: what it sent again, how fast it was, how long its queue."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(slots=True)
class _Seen:
    """What a socket's last event told. No msgspec.Struct: setting an attribute of one takes four times as long."""

    t_ns: int
    total: int
    resent: int
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
        mss_bytes = resent = 0
        if isinstance(event, TcpSndBuf):
            sends, total, resent, mss_bytes = True, event.acked_bytes, event.retransmits, event.mss_bytes
            rtt_us = floor_us = event.srtt_us
            if 0 < event.min_rtt_us < floor_us:
                floor_us = event.min_rtt_us
        else:
            sends, total = False, event.received_bytes
            rtt_us = floor_us = event.rcv_rtt_us or event.srtt_us
        if not rtt_us:
            return None
        t_ns, netns = event.t_ns, event.netns
        key = (netns, event.socket, sends)
        seen = self.seen.pop(key, None)
        if seen is None:
            self._begin(key, _Seen(t_ns, total, resent, floor_us))
            return None
        self.seen[key] = seen
        since_ns, more_bytes, again = t_ns - seen.t_ns, total - seen.total, resent - seen.resent
        if since_ns <= 0:
            return None
        seen.t_ns, seen.total, seen.resent = t_ns, total, resent
        # Another socket may get the id of one that has gone.
        if floor_us < seen.floor_us or more_bytes < 0 or again < 0:
            seen.floor_us = floor_us
        if more_bytes < 0 or again < 0 or since_ns > APART_NS:
            return None
        queue = (rtt_us - seen.floor_us) / (seen.floor_us + SLACK_US)
        if queue > QUEUE_MAX:
            queue = QUEUE_MAX
        segments = more_bytes / mss_bytes + again if mss_bytes else 0.0
        return FlowSample(t_ns, netns, again, segments, queue, more_bytes, since_ns / 1e9)

    def _begin(self, key: tuple[int, int, bool], seen: _Seen) -> None:
        self.seen[key] = seen
        if len(self.seen) > FLOWS_MAX:
            del self.seen[next(iter(self.seen))]

    def forget(self, netns: int) -> None:
        """A namespace has gone."""
        for key in [key for key in self.seen if key[0] == netns]:
            del self.seen[key]
