"""The journal: what was changed, why, what stood there before, what is held. journal.db and beside it originals.log.

A method that returned is on disk; what it cannot write it raises as JournalError, and the caller then changes nothing.
A database that is corrupt is set aside and begun anew with what originals.log still knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from actuators import originals, state_dir
from actuators.originals import Originals
from actuators.pace import Move
from actuators.records import (
    NO_TURN,
    STANDING,
    Confirmed,
    Hold,
    Intent,
    Key,
    Site,
    Spot,
    Stamp,
    State,
    Stood,
    Twin,
    machine,
    stamp,
)
from actuators.state_dir import JournalError
from actuators.store import Store
from bus.netns import HOST

KEEP_CHANGES = 100_000
"""Older rows that have ended are dropped."""
EVER = ""
"""The boot id of a hold that outlives this boot."""
_STANDING = f"state IN {STANDING}"
_RESTORABLE = f"(state = 'confirmed' AND (scope = 'host' OR netns_name = '{HOST}'))"
_HERE = "(boot_id, tunable, netns) = (?, ?, ?)"


class Journal:
    """The journal, open for writing. Only for the holder of the state directory's lock."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self.notes: list[str] = []
        """What the operator must be told, loudly."""
        self._boot_id = boot_id
        self._repeats: dict[int, int] = {}
        state_dir.directory(folder)
        self._originals = Originals(folder, boot_id)
        try:
            self._store = Store(folder)
        except JournalError:
            self._originals.close()
            raise
        found = originals.read(folder, boot_id)
        if not self.fresh:
            # A sound database may lack its end, too: a WAL that is gone or torn leaves it as it was some time ago. Of
            # holds the log is no witness: that one has ended is not forced to disk there.
            known = {key.spot for key in self.keys()}
            found = originals.Recovered([write for write in found.writes if write.spot not in known], [])
        if self.fresh or found.writes:
            self._recover(found)

    @property
    def fresh(self) -> bool:
        """The database was not there, or not sound, and is new: it knows no change by its old id."""
        return self._store.fresh

    def close(self) -> None:
        """Write what is pending and close."""
        with contextlib.suppress(JournalError):
            self.flush()
        self._originals.close()
        self._store.close()

    # --- what changes ---------------------------------------------------------------------------------------------

    def intend(self, intent: Intent) -> int:
        """Put a change and its original on disk before it is made. Returns the change's id."""
        self._originals.write(intent)
        with self._store.transaction() as db:
            self._key(db, intent.spot, intent.site, intent.original)
            return self._insert(db, intent, "intent", stamp())

    def remember(self, spot: Spot, site: Site, original: int, stood: Iterable[Stood], stands: int) -> None:
        """What stands at a key, in a journal begun anew, from who knows it better than originals.log."""
        with self._store.transaction() as db:
            db.execute(f"DELETE FROM changes WHERE {_STANDING} AND {_HERE}", self._here(spot))
            self._key(db, spot, site, original)
            for one in stood:
                why = "known from before the journal was lost"
                intent = Intent(spot, site, one.decider, one.old, one.new, why, {}, original, one.twin)
                self._insert(db, intent, one.state, msgspec.structs.replace(stamp(), t_ns=one.t_ns or stamp().t_ns))
            db.execute(f"UPDATE keys SET last_written = ? WHERE {_HERE}", (stands, *self._here(spot)))

    def settle(
        self, spot: Spot, ids: Iterable[int], state: State, detail: str, stands: int | None, hold: Hold | None = None
    ) -> None:
        """Say what became of these changes of one key (none: all that stand there), and what of ours stands there
        now; None: nothing, the key is given back. hold: from now on hands off, in the same transaction."""
        ids = tuple(ids) or tuple(stood.id for stood in self.standing(spot))
        ended = 0 if state in STANDING else stamp().tai_ns
        if hold:
            self._originals.held(hold)
        with self._store.transaction() as db:
            db.executemany(
                "UPDATE changes SET state = ?, detail = ?, ended_tai_ns = ? WHERE id = ?",
                [(state, detail, ended, number) for number in ids],
            )
            if stands is None:
                db.execute(f"DELETE FROM keys WHERE {_HERE}", self._here(spot))
            else:
                db.execute(f"UPDATE keys SET last_written = ? WHERE {_HERE}", (stands, *self._here(spot)))
            if hold:
                self._hold(db, hold)
        if stands is None:
            self._originals.done(spot)

    def advise(self, intent: Intent) -> tuple[int, bool]:
        """Keep a piece of advice. Returns its id and whether it is new; repeats are counted, and written by flush()."""
        advice = _advice(intent)
        for (number,) in self._store.read("SELECT id FROM changes WHERE advice = ?", (advice,)):
            self._repeats[number] = self._repeats.get(number, 0) + 1
            return number, False
        with self._store.transaction() as db:
            return self._insert(db, intent, "advised", stamp(), advice), True

    def hold(self, hold: Hold) -> None:
        """Hands off a key."""
        self._originals.held(hold)
        with self._store.transaction() as db:
            self._hold(db, hold)

    def release(self, spot: Spot) -> None:
        """The key may be touched again."""
        self._originals.released(spot)
        with self._store.transaction() as db:
            db.execute("DELETE FROM holds WHERE (tunable, netns) = (?, ?)", (spot.tunable, spot.netns))

    def tidy(self) -> None:
        """At start: end what another boot left, drop what is old, and write originals.log anew."""
        with self._store.transaction() as db:
            db.execute(
                f"UPDATE changes SET state = 'lost', detail = 'the host has rebooted since', ended_tai_ns = ? "
                f"WHERE {_STANDING} AND NOT {_RESTORABLE} AND boot_id <> ?",
                (stamp().tai_ns, self._boot_id),
            )
            db.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (self._boot_id, machine()))
            db.execute(
                "DELETE FROM boots WHERE boot_id NOT IN (SELECT boot_id FROM changes) AND boot_id <> ?",
                (self._boot_id,),
            )
            db.execute("DELETE FROM keys WHERE boot_id <> ?", (self._boot_id,))
            db.execute("DELETE FROM holds WHERE boot_id NOT IN (?, ?)", (EVER, self._boot_id))
            db.execute(
                f"DELETE FROM changes WHERE NOT {_STANDING} AND id <= (SELECT max(id) FROM changes) - ?",
                (KEEP_CHANGES,),
            )
        self._compact()

    def flush(self) -> None:
        """In quiet moments: write counted repeats, move the WAL into the database, keep originals.log short."""
        if self._repeats:
            with self._store.transaction() as db:
                db.executemany(
                    "UPDATE changes SET repeats = repeats + ? WHERE id = ?",
                    [(count, number) for number, count in self._repeats.items()],
                )
            self._repeats.clear()
        self._store.checkpoint()
        if self._originals.too_large:
            self._compact()

    # --- what is there --------------------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        """The keys of this boot where something of ours stands or may stand."""
        rows = self._store.read(
            "SELECT tunable, netns, netns_ino, netns_name, original, last_written FROM keys WHERE boot_id = ?",
            (self._boot_id,),
        )
        return [Key(Spot(tunable, netns), Site(ino, name), old, new) for tunable, netns, ino, name, old, new in rows]

    def standing(self, spot: Spot) -> list[Stood]:
        """The changes of a key that stand, oldest first."""
        rows = self._store.read(
            "SELECT id, decider, old, new, state, t_ns, twin, twin_value FROM changes "
            f"WHERE {_STANDING} AND {_HERE} ORDER BY id",
            self._here(spot),
        )
        return [
            Stood(number, decider, old, new, state, t_ns, _twin(name, value))
            for number, decider, old, new, state, t_ns, name, value in rows
        ]

    def restorable(self) -> list[Confirmed]:
        """What was confirmed in the last boot that confirmed anything of a key, and was not applied again since."""
        rows = self._store.read(
            "SELECT tunable, scope, boot_id, coalesce(machine, ''), decider, old, new, id, twin, twin_value "
            f"FROM changes LEFT JOIN boots USING (boot_id) WHERE {_RESTORABLE} AND boot_id <> ? ORDER BY tunable, id",
            (self._boot_id,),
        )
        found: dict[tuple[str, str], Confirmed] = {}
        for tunable, scope, boot_id, where, decider, old, new, number, name, stood in rows:
            before = found.get((tunable, boot_id))
            original, ids = (before.original, before.ids) if before else (old, ())
            found[tunable, boot_id] = Confirmed(
                tunable, scope, where, decider, original, new, (*ids, number), _twin(name, stood)
            )
        last = {one.tunable: one for one in found.values()}
        every = {name: sum((one.ids for one in found.values() if one.tunable == name), ()) for name in last}
        return [msgspec.structs.replace(one, ids=every[name]) for name, one in last.items()]

    def forget(self, ids: Iterable[int], why: str) -> None:
        """These changes of an earlier boot are over."""
        with self._store.transaction() as db:
            db.executemany(
                "UPDATE changes SET state = 'lost', detail = ?, ended_tai_ns = ? WHERE id = ?",
                [(why, stamp().tai_ns, number) for number in ids],
            )

    def holds(self) -> list[Hold]:
        """Every hold that counts in this boot."""
        rows = self._store.read(
            "SELECT boot_id, tunable, netns, why, since_tai_ns, until_tai_ns FROM holds WHERE boot_id IN (?, ?)",
            (EVER, self._boot_id),
        )
        return [
            Hold(Spot(tunable, netns), why, since_ns, boot_id == EVER, until_ns)
            for boot_id, tunable, netns, why, since_ns, until_ns in rows
        ]

    def moves_since(self, t_ns: int) -> list[Move]:
        """Every change of this boot later than t_ns, CLOCK_MONOTONIC, and every undoing that turned a key, oldest
        first."""
        rows = self._store.read(
            "SELECT t_ns, tunable, netns, decider, new > old FROM changes "
            "WHERE boot_id = ? AND t_ns > ? AND state <> 'advised' ORDER BY id",
            (self._boot_id, t_ns),
        )
        made = [Move(at_ns, Spot(tunable, netns), decider, bool(up)) for at_ns, tunable, netns, decider, up in rows]
        return sorted([*made, *self._undone_since(t_ns)], key=lambda move: move.t_ns)

    def counts(self) -> dict[str, int]:
        """How many changes of this boot are in each state."""
        return dict(
            self._store.read("SELECT state, count(*) FROM changes WHERE boot_id = ? GROUP BY state", (self._boot_id,))
        )

    # --- how ------------------------------------------------------------------------------------------------------

    def _undone_since(self, t_ns: int) -> list[Move]:
        rows = self._store.read(
            "SELECT t_ns + ended_tai_ns - t_tai_ns AS at_ns, tunable, netns, decider, old, new, ended_tai_ns "
            "FROM changes WHERE boot_id = ? AND at_ns > ? AND state IN ('reverted', 'rolled_back') "
            "AND detail NOT IN (?, ?) ORDER BY id",
            (self._boot_id, t_ns, *NO_TURN),
        )
        # Changes of one key that ended together were put back in one move, from the last one's value to the first's.
        moves: dict[tuple[Spot, int], tuple[int, str, int, int]] = {}
        for at_ns, tunable, netns, decider, old, new, ended_ns in rows:
            where = Spot(tunable, netns), ended_ns
            first = moves[where][2] if where in moves else old
            moves[where] = at_ns, decider, first, new
        return [
            # No later than now, whatever has become of the wall clock.
            Move(min(at_ns, stamp().t_ns), spot, decider, target > stood, undo=True)
            for (spot, _), (at_ns, decider, target, stood) in moves.items()
            if target != stood
        ]

    def _here(self, spot: Spot) -> tuple[str, str, int]:
        return self._boot_id, spot.tunable, spot.netns

    def _key(self, db: sqlite3.Connection, spot: Spot, site: Site, original: int) -> None:
        db.execute(
            "INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (*self._here(spot), site.inode, site.name, original),
        )

    def _hold(self, db: sqlite3.Connection, hold: Hold) -> None:
        boot_id = EVER if hold.ever else self._boot_id
        db.execute(
            "INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?, ?, ?)",
            (boot_id, hold.spot.tunable, hold.spot.netns, hold.why, hold.since_tai_ns, hold.until_tai_ns),
        )

    def _insert(self, db: sqlite3.Connection, intent: Intent, state: State, now: Stamp, advice: str = "") -> int:
        cursor = db.execute(
            "INSERT INTO changes (t_tai_ns, tai_known, t_ns, boot_ns, boot_id, tunable, scope, netns, netns_ino, "
            "netns_name, decider, old, new, why, evidence, state, advice, twin, twin_value) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                now.tai_ns,
                now.tai_known,
                now.t_ns,
                now.boot_ns,
                self._boot_id,
                intent.spot.tunable,
                "netns" if intent.spot.netns else "host",
                intent.spot.netns,
                intent.site.inode,
                intent.site.name,
                intent.decider,
                intent.old,
                intent.new,
                intent.why,
                msgspec.json.encode(intent.evidence).decode(),
                state,
                advice,
                intent.twin.name if intent.twin else "",
                intent.twin.value if intent.twin else 0,
            ),
        )
        return int(cursor.lastrowid or 0)

    def _recover(self, found: originals.Recovered) -> None:
        what = f"{len(found.writes)} originals and {len(found.holds)} holds from {originals.NAME}"
        if self._store.set_aside:
            aside = self._store.set_aside
            self.notes.append(f"the journal was corrupt and is now {aside}; a new one begins with {what}")
        elif found.writes or found.holds:
            became = "had gone; a new one begins with" if self.fresh else "had lost its end; back are"
            self.notes.append(f"the journal {became} {what}")
        with self._store.transaction() as db:
            for write in found.writes:
                why = f"recovered from {originals.NAME}"
                intent = Intent(
                    write.spot, write.site, write.decider, write.old, write.new, why, {}, write.original, write.twin
                )
                self._key(db, intent.spot, intent.site, intent.original)
                self._insert(db, intent, "intent", stamp())
            for hold in found.holds:
                self._hold(db, hold)

    def _compact(self) -> None:
        lines: list[originals.Line] = []
        for key in self.keys():
            lines += [
                originals.Write(
                    key.spot, self._boot_id, key.site, last.decider, key.original, last.old, last.new, last.twin
                )
                for last in self.standing(key.spot)[-1:]
            ]
        for hold in self.holds():
            boot_id = EVER if hold.ever else self._boot_id
            lines.append(originals.Held(hold.spot, boot_id, hold.why, hold.since_tai_ns, hold.until_tai_ns))
        self._originals.compact(lines)


def _twin(name: str, value: int) -> Twin | None:
    return Twin(name, value) if name else None


def _advice(intent: Intent) -> str:
    """The same for the same advice, also on the next day: a name rather than a cookie, where there is one."""
    where = intent.site.name or str(intent.spot.netns)
    words = (intent.spot.tunable, where, str(intent.old), str(intent.new), intent.decider)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
