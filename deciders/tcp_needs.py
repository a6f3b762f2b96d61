"""What TCP connections needed of their buffers: worked out for each that ended, remembered by service, fading.

A need is worked out from what a connection did, not from how large its buffer was, which is never less than it began
with: otherwise each rise of the first size would be the reason for the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from typing import NamedTuple

from msgspec import Struct

from bus.schema import TcpEnd
from deciders.limit import SECOND_NS

ROOT = 2**0.25
FADE_S = 600.0
"""What was so long ago counts a third."""
TAIL = 1e-3
"""Fewer connections than this are none."""
HUGE = 2.0**62
"""Evidence holds whole numbers of 64 bits."""
CWND = 10
"""TCP_INIT_CWND, include/net/tcp.h: for so much every connection has room at once (tcp_init_buffer_space)."""
SKB_BYTES = 640
"""MAX_TCP_HEADER and struct skb_shared_info: what tcp_sndbuf_expand (net/ipv4/tcp_input.c) adds to a segment before it
takes the next power of two; ..."""
STRUCT_BYTES = 256
"""... and struct sk_buff, after."""
WINDOWS = 4
"""A receive buffer holds what two round trips bring, and twice that with what the kernel keeps of it for overhead."""


class Use(Struct):
    """What the connections of one service needed: a histogram for each side, column -> connections."""

    t_ns: int
    needs: tuple[dict[int, float], dict[int, float]]


class Need(NamedTuple):
    """What connections needed lately."""

    size: int
    """Bytes, at least, of all but a few; 0: nothing that they had not at once, or not known."""
    connections: float
    """How many they were."""
    port: int
    """The service that most of them were to."""


def record(use: Use, event: TcpEnd) -> None:
    """One more connection, which stands for all that ended since the last."""
    _fade(use, event.t_ns)
    if not event.rcvbuf_locked:
        _count(use.needs[0], _received(event), event.ended)
    if not event.sndbuf_locked:
        _count(use.needs[1], _sent(event), event.ended)


def needed(uses: Mapping[int, Use], side: int, less: float, t_ns: int) -> Need:
    """What all but `less` of the connections needed at least."""
    pooled: dict[int, float] = {}
    port, most = 0, 0.0
    for number, use in uses.items():
        _fade(use, t_ns)
        needs = use.needs[side]
        for column, count in needs.items():
            pooled[column] = pooled.get(column, 0.0) + count
        if (total := sum(needs.values())) > most:
            port, most = number, total
    count = left = sum(pooled.values())
    for column in sorted(pooled, reverse=True):
        left -= pooled[column]
        if left <= less * count:
            return Need(int(min(ROOT**column, HUGE)) if column else 0, min(count, HUGE), port)
    return Need(0, min(count, HUGE), port)


def _count(needs: dict[int, float], need: int, ended: int) -> None:
    column = int(log(max(1, need), ROOT) + 1e-9)
    needs[column] = needs.get(column, 0.0) + max(1, ended)


def _received(event: TcpEnd) -> int:
    return min(WINDOWS * event.copied_per_rtt_bytes, 2 * event.received_bytes)


def _sent(event: TcpEnd) -> int:
    """As tcp_sndbuf_expand works it out, and no more than there was to send."""
    if event.cwnd_packets <= CWND or not event.mss_bytes:
        return 0
    segment = (1 << (event.mss_bytes + SKB_BYTES - 1).bit_length()) + STRUCT_BYTES
    return min(2 * event.cwnd_packets * segment, event.acked_bytes * segment // event.mss_bytes)


def _fade(use: Use, t_ns: int) -> None:
    passed_ns = t_ns - use.t_ns
    if passed_ns <= 0:
        return
    use.t_ns = t_ns
    kept = exp(-passed_ns / SECOND_NS / FADE_S)
    for needs in use.needs:
        for column, count in list(needs.items()):
            needs[column] = count * kept
            if needs[column] < TAIL:
                del needs[column]
