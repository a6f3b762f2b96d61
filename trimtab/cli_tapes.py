"""The verbs about recordings: what each takes and says of itself."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.options import Commands, as_json

TAPE = click.Path(path_type=Path, exists=True, readable=False)
FILE = click.Path(path_type=Path, dir_okay=False, readable=False)

out = click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="Where to write it; must not exist."
)
since = click.option("--from", "since", metavar="TIME", help="From then on: 14:05:00, 2026-11-21T14:05Z, +90s, -10m.")
until = click.option("--to", "until", metavar="TIME", help="Up to then.")


@click.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@click.option("--policy", type=FILE, metavar="FILE", help="Decide by this configuration, and show what would differ.")
@click.option("--code", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Decide by the trimtab in this checkout, and show what would differ.")  # fmt: skip
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one per core]")
@as_json
def replay(tapes: tuple[Path, ...], policy: Path | None, code: Path | None, jobs: int | None, as_json: bool) -> int:
    """Decide once more what was recorded.

    Without an option: whether every wish comes out equal, byte for byte (exit code 2 when not). With --policy or
    --code: what would have been written otherwise. A TAPE is a file, or a directory of them.
    """
    if policy or code:
        from trimtab.tape import compare

        return compare.show(tapes, policy, code, jobs, as_json)
    from trimtab.tape import replay

    return replay.show(tapes, jobs, as_json)


@click.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="The page; replaces one that is there.")
def report(tapes: tuple[Path, ...], output: Path) -> int:
    """Draw recordings as one page.

    Tunables as step lines under the signals that drove them, each change with its why; needs no network to look at.
    """
    from trimtab import report

    return report.write(tapes, output)


@click.group(cls=Commands)
def tape() -> None:
    """Look at recordings, cut, join, and make them anonymous."""


@tape.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@as_json
def info(tapes: tuple[Path, ...], as_json: bool) -> int:
    """Say what is on a tape.

    Which host, when, which deciders and code, how much of what, and whether it is whole.
    """
    from trimtab.tape import look as module

    return module.show_info(tapes, as_json)


@tape.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@since
@until
@click.option("--only", metavar="TOPIC,...", help="Only these: event types, Wish, Verdict, Gap.")
@as_json
def dump(tapes: tuple[Path, ...], since: str | None, until: str | None, only: str | None, as_json: bool) -> int:
    """Print events and wishes in their order.

    One per line.
    """
    from trimtab.tape import look as module

    return module.dump(tapes, (since, until), only, as_json)


@tape.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@since
@until
@out
def cut(tapes: tuple[Path, ...], since: str | None, until: str | None, output: Path) -> int:
    """Keep the interesting seconds.

    The piece replays exactly, as the whole does.
    """
    from trimtab.tape import edit as tape_edit

    return tape_edit.cut(tapes, (since, until), output)


@tape.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@out
def merge(tapes: tuple[Path, ...], output: Path) -> int:
    """Put several tapes into one.

    Of one host or of many, in order of atomic time (TAI).
    """
    from trimtab.tape import edit as tape_edit

    return tape_edit.merge(tapes, output)


@tape.command()
@click.argument("tapes", metavar="TAPE...", type=TAPE, nargs=-1, required=True)
@out
def scrub(tapes: tuple[Path, ...], output: Path) -> int:
    """Make a tape anonymous.

    Names, addresses and what programs and people wrote are replaced, the same by the same; it replays as before.
    """
    from trimtab.tape import scrub

    return scrub.scrub(tapes, output)


COMMANDS: tuple[click.Command, ...] = (replay, report, tape)
