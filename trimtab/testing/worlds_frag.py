"""A made-up world (worlds): IP fragments that wait for the rest of their datagram, as far as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, FragMemory, Probe
from trimtab.testing.waves import Wave, constant

FRAG4 = "net.ipv4.ipfrag_high_thresh"
FRAGMENT_BYTES = 2304
"""What one of 1500 bytes takes."""


@dataclass
class Fragments:
    """One namespace. Each fragment that waits is replaced by another once a second."""

    wanted: Wave
    """Bytes that wait at a time when all get in."""
    junk: Wave = field(default_factory=lambda: constant(0.0))
    """The same, of datagrams that never become whole."""
    limit: int = 4 << 20
    netns: int = 7
    early: bool = True
    """Told of from 60 % on; else only when one is refused."""
    gives_up_s: float = 0.0
    """So much after the first junk that is let in begins to be counted as failed."""
    every_s: float = 0.1
    values: Mapping[Spot, int] = field(init=False)
    refused: int = 0
    lately: int = 0
    """Fragments refused in the last turn."""
    _totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Asked to be put together, failed, whole."""
    _last_s: float = 0.0
    _junk_s: float = -1.0

    def __post_init__(self) -> None:
        self.values = {Spot(FRAG4, self.netns): self.limit}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As the probe and /proc say it (bpf/ip_frag.c)."""
        passed_s, again = seconds - self._last_s, seconds // 1 != self._last_s // 1
        self._last_s = seconds
        limit = now[Spot(FRAG4, self.netns)]
        wanted, junk = max(0.0, self.wanted(seconds)), max(0.0, self.junk(seconds))
        held = min(wanted + junk, limit)
        lost = (wanted + junk - held) / FRAGMENT_BYTES * passed_s
        asked = (wanted + junk) / FRAGMENT_BYTES * passed_s
        # One failure for each datagram that is given up, of two fragments here.
        self._junk_s = seconds if junk and self._junk_s < 0 else self._junk_s
        due = seconds - self._junk_s >= self.gives_up_s
        bad = junk / FRAGMENT_BYTES * passed_s / 2
        # Of what is wanted as large a share gets in as of the rest.
        whole = (asked - lost) / 2 * wanted / (wanted + junk) if wanted else 0.0
        for place, more in enumerate((asked, min(asked, lost + bad * due), whole)):
            self._totals[place] += more
        self.lately = int(lost)
        self.refused += self.lately
        if self.lately or (self.early and held >= 0.6 * limit):
            yield FragMemory(t_ns, self.netns, self.netns, 2, int(held) + self.lately, limit, self.refused)
        if again:
            yield Probe(t_ns, "ip_frag", "raw tracepoint", "")
            names = ("Ip.ReasmReqds", "Ip.ReasmFails", "Ip.ReasmOKs")
            yield Counters(t_ns, self.netns, "net/snmp", dict(zip(names, map(int, self._totals), strict=True)))
