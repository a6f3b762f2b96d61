"""Made-up worlds: what waves (waves) do to a host, as the events that trimtab's collectors would tell of it.

A world holds the values that its tunables have at first, and is told on each turn what stands there now: it reacts to
them as the kernel would, so that a decider can be tried in a closed loop (loop). Sizes are in bytes, rates in
bytes/s, times in s unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, Drops, NeighEntries, NeighTable, Probe, TcpRcvBuf, TcpSndBuf
from trimtab.testing.waves import Wave, constant

SECOND_NS = 1_000_000_000
RMEM, WMEM = "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"
MSS = 1448
WINDOW_SHARE = 0.664
"""Of a receive buffer, what is advertised as window; about what of a send buffer gets under way."""
LATELY_S = 5.0
"""A socket that was near its limit is told of for so long after."""
FAMILIES = {2: "ipv4", 10: "ipv6"}
ENDLESS, NONE = constant(float("inf")), constant(0.0)
BBR_ROUNDS = 8
"""BBR tries a quarter more once in so many round trips (net/ipv4/tcp_bbr.c)."""


class World(Protocol):
    """A part of a host."""

    values: Mapping[Spot, int]
    """What stands in its tunables at first."""
    every_s: float
    """How long a turn is at most."""

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """What is told of the time since the last turn, `seconds` after the beginning, at t_ns; now: what stands."""
        ...


@dataclass(frozen=True)
class Path:
    """A bottleneck between two namespaces, and what is to be sent through it."""

    bandwidth: Wave
    """bytes/s."""
    demand: Wave = ENDLESS
    """What the application would send, bytes/s."""
    rtt_s: float = 0.04
    """Without any queue."""
    queue_bytes: float = 2e6
    loss: Wave = NONE
    """Share of segments sent again."""
    congestion: Literal["bbr", "fill"] = "bbr"
    """bbr: at most two bandwidth-delay products in flight. fill: whatever there is room for."""
    wscale: int = 14


@dataclass
class TcpFlow:
    """One TCP flow, as a fluid: what is in flight is the least of the receiver's window, the sender's buffer and the
    congestion window; what the path does not hold waits in its queue. Both ends' buffers grow as Linux lets them."""

    path: Path
    socket: int = 5
    sender: int = 11
    """The sender's namespace, ..."""
    receiver: int = 22
    """... and the receiver's. Cookies."""
    limits: tuple[int, int] = (262144, 262144)
    """tcp_rmem[2], tcp_wmem[2] at first."""
    every_s: float = 0.1
    rate: float = 0.0
    """What the flow transfers now."""
    rtt_now_s: float = 0.0
    values: Mapping[Spot, int] = field(init=False)
    _buffers: list[int] = field(default_factory=lambda: [131072, 87040])
    _near_s: list[float] = field(default_factory=lambda: [-LATELY_S, -LATELY_S])
    _last_s: float = 0.0
    _total: float = 0.0
    _resent: float = 0.0
    _known: float = 0.0
    """The bandwidth that congestion control has found, bytes/s."""
    _record: float = 10.0 * MSS
    _in_flight: float = 0.0
    _cwnd: float = 0.0
    _held_back: bool = False

    def __post_init__(self) -> None:
        self._known = 10 * MSS / self.path.rtt_s
        self.values = {
            Spot(f"{RMEM}[2]", self.receiver): self.limits[0],
            Spot(f"{WMEM}[2]", self.sender): self.limits[1],
        }

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probes say it: while a buffer is near its limit or lately was, and each 5 s while it is in use."""
        limits = (now[Spot(f"{RMEM}[2]", self.receiver)], now[Spot(f"{WMEM}[2]", self.sender)])
        passed_s, again = seconds - self._last_s, seconds // LATELY_S != self._last_s // LATELY_S
        self._last_s = seconds
        self._transfer(seconds, passed_s, limits)
        tells: tuple[Callable[[int, int], AnyEvent], ...] = (self._received, self._sent)
        for end, tell in enumerate(tells):
            share = self._buffers[end] / limits[end]
            if share >= 0.75:
                self._near_s[end] = seconds
            if seconds - self._near_s[end] < LATELY_S or (share >= 0.4 and again):
                yield tell(t_ns, limits[end])
        if again:
            for probe in ("tcp_rcvbuf", "tcp_sndbuf"):
                yield Probe(t_ns, probe, "raw tracepoint", "")

    def _transfer(self, seconds: float, passed_s: float, limits: tuple[int, int]) -> None:
        path, rtt_s = self.path, self.path.rtt_s
        wire, demand = max(1.0, path.bandwidth(seconds)), max(0.0, path.demand(seconds))
        window = WINDOW_SHARE * self._buffers[0]
        allowed = min(window, 65535 << path.wscale, WINDOW_SHARE * self._buffers[1])
        bdp = self._known * rtt_s
        # Slow start at first; then BBR's probing.
        tries = 1.25 ** (passed_s / (BBR_ROUNDS * rtt_s)) if bdp > 50e3 else 4.0
        self._cwnd = 2 * bdp * tries if path.congestion == "bbr" else 8 * bdp
        paced = 1.05 * bdp * tries if path.congestion == "bbr" else self._cwnd
        asked = demand * rtt_s
        self._in_flight = flight = min(allowed, self._cwnd, paced, wire * rtt_s + path.queue_bytes, asked)
        self.rtt_now_s = rtt_s + max(0.0, flight - wire * rtt_s) / wire
        self.rate = min(flight / self.rtt_now_s, wire)
        self._known = max(self.rate, min(self._known, wire))
        sender = WINDOW_SHARE * self._buffers[1]
        self._held_back = allowed >= sender and flight >= 0.99 * allowed and demand > wire
        self._total += self.rate * passed_s
        self._resent += self.rate * passed_s / MSS * path.loss(seconds)
        self._grow(window, limits)

    def _grow(self, window: float, limits: tuple[int, int]) -> None:
        copied = self.rate * self.rtt_now_s
        self._record = max(self._record, copied)
        # tcp_rcv_space_adjust: room for twice what two round trips bring; tcp_sndbuf_expand: for two windows.
        if copied > 0.3 * window:
            self._buffers[0] = max(self._buffers[0], min(limits[0], int(4 * copied / WINDOW_SHARE)))
        wanted = int(2 * self._cwnd / WINDOW_SHARE)
        if wanted > self._buffers[1]:
            self._buffers[1] = min(limits[1], wanted)

    def _received(self, t_ns: int, limit: int) -> TcpRcvBuf:
        clamp = int(WINDOW_SHARE * self._buffers[0])
        return TcpRcvBuf(
            t_ns, self.receiver, self.receiver, self.socket, 2, 5201, 40000, self._buffers[0], limit, False,
            min(clamp, 65535 << self.path.wscale), clamp, self.path.wscale, int(self._record),
            int(self.rtt_now_s * 1e6), int(self.path.rtt_s * 1.2e6), int(self._total),
        )  # fmt: skip

    def _sent(self, t_ns: int, limit: int) -> TcpSndBuf:
        packets, bbr = int(self._in_flight / MSS), self.path.congestion == "bbr"
        demand = self.path.demand(self._last_s) > self.path.bandwidth(self._last_s)
        return TcpSndBuf(
            t_ns, self.sender, self.sender, self.socket, 2, 40000, 5201, self._buffers[1], limit, False,
            int(self.rtt_now_s * 1e6) + 300, int(self.path.rtt_s * 1e6),
            int(self._cwnd / MSS) + 10 if bbr else 3 * packets, MSS, packets, int(WINDOW_SHARE * self._buffers[0]),
            int(0.7 * self._buffers[1]) if self._held_back or demand else 0, int(self._total), packets,
            int(self.rtt_now_s * 1e6), 1, int(self._resent),
        )  # fmt: skip


@dataclass
class Neighbours:
    """A neighbour table: how many neighbours the host talks to (a Wave) come in, as far as the hard limit lets them."""

    wanted: Wave
    family: int = 2
    thresholds: tuple[int, int, int] = (128, 512, 1024)
    every_s: float = 0.01
    entries: int = 0
    refused: int = 0
    """How often there was no room, one for each neighbour and turn."""
    values: Mapping[Spot, int] = field(init=False)
    _told: tuple[int, float] = (0, 0.0)
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        self.values = {self._spot(level): value for level, value in enumerate(self.thresholds, 1)}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probe says it (bpf/neigh_create.c): from 40 % on by each sixteenth, from 75 % on always. And each
        2 s as netlink does."""
        limits = (now[self._spot(1)], now[self._spot(2)], now[self._spot(3)])
        wanted, hard = int(self.wanted(seconds)), limits[2]
        fuller, self.entries = wanted > self.entries, min(wanted, max(hard, min(self.entries, wanted)))
        self.refused += wanted - self.entries
        many = self.entries * 4 >= hard * 3 or abs(self.entries - self._told[0]) >= hard // 16
        if fuller and self.entries * 5 >= hard * 2 and many:
            self._told = (self.entries, seconds)
            yield NeighEntries(t_ns, self.family, self.entries, self.entries, *limits, 7, 7, 3, self.refused)
        if seconds // 2 != self._last_s // 2:
            # Something may have come of the other event.
            limits = (now[self._spot(1)], now[self._spot(2)], now[self._spot(3)])
            yield NeighTable(t_ns, self.family, self.entries, *limits, self.refused, 0, self.entries, 0)
        self._last_s = seconds

    def _spot(self, level: int) -> Spot:
        return Spot(f"net.{FAMILIES[self.family]}.neigh.default.gc_thresh{level}", 0)


