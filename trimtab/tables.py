"""`trimtab tunables` and `trimtab history`: the two tables, for people and for programs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from actuators import history
from actuators.history import Filter
from actuators.records import STANDING, Change, Hold
from actuators.state_dir import JournalError
from bus import config, plugins
from bus.tunables import AT, Tunable, resolve, row_of, table
from trimtab import exits, rundir, show

TUNABLE_SCHEMA = "trimtab.tunable/v1"
CHANGE_SCHEMA = "trimtab.change/v1"
T = TypeVar("T")
UNDOABLE = STANDING


class UnknownError(OSError):
    """Neither a tunable nor a change."""


class Row(Struct, frozen=True):
    """One tunable with the bounds in force on this host, and what stands there now in this network namespace."""

    schema: str
    name: str
    low: int
    high: int
    step: float
    cooldown_s: float
    per_hour: int
    unit: str
    scope: str
    risk: str
    decider: str
    value: int | None
    """None where this kernel, or this namespace, does not have it."""
    summary: str
    dead_band: float = 0.0
    """A smaller change than this share of the value is not made."""
    twin: str = ""
    """The other name of the same knob, which a change of this one makes 0, and by which a 0 is put back."""
    words: tuple[str, ...] = ()
    """What the values are called, from 0 on, where they are no amounts."""
    instances: int = 0
    """Where not 0, there is a key for each destination, NAME@PREFIX, and in one namespace at most so many at once."""
    life_s: int = 0
    """Where not 0, a change is never confirmed: it stands while its decider asks for it, and no longer than this."""


def known() -> Mapping[str, Tunable]:
    """Every tunable by name, with those of third parties."""
    return table(row for tuner in plugins.tuners() for row in tuner.rows)


def find(key: str) -> Tunable | None:
    """The tunable that an administrator means, who may write slashes, or a sysctl without an index."""
    if AT in key:
        return row_of(known(), key)
    wanted = key.replace("/", ".")
    return next((row for name, row in known().items() if wanted in (name, row.sysctl)), None)


def family(key: str) -> list[Tunable]:
    """As find(); of a sysctl without an index each of its numbers."""
    row = find(key)
    if row is None or AT in key:
        return [row] if row else []
    return [
        each for each in known().values() if row.name == each.name or row.sysctl == key.replace("/", ".") == each.sysctl
    ]


def asked(key: str) -> str:
    """The name by which the journal is asked for what family() is."""
    rows = family(key)
    return rows[0].sysctl if len(rows) > 1 else rows[0].name if rows else key


def rows(run_dir: Path, root: Path = Path("/")) -> list[Row]:
    """Every row, narrowed by the configuration of the running instance or, without one, by the host's."""
    running = run_dir / rundir.CONFIG
    settings = config.load(running if running.exists() else None)
    mem_bytes = memory(root)
    return [_row(row, mem_bytes, root) for row in config.narrowed(known(), settings).values()]


def _row(row: Tunable, mem_bytes: int, root: Path) -> Row:
    bounds = resolve(row, mem_bytes)
    same = {name: getattr(row, name) for name in Row.__struct_fields__ if hasattr(row, name)}
    return Row(**{**same, "schema": TUNABLE_SCHEMA, "low": bounds.low, "high": bounds.high, "value": value(row, root)})


def memory(root: Path) -> int:
    """The host's memory in bytes: MemTotal of proc_meminfo(5)."""
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError(errno.ENODATA, "no MemTotal", str(root / "proc/meminfo"))


def value(row: Tunable, root: Path) -> int | None:
    """What stands there now, in the caller's network namespace."""
    if row.instances:
        return None
    try:
        return int((root / "proc/sys" / row.path).read_text().split()[row.index])
    except (OSError, ValueError, IndexError):
        return None


def show_tunables(run_dir: Path, as_json: bool) -> int:
    """Print the rows."""
    found = rows(run_dir)
    if as_json:
        show.as_json(*found)
        return exits.FINE
    head = ["tunable", "value", "low", "high", "unit", "step", "cool-down", "per hour", "scope", "risk", "decider"]
    show.table(
        head,
        [
            [row.name + (f"{AT}PREFIX" if row.instances else ""), row.value, *_bounds(row), row.unit,
             "" if row.words else f"{row.step:.0%}", f"{row.cooldown_s:g} s", row.per_hour, row.scope, row.risk,
             row.decider]
            for row in found
        ],
    )  # fmt: skip
    return exits.FINE


def _bounds(row: Row) -> tuple[int | None, int | None]:
    return (None, None) if row.words else (row.low, row.high)


def changes(state_dir: Path, wanted: Filter) -> list[Change]:
    """The history; empty where there is no journal yet."""
    return _unless_absent(lambda: history.history(state_dir, wanted))


def change(state_dir: Path, number: int) -> Change | None:
    """The change of that number; None where there is none."""
    return next(iter(_unless_absent(lambda: [history.by_id(state_dir, number)])), None)


def holds(state_dir: Path) -> list[Hold]:
    """The keys that trimtab keeps its hands off; empty where there is no journal yet."""
    return _unless_absent(lambda: history.holds(state_dir))


def _unless_absent(read: Callable[[], list[T]]) -> list[T]:
    try:
        return read()
    except JournalError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def document(change: Change) -> dict[str, Any]:
    """A change as --json shows it."""
    return {
        "schema": CHANGE_SCHEMA,
        "id": change.id,
        "t_tai_ns": change.t_tai_ns,
        "tai_known": change.tai_known,
        "tunable": change.tunable,
        "scope": change.scope,
        "netns": change.netns,
        "netns_inode": change.netns_ino,
        "netns_name": change.netns_name,
        "decider": change.decider,
        "old": change.old,
        "new": change.new,
        "why": change.why,
        "state": change.state,
        "detail": change.detail,
        "ended_tai_ns": change.ended_tai_ns,
        "evidence": change.evidence,
        "repeats": change.repeats,
        "advice": change.advice,
        "twin": change.twin,
        "twin_value": change.twin_value,
    }


def where(change: Change) -> str:
    """The namespace of a change in words."""
    if change.scope == "host":
        return "host"
    return change.netns_name or f"netns {change.netns}"


def when(change: Change) -> str:
    """Local time of a change."""
    return show.local_time(show.tai_to_utc_ns(change.t_tai_ns, change.tai_known))


def values(change: Change, row: Tunable | None) -> tuple[int | str, int | str]:
    """What stood there and what was set, as people read it."""
    if row and (row.words or row.instances):
        return row.shown(change.old), row.shown(change.new)
    return change.old, change.new


def show_history(state_dir: Path, key: str | None, last: int, as_json: bool) -> int:
    """Print the changes, and how to undo those that stand. UnknownError when there is no such key."""
    found = changes(state_dir, Filter(tunable=asked(key) if key else None, last=last))
    if key and not found and not family(key):
        raise UnknownError(f"no tunable {key!r}; `trimtab tunables` lists them")
    if as_json:
        show.as_json(*(document(change) for change in found))
        return exits.FINE
    if not found:
        print(f"no changes{f' of {key}' if key else ''} in {state_dir}")
        return exits.FINE
    head = ["id", "when", "tunable", "where", "old", "new", "state", "decider", "why"]
    rows = known()
    show.table(
        head,
        [
            [change.id, when(change), change.tunable, where(change), *values(change, row_of(rows, change.tunable)),
             change.state, change.decider, change.why]
            for change in found
        ],
    )  # fmt: skip
    if any(change.state in UNDOABLE for change in found):
        print("\nundo one: trimtab rollback ID    undo all: trimtab rollback --all")
    return exits.FINE
