"""More made-up worlds (trimtab.worlds): things that a limit leaves room for, until it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, Drops
from trimtab.waves import Wave, constant

TCP_MEM = tuple(f"net.ipv4.tcp_mem[{level}]" for level in (0, 1, 2))
ORPHANS = "net.ipv4.tcp_max_orphans"


@dataclass
class TcpMemory:
    """What TCP's sockets would hold, in pages, and how many have no program any more: as far as they may."""

    wanted: Wave
    """Pages."""
    orphans: Wave = field(default_factory=lambda: constant(0.0))
    limits: tuple[int, int, int] = (3000, 4000, 6000)
    max_orphans: int = 1000
    spare: Wave = field(default_factory=lambda: constant(0.9))
    """Share of the host's memory that is available."""
    netns: int = 1
    every_s: float = 0.1
    values: Mapping[Spot, int] = field(init=False)
    held: int = 0
    refused: int = 0
    """Turns in which there was not enough."""
    reset: int = 0
    """Orphans that were too many."""
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        pages = {Spot(name, 0): value for name, value in zip(TCP_MEM, self.limits, strict=True)}
        self.values = pages | {Spot(ORPHANS, 0): self.max_orphans}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """A drop in each turn in which memory lacks; each second what /proc says."""
        again = seconds // 1 != self._last_s // 1
        self._last_s = seconds
        wanted, hard = int(max(0.0, self.wanted(seconds))), now[Spot(TCP_MEM[2], 0)]
        orphans, most = int(max(0.0, self.orphans(seconds))), now[Spot(ORPHANS, 0)]
        self.held = min(wanted, hard)
        self.reset += max(0, orphans - most)
        if wanted > hard:
            self.refused += 1
            yield Drops(t_ns, 7, 7, 0, "PROTO_MEM", self.refused)
        if again:
            total = 8 << 20
            yield Counters(t_ns, 0, "meminfo", {"MemTotal": total, "MemAvailable": int(total * self.spare(seconds))})
            counted = {"TcpExt.TCPMemoryPressures": self.refused, "TcpExt.TCPAbortOnMemory": self.reset}
            yield Counters(t_ns, self.netns, "net/netstat", counted)
            sockets = {"TCP.mem": self.held, "TCP.orphan": min(orphans, most)}
            yield Counters(t_ns, self.netns, "net/sockstat", sockets)
