"""Tuners of third parties: a distribution with an entry point in the group `trimtab.tuners`.

The entry point's name is the decider's name and its value the decider's module. The rows lie beside that module as
`tunables.toml`, so that the actuator reads data and runs nothing of theirs; the decider is imported only in its own
unprivileged process. Nothing is taken from a place that others than root or trimtab's own owner could write.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

import msgspec
from msgspec import Struct

from bus.config import ConfigError
from bus.roles import BUILT_IN_DECIDERS
from bus.tunables import Tunable

GROUP = "trimtab.tuners"
ROWS = "tunables.toml"


class Tuner(Struct, frozen=True):
    """A third party's tuner."""

    name: str
    module: str
    distribution: str
    rows: tuple[Tunable, ...]


class _Rows(Struct, frozen=True, forbid_unknown_fields=True):
    tunable: list[Tunable]


def tuners() -> tuple[Tuner, ...]:
    """Every installed tuner, by name. Raises ConfigError for one that cannot be trusted or read."""
    found = [_load(point) for point in entry_points(group=GROUP)]
    names = [tuner.name for tuner in found]
    for name in names:
        if names.count(name) > 1 or name in BUILT_IN_DECIDERS:
            raise ConfigError(f"tuner {name}: the name is taken twice")
    return tuple(sorted(found, key=lambda tuner: tuner.name))


def _load(point: EntryPoint) -> Tuner:
    distribution = point.dist
    if distribution is None:
        raise ConfigError(f"tuner {point.name}: its entry point belongs to no distribution")
    file = _rows_file(point, distribution)
    _trusted(point.name, file)
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


def _rows_file(point: EntryPoint, distribution: Distribution) -> Path:
    package = point.value.partition(":")[0].rpartition(".")[0] or point.value
    return Path(str(distribution.locate_file(package.replace(".", "/")))) / ROWS


def _trusted(name: str, file: Path) -> None:
    owners = {0, os.stat(__file__).st_uid}
    for place in _upwards(file.resolve()):
        try:
            status = place.stat()
        except OSError as error:
            raise ConfigError(f"tuner {name}: {place}: {error.strerror}") from None
        sticky = status.st_mode & 0o1000
        if status.st_uid not in owners or (status.st_mode & 0o022 and not sticky):
            raise ConfigError(f"tuner {name}: {place} can be written by others; not loaded")


def _upwards(file: Path) -> Iterable[Path]:
    yield file
    yield from file.parents
