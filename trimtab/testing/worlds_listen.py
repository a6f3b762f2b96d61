"""A made-up world beside those of trimtab.testing.worlds: a socket that listens, and who connects to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Listener, ListenQueues
from trimtab.testing.waves import Wave, constant

SOMAXCONN, SYN_BACKLOG = "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"
LINGER_S = 60.0
COUNTED = (
    "overflows", "drops", "full_cookies", "full_drops", "cookies_sent", "cookies_valid", "cookies_failed", "opened",
)  # fmt: skip


@dataclass
class Server:
    """Clients come together once a second, `crowd` of them; its queue holds as many as it may, and is empty again by
    the next time. A flood of SYNs beside them fills the SYN queue for as long as it lasts."""

    crowd: Wave
    flood: Wave = field(default_factory=lambda: constant(0.0))
    """SYNs a second from nobody."""
    asked: int = 4096
    """What the program asks for; each anew_s it listens anew."""
    anew_s: float = 5.0
    cookies: bool = True
    """tcp_syncookies."""
    netns: int = 77
    first: tuple[int, int] = (128, 256)
    """somaxconn and tcp_max_syn_backlog at first."""
    every_s: float = 1.0
    refused: int = 0
    """Clients that had to come again."""
    values: Mapping[Spot, int] = field(init=False)
    _backlog: int = 0
    _dropped: int = 0
    _listened_s: float = -1e9
    _trouble_s: float = -1e9
    _totals: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {self._spot(SOMAXCONN): self.first[0], self._spot(SYN_BACKLOG): self.first[1]}

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """As collectors.listeners tells it: from the first that finds no room on, for a minute."""
        somaxconn, syns = now[self._spot(SOMAXCONN)], now[self._spot(SYN_BACKLOG)]
        if seconds - self._listened_s >= self.anew_s:
            self._listened_s, self._backlog = seconds, min(self.asked, somaxconn)
        before = self._event(t_ns - int(1e9), (0, 0))
        crowd, flood = int(self.crowd(seconds)), int(self.flood(seconds))
        moved = self._come(crowd, flood, syns)
        first = seconds - self._trouble_s > LINGER_S
        self._trouble_s = seconds if moved else self._trouble_s
        if seconds - self._trouble_s > LINGER_S:
            return
        if first:
            yield before
        yield self._event(t_ns, (somaxconn, syns))
        yield Listener(t_ns, self.netns, self.netns, 5, 8080, self._backlog, 0, self._dropped, 42, "made up")

    def _come(self, crowd: int, flood: int, syns: int) -> bool:
        """Whether anyone found no room."""
        room = self._backlog + 1
        if not self.cookies:
            room = min(room, syns * 3 // 4)
        # What a flood leaves of the SYN queue; with cookies the others get in all the same.
        held = min(flood, room)
        opened = min(crowd, self._backlog + 1 if self.cookies else room - held)
        refused, lost = crowd - opened, flood - held
        self.refused += refused
        if self.cookies:
            self._add(overflows=refused, drops=refused, cookies_sent=lost, full_cookies=lost, opened=opened)
            self._dropped += refused
        else:
            self._add(drops=refused + lost, opened=opened)
            self._dropped += refused + lost
        return bool(refused or lost)

    def _add(self, **more: int) -> None:
        for name, count in more.items():
            self._totals[name] = self._totals.get(name, 0) + count

    def _event(self, t_ns: int, standing: tuple[int, int]) -> ListenQueues:
        counts = {name: self._totals.get(name, 0) for name in COUNTED}
        return ListenQueues(t_ns, self.netns, self.netns, **counts, somaxconn=standing[0], max_syn_backlog=standing[1])

    def _spot(self, tunable: str) -> Spot:
        return Spot(tunable, self.netns)
