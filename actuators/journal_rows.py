"""What the journal holds, as its writer reads it (actuators.journal); actuators.history is for everybody else."""

from __future__ import annotations

import msgspec

from actuators.pace import Move
from actuators.records import NO_TURN, STANDING, Confirmed, Hold, Key, Site, Spot, Stood, Twin, stamp
from actuators.store import Store
from bus.netns import HOST

EVER = ""
"""The boot id of a hold that outlives this boot."""
STANDS = f"state IN {STANDING}"
RESTORABLE = f"(state = 'confirmed' AND (scope = 'host' OR netns_name = '{HOST}'))"
HERE = "(boot_id, tunable, netns) = (?, ?, ?)"


class Rows:
    """The rows of this boot, and what an earlier one has left. Methods raise JournalError."""

    _store: Store
    _boot_id: str

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
            f"WHERE {STANDS} AND {HERE} ORDER BY id",
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
            f"FROM changes LEFT JOIN boots USING (boot_id) WHERE {RESTORABLE} AND boot_id <> ? ORDER BY tunable, id",
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


def _twin(name: str, value: int) -> Twin | None:
    return Twin(name, value) if name else None
