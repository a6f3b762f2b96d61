"""Reading the journal: for the operator's side, whether or not an actuator runs. Writes nothing.

Every function takes the state directory and raises JournalError with one line: errno ENOENT where there is no journal
yet, EACCES where the reader is not its owner.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from actuators.records import STANDING, Change, Hold, Key, Site, Spot
from actuators.state_dir import JournalError
from actuators.store import read_only
from bus.tunables import AT

_COLUMNS = ", ".join(Change.__struct_fields__)
_PARTS = f"substr(tunable, 1, length(:tunable) + 1) IN (:tunable || '{AT}', :tunable || '[')"
_IS = {"tunable": f"(tunable = :tunable OR {_PARTS})"}


class Filter(Struct, frozen=True):
    """Which changes; what is None or 0 does not filter."""

    tunable: str | None = None
    """A key; of a row of many keys, or of a sysctl of several numbers, all of them."""
    netns: int | None = None
    """A namespace's cookie; 0: the host as a whole."""
    decider: str | None = None
    state: str | None = None
    after_id: int = 0
    """Only later ones."""
    last: int = 0
    """Only so many of the newest."""


def history(state_dir: Path, wanted: Filter | None = None) -> list[Change]:
    """The changes, oldest first."""
    wanted = wanted or Filter()
    values = {name: getattr(wanted, name) for name in ("tunable", "netns", "decider", "state")}
    asked = {name: value for name, value in values.items() if value is not None}
    where = " AND ".join(["id > :after_id", *(_IS.get(name, f"{name} = :{name}") for name in asked)])
    limit = "LIMIT :last" if wanted.last else ""
    rows = _read(
        state_dir,
        f"SELECT {_COLUMNS} FROM changes WHERE {where} ORDER BY id DESC {limit}",
        {**asked, "after_id": wanted.after_id, "last": wanted.last},
    )
    return [_change(row) for row in reversed(rows)]


def by_id(state_dir: Path, change: int) -> Change | None:
    """One change, or None when there is none of that number."""
    rows = _read(state_dir, f"SELECT {_COLUMNS} FROM changes WHERE id = :id", {"id": change})
    return _change(rows[0]) if rows else None


def standing(state_dir: Path) -> list[Change]:
    """The changes that stand in the kernel, or may, oldest first."""
    rows = _read(state_dir, f"SELECT {_COLUMNS} FROM changes WHERE state IN {STANDING} ORDER BY id", {})
    return [_change(row) for row in rows]


def keys(state_dir: Path) -> list[Key]:
    """The keys where something of ours stands or may stand, with their originals."""
    rows = _read(
        state_dir,
        "SELECT tunable, netns, netns_ino, netns_name, original, last_written FROM keys ORDER BY tunable, netns",
        {},
    )
    return [Key(Spot(tunable, netns), Site(ino, name), *values) for tunable, netns, ino, name, *values in rows]


def holds(state_dir: Path) -> list[Hold]:
    """The keys that trimtab keeps its hands off, and why."""
    rows = _read(
        state_dir,
        "SELECT tunable, netns, why, since_tai_ns, boot_id = '', until_tai_ns FROM holds ORDER BY tunable, netns",
        {},
    )
    return [
        Hold(Spot(tunable, netns), why, since_ns, bool(ever), until)
        for tunable, netns, why, since_ns, ever, until in rows
    ]


def counts(state_dir: Path) -> dict[str, int]:
    """How many changes are in each state."""
    return dict(_read(state_dir, "SELECT state, count(*) FROM changes GROUP BY state", {}))


def _read(state_dir: Path, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with contextlib.closing(read_only(state_dir)) as db:
        try:
            return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{state_dir}: {error}") from None


def _change(row: tuple[Any, ...]) -> Change:
    fields = dict(zip(Change.__struct_fields__, row, strict=True))
    fields["evidence"] = msgspec.json.decode(fields["evidence"])
    fields["tai_known"] = bool(fields["tai_known"])
    return Change(**fields)
