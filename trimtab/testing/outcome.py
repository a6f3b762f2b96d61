"""What came of a policy on a recording, for tests: what stood, what was written, refused, wished for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from actuators.records import Spot
from bus.config import Config
from bus.schema import Outcome
from bus.tunables import Tunable
from deciders.engine import Asked
from trimtab.tape.model import Tally
from trimtab.tape.rerun import Events, Rerun


class Change(Struct, frozen=True):
    """A value written: by a wish, or because the guard put one back."""

    t_ns: int
    """CLOCK_MONOTONIC of the recording."""
    tunable: str
    netns: int
    old: int
    new: int
    why: str


class Heard(Rerun):
    """A rerun that keeps what was wished for, and what was written."""

    def __init__(self, decider: str, settings: Config, rows: Mapping[str, Tunable], mem_bytes: int) -> None:
        super().__init__(decider, settings, rows, mem_bytes)
        self.wishes: list[Asked] = []
        self.changes: list[Change] = []

    def answer(self, wish: Asked, t_ns: int) -> Events:
        """What comes of a wish or a verdict."""
        before = {spot: key.value for spot, key in self.model.keys.items()}
        told = super().answer(wish, t_ns)
        self.wishes.append(wish)
        for event in told:
            if isinstance(event, Outcome) and event.verdict in ("written", "reverted"):
                old = before.get(Spot(event.tunable, event.netns), event.believed)
                self.changes.append(Change(t_ns, event.tunable, event.netns, old, event.value, event.reason))
        return told


class Result:
    """What came of it. Everywhere: tunable by name, netns by its cookie. Where none is named, values are those of the
    namespaces in which the policy had the tunable written; if it had not, of all in which the recording tells it."""

    def __init__(self, runs: Sequence[Heard]) -> None:
        self.wishes: list[Asked] = [wish for run in runs for wish in run.wishes]
        """As they were made: granted or not, and the guard's verdicts."""
        self._changes = [change for run in runs for change in run.changes]
        self._tallies = {spot: tally for run in runs for spot, tally in run.model.tallies.items()}

    @property
    def tunables(self) -> list[str]:
        """Those whose values the recording tells."""
        return sorted({spot.tunable for spot in self._tallies})

    @property
    def namespaces(self) -> list[int]:
        """Cookies of those in which it tells any; 0: the host."""
        return sorted({spot.netns for spot in self._tallies})

    def start(self, tunable: str, netns: int | None = None) -> int:
        """What stood at first; of several namespaces the most. LookupError where that is not known, as below."""
        return max(tally.start for tally in self._of(tunable, netns))

    def peak(self, tunable: str, netns: int | None = None) -> int:
        """The most that ever stood."""
        return max(tally.peak for tally in self._of(tunable, netns))

    def final(self, tunable: str, netns: int | None = None) -> int:
        """What stood in the end; of several namespaces the most."""
        return max(tally.final for tally in self._of(tunable, netns))

    def reversals(self, tunable: str, netns: int | None = None) -> int:
        """How often it turned round, up after down or down after up; in the namespace where it did so most often."""
        return max(tally.reversals for tally in self._of(tunable, netns))

    def changes(self, tunable: str = "", netns: int | None = None) -> list[Change]:
        """What was written, in order; of all tunables where none is named."""
        return [change for change in self._changes if _is(tunable, netns)(Spot(change.tunable, change.netns))]

    def refused(self, tunable: str = "", netns: int | None = None) -> dict[str, int]:
        """How many wishes the gate refused, by kind (cool-down, bounds, held ...)."""
        found: Counter[str] = Counter()
        for tally in self._chosen(tunable, netns):
            found.update(tally.refused)
        return dict(found)

    def reverted(self, tunable: str = "", netns: int | None = None) -> int:
        """How many changes the guard put back."""
        return sum(tally.reverted for tally in self._chosen(tunable, netns))

    def _chosen(self, tunable: str, netns: int | None) -> list[Tally]:
        wanted = _is(tunable, netns)
        return [tally for spot, tally in self._tallies.items() if wanted(spot)]

    def _of(self, tunable: str, netns: int | None) -> list[Tally]:
        found = self._chosen(tunable, netns)
        if not found:
            where = "" if netns is None else f" in netns {netns}"
            raise LookupError(f"the recording tells nothing of {tunable}{where}, only of {', '.join(self.tunables)}")
        written = [tally for tally in found if tally.changes]
        return written if written and netns is None else found


def _is(tunable: str, netns: int | None) -> Callable[[Spot], bool]:
    return lambda spot: tunable in ("", spot.tunable) and netns in (None, spot.netns)
