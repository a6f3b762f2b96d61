"""Putting values back: all of them, those of one change, those that a process which died left behind.

A value is put back only where what stands there is what we wrote last; anything else is the administrator's by then,
and the key is ceded. Every value is read back. Works without a journal (actuators.keeper), and without an actuator
(actuators.offline).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from actuators.keeper import Keeper
from actuators.kernel import Kernel
from actuators.pace import Move
from actuators.records import LEFT_BEHIND_WHY, STOPPED_WHY, Spot, State, Swap, stamp
from actuators.relations import Relations, Target, ordered
from actuators.standing import Leftover, Standing
from actuators.voice import Verdict, Voice, clipped
from bus.netns import NamespaceGoneError
from bus.schema import Outcome


class Tally(Struct):
    """What came of an undo."""

    undone: int = 0
    left: int = 0
    """Values of ours that could not be put back and stand still."""


class UndoError(Exception):
    """A change that cannot be undone, and why, in one sentence."""


class Ending(Struct, frozen=True):
    """How the changes that are undone end."""

    state: State
    why: str
    held: str = ""
    """Why hands are off the keys from then on; empty: they are not."""
    turn: bool = True
    """It counts among the turns of a key (actuators.pace): not what a start or a stop of ours does."""


STOPPED = Ending("reverted", STOPPED_WHY, turn=False)
LEFT_BEHIND = Ending("reverted", LEFT_BEHIND_WHY, turn=False)


class Undo:
    """Puts values back."""

    def __init__(self, keeper: Keeper, kernel: Kernel, relations: Relations, voice: Voice) -> None:
        self.voice = voice
        self._keeper = keeper
        self._kernel = kernel
        self.relations = relations

    def all(self, ending: Ending, spots: Collection[Spot] | None = None) -> Tally:
        """Put every original (of these spots) back, newest change first, in an order in which no relation is broken."""
        kept = [one for spot, one in self._keeper.standing.items() if spots is None or spot in spots]
        moves = [Target(one.spot, one.original, one.newest) for one in kept]
        tally = Tally()
        for move in ordered(moves, self.relations, self._values(kept)):
            self._restore(self._keeper.standing[move.spot], move.target, (), ending, tally)
        return tally

    def trials(
        self, ending: Ending, deciders: Collection[str] | None = None, spots: Collection[Spot] | None = None
    ) -> Tally:
        """Put back what is on trial (of these deciders, at these spots); what is confirmed stays."""
        chosen = {
            one.spot: one.on_trial()
            for spot, one in self._keeper.standing.items()
            if (deciders is None or one.decider in deciders) and (spots is None or spot in spots)
        }
        kept = [self._keeper.standing[spot] for spot, ids in chosen.items() if ids]
        moves = [Target(one.spot, one.before(chosen[one.spot][0]), one.newest) for one in kept]
        tally = Tally()
        for move in ordered(moves, self.relations, self._values(kept)):
            self._restore(self._keeper.standing[move.spot], move.target, chosen[move.spot], ending, tally)
        return tally

    def one(self, change: int, ending: Ending) -> Tally:
        """Put back what stood before one change; later changes of the same key are undone with it. Raises UndoError
        with a sentence when there is nothing to undo, or it would break a relation."""
        kept = self._having(change)
        later = tuple(number for number in kept.changes if number >= change)
        target = kept.before(change)
        self._check(Target(kept.spot, target, kept.newest), self._values([kept]))
        tally = Tally()
        self._restore(kept, target, later, ending, tally)
        return tally

    def since(self, change: int, ending: Ending) -> Tally:
        """As one(), and with it what was changed since at the keys tied to it that stand in the way."""
        kept = self._having(change)
        first = {kept.spot: change}
        while more := self._in_the_way(first, change):
            first |= more
        moves = self._back_to(first)
        values = self._then(first, moves)
        for move in moves:
            self._check(move, values)
        tally = Tally()
        for move in ordered(moves, self.relations, self._values(self._keeper.standing[spot] for spot in first)):
            one = self._keeper.standing[move.spot]
            ids = tuple(number for number in one.changes if number >= first[move.spot])
            self._restore(one, move.target, ids, ending, tally)
        return tally

    def recover(self) -> list[Spot]:
        """Take up what an earlier process left: what of ours stands is known again, and the rest is settled. Returns
        the keys there are to undo."""
        return [leftover.spot for leftover in self._keeper.leftovers() if self._take_up(leftover)]

    def cede(
        self,
        kept: Standing,
        found: int,
        expected: int | None = None,
        who: str = "somebody else",
        beside: int | None = None,
    ) -> None:
        """Somebody else wrote a key of ours: it is theirs, until `release`. expected: what was to stand there, if it
        is not what we wrote last. beside: what they wrote to its twin, if it was that."""
        expected = kept.stands if expected is None else expected
        twin = self.relations.twin.get(kept.spot.tunable, "")
        if twin and not found and beside is None:
            # Whoever writes the twin makes this one 0.
            beside = self._kernel.related([twin], kept.spot.netns, kept.site.inode).get(twin) or None
        if beside is not None:
            why = f"{who} wrote {beside} to {twin}, its twin"
        else:
            theirs, ours = self.voice.shown(kept.spot, found), self.voice.shown(kept.spot, expected)
            why = f"{who} wrote {theirs}" + (f" in place of {ours}" if found != expected else ", as trimtab had")
        self.taken(kept, found, why)

    def taken(self, kept: Standing, found: int, why: str) -> None:
        """The key is somebody else's from now on, for this reason."""
        self._tell(kept, "ceded", why, found)
        self.voice.ceded(kept, why)
        self._keeper.settle(kept.spot, "ceded", why, None, held=why)

    def gone(self, kept: Standing, ending: Ending) -> None:
        """Nothing of ours stands at a key any more, and it is as before trimtab."""
        self._undone(kept, kept.original, (), ending)

    def confirmed(self, kept: Standing, change: int, why: str) -> None:
        """Tell that a change has been confirmed."""
        self.voice.confirmed(kept, change, why)
        self._tell(kept, "confirmed", why, kept.stands)

    def leased(self, kept: Standing, change: int, why: str) -> None:
        """Tell that a change has been found good, and stays on its lease."""
        self.voice.leased(kept, change, why)
        self._tell(kept, "confirmed", why, kept.stands)

    def lost(self, kept: Standing) -> None:
        """The namespace has gone, and our value with it."""
        self._keeper.settle(kept.spot, "lost", "the namespace has gone", None)

    # --- how ------------------------------------------------------------------------------------------------------

    def _having(self, change: int) -> Standing:
        kept = next((one for one in self._keeper.standing.values() if change in one.changes), None)
        if not kept:
            raise UndoError(f"change {change} does not stand (any more); `trimtab history` lists them")
        return kept

    def _back_to(self, first: dict[Spot, int]) -> list[Target]:
        """Where the keys go when these changes, the first to go of each, and all after them are undone."""
        kept = {spot: self._keeper.standing[spot] for spot in first}
        return [Target(spot, one.before(first[spot]), one.newest) for spot, one in kept.items()]

    def _then(self, first: dict[Spot, int], moves: Iterable[Target]) -> dict[Spot, int]:
        """What stands there, and at the keys tied to those, after these moves."""
        now = self._values(self._keeper.standing[spot] for spot in first)
        return now | {move.spot: move.target for move in moves}

    def _in_the_way(self, first: dict[Spot, int], change: int) -> dict[Spot, int]:
        """The keys beside which those may not go back, with the first change of ours there after this one."""
        moves = self._back_to(first)
        values = self._then(first, moves)
        broken = {spot for move in moves for spot in self._broken(move, values)}
        found: dict[Spot, int] = {}
        for spot in broken - first.keys():
            kept = self._keeper.standing.get(spot)
            later = [number for number in kept.changes if number > change] if kept else []
            if later:
                found[spot] = min(later)
        return found

    def _broken(self, move: Target, values: dict[Spot, int]) -> set[Spot]:
        netns = move.spot.netns
        names = self.relations.broken(move.spot.tunable, move.target, lambda name: values.get(Spot(name, netns)))
        return {Spot(name, netns) for name in names}

    def _restore(self, kept: Standing, target: int, ids: tuple[int, ...], ending: Ending, tally: Tally) -> None:
        try:
            swap = self._swap(kept, target)
        except NamespaceGoneError:
            self.lost(kept)
            return
        except OSError as failure:
            swap = Swap(kept.stands, kept.stands, failure.strerror or str(failure))
        if swap.theirs:
            self.cede(kept, swap.stands)
        elif swap.stands == target:
            self._undone(kept, target, ids, ending)
            tally.undone += 1
        elif swap.stands == kept.stands:
            tally.left += 1
            self.voice.stuck(kept, target, swap.error)
        else:
            self.cede(kept, swap.stands)

    def _swap(self, kept: Standing, target: int) -> Swap:
        if kept.stands == target:
            value = self._kernel.read(kept.spot, kept.site.inode)
            return Swap(value, value, "")
        return self._kernel.swap(kept.spot, kept.site.inode, kept.stands, target, kept.twin)

    def _undone(self, kept: Standing, target: int, ids: tuple[int, ...], ending: Ending) -> None:
        if kept.stands != target:
            self.voice.undone(kept, target, ending.why)
            if ending.turn:
                self._keeper.pace.note(Move(stamp().t_ns, kept.spot, kept.decider, target > kept.stands, undo=True))
        self._tell(kept, "reverted", ending.why, target)
        stands = None if not ids or len(ids) == len(kept.changes) else target
        self._keeper.settle(kept.spot, ending.state, ending.why, stands, ids, ending.held)

    def _tell(self, kept: Standing, verdict: Verdict, why: str, value: int) -> None:
        self.voice.emit(
            Outcome(
                stamp().t_ns,
                kept.decider,
                kept.spot.tunable,
                kept.spot.netns,
                kept.stands,
                kept.original,
                verdict,
                clipped(why),
                value,
                kept.newest,
            )
        )

    def _values(self, kept: Iterable[Standing]) -> dict[Spot, int]:
        values: dict[Spot, int] = {}
        for one in kept:
            tied = self._kernel.related(self.relations.of(one.spot.tunable), one.spot.netns, one.site.inode)
            values |= {Spot(name, one.spot.netns): value for name, value in tied.items()}
            values[one.spot] = one.stands
        return values

    def _check(self, move: Target, values: dict[Spot, int]) -> None:
        if broken := self._broken(move, values):
            beside = ", ".join(f"{spot.tunable} is {values[spot]}" for spot in sorted(broken))
            name = move.spot.tunable
            raise UndoError(f"{name} cannot go back to {move.target} alone, as {beside}; undo those first, or all")

    def _take_up(self, left: Leftover) -> bool:
        """Make a leftover known again. Returns whether something of ours stands there."""
        last = left.stood[-1] if left.stood else None
        ours = {left.original, *(value for stood in left.stood for value in (stood.old, stood.new))}
        expected = last.new if last else left.original
        try:
            value = self._kernel.read(left.spot, left.site.inode)
        except NamespaceGoneError:
            self._keeper.settle(left.spot, "lost", "the namespace has gone", None)
            return False
        except OSError:
            value = expected
        kept = self._keeper.adopt(left.spot, left.site, left.original, value if value in ours else expected)
        kept.changes = {stood.id: stood for stood in left.stood}
        if value not in ours or (not value and self._twin_differs(left)):
            self.cede(kept, value)
        elif last and last.id and last.state == "intent" and value == last.old != last.new:
            stands = value if len(left.stood) > 1 else None
            self._keeper.settle(left.spot, "failed", "was not carried out", stands, (last.id,))
        return left.spot in self._keeper.standing

    def _twin_differs(self, left: Leftover) -> bool:
        """A 0 is ours only with that beside it which was there before us."""
        if left.twin is None:
            return False
        beside = self._kernel.related([left.twin.name], left.spot.netns, left.site.inode)
        return beside.get(left.twin.name, left.twin.value) != left.twin.value
