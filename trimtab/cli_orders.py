"""The verbs that change something: what each takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trimtab.options import MODES, MOST, as_json, dirs, netns


@click.command()
@click.argument("change", metavar="[ID]", required=False, type=click.IntRange(1, MOST))
@click.option("--all", "everything", is_flag=True, help="Undo all that stands.")
@dirs
@as_json
def rollback(change: int | None, everything: bool, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Undo one change, or all.

    And keep hands off their keys from then on, until `trimtab release`. Works with the daemon dead, too.
    """
    if (change is None) != everything:
        raise click.UsageError("wants either the ID of a change (see `trimtab history`) or --all")
    return _order(run_dir, state_dir, as_json, verb="rollback", change=change or 0)


@click.command()
@click.argument("change", metavar="ID", type=click.IntRange(1, MOST))
@dirs
@as_json
def confirm(change: int, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Let a change on trial stay.

    Over stops and restarts, until `trimtab rollback ID`; without waiting for the guard.
    """
    return _order(run_dir, state_dir, as_json, verb="confirm", change=change)


@click.command()
@click.argument("change", metavar="ID", type=click.IntRange(1, MOST))
@dirs
@as_json
def revert(change: int, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Undo a change and park its key.

    As the guard does when a change has hurt: not tried again until `trimtab release`.
    """
    return _order(run_dir, state_dir, as_json, verb="revert", change=change)


@click.command()
@dirs
def restore(run_dir: Path, state_dir: Path) -> int:
    """Apply what was confirmed before a reboot.

    For a oneshot early in the boot; `trimtab run` does the same when it starts.
    """
    from actuators import offline
    from trimtab import exits

    exits.need_root("trimtab restore")
    click.echo("\n".join(offline.restore(state_dir)))
    return 0


@click.command()
@click.option("--restore", is_flag=True, help="Put back what is confirmed, too.")
@dirs
@as_json
def off(restore: bool, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Stop trimtab, whatever state it is in.

    And put back what is on trial. Works with roles hung, the configuration broken, the bus gone.
    """
    from trimtab import off

    return off.off(run_dir, state_dir, restore, as_json)


@click.command()
@click.argument("mode", metavar="[MODE]", required=False, type=click.Choice(MODES))
@dirs
@as_json
def mode(mode: str | None, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Say or change the mode.

    MODE is observe (write nothing), advise (say what) or enforce (do it), until trimtab stops.
    """
    return _order(run_dir, state_dir, as_json, verb="mode", mode=mode or "")


@click.command()
@click.argument("key")
@netns
@dirs
@as_json
@click.option("--for", "limit", metavar="TIME", help="End it by itself: 90s, 30m, 2h, 7d.")
def hold(key: str, netns: int, run_dir: Path, state_dir: Path, as_json: bool, limit: str | None) -> int:
    """Keep hands off a tunable.

    Until `trimtab release`, over restarts. Works with the daemon dead, too.
    """
    seconds = _seconds(limit) if limit else 0
    return _order(run_dir, state_dir, as_json, verb="hold", tunable=key, netns=netns, seconds=seconds)


@click.command()
@click.argument("key")
@netns
@dirs
@as_json
def release(key: str, netns: int, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Let a tunable be changed again.

    After `trimtab hold`, a rollback, or a foreign write.
    """
    return _order(run_dir, state_dir, as_json, verb="release", tunable=key, netns=netns)


COMMANDS = (rollback, confirm, revert, restore, off, mode, hold, release)


def _order(run_dir: Path, state_dir: Path, as_json: bool, **request: Any) -> int:
    from bus.schema import Ask
    from trimtab import orders

    return orders.order(run_dir, state_dir, Ask(**request), as_json)


def _seconds(word: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if (
        not word[:-1].isdecimal()
        or len(word) > 20
        or word[-1] not in units
        or not 0 < int(word[:-1]) * units[word[-1]] <= 10**9
    ):
        raise click.BadParameter(f"{word!r} is no time such as 90s, 30m, 2h, 7d", param_hint="--for")
    return int(word[:-1]) * units[word[-1]]
