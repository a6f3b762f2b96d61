"""What hands are off, and until when: in memory. On disk it is in the journal (actuators.keeper)."""

from __future__ import annotations

from collections.abc import Iterable

from actuators.records import Hold, Spot, stamp
from actuators.relations import Relations
from bus.tunables import base


class Holds:
    """Every hold by its key."""

    def __init__(self, own: int, relations: Relations) -> None:
        """own: the cookie of the namespace that we run in, whose holds outlive the boot."""
        self._own = own
        self._relations = relations
        self._of: dict[Spot, Hold] = {}

    def all(self) -> list[Hold]:
        """Every hold."""
        return list(self._of.values())

    def add(self, holds: Iterable[Hold]) -> None:
        """Hands off, instead of what was held there for another reason."""
        self._of |= {hold.spot: hold for hold in holds}

    def drop(self, spot: Spot) -> None:
        """No more."""
        del self._of[spot]

    def why(self, spot: Spot) -> str:
        """Why hands are off a key; empty when they are not."""
        # A row of many keys is held with all of them.
        names = dict.fromkeys((spot.tunable, base(spot.tunable)))
        spots = [Spot(name, netns) for name in names for netns in (spot.netns, 0)]
        return next((self._of[one].why for one in spots if one in self._of), "")

    def new(self, spot: Spot, why: str, seconds: int = 0) -> Hold:
        """A hold from now on, for so long (0: until release)."""
        now_ns = stamp().tai_ns
        until_ns = now_ns + seconds * 1_000_000_000 if seconds else 0
        return Hold(spot, why, now_ns, spot.netns in (0, self._own), until_ns)

    def tied(self, spot: Spot, why: str) -> list[Hold]:
        """Holds of those that are tied to a key which is held."""
        names = [name for name in self._relations.family(spot.tunable) if name != spot.tunable]
        return [self.new(Spot(name, spot.netns), f"tied to {spot.tunable}: {why}") for name in names]

    def of(self, spot: Spot) -> list[Spot]:
        """What is held of a key and those tied to it; netns 0: everywhere."""
        names = self._relations.family(spot.tunable)
        return [
            one
            for one in self._of
            if not {one.tunable, base(one.tunable)}.isdisjoint(names) and spot.netns in (0, one.netns)
        ]

    def ended(self) -> list[Spot]:
        """What is held no longer, as it was for so long only."""
        now_ns = stamp().tai_ns
        return [hold.spot for hold in self._of.values() if 0 < hold.until_tai_ns <= now_ns]
