"""A made-up world of TCP connections that are soon over: what they use, and what the next ones begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actuators.records import Spot
from bus.schema import AnyEvent, Counters, TcpEnd
from trimtab.testing.waves import Wave, constant
from trimtab.testing.worlds import MSS, RMEM, WMEM

FIRST = 10 * MSS
PAGES = 100_000
"""tcp_mem[2]."""


@dataclass
class ShortConnections:
    """Connections to one service. Each doubles what it moves in a round trip, from what it begins with up to what the
    path holds, until all is moved: so larger first sizes make it need larger ones, within bounds."""

    per_s: Wave
    size: Wave
    """Bytes, each."""
    path_bytes: float = 1e6
    """Rate times round trip."""
    firsts: tuple[int, int] = (131072, 16384)
    """tcp_rmem[1], tcp_wmem[1] at first."""
    largest: tuple[int, int] = (6 << 20, 4 << 20)
    held: Wave = field(default_factory=lambda: constant(0.1))
    """Share of tcp_mem[2] that all of TCP holds."""
    netns: int = 33
    every_s: float = 1.0
    values: Mapping[Spot, int] = field(init=False)

    def __post_init__(self) -> None:
        names = (f"{RMEM}[1]", f"{WMEM}[1]", f"{RMEM}[2]", f"{WMEM}[2]")
        self.values = {
            Spot("net.ipv4.tcp_mem[2]", 0): PAGES,
            **{Spot(name, self.netns): value for name, value in zip(names, self.firsts + self.largest, strict=True)},
        }

    def turn(self, seconds: float, t_ns: int, now: Mapping[Spot, int]) -> Iterator[AnyEvent]:
        """One a second, as the probe says it; and what TCP holds."""
        yield Counters(t_ns, 7, "net/sockstat", {"TCP.mem": int(PAGES * max(0.0, self.held(seconds)))})
        count, size = int(self.per_s(seconds)), int(max(0.0, self.size(seconds)))
        if count < 1 or size < FIRST:
            return
        rmem, wmem, *largest = (now[Spot(f"{name}[{place}]", self.netns)] for place in (1, 2) for name in (RMEM, WMEM))
        moved = [min(size / 2, self.path_bytes, most / 4) for most in largest]
        best = [min(size, int(max(one, first / 4))) for one, first in zip(moved, (rmem, wmem), strict=True)]
        yield TcpEnd(
            t_ns, self.netns, self.netns, 2, 5201, 40000, max(rmem, 4 * best[0]), max(wmem, 4 * best[1]), best[0],
            max(10, best[1] // MSS), MSS, size, size, count, rmem, largest[0], wmem, largest[1], False, False, True,
        )  # fmt: skip
