"""The commands: what each takes and says of itself. What they do is imported when they run, so that --help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trimtab import cli_orders, cli_tapes
from trimtab.options import FOLDER, MODES, Commands, as_json, dirs, version

EPILOG = (
    "Exit codes: 0 fine, 1 error, 2 changes pending or drift, 3 degraded, 4 refused, 64 usage, 77 not permitted, "
    "130 interrupted."
)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG
)
@version
def cli() -> None:
    """Tunes this host's kernel, and can undo it.

    Watches through BPF and /proc, makes small bounded changes to kernel tunables, and can say of each one what, why,
    and how to undo it.
    """


@cli.command()
@dirs
@click.option("--config", type=click.Path(path_type=Path), help="Instead of /etc/trimtab/trimtab.toml.")
@click.option("--mode", type=click.Choice(MODES), help="observe: write nothing; advise: say what; enforce: do it.")
@click.option("--only", metavar="DECIDER,...", multiple=True, help="Turn on just these tuners.")
@click.option(
    "--netns", metavar="COOKIE,...", multiple=True, help="Touch only these network namespaces, and nothing host-wide."
)
def run(
    run_dir: Path, state_dir: Path, config: Path | None, mode: Any, only: Sequence[str], netns: Sequence[str]
) -> int:
    """Run in the foreground.

    Until Ctrl-C, which stops every role in order and puts back what is on trial; what is confirmed stays.
    """
    cookies = [_cookie(word) for word in _words(netns, "--netns")]
    deciders = _words(only, "--only")
    from trimtab import exits, start

    unknown = set(deciders).difference(start.deciders())
    if unknown:
        raise click.BadParameter(f"no such decider: {', '.join(sorted(unknown))}", param_hint="--only")
    exits.need_root("trimtab run")
    return start.run(run_dir, state_dir, start.effective(config, mode, deciders, cookies))


@cli.command()
@as_json
@click.option("--seconds", type=click.FloatRange(min=10), default=40.0, show_default=True, help="Of transfers, in all.")
def demo(as_json: bool, seconds: float) -> int:
    """Show what trimtab does, in a minute.

    On two network namespaces of its own: nothing of this host's is touched, and nothing is left behind.
    """
    from trimtab import demo, exits

    exits.need_root("trimtab demo")
    return demo.show(seconds, as_json)


@cli.command()
@dirs
@as_json
def status(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Say how the running instance is.

    Exit code 3 when it is degraded or not there.
    """
    from trimtab import status

    return status.show_status(run_dir, state_dir, as_json)


@cli.command()
@dirs
@as_json
def drops(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Say what the kernel drops, where, and why.

    In words, and which tunable can cure it, if any. Exit code 3 when nobody counts.
    """
    from trimtab import drops

    return drops.show_drops(run_dir, state_dir, as_json)


@cli.command()
@dirs
@as_json
def tunables(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """List what may be changed.

    How far, how fast, by whom, and what stands there now.
    """
    from trimtab import tables

    return tables.show_tunables(run_dir, as_json)


@cli.command()
@click.argument("key", required=False)
@dirs
@as_json
@click.option("-n", "--last", type=click.IntRange(min=1), help="Only so many of the newest.")
def history(key: str | None, run_dir: Path, state_dir: Path, as_json: bool, last: int | None) -> int:
    """List the changes made.

    Of KEY or of all, oldest first. Works with the daemon dead, too.
    """
    from trimtab import tables

    return tables.show_history(state_dir, key, last or 0, as_json)


@cli.command()
@click.argument("what", metavar="KEY|ID")
@dirs
@as_json
def explain(what: str, run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Say what was done, why, and how to undo it.

    Of a tunable, by its name, or of one change, by its id in `trimtab history`.
    """
    from trimtab import explain

    return explain.show_explanation(run_dir, state_dir, what, as_json)


@cli.command()
@dirs
@as_json
def doctor(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Say what this host offers, and who else tunes it.

    Features of the kernel, the road by which each probe sees, conflicts. Exit code 3 when something is wanting.
    """
    from trimtab import doctor

    return doctor.show_report(as_json)


@cli.command()
@dirs
@as_json
@click.option("--config", type=click.Path(path_type=Path), help="Instead of /etc/trimtab/trimtab.toml.")
@click.option("--output", type=FOLDER, help="Write what differs below DIR, as /etc, and name it.")
def units(run_dir: Path, state_dir: Path, config: Path | None, output: Path | None, as_json: bool) -> int:
    """Print the systemd units.

    One per role, from the same table that `trimtab run` starts them from, for this configuration.
    """
    from trimtab import units

    return units.show_units(units.Place(run_dir, state_dir, config), output, as_json)


for command in (*cli_orders.COMMANDS, *cli_tapes.COMMANDS):
    cli.add_command(command)


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@dirs
def config_check(file: Path | None, run_dir: Path, state_dir: Path) -> int:
    """Say whether FILE can be used.

    Default: /etc/trimtab/trimtab.toml, and conf.d beside it.
    """
    from trimtab import start

    start.effective(file, None, (), ())
    click.echo("the configuration is fine")
    return 0


def _words(lists: Sequence[str], option: str) -> list[str]:
    """Of an option that takes several, with commas or given again."""
    words = [word.strip() for listed in lists for word in listed.split(",")]
    if not all(words):
        raise click.BadParameter("wants names with commas between them", param_hint=option)
    return words


def _cookie(word: str) -> int:
    if not word.isdecimal() or len(word) > 20 or not 0 < int(word) < 1 << 64:
        raise click.BadParameter(f"{word!r} is no namespace's cookie", param_hint="--netns")
    return int(word)
