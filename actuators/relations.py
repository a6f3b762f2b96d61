"""How tunables stand to each other, from both sides of their rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from actuators.records import Spot
from bus.tunables import Tunable


class Relations:
    """Who may not pass whom: `at_most` of one row is `at_least` of the other, whichever of them says so."""

    def __init__(self, rows: Mapping[str, Tunable]) -> None:
        self.above: dict[str, set[str]] = {}
        """Tunable -> those that it may never pass."""
        self.below: dict[str, set[str]] = {}
        """Tunable -> those that it may never fall below."""
        self.twin: dict[str, str] = {}
        """Tunable -> the other name of the same knob."""
        for row in rows.values():
            for name in row.at_most:
                self._add(row.name, name)
            for name in row.at_least:
                self._add(name, row.name)
            if row.twin:
                self.twin |= {row.name: row.twin, row.twin: row.name}
        self._rows = rows

    def _add(self, lower: str, upper: str) -> None:
        self.above.setdefault(lower, set()).add(upper)
        self.below.setdefault(upper, set()).add(lower)

    def of(self, name: str) -> set[str]:
        """Every tunable that a row ties to this one directly."""
        return self.above.get(name, set()) | self.below.get(name, set())

    def family(self, name: str) -> list[str]:
        """This tunable and every other one with a row that is tied to it, also through others: whoever sets one by
        hand has set them all."""
        found, new = set[str](), {name}
        while new:
            found |= new
            new = {other for one in new for other in (*self.of(one), self.twin.get(one, one))} - found
        return sorted(other for other in found if other == name or other in self._rows)

    def fits(self, name: str, value: int, value_of: Callable[[str], int | None]) -> bool:
        """Whether `name` may be `value` beside the others; one whose value is None does not count, nor does a 0 which
        says that the twin counts."""
        return not self.broken(name, value, value_of)

    def broken(self, name: str, value: int, value_of: Callable[[str], int | None]) -> set[str]:
        """Those beside which `name` may not be `value`."""

        def size(other: str, found: int | None) -> int | None:
            return None if found == 0 and other in self.twin else found

        here = size(name, value)
        if here is None:
            return set()
        above = {other: size(other, value_of(other)) for other in self.above.get(name, ())}
        below = {other: size(other, value_of(other)) for other in self.below.get(name, ())}
        passed = {other for other, its in above.items() if its is not None and here > its}
        return passed | {other for other, its in below.items() if its is not None and here < its}


class Target(Struct, frozen=True):
    """A value to put back."""

    spot: Spot
    target: int
    newest: int
    """Id of the newest change there: what was changed last is put back first."""


def ordered(moves: list[Target], relations: Relations, values: Mapping[Spot, int]) -> list[Target]:
    """The moves in an order in which no relation is broken at any instant, else the newest first.

    values: what stands now at every spot that a move is about or is tied to. Where no order fits (somebody set a
    tied value by hand), the rest comes newest first: each original is what would stand there without trimtab.
    """
    now = dict(values)
    left = sorted(moves, key=lambda move: -move.newest)
    done: list[Target] = []

    def fits(move: Target) -> bool:
        return relations.fits(move.spot.tunable, move.target, lambda name: now.get(Spot(name, move.spot.netns)))

    while left:
        pick = next((move for move in left if fits(move)), left[0])
        left.remove(pick)
        done.append(pick)
        now[pick.spot] = pick.target
    return done
