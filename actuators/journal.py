"""The journal: what was changed, why, what stood there before, what is held. journal.db and beside it originals.log.

What a method wrote is on disk when it returns; what it cannot write it raises as JournalError, and the caller then
changes nothing. The one exception is that a change has been made as it was intended: that waits for the next sync.
A database that is corrupt is set aside and begun anew with what originals.log still knows.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from actuators import originals, state_dir
from actuators.journal_rows import EVER, HERE, RESTORABLE, STANDS, Rows
from actuators.originals import Originals
from actuators.records import STANDING, Hold, Intent, Site, Spot, Stamp, State, Stood, advice, machine, stamp
from actuators.state_dir import JournalError
from actuators.store import Store

KEEP_CHANGES = 100_000
"""Older rows that have ended are dropped."""


class Journal(Rows):
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
        # Both are on disk when this returns, and neither waits for the other.
        with self._originals.writing(intent), self._store.transaction() as db:
            self._key(db, intent.spot, intent.site, intent.original)
            return self._insert(db, intent, "intent", stamp())

    def remember(self, spot: Spot, site: Site, original: int, stood: Iterable[Stood], stands: int) -> None:
        """What stands at a key, in a journal begun anew, from who knows it better than originals.log."""
        with self._store.transaction() as db:
            db.execute(f"DELETE FROM changes WHERE {STANDS} AND {HERE}", self._here(spot))
            self._key(db, spot, site, original)
            for one in stood:
                why = "known from before the journal was lost"
                intent = Intent(spot, site, one.decider, one.old, one.new, why, {}, original, one.twin)
                self._insert(db, intent, one.state, msgspec.structs.replace(stamp(), t_ns=one.t_ns or stamp().t_ns))
            db.execute(f"UPDATE keys SET last_written = ? WHERE {HERE}", (stands, *self._here(spot)))

    def settle(
        self, spot: Spot, ids: Iterable[int], state: State, detail: str, stands: int | None, hold: Hold | None = None
    ) -> None:
        """Say what became of these changes of one key (none: all that stand there), and what of ours stands there
        now; None: nothing, the key is given back. hold: from now on hands off, in the same transaction. That it is on
        trial need not be on disk: a start takes an intent that was carried out for just that."""
        ids = tuple(ids) or tuple(stood.id for stood in self.standing(spot))
        ended = 0 if state in STANDING else stamp().tai_ns
        if hold:
            self._originals.held(hold)
        with self._store.transaction(sync=state != "trial" or hold is not None) as db:
            db.executemany(
                "UPDATE changes SET state = ?, detail = ?, ended_tai_ns = ? WHERE id = ?",
                [(state, detail, ended, number) for number in ids],
            )
            if stands is None:
                db.execute(f"DELETE FROM keys WHERE {HERE}", self._here(spot))
            else:
                db.execute(f"UPDATE keys SET last_written = ? WHERE {HERE}", (stands, *self._here(spot)))
            if hold:
                self._hold(db, hold)
        if stands is None:
            self._originals.done(spot)

    def advise(self, intent: Intent) -> tuple[int, bool]:
        """Keep a piece of advice. Returns its id and whether it is new; repeats are counted, and written by flush()."""
        name = advice(intent)
        for (number,) in self._store.read("SELECT id FROM changes WHERE advice = ?", (name,)):
            self._repeats[number] = self._repeats.get(number, 0) + 1
            return number, False
        with self._store.transaction() as db:
            return self._insert(db, intent, "advised", stamp(), name), True

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

    def forget(self, ids: Iterable[int], why: str) -> None:
        """These changes of an earlier boot are over."""
        with self._store.transaction() as db:
            db.executemany(
                "UPDATE changes SET state = 'lost', detail = ?, ended_tai_ns = ? WHERE id = ?",
                [(why, stamp().tai_ns, number) for number in ids],
            )

    def tidy(self) -> None:
        """At start: end what another boot left, drop what is old, and write originals.log anew."""
        with self._store.transaction() as db:
            db.execute(
                f"UPDATE changes SET state = 'lost', detail = 'the host has rebooted since', ended_tai_ns = ? "
                f"WHERE {STANDS} AND NOT {RESTORABLE} AND boot_id <> ?",
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
                f"DELETE FROM changes WHERE NOT {STANDS} AND id <= (SELECT max(id) FROM changes) - ?",
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

    # --- how ------------------------------------------------------------------------------------------------------

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
