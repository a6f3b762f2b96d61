"""`trimtab report TAPE... -o FILE`: recordings as one page, which needs nothing but itself to be looked at."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from bus import tape_reader
from bus.tape import TapeError
from bus.tape_reader import Unended
from trimtab import exits

HERE = "trimtab.report_page"


def write(tapes: Sequence[Path], output: Path) -> int:
    """Make the page. TapeError, OSError: one line for the operator. Exit code 3 where a tape was damaged."""
    try:
        import jinja2
    except ImportError:
        print("trimtab report needs jinja2; install it with: pip install 'trimtab[report]'", file=sys.stderr)
        return exits.ERROR
    from trimtab.report_page.gather import gather
    from trimtab.report_page.view import page

    files = tape_reader.find(tapes)
    if output.exists() and any(output.samefile(path) for path in files):
        raise TapeError(f"{output}: that is one of the tapes")
    with _progress(sum(len(tape_reader.segments(path)) for path in files)) as on_head:
        found = gather(files, on_head)
    for damage in found.damage:
        print(f"trimtab: {damage}", file=sys.stderr)
    drawn = page(found.hosts)
    _put(output, render(drawn, jinja2))
    print(f"{output}: {drawn.headline}")
    return exits.FINE if all(isinstance(word, Unended) for word in found.damage) else exits.DEGRADED


def render(drawn: Any, jinja2: Any) -> str:
    """The page as HTML. Everything from a tape is escaped; and of scripts, the browser runs the one of this hash."""
    folder = resources.files(HERE)
    template, style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    details = [_plain(detail) for detail in drawn.details]
    made: str = environment.from_string(template).render(
        page=drawn, details=details, style=style, script=script, script_hash=digest
    )
    return made


def _plain(detail: Any) -> dict[str, Any]:
    return {name: getattr(detail, name) for name in detail.__struct_fields__}


def _put(output: Path, text: str) -> None:
    """All of the page, or what was there before. A pipe, a device or a link (/dev/stdout) stays what it is."""
    try:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            output.write_text(text, encoding="utf-8", errors="replace")
        else:
            _replace(output, text)
    except OSError as error:
        # Of the file that was asked for; a full disk names none.
        raise OSError(error.errno, error.strerror, str(output)) from None


def _replace(output: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        # As any other new file; mkstemp's is for its owner alone.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(output)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


@contextmanager
def _progress(segments: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, one step for each segment that begins; nothing through a pipe."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading tapes", total=segments)
        yield lambda: bar.advance(task)
