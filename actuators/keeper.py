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
from actuators.journal import Journal
from actuators.pace import Move, Pace
from actuators.records import ON_TRIAL, STANDING, Confirmed, Hold, Intent, Site, Spot, State, Stood, Twin, stamp
from actuators.relations import Relations
from actuators.state_dir import JournalError
from bus.tunables import base

Result = TypeVar("Result")


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
        self._own = own
        self._relations = relations
        self._journal: Journal | None = None
        self._holds: dict[Spot, Hold] = {}
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
            found = [
                Leftover(
                    line.spot,
                    line.site,
                    line.original,
                    None,
                    [Stood(0, line.decider, line.old, line.new, "intent", twin=line.twin)],
                )
                for line in originals.read(self._folder, self._boot_id).writes
            ]
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
        hold = self._new_hold(spot, held) if held else None
        self._later(
            spot,
            lambda journal: journal.settle(
                spot, () if self._renumbering else filter(None, ids), state, detail, stands, hold
            ),
        )
        if hold:
            self._holds[spot] = hold
            for tied in self._relations.family(spot.tunable):
                if tied != spot.tunable:
                    self._hold_tied(self._new_hold(Spot(tied, spot.netns), f"tied to {spot.tunable}: {held}"))

    # --- holds ----------------------------------------------------------------------------------------------------

    def held(self, spot: Spot) -> str:
        """Why hands are off this key; empty when they are not."""
        # A row of many keys is held with all of them.
        names = dict.fromkeys((spot.tunable, base(spot.tunable)))
        spots = [Spot(name, netns) for name in names for netns in (spot.netns, 0)]
        hold = next((self._holds[one] for one in spots if one in self._holds), None)
        return hold.why if hold else self.ceded.get(spot, "")

    def holds(self) -> list[Hold]:
        """Every hold."""
        return list(self._holds.values())

    def hold(self, spot: Spot, why: str, seconds: int = 0) -> list[str]:
        """Hands off a key and those tied to it, for so long (0: until release). Returns their names."""
        names = self._relations.family(spot.tunable)
        for name in names:
            hold = self._new_hold(Spot(name, spot.netns), why, seconds)
            self._try(partial(Journal.hold, hold=hold))
            self._holds[hold.spot] = hold
        return names

    def release(self, spot: Spot) -> list[Spot]:
        """A key, and those tied to it, may be touched again; netns 0: everywhere. Returns what was held."""
        names = self._relations.family(spot.tunable)
        held = [
            one
            for one in self._holds
            if not {one.tunable, base(one.tunable)}.isdisjoint(names) and spot.netns in (0, one.netns)
        ]
        for one in held:
            self._try(partial(Journal.release, spot=one))
            del self._holds[one]
        return held

    # --- how ------------------------------------------------------------------------------------------------------

    def _load(self, journal: Journal) -> None:
        self._holds |= {hold.spot: hold for hold in journal.holds()}
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
        for hold in self._holds.values() if journal.fresh else ():
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

    def _new_hold(self, spot: Spot, why: str, seconds: int = 0) -> Hold:
        now_ns = stamp().tai_ns
        until_ns = now_ns + seconds * 1_000_000_000 if seconds else 0
        return Hold(spot, why, now_ns, spot.netns in (0, self._own), until_ns)

    def _end_holds(self) -> None:
        now_ns = stamp().tai_ns
        for spot in [hold.spot for hold in self._holds.values() if 0 < hold.until_tai_ns <= now_ns]:
            del self._holds[spot]
            self._later(spot, partial(Journal.release, spot=spot))

    def _hold_tied(self, hold: Hold) -> None:
        self._holds[hold.spot] = hold
        self._later(hold.spot, lambda journal: journal.hold(hold))

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
