"""The actuator: `python -I -m actuators --run-dir DIR --state-dir DIR --config FILE`. Runs until SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence

from actuators.change import Writer
from actuators.modes import Modes
from actuators.parts import StateLock, assemble
from actuators.service import Lanes, Service
from actuators.state_dir import JournalError
from bus import config, plugins, roles, tunables
from bus.arguments import EX_USAGE, RoleParser, UsageError
from bus.config import Config, ConfigError
from bus.link import Publisher
from bus.schema import AnyEvent
from bus.stop import stop_signals
from bus.tunables import Tunable

ROLE = "actuator"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the actuator until SIGTERM or SIGINT. Returns the exit code: 0 stopped and everything on trial put back, 1
    cannot run or something could not be put back, 64 usage."""
    try:
        options = _arguments(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"{ROLE}: {error}", file=sys.stderr)
        return EX_USAGE
    try:
        return 0 if _run(options, config.load(options.config)) else 1
    except (OSError, ConfigError, JournalError) as error:
        print(f"{ROLE}: {error}", file=sys.stderr)
        return 1


def say(line: str) -> None:
    """One line for the operator. A reader that has gone must not stop the actuator."""
    with contextlib.suppress(OSError):
        print(f"{ROLE}: {line}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    return RoleParser("actuators", "Makes the changes that deciders wish for, and puts them back.").parse_args(argv)


def _run(options: argparse.Namespace, settings: Config) -> bool:
    rows = _rows(settings)
    asking = {roles.GUARD, *(row.decider for row in rows.values())}
    deciders = sorted(name for name in asking if settings.deciders.get(name, True))
    events: list[AnyEvent] = []
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        # Its lock makes this the only actuator on the run directory, before anything is put back.
        publisher = stack.enter_context(contextlib.closing(Publisher(roles.events_path(options.run_dir, ROLE), ROLE)))
        lock = stack.enter_context(contextlib.closing(StateLock(options.state_dir)))
        parts = stack.enter_context(contextlib.closing(assemble(rows, options.state_dir, say, events.append)))
        writer = Writer(parts, settings.netns)
        modes = Modes(parts, writer, lock, deciders)
        modes.start(settings.mode)
        heard = _with_lane(deciders, options)
        lanes = stack.enter_context(contextlib.closing(Lanes(options.run_dir, heard, publisher)))
        return Service(parts, modes, lanes, events, settings.cede).run(stop)


def _rows(settings: Config) -> Mapping[str, Tunable]:
    more = [row for tuner in plugins.tuners() for row in tuner.rows]
    try:
        rows = tunables.table(more)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config.narrowed(rows, settings)


def _with_lane(deciders: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Those for whom there is a directory: a tuner that was installed since the supervisor started has none."""
    found = []
    for name in deciders:
        folder = roles.wish_path(options.run_dir, name).parent
        if folder.is_dir():
            found.append(name)
        else:
            say(f"deaf to {name}: there is no {folder}")
    return found


if __name__ == "__main__":
    sys.exit(main())
