"""`trimtab run`: from the configuration to a running supervisor."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bus import config, plugins, revision, roles, tunables
from bus.config import Config, ConfigError, Mode
from bus.link import Lock
from bus.roles import Role
from deciders.__main__ import load
from trimtab import privilege, reach, rundir, show
from trimtab.supervisor import Supervisor

PRELOAD = ("argparse", "msgspec", "bus.codec", "bus.link", "bus.netns", "bus.notify", "bus.recorder", "bus.schema")
"""What most roles import: imported once, in the parent, so that they share its pages."""


def deciders() -> list[str]:
    """Every decider there is: ours, and those of third parties that are installed."""
    return sorted({*roles.BUILT_IN_DECIDERS, *(tuner.name for tuner in plugins.tuners())})


def effective(path: Path | None, mode: Mode | None, only: Sequence[str], netns: Sequence[int]) -> Config:
    """The configuration that the command line leaves, with every decider on or off. Raises ConfigError."""
    found = config.load(path)
    tuners = plugins.tuners()
    known = deciders()
    for section in ("deciders", "policy"):
        for name in getattr(found, section):
            if name not in known:
                raise ConfigError(f"{section}.{name}: no such decider; there are {', '.join(known)}")
    for name in roles.BUILT_IN_DECIDERS:
        # A third party's policy is checked in its own process: nothing of theirs is imported here, as root.
        load(name, found)
    config.narrowed(tunables.table(row for tuner in tuners for row in tuner.rows), found)
    # The guard is no tuner: whichever are chosen, it watches what they change.
    chosen = {name: name in only if only and name != roles.GUARD else found.deciders.get(name, True) for name in known}
    return msgspec.structs.replace(found, mode=mode or found.mode, deciders=chosen, netns=list(netns) or found.netns)


def run(run_dir: Path, state_dir: Path, settings: Config) -> int:
    """Supervise until told to stop. 0: stopped in order; 1: not. Raises OSError when it cannot begin."""
    # Before any role drops to a user that may not look where they are.
    plugins.settle()
    run_dir, state_dir = (Path(os.path.abspath(path)) for path in (run_dir, state_dir))
    reach.check()
    rundir.prepare(run_dir)
    rows = roles.roles((name for name, on in settings.deciders.items() if on), deciders())
    lock = Lock(run_dir / rundir.LOCK, "trimtab")
    try:
        for line in lacking(rows):
            say(line)
        rundir.lay_out(run_dir, rows)
        rundir.state(state_dir, rows)
        rundir.write(run_dir / rundir.CONFIG, msgspec.json.encode(settings))
        supervisor = Supervisor(rows, run_dir, lambda role: arguments(role, run_dir, state_dir), settings.mode, say)
        for module in PRELOAD:
            importlib.import_module(module)
        revision.ours()
        # What is here now is never garbage; a collection in a role would only copy the pages that it shares.
        gc.collect()
        gc.freeze()
        return supervisor.run()
    finally:
        lock.close()


def arguments(role: Role, run_dir: Path, state_dir: Path) -> tuple[str, ...]:
    """What a role's main() is told, beside what its row says."""
    if role.kind == "loader":
        return (str(roles.probes_path(run_dir)),)
    config_file = run_dir / rundir.CONFIG
    common = ("--run-dir", str(run_dir), "--state-dir", str(state_dir), "--config", str(config_file))
    if role.kind == "decider":
        return (*common, "--tapes", str(roles.tapes_dir(state_dir)))
    return common


def lacking(rows: Sequence[Role]) -> list[str]:
    """What roles should hold and cannot, as in a container: their rows' capabilities that this process lacks."""
    has = privilege.held()
    wanted = {role.name: privilege.mask(role.capabilities) & ~(has.permitted & has.bounding) for role in rows}
    return [
        f"{name} does without {', '.join(privilege.names(bits))}: not given here"
        for name, bits in wanted.items()
        if bits
    ]


def say(text: str) -> None:
    """One state change, with the time of day. Nobody left to read it is no reason to stop."""
    with contextlib.suppress(OSError):
        show.say(f"{time.strftime('%H:%M:%S')} {text}", hang=4)
        sys.stdout.flush()
