"""How much was changed within the last hour, where, by whom, and which way: what the gate's limits of pace go by."""

from __future__ import annotations

import itertools
from collections import Counter, deque

from msgspec import Struct

from actuators.gate import HOUR_NS
from actuators.records import Spot


class Move(Struct, frozen=True):
    """One change of one key, or its undoing."""

    t_ns: int
    """CLOCK_MONOTONIC."""
    spot: Spot
    decider: str
    up: bool
    """The value rose."""
    undo: bool = False
    """Put back: it turns the key round, but is nobody's wish."""


class Pace:
    """The moves of the last hour."""

    def __init__(self) -> None:
        self._all: deque[Move] = deque()
        self._of: dict[Spot, deque[Move]] = {}
        self.by: Counter[str] = Counter()
        """Wishes carried out, by decider."""

    def note(self, move: Move) -> None:
        """One more."""
        self.forget(move.t_ns)
        self._all.append(move)
        self._of.setdefault(move.spot, deque()).append(move)
        self.by[move.decider] += not move.undo

    def forget(self, now_ns: int) -> None:
        """Drop what is older than an hour."""
        while self._all and self._all[0].t_ns <= now_ns - HOUR_NS:
            move = self._all.popleft()
            self._of[move.spot].popleft()
            if not self._of[move.spot]:
                del self._of[move.spot]
            self.by[move.decider] -= not move.undo

    def changed_ns(self, spot: Spot) -> tuple[int, ...]:
        """When wishes for a key were carried out, oldest first."""
        return tuple(move.t_ns for move in self._of.get(spot, ()) if not move.undo)

    def turns(self, spot: Spot) -> int:
        """How often a key has turned round."""
        ways = [move.up for move in self._of.get(spot, ())]
        return sum(one != next_ for one, next_ in itertools.pairwise(ways))

    def rising(self, spot: Spot) -> bool | None:
        """Which way a key went last; None where it has not moved."""
        moves = self._of.get(spot)
        return moves[-1].up if moves else None
