"""Tuners of third parties: a distribution with an entry point in the group `trimtab.tuners`.

The entry point's name is the decider's name and its value the decider's module. The rows lie beside that module as
`tunables.toml`, so that the actuator reads data and runs nothing of theirs; the decider is imported only in its own
unprivileged process. Nothing is taken from a place that others than root or trimtab's own owner could write.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

import msgspec
from msgspec import Struct

from bus.config import ConfigError
from bus.roles import BUILT_IN_DECIDERS, PROCESSES
from bus.tunables import Tunable, table

GROUP = "trimtab.tuners"
ROWS = "tunables.toml"
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""A tuner's name becomes part of a path under the run directory."""


class Tuner(Struct, frozen=True):
    """A third party's tuner."""

    name: str
    module: str
    distribution: str
    rows: tuple[Tunable, ...]


class _Rows(Struct, frozen=True, forbid_unknown_fields=True):
    tunable: list[Tunable]


_settled: list[tuple[Tuner, ...]] = []


def settle() -> None:
    """Let what is installed now hold for this process and for those that it forks: a role that has dropped to a user of
    its own may not get to the places that have to be looked at (a clone below /root). Raises as tuners() does."""
    _settled[:] = [tuners()]


def tuners() -> tuple[Tuner, ...]:
    """Every installed tuner, by name. Raises ConfigError for one that cannot be trusted or read."""
    if _settled:
        return _settled[0]
    found = [_load(point) for point in entry_points(group=GROUP)]
    names = [tuner.name for tuner in found]
    for name in names:
        if names.count(name) > 1 or name in BUILT_IN_DECIDERS or name in PROCESSES:
            raise ConfigError(f"tuner {name}: the name is taken twice")
    try:
        table(row for tuner in found for row in tuner.rows)
    except ValueError as error:
        raise ConfigError(f"tuners {', '.join(sorted(names))}: {error}") from None
    return tuple(sorted(found, key=lambda tuner: tuner.name))


def _load(point: EntryPoint) -> Tuner:
    if not NAME.fullmatch(point.name):
        raise ConfigError(f"tuner {point.name!r}: a name is lower-case letters, digits and _, at most 32")
    distribution = point.dist
    if distribution is None:
        raise ConfigError(f"tuner {point.name}: its entry point belongs to no distribution")
    folder = _folder(point, distribution)
    _trusted(point.name, folder)
    file = folder / ROWS
    try:
        document = tomllib.loads(file.read_text())
        rows = tuple(msgspec.convert(document, _Rows).tunable)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tuner {point.name}: {file}: {error}") from None
    for row in rows:
        if row.decider != point.name:
            raise ConfigError(f"tuner {point.name}: {file}: {row.name} names the decider {row.decider!r}")
        if row.backend != "sysctl":
            raise ConfigError(f"tuner {point.name}: {file}: {row.name}: only the sysctl backend is open to others")
    return Tuner(point.name, point.value, distribution.name, rows)


def _folder(point: EntryPoint, distribution: Distribution) -> Path:
    package = point.value.partition(":")[0].rpartition(".")[0] or point.value
    return Path(str(distribution.locate_file(package.replace(".", "/")))).absolute()


def _trusted(name: str, folder: Path) -> None:
    """Raise ConfigError unless only root and trimtab's owner can write what is in the folder, or put it elsewhere."""
    owners = {0, os.stat(__file__).st_uid}
    try:
        for place in {folder, Path(os.path.realpath(folder))}:
            for above in place.parents:
                _check(name, above, above.stat(), owners, sticky=True)
        _check(name, folder, folder.stat(), owners)
        for entry in folder.rglob("*"):
            _check(name, entry, entry.stat(), owners)
    except OSError as error:
        raise ConfigError(f"tuner {name}: {error.filename}: {error.strerror}") from None


def _check(name: str, place: Path, found: os.stat_result, owners: set[int], sticky: bool = False) -> None:
    # In a sticky folder others can add what is theirs, but not replace what is not: harmless above ours, not in it.
    others = found.st_mode & 0o022 and not (sticky and found.st_mode & stat.S_ISVTX)
    if found.st_uid not in owners or others:
        raise ConfigError(f"tuner {name}: {place} can be written by others; not loaded")
