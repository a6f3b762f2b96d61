"""`python -I -m trimtab.layout`: what `trimtab run` does before it starts the roles, for systemd that starts them.

Lays out the run directory, and becomes a program that does nothing but hold its lock: so that no second instance comes,
and that all is over when it ends (the units are bound to it), as with the supervisor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bus import plugins, roles
from bus.arguments import EX_USAGE, RoleParser, UsageError
from bus.config import Config, ConfigError
from bus.link import Lock
from bus.notify import READY, notify
from trimtab import managed, reach, rundir, start

PROGRAM = "/usr/bin/sleep"


def main(argv: Sequence[str] | None = None) -> int:
    """Never returns when all is well. 1 where it cannot, 64 usage."""
    try:
        options = RoleParser("layout", __doc__).parse_args(sys.argv[1:] if argv is None else argv)
        lay_out(options.run_dir, options.state_dir, start.effective(options.config, None, (), ())).keep_over_exec()
    except UsageError as error:
        print(f"layout: {error}", file=sys.stderr)
        return EX_USAGE
    except (OSError, ConfigError) as error:
        print(f"layout: {error}", file=sys.stderr)
        return 1
    notify(READY)
    return os.execv(PROGRAM, ["trimtab: layout", "infinity"])


def lay_out(run_dir: Path, state_dir: Path, settings: Config) -> Lock:
    """The directories of this configuration. Returns the lock of run_dir, taken. OSError where it cannot be."""
    plugins.settle()
    reach.check()
    rundir.prepare(run_dir)
    rows = roles.roles((name for name, on in settings.deciders.items() if on), start.deciders())
    lock = Lock(run_dir / rundir.LOCK, "trimtab")
    rundir.lay_out(run_dir, rows)
    rundir.state(state_dir, rows)
    (run_dir / rundir.STATUS).unlink(missing_ok=True)
    rundir.write(run_dir / rundir.CONFIG, msgspec.json.encode(settings))
    rundir.write(run_dir / managed.MARK, managed.marked(rows, settings.mode))
    return lock


if __name__ == "__main__":
    sys.exit(main())
