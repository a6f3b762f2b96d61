"""Configuration: /etc/trimtab/trimtab.toml, then conf.d/*.toml in name order, later wins. Strict.

Config narrows a tunable's row, never widens it; an unknown key is an error that names it and its file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from bus.tunables import Tunable

DEFAULT_PATH = Path("/etc/trimtab/trimtab.toml")
RUN_DIR = Path("/run/trimtab")
STATE_DIR = Path("/var/lib/trimtab")

Mode = Literal["observe", "advise", "enforce"]
MODES: tuple[Mode, ...] = ("observe", "advise", "enforce")


Rival = Literal["sysctl.d", "tuned", "bpftune", "irqbalance", "cilium"]
RIVALS: tuple[Rival, ...] = ("sysctl.d", "tuned", "bpftune", "irqbalance", "cilium")


class ConfigError(ValueError):
    """A configuration that cannot be used: says which file, which key, what is wrong."""


class Narrow(Struct, frozen=True, forbid_unknown_fields=True):
    """What a host may say about one tunable. None leaves the row's value."""

    low: int | None = None
    high: int | None = None
    step: float | None = None
    cooldown_s: float | None = None
    per_hour: int | None = None


class Tape(Struct, frozen=True, forbid_unknown_fields=True):
    """What each decider records of itself."""

    on: bool = True
    max_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    """Per decider; the oldest segments go first."""
    segment_mib: Annotated[int, Meta(ge=1, le=1024)] = 4


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration, merged."""

    mode: Mode = "enforce"
    deciders: dict[str, bool] = {}
    """Decider -> on or off; what is not named is on."""
    netns: list[Annotated[int, Meta(ge=1)]] = []
    """Cookies of the only namespaces to touch; host-wide tunables are then left alone. Empty: no such fence."""
    cede: list[Rival] = msgspec.field(default_factory=lambda: list(RIVALS))
    """Who else's keys trimtab leaves alone."""
    tunables: dict[str, Narrow] = {}
    policy: dict[str, dict[str, Any]] = {}
    """Decider -> its policy's settings, checked by the decider."""
    tape: Tape = Tape()


def load(path: Path | None = None) -> Config:
    """Read path (default: DEFAULT_PATH, which may be missing) and conf.d beside it. Raises ConfigError."""
    merged: dict[str, Any] = {}
    for file in _files(path):
        document = _read(file)
        _check(document, Config, str(file))
        _merge(merged, document)
    config: Config = _check(merged, Config, "the merged configuration")
    return config


def check(document: Mapping[str, Any], kind: type[Any], where: str) -> Any:
    """document as a `kind`, or ConfigError that names where."""
    return _check(document, kind, where)


def narrowed(rows: Mapping[str, Tunable], config: Config) -> Mapping[str, Tunable]:
    """The rows with the config's narrowings in them. A name without a row, or a wider bound, is a ConfigError."""
    result = dict(rows)
    for name, narrow in config.tunables.items():
        if name not in rows:
            raise ConfigError(f"tunables.{name}: no such tunable; `trimtab tunables` lists them")
        result[name] = _narrow(rows[name], narrow)
    return result


def _narrow(row: Tunable, narrow: Narrow) -> Tunable:
    changes = {key: value for key, value in msgspec.structs.asdict(narrow).items() if value is not None}
    for key, value in changes.items():
        ours = getattr(row, key)
        # A larger low or cool-down is narrower; of everything else a smaller value is. NaN is neither.
        narrower = value >= ours if key in ("low", "cooldown_s") else value <= ours
        if not narrower:
            raise ConfigError(
                f"tunables.{row.name}.{key}: {value} would widen the built-in {ours}; only narrowing is allowed"
            )
    new = msgspec.structs.replace(row, **changes)
    if new.low > new.high:
        raise ConfigError(f"tunables.{row.name}: nothing is left between low {new.low} and high {new.high}")
    if new.step <= 0 or new.per_hour < 1:
        raise ConfigError(
            f"tunables.{row.name}: a step of 0, or 0 changes per hour, is [deciders] {row.decider} = false"
        )
    return new


def _files(path: Path | None) -> list[Path]:
    main = path or DEFAULT_PATH
    if path and not path.exists():
        raise ConfigError(f"{path}: no such file")
    found = [main] if path or main.is_file() else []
    if main.suffix == ".toml":
        found += sorted((main.parent / "conf.d").glob("*.toml"))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    try:
        if file.suffix == ".json":
            document: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        else:
            document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}") from None
    _plain(document, str(file))
    return document


def _plain(value: Any, where: str) -> None:
    # The supervisor hands the configuration on as JSON, which has no infinity (it would arrive as "not set").
    if isinstance(value, dict):
        for key, below in value.items():
            _plain(below, f"{where}: {key}")
    elif isinstance(value, list):
        for below in value:
            _plain(below, where)
    elif isinstance(value, int | float) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: {value} is no number of 64 bits")


def _check(document: Mapping[str, Any], kind: type[Any], where: str) -> Any:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
