"""What of ours stands in the kernel and what is held: kept in memory, with the journal behind it.

Memory leads when the journal fails: then no change is begun any more, but every revert still works, and what became of
it is written once the journal can be written again (`open`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from actuators import originals
from actuators.gate import HOUR_NS
from actuators.holds import Holds
from actuators.journal import Journal
from actuators.pace import Move, Pace
from actuators.records import STANDING, Confirmed, Hold, Intent, Site, Spot, State, Stood, stamp
from actuators.relations import Relations
from actuators.standing import Leftover, Standing, logged
from actuators.state_dir import JournalError

Result = TypeVar("Result")


class _Pending(Struct, frozen=True):
    spot: Spot
    write: Callable[[Journal], None]


class Keeper:
    """The memory of the actuator. open(), intend(), advise(), hold() and release() raise JournalError."""

    def __init__(self, folder: Path, boot_id: str, own: int, relations: Relations) -> None:
        self.standing: dict[Spot, Standing] = {}
        self.counts: Counter[str] = Counter()
        """How many changes of this boot are in each state."""
        self.ceded: dict[Spot, str] = {}
        """Keys of the host that others set, and who: held as long as they do."""
        self.trouble = "the journal is not open"
        """Why nothing can be journaled, and so nothing be changed; empty when all is well."""
        self._folder = folder
        self._boot_id = boot_id
        self._relations = relations
        self._journal: Journal | None = None
        self._holds = Holds(own, relations)
        self.pace = Pace()
        """What was changed within the last hour."""
        self._paced = False
        self._pending: list[_Pending] = []
        self._renumbering = False
        """A journal begun anew knows the changes before it by other numbers, but no others of their keys."""

    # --- the journal behind ---------------------------------------------------------------------------------------

    def open(self) -> list[str]:
        """Open the journal (anew), and write what is pending. Returns what the operator must be told."""
        self.close()
        try:
            self._journal = journal = Journal(self._folder, self._boot_id)
            self._load(journal)
            self._renumbering = journal.fresh
            self._write_pending(journal)
            self._renumber(journal)
            self._renumbering = False
            journal.tidy()
            self.counts = Counter(journal.counts())
        except JournalError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return journal.notes

    def flush(self) -> None:
        """In quiet moments: write what is pending, and let the journal tidy up."""
        self.pace.forget(stamp().t_ns)
        self._end_holds()
        if not self._journal:
            return
        try:
            self._write_pending(self._journal)
            self._journal.flush()
        except JournalError as error:
            self.trouble = str(error)

    def close(self) -> None:
        """Close the journal; what stands stays known."""
        if self._journal:
            self._journal.close()
        self._journal, self.trouble = None, "the journal is not open"

    def leftovers(self) -> list[Leftover]:
        """What the journal says may stand and memory does not know; where there is no journal, originals.log."""
        try:
            found = self._from_journal()
        except JournalError:
            found = logged(originals.read(self._folder, self._boot_id).writes)
        known = self.standing.keys() | {one.spot for one in self._pending}
        return [one for one in found if one.spot not in known]

    def restorable(self) -> list[Confirmed]:
        """What was confirmed in an earlier boot and waits to be applied again. Raises JournalError."""
        return self._try(Journal.restorable)

    def forget(self, ids: tuple[int, ...], why: str) -> None:
        """These changes of an earlier boot are over. Raises JournalError."""
        self._try(lambda journal: journal.forget(ids, why))

    # --- changes --------------------------------------------------------------------------------------------------

    def intend(self, intent: Intent) -> int:
        """Journal a change that is about to be made. Returns its id. On JournalError it must not be made."""
        number = self._try(lambda journal: journal.intend(intent))
        now_ns = stamp().t_ns
        self.pace.note(Move(now_ns, intent.spot, intent.decider, intent.new > intent.old))
        kept = self.adopt(intent.spot, intent.site, intent.original, intent.old, now_ns)
        kept.changes[number] = Stood(number, intent.decider, intent.old, intent.new, "intent", now_ns, intent.twin)
        self.counts["intent"] += 1
        return number

    def adopt(self, spot: Spot, site: Site, original: int, stands: int, since_ns: int = 0) -> Standing:
        """The standing of a key; a new one where there is none yet."""
        return self.standing.setdefault(spot, Standing(spot, site, original, stands, {}, since_ns))

    def advise(self, intent: Intent) -> tuple[int, bool]:
        """Journal advice. Returns its id and whether it is new."""
        number, fresh = self._try(lambda journal: journal.advise(intent))
        self.counts["advised"] += fresh
        return number, fresh

    def settle(
        self, spot: Spot, state: State, detail: str, stands: int | None, ids: tuple[int, ...] = (), held: str = ""
    ) -> None:
        """What became of these changes of a key (none named: of all that stand), and what of ours stands there now;
        None: nothing, the key is given back. held: why hands are off this key and those tied to it from now on."""
        kept = self.standing.get(spot)
        if kept:
            ids = ids or tuple(kept.changes)
            self._remember(kept, ids, state, stands)
        hold = self._holds.new(spot, held) if held else None
        self._later(
            spot,
            lambda journal: journal.settle(
                spot, () if self._renumbering else filter(None, ids), state, detail, stands, hold
            ),
        )
        if hold:
            self._holds.add([hold])
            for tied in self._holds.tied(spot, held):
                self._holds.add([tied])
                self._later(tied.spot, partial(Journal.hold, hold=tied))

    # --- holds ----------------------------------------------------------------------------------------------------

    def held(self, spot: Spot) -> str:
        """Why hands are off this key; empty when they are not."""
        return self._holds.why(spot) or self.ceded.get(spot, "")

    def holds(self) -> list[Hold]:
        """Every hold."""
        return self._holds.all()

    def hold(self, spot: Spot, why: str, seconds: int = 0) -> list[str]:
        """Hands off a key and those tied to it, for so long (0: until release). Returns their names."""
        names = self._relations.family(spot.tunable)
        for name in names:
            hold = self._holds.new(Spot(name, spot.netns), why, seconds)
            self._try(partial(Journal.hold, hold=hold))
            self._holds.add([hold])
        return names

    def release(self, spot: Spot) -> list[Spot]:
        """A key, and those tied to it, may be touched again; netns 0: everywhere. Returns what was held."""
        held = self._holds.of(spot)
        for one in held:
            self._try(partial(Journal.release, spot=one))
            self._holds.drop(one)
        return held

    # --- how ------------------------------------------------------------------------------------------------------

    def _load(self, journal: Journal) -> None:
        self._holds.add(journal.holds())
        if self._paced:
            # What was changed or put back since is known here, and perhaps not yet there.
            return
        self._paced, self.pace = True, Pace()
        for move in journal.moves_since(stamp().t_ns - HOUR_NS):
            self.pace.note(move)

    def _from_journal(self) -> list[Leftover]:
        if not self._journal:
            raise JournalError(self.trouble)
        journal = self._journal
        keys = journal.keys()
        return [
            Leftover(key.spot, key.site, key.original, key.last_written, journal.standing(key.spot)) for key in keys
        ]

    def _renumber(self, journal: Journal) -> None:
        for hold in self._holds.all() if journal.fresh else ():
            journal.hold(hold)
        for kept in self.standing.values():
            if journal.fresh:
                journal.remember(kept.spot, kept.site, kept.original, kept.changes.values(), kept.stands)
            kept.changes = {stood.id: stood for stood in journal.standing(kept.spot)}

    def _try(self, write: Callable[[Journal], Result]) -> Result:
        if self.trouble or not self._journal:
            raise JournalError(self.trouble)
        try:
            return write(self._journal)
        except JournalError as error:
            self.trouble = str(error)
            raise

    def _later(self, spot: Spot, write: Callable[[Journal], None]) -> None:
        """Now, if that can be."""
        self._pending.append(_Pending(spot, write))
        if self._journal and not self.trouble:
            try:
                self._write_pending(self._journal)
            except JournalError as error:
                self.trouble = str(error)

    def _write_pending(self, journal: Journal) -> None:
        while self._pending:
            self._pending[0].write(journal)
            self._pending.pop(0)

    def _end_holds(self) -> None:
        for spot in self._holds.ended():
            self._holds.drop(spot)
            self._later(spot, partial(Journal.release, spot=spot))

    def _remember(self, kept: Standing, ids: tuple[int, ...], state: State, stands: int | None) -> None:
        for number in ids:
            stood = kept.changes.pop(number)
            self.counts[stood.state] -= 1
            self.counts[state] += 1
            if state in STANDING:
                kept.changes[number] = replace(stood, state=state)
        kept.changes = dict(sorted(kept.changes.items()))
        if stands is None:
            del self.standing[kept.spot]
        else:
            kept.stands = stands
