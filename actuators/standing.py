"""A key where a value of ours stands, or may stand."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from actuators.originals import Write
from actuators.records import ON_TRIAL, Site, Spot, Stood, Twin


class Standing(Struct):
    """A key where a value of ours stands."""

    spot: Spot
    site: Site
    original: int
    stands: int
    """What we last wrote there: another value is somebody else's."""
    changes: dict[int, Stood]
    """The changes that led here by their ids, oldest first."""
    since_ns: int = 0
    """When it became ours, CLOCK_MONOTONIC; 0: before this process began."""

    @property
    def newest(self) -> int:
        """Id of the newest change, 0 where none is known."""
        return max(self.changes, default=0)

    def on_trial(self) -> tuple[int, ...]:
        """The ids of the changes on trial, oldest first. They are the newest: confirming one confirms those before."""
        return tuple(number for number, stood in self.changes.items() if stood.state in ON_TRIAL)

    def before(self, change: int) -> int:
        """What stood there before this change of ours."""
        return self.original if change == min(self.changes) else self.changes[change].old

    @property
    def twin(self) -> Twin | None:
        """What stood in its twin where the original is 0."""
        return self.changes[self.newest].twin if self.changes else None

    @property
    def decider(self) -> str:
        """Who asked for the newest change."""
        return self.changes[self.newest].decider if self.changes else ""


class Leftover(Struct, frozen=True):
    """A key where an earlier process may have left a value of ours."""

    spot: Spot
    site: Site
    original: int
    last_written: int | None
    stood: list[Stood]

    @property
    def twin(self) -> Twin | None:
        """What stood in its twin where the original is 0."""
        return self.stood[-1].twin if self.stood else None


def logged(writes: Iterable[Write]) -> list[Leftover]:
    """What originals.log says may stand."""
    return [
        Leftover(
            line.spot,
            line.site,
            line.original,
            None,
            [Stood(0, line.decider, line.old, line.new, "intent", twin=line.twin)],
        )
        for line in writes
    ]
