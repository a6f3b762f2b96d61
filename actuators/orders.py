"""The operator's orders, the same to a running actuator (actuators.service) and without one (actuators.offline)."""

from __future__ import annotations

from collections.abc import Mapping

from actuators.keeper import Keeper
from actuators.records import Spot
from actuators.state_dir import JournalError
from actuators.undo import Ending, Tally, Undo, UndoError
from bus import prefix
from bus.schema import Answer, Ask
from bus.tunables import AT, Tunable, row_of


class Orders:
    """rollback, hold, release. Every method answers; none raises."""

    def __init__(self, rows: Mapping[str, Tunable], keeper: Keeper, undo: Undo) -> None:
        self._rows = rows
        self._keeper = keeper
        self._undo = undo

    def rollback(self, ask: Ask) -> Answer:
        """Undo one change, or all (change 0), and keep hands off the keys from then on."""
        who = _who(ask)
        ending = Ending("rolled_back", f"rolled back by {who}", held=f"rolled back by {who}")
        try:
            tally = self._undo.one(ask.change, ending) if ask.change else self._undo.all(ending)
        except UndoError as error:
            return Answer(False, [str(error)])
        nothing = not ask.change and not tally.undone and not tally.left
        return _answer(tally, "nothing of trimtab's stands" if nothing else "")

    def confirm(self, ask: Ask) -> Answer:
        """A change on trial, and those of the same key before it, shall stay."""
        return self.confirm_change(ask.change, f"confirmed by {_who(ask)}")

    def confirm_change(self, change: int, why: str) -> Answer:
        """See confirm."""
        for kept in self._keeper.standing.values():
            ids = tuple(number for number in kept.on_trial() if number <= change)
            if change in ids:
                row = row_of(self._rows, kept.spot.tunable)
                if row and row.life_s:
                    return Answer(False, [f"change {change} is leased: it stands while its decider asks for it"])
                self._keeper.settle(kept.spot, "confirmed", why, kept.stands, ids)
                self._undo.confirmed(kept, change, why)
                return Answer(True, [f"change {change} is confirmed: it stays until `trimtab rollback {change}`"])
        return Answer(False, [f"change {change} is not on trial; `trimtab history` tells what became of it"])

    def revert(self, ask: Ask) -> Answer:
        """Put back what stood before a change and those of the same key after it, and park the key."""
        return self.revert_change(ask.change, f"reverted by {_who(ask)}")

    def revert_change(self, change: int, why: str) -> Answer:
        """Undo a change with what hangs on it, and park its key: what has hurt once is not tried again until
        `release`."""
        try:
            tally = self._undo.since(change, Ending("reverted", why, held=f"parked: {why}"))
        except UndoError as error:
            return Answer(False, [str(error)])
        return _answer(tally)

    def hold(self, ask: Ask) -> Answer:
        """Hands off a key (netns 0 of a namespace's tunable: in every namespace) and those tied to it."""
        row = row_of(self._rows, ask.tunable)
        if not row:
            return Answer(False, [f"no tunable {ask.tunable!r}; `trimtab tunables` lists them"])
        if AT in row.name and (fault := prefix.fault(row.prefix)):
            return Answer(False, [f"no key {ask.tunable!r}: {fault}"])
        if row.scope == "host" and ask.netns:
            return Answer(False, [f"{row.name} is the host's, not of a network namespace"])
        try:
            names = self._keeper.hold(Spot(row.name, ask.netns), f"held by {_who(ask)}", ask.seconds)
        except JournalError as error:
            return Answer(False, [f"not held: {error}"])
        until = f"for {ask.seconds} s, or " if ask.seconds else ""
        return Answer(True, [f"hands off {self._all(name)}, {until}until `trimtab release {name}`" for name in names])

    def _all(self, name: str) -> str:
        row = self._rows.get(name)
        return f"{name} to every destination" if row and row.instances else name

    def release(self, ask: Ask) -> Answer:
        """The key and those tied to it may be touched again (netns 0: wherever they were held)."""
        try:
            spots = self._keeper.release(Spot(ask.tunable, ask.netns))
        except JournalError as error:
            return Answer(False, [f"not released: {error}"])
        if not spots:
            ceded = [why for spot, why in self._keeper.ceded.items() if spot.tunable == ask.tunable]
            why = f"ceded: {ceded[0]}; see `cede` in the configuration" if ceded else "not held"
            return Answer(False, [f"{ask.tunable} is {why}"])
        lines = [f"released {spot.tunable}" + (f" in namespace {spot.netns}" if spot.netns else "") for spot in spots]
        return Answer(True, lines, {"released": len(spots)})


def _answer(tally: Tally, line: str = "") -> Answer:
    line = line or f"{tally.undone} put back" + (f", {tally.left} could not be" if tally.left else "")
    return Answer(not tally.left, [line], {"undone": tally.undone, "left": tally.left})


def _who(ask: Ask) -> str:
    # Ends up in logs and on terminals.
    return "".join(char if char.isprintable() else "?" for char in ask.who) or "the operator"
