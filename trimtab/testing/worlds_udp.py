"""A made-up world beside those of trimtab.testing.worlds: a UDP socket to which bursts come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, UdpDrop
from trimtab.testing.waves import Wave, constant

DEFAULT, MOST = "net.core.rmem_default", "net.core.rmem_max"
UDP_MEM = tuple(f"net.ipv4.udp_mem[{place}]" for place in range(3))
DATAGRAM = 2304


@dataclass
class Datagrams:
    """So many datagrams come at one moment, each tenth of a second; the program reads `reads` of them by the next."""

    burst: Wave
    asks: int = 0
    """What the program sets SO_RCVBUF to; 0: nothing."""
    reads: float = float("inf")
    anew_s: float = 5.0
    """So often it makes its socket anew."""
    others: Wave = field(default_factory=lambda: constant(0.0))
    """Pages that other sockets would hold."""
    first: tuple[int, int] = (212_992, 212_992)
    pages: tuple[int, int, int] = (3000, 4000, 6000)
    netns: int = 77
    every_s: float = 0.1
    dropped: int = 0
    values: Mapping[Spot, int] = field(init=False)
    _size: int = 0
    _made_s: float = -1e9
    _waiting: float = 0.0
    _counts: dict[tuple[int, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stand = (*self.first, *self.pages)
        self.values = {Spot(name, 0): value for name, value in zip((DEFAULT, MOST, *UDP_MEM), stand, strict=True)}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """Drops as bpf/udp_drop.c tells them; each second what is held."""
        if seconds - self._made_s >= self.anew_s:
            self._made_s, self._waiting = seconds, 0.0
            self._size = 2 * min(self.asks, now[Spot(MOST, 0)]) if self.asks else now[Spot(DEFAULT, 0)]
        wanted, room = self.others(seconds), now[Spot(UDP_MEM[0], 0)]
        if wanted > room:
            yield self._drop(t_ns, "PROTO_MEM", int(wanted - room))
        left = max(0.0, self._waiting - self.reads)
        here = max(0.0, self.burst(seconds))
        self._waiting = min(left + here, self._size / DATAGRAM)
        if lost := int(left + here - self._waiting):
            self.dropped += lost
            yield self._drop(t_ns, "SOCKET_RCVBUFF", lost)
        if round(seconds / self.every_s) % 10 == 0:
            yield Counters(t_ns, 1, "net/sockstat", {"UDP.mem": int(min(wanted, room))})

    def _drop(self, t_ns: int, reason: str, count: int) -> UdpDrop:
        total = self._counts[self._size, reason] = self._counts.get((self._size, reason), 0) + count
        return UdpDrop(t_ns, self.netns, self.netns, 5, 2, 514, self._size, bool(self.asks), reason, total)
