"""TCP sockets whose program has set a buffer too small for their path (SO_RCVBUF, SO_SNDBUF): told of, never changed.

The kernel leaves such a buffer as it is, so no tunable helps: the program has to change. By how much it would gain is
an estimate: what the largest size that the kernel itself would give (tcp_rmem[2], tcp_wmem[2]) lets be under way in
each round trip, but no more than the fastest of the other flows of that namespace has shown a path to carry, where one
was faster.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from bus.schema import Owner, TcpRcvBuf, TcpSndBuf
from deciders.flow import USUAL
from deciders.tcp_felt import READS, held_back

SECOND_NS = 1_000_000_000
TCP = 6
SOCKETS_MAX = 256
OWNERS_MAX = 256
SPAN_MIN_NS = SECOND_NS
"""Two events nearer than this say nothing of a rate."""
SPAN_MAX_NS = 120 * SECOND_NS
FELT = 0.6
"""A flow that fills so much of its buffer feels it."""
FAR_US = 1000
"""On shorter paths the processor is the limit, whatever the buffer."""
LOSS = 1.25
"""Less than this much faster is not worth a word."""
ADVICE_NS = 3600 * SECOND_NS
ADVICE_MAX = 8


class Held(Struct):
    """One socket, and one of its buffers."""

    port: int
    """The local one."""
    peer: int
    receive: bool
    size: int
    t_ns: int
    total: int
    rate: float = 0.0
    """What it transfers, bytes/s."""
    could: float = 0.0
    """What the largest size would let it transfer."""
    rtt_us: int = 0
    limit: int = 0
    hurt_ns: int = 0
    """When the buffer was last found to hold it back; 0: never."""


class Locked(Struct):
    """Bounded: SOCKETS_MAX buffers and OWNERS_MAX programs, the one silent longest goes first."""

    held: dict[tuple[int, int, bool], Held] = {}
    """By namespace, socket, and whether it is the receive buffer."""
    owners: dict[tuple[int, int], tuple[str, int]] = {}
    """(namespace, socket) -> program, pid."""


def receives(locked: Locked, event: TcpRcvBuf) -> None:
    """One more event of a socket with a receive buffer of its program's choice."""
    size, window = event.rcvbuf_bytes, event.rcv_wnd_bytes
    rtt_us = event.rcv_rtt_us or event.srtt_us
    if event.srtt_us and rtt_us > USUAL * event.srtt_us:
        rtt_us = int(USUAL * event.srtt_us)
    held = _held(locked, event, True, size, event.received_bytes)
    # A slow reader's window is small, however large its buffer.
    if held.rate and rtt_us >= FAR_US and window >= READS * event.window_clamp_bytes:
        _weigh(held, held.rate * rtt_us / 1e6 / window if window else 0.0, rtt_us, event.limit_bytes, event.t_ns)


def sends(locked: Locked, event: TcpSndBuf) -> None:
    """The same of a send buffer."""
    held = _held(locked, event, False, event.sndbuf_bytes, event.acked_bytes)
    rtt_us = event.min_rtt_us or event.srtt_us
    if held.rate and rtt_us >= FAR_US:
        felt = held_back(event) * min(1.0, USUAL * rtt_us / max(1, event.srtt_us))
        _weigh(held, felt, rtt_us, event.limit_bytes, event.t_ns)


def owned(locked: Locked, event: Owner) -> None:
    """Whose a socket is."""
    if event.protocol == TCP:
        locked.owners.pop((event.netns, event.socket), None)
        locked.owners[event.netns, event.socket] = (event.program, event.pid)
        if len(locked.owners) > OWNERS_MAX:
            del locked.owners[next(iter(locked.owners))]


def forget(locked: Locked, netns: int) -> None:
    """The namespace has gone."""
    for key in [key for key in locked.held if key[0] == netns]:
        del locked.held[key]
    for owner in [owner for owner in locked.owners if owner[0] == netns]:
        del locked.owners[owner]


def advice(locked: Locked, fastest: Mapping[int, float], now_ns: int) -> list[str]:
    """One line for each buffer that holds its flow back. fastest: by namespace, what a flow there has reached."""
    found = sorted(
        (
            (_could(held, fastest.get(netns, 0.0)) - held.rate, netns, socket, held)
            for (netns, socket, _), held in locked.held.items()
            if held.hurt_ns and now_ns - held.hurt_ns < ADVICE_NS
        ),
        key=lambda one: (-one[0], one[1:3]),
    )
    worth = [one for one in found if one[0] >= (LOSS - 1) * one[3].rate]
    told = {(netns, min(held.port, held.peer), held.receive): (loss, netns, socket, held)
            for loss, netns, socket, held in reversed(worth)}  # fmt: skip
    return [_line(locked, *one) for one in sorted(told.values(), key=lambda one: -one[0])[:ADVICE_MAX]]


def _line(locked: Locked, loss: float, netns: int, socket: int, held: Held) -> str:
    program, pid = locked.owners.get((netns, socket), ("", 0))
    who = f" ({program}, pid {pid})" if pid else ""
    end, option, row = ("receive", "SO_RCVBUF", "tcp_rmem[2]") if held.receive else ("send", "SO_SNDBUF", "tcp_wmem[2]")
    return (
        f"netns {netns}: TCP port {held.port}{who} to port {held.peer} has {held.rate:.0f} bytes/s at"
        f" {held.rtt_us / 1000:.1f} ms with the {held.size // 2} bytes of {end} buffer that its program set ({option});"
        f" the {held.limit} of {row} would carry up to {held.rate + loss:.0f}, so {loss:.0f} bytes/s are lost: leave"
        " the size to the kernel"
    )


def _could(held: Held, fastest: float) -> float:
    return min(held.could, fastest) if fastest >= LOSS * held.rate else held.could


def _held(locked: Locked, event: TcpRcvBuf | TcpSndBuf, receive: bool, size: int, total: int) -> Held:
    """The buffer, with its rate since the last event; 0 where that is not known."""
    key, t_ns = (event.netns, event.socket, receive), event.t_ns
    held = locked.held.pop(key, None)
    if held is None or total < held.total or size != held.size or not 0 <= t_ns - held.t_ns <= SPAN_MAX_NS:
        held = Held(event.sport, event.dport, receive, size, t_ns, total)
    elif t_ns - held.t_ns >= SPAN_MIN_NS:
        held.rate = (total - held.total) * 1e9 / (t_ns - held.t_ns)
        held.t_ns, held.total = t_ns, total
    locked.held[key] = held
    if len(locked.held) > SOCKETS_MAX:
        del locked.held[next(iter(locked.held))]
    return held


def _weigh(held: Held, felt: float, rtt_us: int, limit: int, t_ns: int) -> None:
    if felt >= FELT and limit > held.size > 0:
        held.could, held.rtt_us, held.limit, held.hurt_ns = held.rate * limit / held.size, rtt_us, limit, t_ns
