"""What bpf/flows.c would tell, where there is no BPF: TCP sockets of a namespace as sock_diag shows them now and then.

A connection that begins and ends between two looks is not seen, and one that has ended counts as it was last seen.
"""

from __future__ import annotations

import socket

from msgspec import Struct

from bus.schema import Flows
from collectors import sockdiag
from collectors.sockdiag import Talking
from collectors.words import prefix_of

BULK = 128 << 10
"""As in bpf/flows.c."""
SUMS_MAX = 1024
"""Destinations and algorithms of a namespace; the one silent longest is forgotten first, and counts from 0 again."""
NO_SAMPLE = 0xFFFFFFFF
MAPPED = bytes(10) + b"\xff\xff"


class Sums(Struct):
    """The totals of an event."""

    connections: int = 0
    delivered_bytes: int = 0
    busy_us: int = 0
    limited_us: int = 0
    segments: int = 0
    resent: int = 0
    samples: int = 0
    srtt_sum_us: int = 0
    min_rtt_us: int = 0
    short_connections: int = 0
    short_bytes: int = 0
    short_busy_us: int = 0
    short_segments: int = 0
    short_resent: int = 0


class Look(Struct, frozen=True):
    """What was found in a namespace."""

    cookie: int
    talking: list[Talking]


class Sampled:
    """One namespace."""

    def __init__(self, netns: int, netns_ino: int) -> None:
        self._netns = netns
        self._netns_ino = netns_ino
        self._sockets: dict[int, Talking] | None = None
        self._sums: dict[tuple[int, str, str], Sums] = {}

    def take(self, talking: list[Talking], t_ns: int) -> list[Flows]:
        """One more look: what it adds to."""
        before, self._sockets = self._sockets, {one.cookie: one for one in talking}
        if before is None:
            # What came of them until now is not of now.
            return []
        changed: dict[tuple[int, str, str], Sums] = {}
        for one in talking:
            last = before.pop(one.cookie, None)
            if one.acked_bytes >= BULK and (last is None or last.acked_bytes < one.acked_bytes):
                self._add(changed, one, last if last and last.acked_bytes >= BULK else None)
        for one in before.values():
            self._ended(changed, one)
        made = [Flows(t_ns, self._netns, self._netns_ino, *key, *_fields(sums)) for key, sums in changed.items()]
        for sums in changed.values():
            sums.min_rtt_us = 0
        return made

    def _of(self, changed: dict[tuple[int, str, str], Sums], one: Talking) -> Sums | None:
        where = place(one.family, one.peer)
        if not where:
            return None
        key = (*where, one.algorithm)
        sums = self._sums.pop(key, None) or Sums()
        self._sums[key] = changed[key] = sums
        if len(self._sums) > SUMS_MAX:
            del self._sums[next(iter(self._sums))]
        if 0 < one.min_rtt_us < NO_SAMPLE:
            sums.min_rtt_us = min(sums.min_rtt_us or NO_SAMPLE, one.min_rtt_us)
        return sums

    def _add(self, changed: dict[tuple[int, str, str], Sums], one: Talking, last: Talking | None) -> None:
        sums = self._of(changed, one)
        if sums is None:
            return
        sums.delivered_bytes += one.acked_bytes - (last.acked_bytes if last else 0)
        sums.busy_us += max(0, one.busy_us - (last.busy_us if last else 0))
        sums.limited_us += max(0, one.limited_us - (last.limited_us if last else 0))
        sums.segments += max(0, one.segments - (last.segments if last else 0))
        sums.resent += max(0, one.resent - (last.resent if last else 0))
        if one.srtt_us:
            sums.samples += 1
            sums.srtt_sum_us += one.srtt_us

    def _ended(self, changed: dict[tuple[int, str, str], Sums], one: Talking) -> None:
        sums = self._of(changed, one) if one.acked_bytes > 1 else None
        if sums is None:
            return
        if one.acked_bytes >= BULK:
            sums.connections += 1
            return
        sums.short_connections += 1
        sums.short_bytes += one.acked_bytes
        sums.short_busy_us += one.busy_us
        sums.short_segments += one.segments
        sums.short_resent += one.resent


def place(family: int, peer: bytes) -> tuple[int, str] | None:
    """The family and the prefix of a destination; None where no route could be for it (as in bpf/flows.c)."""
    if family == socket.AF_INET6 and peer[:12] == MAPPED:
        family, peer = socket.AF_INET, peer[12:]
    if family == socket.AF_INET6:
        return (family, prefix_of(family, peer)) if any(peer[:2]) and peer[0] < 0xFE else None
    local = peer[0] in (0, 127) or peer[0] >= 224 or peer[:2] == bytes((169, 254))
    return None if local else (family, prefix_of(family, peer))


def look_here(cookie: int) -> Look:
    """The connections of the calling thread's namespace. Raises OSError."""
    with sockdiag.open_socket() as sock:
        return Look(cookie, sockdiag.talking(sock))


def _fields(sums: Sums) -> tuple[int, ...]:
    return tuple(getattr(sums, name) for name in Sums.__struct_fields__)
