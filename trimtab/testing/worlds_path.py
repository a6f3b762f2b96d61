"""A made-up world beside those of trimtab.testing.worlds: connections to one destination, and what becomes of them by
their congestion control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import Algorithms, AnyEvent, Flows
from bus.tunables import ALGORITHMS
from trimtab.testing.waves import Wave, chance, constant
from trimtab.testing.worlds import MSS, NONE

BULK = 128 << 10
MATHIS = 1.22
"""Mathis et al. 1997: what a lossy path leaves a window that is halved at each loss. cubic is a little above it."""
FACTORS = {"reno": 1.0, "cubic": 1.4, "htcp": 1.6}
LOCAL_S = 1e-3
AT_ONCE = 30
"""Who finds so many going waits."""


@dataclass
class Connection:
    """One that goes on."""

    algorithm: str
    left: float
    sent: float = 0.0
    busy_s: float = 0.0


@dataclass
class Destination:
    """So many connections begin each second, each with so much to send. What they share is the bandwidth; a loss-based
    algorithm gets no more than losses leave it and fills the queue, bbr gets its share whatever is lost up to a sixth,
    but less on a path of under a millisecond, and loses more where there is no queue for it."""

    arrivals: Wave
    """Connections a second."""
    size: float = 2e6
    """Bytes each."""
    bandwidth: Wave = field(default_factory=lambda: constant(12.5e6))
    rtt_s: float = 0.04
    loss: Wave = NONE
    queue_s: float = 0.05
    """How much waits when the queue is full, as time."""
    standing: str = "cubic"
    available: tuple[str, ...] = ("reno", "bbr", "cubic")
    bad: str = ""
    """An algorithm that gets a tenth of everything."""
    prefix: str = "10.1.2.0/24"
    netns: int = 77
    seed: int = 1
    every_s: float = 1.0
    delivered: float = 0.0
    rates: float = 0.0
    """Of each turn what a connection got on average while it had something to send, bytes/s; all added up, ..."""
    turns: int = 0
    """... and how many they are."""
    values: Mapping[Spot, int] = field(default_factory=dict)
    _going: list[Connection] = field(default_factory=list)
    _totals: dict[str, list[float]] = field(default_factory=dict)
    _last_s: float = 0.0
    _due: float = 0.0
    _begun: int = 0

    @property
    def spot(self) -> Spot:
        """The key of its congestion control."""
        return Spot(f"route.congctl@{self.prefix}", self.netns)

    @property
    def goodput(self) -> float:
        """Bytes/s of a connection that has something to send, averaged over the time."""
        return self.rates / max(1, self.turns)

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probe tells it, each second."""
        passed_s, self._last_s = seconds - self._last_s, seconds
        if seconds // 5 != (seconds - passed_s) // 5 or passed_s == seconds:
            yield Algorithms(t_ns, self.netns, self.netns, self.available, self.standing)
        value, window = now.get(self.spot, 0), now.get(Spot(f"route.initcwnd@{self.prefix}", self.netns), 0)
        self._begin(seconds, passed_s, ALGORITHMS[value] if value else self.standing)
        for algorithm in sorted(self._send(seconds, passed_s, window or 10)):
            totals = [int(each) for each in self._totals[algorithm]]
            totals.insert(8, int(self.rtt_s * 1e6))
            yield Flows(t_ns, self.netns, self.netns, 2, self.prefix, algorithm, *totals)

    def _begin(self, seconds: float, passed_s: float, algorithm: str) -> None:
        self._due += max(0.0, self.arrivals(seconds)) * passed_s
        while self._due >= 1 and len(self._going) < AT_ONCE:
            self._due -= 1
            self._begun += 1
            self._going.append(Connection(algorithm, self.size * (0.5 + chance(self.seed, self._begun))))

    def _send(self, seconds: float, passed_s: float, window: int) -> set[str]:
        told: set[str] = set()
        got = spent_s = 0.0
        share = max(1.0, self.bandwidth(seconds)) / max(1, len(self._going))
        for one in self._going:
            told.add(one.algorithm)
            rate, loss, rtt_s = self._fare(one.algorithm, share, max(0.0, self.loss(seconds)))
            # The first round trip carries a window, and the connection is set up in another.
            busy_s = min(passed_s, one.left / rate + (rtt_s if one.sent == 0 and one.left > window * MSS else 0.0))
            sent = min(one.left, rate * busy_s)
            one.left, one.sent, one.busy_s = one.left - sent, one.sent + sent, one.busy_s + busy_s
            self.delivered += sent
            got, spent_s = got + sent, spent_s + busy_s
            if one.sent >= BULK or one.left > 0:
                again = sent / MSS * loss
                ended = float(one.left <= 0)
                self._add(one.algorithm, 0, ended, sent, busy_s * 1e6, 0, sent / MSS + again, again, 1, rtt_s * 1e6)
            else:
                again = one.sent / MSS * loss
                self._add(one.algorithm, 8, 1, one.sent, one.busy_s * 1e6, one.sent / MSS + again, again)
        if spent_s:
            self.rates, self.turns = self.rates + got / spent_s, self.turns + 1
        self._going = [one for one in self._going if one.left > 0]
        return told

    def _fare(self, algorithm: str, share: float, loss: float) -> tuple[float, float, float]:
        """Bytes/s, the share sent again, the round trip."""
        if algorithm == self.bad:
            return max(1.0, share / 10), loss, self.rtt_s
        if algorithm == "bbr":
            local = 0.55 if self.rtt_s < LOCAL_S else 1.0
            more = 0.1 if self.queue_s < self.rtt_s / 10 else 0.0
            return max(1.0, share * local * (1 - loss if loss < 0.17 else 0.1)), loss + more, self.rtt_s * 1.1
        allowed = FACTORS[algorithm] * MATHIS * MSS / self.rtt_s / loss**0.5 if loss else float("inf")
        full = allowed >= share
        rate = min(allowed, share)
        return max(1.0, rate), loss + (0.001 if full else 0.0), self.rtt_s + (self.queue_s if full else 0.0)

    def _add(self, algorithm: str, first: int, *more: float) -> None:
        totals = self._totals.setdefault(algorithm, [0.0] * 13)
        for place, each in enumerate(more, first):
            totals[place] += each
