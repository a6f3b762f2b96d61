"""`python -I -m trimtab.facts`: what another program that manages this host wants to know of trimtab, in one document.

Asked once per host by the Ansible modules, and by the fact file that they place. Nothing is asked of a running role.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import msgspec

from actuators import history
from actuators.records import Change
from actuators.state_dir import JournalError
from bus import config, tunables
from bus.arguments import EX_USAGE, RoleParser, UsageError
from trimtab import status

SCHEMA = "trimtab.facts/v1"
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the document. 0; 1 where the host cannot be read, 64 usage."""
    try:
        options = RoleParser("facts", __doc__).parse_args(sys.argv[1:] if argv is None else argv)
        found = status.read(options.run_dir, options.state_dir)
        changes = _unless_absent(lambda: history.standing(options.state_dir))
        holds = _unless_absent(lambda: history.holds(options.state_dir))
    except UsageError as error:
        print(f"facts: {error}", file=sys.stderr)
        return EX_USAGE
    except OSError as error:
        print(f"facts: {error}", file=sys.stderr)
        return 1
    document = {
        "schema": SCHEMA,
        "version": _version(),
        "ready": found.ready,
        "problem": found.problem,
        "mode": found.mode,
        "configured_mode": _configured(),
        "roles": {role.name: role.state for role in found.roles},
        "missing": found.missing,
        "changes": found.changes,
        "standing": [_change(change) for change in changes],
        "owned": sorted({change.tunable for change in changes}),
        "held": [{"tunable": hold.spot.tunable, "netns": hold.spot.netns, "why": hold.why} for hold in holds],
        "may_change": sorted(tunables.table()),
    }
    print(msgspec.json.encode(document).decode())
    return 0


def _change(change: Change) -> dict[str, Any]:
    names = ("id", "tunable", "netns", "netns_name", "old", "new", "state", "decider", "why")
    return {name: getattr(change, name) for name in names}


def _configured() -> str:
    """The mode of the next start; empty where the configuration cannot be used."""
    try:
        return config.load().mode
    except config.ConfigError:
        return ""


def _version() -> str:
    try:
        return version("trimtab")
    except PackageNotFoundError:
        return ""


def _unless_absent(read: Callable[[], list[T]]) -> list[T]:
    try:
        return read()
    except JournalError:
        return []


if __name__ == "__main__":
    sys.exit(main())
