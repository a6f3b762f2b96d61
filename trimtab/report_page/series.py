"""Numbers over time, in bounded memory: whatever span comes, a series keeps about as many bins as a plot has pixels."""

from __future__ import annotations

from bisect import bisect_right

from msgspec import Struct

BINS_MAX = 600
BIN_NS = 100_000_000
STEPS_MAX = 20_000


class Bin(Struct, gc=False):
    """Readings that fall together. Their mean is `part / of`: a busy moment counts for more than an idle one."""

    low: float
    high: float
    part: float
    of: float

    def take(self, other: Bin) -> None:
        """Become both."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.part += other.part
        self.of += other.of

    @property
    def mean(self) -> float:
        """What stands for the bin."""
        return self.part / self.of if self.of else self.low


class Series:
    """One signal. Readings may come in any order; bins grow wider when they become too many."""

    def __init__(self) -> None:
        self.width_ns = BIN_NS
        self.bins: dict[int, Bin] = {}

    def add(self, t_ns: int, part: float, of: float = 1.0) -> None:
        """A reading of part / of."""
        value = part / of
        number = t_ns // self.width_ns
        found = self.bins.get(number)
        if found is None:
            self.bins[number] = Bin(value, value, part, of)
            while len(self.bins) > BINS_MAX:
                self._widen()
            return
        if value < found.low:
            found.low = value
        elif value > found.high:
            found.high = value
        found.part += part
        found.of += of

    def _widen(self) -> None:
        self.width_ns *= 2
        wide: dict[int, Bin] = {}
        for number, one in self.bins.items():
            same = wide.get(number // 2)
            if same is None:
                wide[number // 2] = one
            else:
                same.take(one)
        self.bins = wide

    def points(self) -> list[tuple[int, Bin]]:
        """(middle of the bin, bin) in order of time."""
        return [(number * self.width_ns + self.width_ns // 2, self.bins[number]) for number in sorted(self.bins)]


class Steps:
    """A value that stands until it is another: only where it changes is kept."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.last_ns = 0
        self._value: int | None = None
        self._ns = 0

    def add(self, t_ns: int, value: int) -> None:
        """`value` stands at t_ns. What comes out of order is sorted later."""
        if (value != self._value or t_ns < self._ns) and len(self.seen) < STEPS_MAX:
            self.seen[t_ns] = value
        self._value, self._ns = value, t_ns
        self.last_ns = max(self.last_ns, t_ns)

    def points(self) -> list[tuple[int, int]]:
        """(since when, value), in order, each unlike the one before."""
        found: list[tuple[int, int]] = []
        for t_ns in sorted(self.seen):
            if not found or found[-1][1] != self.seen[t_ns]:
                found.append((t_ns, self.seen[t_ns]))
        return found


class Spans:
    """Stretches [from, to) that grow together."""

    def __init__(self, slack: int = 0) -> None:
        self._slack = slack
        self.all: list[tuple[int, int]] = []

    def holds(self, place: int) -> bool:
        """Whether it lies in one of them."""
        at = bisect_right(self.all, (place, 1 << 70)) - 1
        return at >= 0 and place < self.all[at][1]

    def add(self, start: int, end: int) -> None:
        """One more; the usual one goes on where the last one ended."""
        if self.all and self.all[-1][0] <= start <= self.all[-1][1] + self._slack:
            self.all[-1] = (self.all[-1][0], max(self.all[-1][1], end))
            return
        if not self.all or start > self.all[-1][1]:
            self.all.append((start, end))
            return
        joined: list[tuple[int, int]] = []
        for left, right in sorted([*self.all, (start, end)]):
            if joined and left <= joined[-1][1] + self._slack:
                joined[-1] = (joined[-1][0], max(joined[-1][1], right))
            else:
                joined.append((left, right))
        self.all = joined
