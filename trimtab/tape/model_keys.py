"""The keys of a modelled host (model): what stands in each, and what has become of it."""

from __future__ import annotations

from msgspec import Struct

from actuators.records import Spot


class Tally(Struct):
    """What has become of one key."""

    start: int
    final: int
    peak: int
    changes: int = 0
    refused: dict[str, int] = {}
    """By kind."""
    reverted: int = 0
    """By the guard."""
    confirmed: int = 0
    reversals: int = 0

    @property
    def idle(self) -> bool:
        """Nothing was asked for."""
        return not (self.changes or self.refused)


class Stood(Struct, frozen=True):
    """A change that stands."""

    old: int
    new: int
    t_ns: int
    on_trial: bool
    judged: bool = False
    """The guard has found nothing against it. What is leased stays on trial all the same."""


class Key(Struct):
    """One tunable in one place."""

    spot: Spot
    ino: int
    value: int
    original: int
    tally: Tally
    held: str = ""
    changes: dict[int, Stood] = {}
    """Oldest first."""
    touched: bool = False
    """A change of the model's was made here, so that recorded values do not hold any more."""
    rising: bool | None = None
    """Which way it went last."""
    told_ns: int = 0
    """When its value was last told."""

    @property
    def base(self) -> int:
        """What stands there without trimtab."""
        return self.original if self.changes else self.value

    def before(self, change: int) -> int:
        """What stood there before this change."""
        return self.original if change == min(self.changes) else self.changes[change].old


def on_trial(key: Key, change: int) -> bool:
    """Whether this change stands there on trial."""
    stood = key.changes.get(change)
    return stood is not None and stood.on_trial
