"""`trimtab`: the exit codes, and one line per error.

0 fine, 1 error, 2 changes pending or drift, 3 degraded, 4 refused, 64 usage, 77 not permitted, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from trimtab import exits
from trimtab.cli import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; click's own 2 for a usage error would mean "changes pending" here."""
    _streams()
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="trimtab", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return exits.USAGE
    except click.ClickException as error:
        error.show()
        return exits.ERROR
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except exits.expected() as error:
        print(f"trimtab: {exits.line(error)}", file=sys.stderr)
        return exits.code(error)
    return code if isinstance(code, int) else exits.FINE


def _streams() -> None:
    """Of 0, 1 and 2, those that the shell has closed (`>&-`): else the next file opened would be one of them, and be
    written to as such. And what a terminal's encoding does not have is shown escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest number that is free, which this one is by now.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115 - for as long as we live
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