BACKLOG, PACKETS, TIME = "net.core.netdev_max_backlog", "net.core.netdev_budget", "net.core.netdev_budget_usecs"


@dataclass
class ReceivePath:
    """One CPU that receives: packets come in bursts, wait in its queue as far as there is room, and are handled in runs
    that end after so many or so long."""

    bursts: Wave
    """Packets that come at once, each turn."""
    per_s: float = 500_000.0
    """What the CPU can handle."""
    wait: Wave = NONE
    """Share of the time that tasks wait for a CPU."""
    limits: tuple[int, int, int] = (1000, 300, 8000)
    """netdev_max_backlog, netdev_budget, netdev_budget_usecs at first."""
    probe: bool = True
    """Without it, /proc alone tells."""
    every_s: float = 0.1
    values: Mapping[Spot, int] = field(init=False)
    dropped: int = 0
    lately: int = 0
    """Dropped in the last turn."""
    _queue: float = 0.0
    _totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Packets handled, squeezes, us waited."""
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        self.values = {Spot(name, 0): value for name, value in zip((BACKLOG, PACKETS, TIME), self.limits, strict=True)}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probe and /proc say it."""
        passed_s, again = seconds - self._last_s, seconds // 1 != self._last_s // 1
        self._last_s = seconds
        came = int(max(0.0, self.bursts(seconds)))
        self.lately = max(0, came + int(self._queue) - now[Spot(BACKLOG, 0)])
        handled = min(self._queue + came - self.lately, self.per_s * passed_s)
        self._queue += came - self.lately - handled
        run = min(now[Spot(PACKETS, 0)], self.per_s * now[Spot(TIME, 0)] / 1e6)
        self.dropped += self.lately
        for number, more in enumerate((handled, handled // run, self.wait(seconds) * passed_s * 1e6)):
            self._totals[number] += max(0.0, more)
        if self.lately and self.probe:
            yield Drops(t_ns, 7, 7, 3, "CPU_BACKLOG", self.dropped)
        if again:
            processed, squeezes, waited_us = map(int, self._totals)
            yield Counters(t_ns, 0, "pressure/cpu", {"some.total_us": waited_us})
            found = {"processed": processed, "dropped": self.dropped, "time_squeeze": squeezes, "flow_limit": 0}
            yield Counters(t_ns, 0, "net/softnet_stat", found)


@dataclass
class CounterFile:
    """One of /proc's files of counters, each second. `rates`: how fast each grows, per s; `levels`: gauges."""

    source: str
    rates: Mapping[str, Wave]
    levels: Mapping[str, Wave] = field(default_factory=dict)
    netns: int = 1
    every_s: float = 1.0
    values: Mapping[Spot, int] = field(default_factory=dict)
    _totals: dict[str, float] = field(default_factory=dict)
    _last_s: float = 0.0

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """All that stands in it."""
        if seconds // 1 == self._last_s // 1:
            return
        for name, rate in self.rates.items():
            grown = max(0.0, rate(seconds)) * (seconds - self._last_s)
            self._totals[name] = self._totals.get(name, 0.0) + grown
        self._last_s = seconds
        found = {name: int(total) for name, total in self._totals.items()}
        yield Counters(
            t_ns, self.netns, self.source, found | {name: int(of(seconds)) for name, of in self.levels.items()}
        )
