"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
MOST = (1 << 63) - 1
"""Of what the journal and the control lane count."""
MODES = ("observe", "advise", "enforce")
FOLDER = click.Path(path_type=Path, file_okay=False, readable=False)
"""Whether it can be read is told by whoever reads it, with the exit code for what is not permitted."""


class Commands(click.Group):
    """A group whose commands end in peace when whoever read their output has seen enough; click would exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Else the interpreter complains when it flushes what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise click.exceptions.Exit(0) from None
        return result


def dirs(command: F) -> F:
    """--run-dir and --state-dir: with other ones, several instances stand side by side."""
    state = click.option("--state-dir", type=FOLDER, default=Path("/var/lib/trimtab"), show_default=True,
                         help="Where the journal is.")  # fmt: skip
    run = click.option("--run-dir", type=FOLDER, default=Path("/run/trimtab"), show_default=True,
                       help="Where the running instance is.")  # fmt: skip
    return run(state(command))


def as_json(command: F) -> F:
    """--json, of every verb that reads."""
    return click.option("--json", "as_json", is_flag=True, help="For programs: JSON, versioned by its schema.")(command)


def netns(command: F) -> F:
    """--netns of the verbs that act on one key."""
    return click.option("--netns", type=click.IntRange(0, MOST), default=0, metavar="COOKIE",
                        help="In this namespace only.  [default: everywhere]")(command)  # fmt: skip


def version(command: F) -> F:
    """--version."""
    return click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
                        help="Show the version and exit.")(command)  # fmt: skip


def _print_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"trimtab {version('trimtab')}")
    except PackageNotFoundError:
        click.echo("trimtab, from a tree that is not installed")
    context.exit()
