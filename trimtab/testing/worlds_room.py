"""More made-up worlds (worlds): things that a limit leaves room for, until it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, Drops, Ports, Probe
from trimtab.testing.waves import Wave, constant

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


PORT_LOW, PORT_HIGH = "net.ipv4.ip_local_port_range[0]", "net.ipv4.ip_local_port_range[1]"
TW_REUSE, TW_BUCKETS = "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_max_tw_buckets"


@dataclass
class LocalPorts:
    """Connections that one namespace wants to one place, each of which takes a port, and those of it in TIME_WAIT."""

    wanted: Wave
    waiting: Wave = field(default_factory=lambda: constant(0.0))
    """Would be in TIME_WAIT, if there were buckets."""
    limits: tuple[int, int, int, int] = (32768, 60999, 2, 65536)
    """The range, tcp_tw_reuse and tcp_max_tw_buckets at first."""
    netns: int = 9
    every_s: float = 0.1
    values: Mapping[Spot, int] = field(init=False)
    failed: int = 0
    full: int = 0
    failing: bool = False
    """Some connection finds no port now."""
    _last_s: float = -5.0

    def __post_init__(self) -> None:
        names = (PORT_LOW, PORT_HIGH, TW_REUSE, TW_BUCKETS)
        self.values = {Spot(name, self.netns): value for name, value in zip(names, self.limits, strict=True)}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probe says it (bpf/ports.c)."""
        low, high, reuse, buckets = (now[spot] for spot in self.values)
        if seconds // 5 != self._last_s // 5:
            yield Probe(t_ns, "ports", "raw tracepoint", "")
        self._last_s = seconds
        # With tcp_tw_reuse a port in TIME_WAIT is no port that lacks.
        lack = int(self.wanted(seconds)) - (high - low + 1) * (2 if reuse == 1 else 1)
        waiting = int(max(0.0, self.waiting(seconds)))
        self.failing = lack > 0
        self.failed += max(0, lack)
        self.full += max(0, waiting - buckets)
        tw = min(waiting, buckets)
        if lack > 0 or tw * 4 >= buckets * 3:
            yield Ports(t_ns, self.netns, self.netns, low, high, self.failed, reuse, 1, tw, buckets, self.full)


CONNTRACK = "net.netfilter.nf_conntrack_max"


@dataclass
class Conntrack:
    """Connections that are tracked: as many as are wanted, as far as they may."""

    wanted: Wave
    limit: int = 4096
    flood: Wave = field(default_factory=lambda: constant(0.0))
    """SYN cookies sent in a second."""
    spare: Wave = field(default_factory=lambda: constant(0.9))
    netns: int = 1
    every_s: float = 1.0
    values: Mapping[Spot, int] = field(init=False)
    refused: int = 0
    _cookies: float = 0.0

    def __post_init__(self) -> None:
        self.values = {Spot(CONNTRACK, 0): self.limit}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """What /proc says of it."""
        wanted, most = int(max(0.0, self.wanted(seconds))), now[Spot(CONNTRACK, 0)]
        self.refused += max(0, wanted - most)
        self._cookies += max(0.0, self.flood(seconds))
        total = 8 << 20
        yield Counters(t_ns, 0, "meminfo", {"MemTotal": total, "MemAvailable": int(total * self.spare(seconds))})
        yield Counters(t_ns, self.netns, "net/netstat", {"TcpExt.SyncookiesSent": int(self._cookies)})
        found = {"entries": min(wanted, most), "drop": self.refused, "early_drop": 0}
        yield Counters(t_ns, self.netns, "net/stat/nf_conntrack", found)
