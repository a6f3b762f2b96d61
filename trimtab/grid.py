"""Text for a width: aligned columns, and sentences that break between words. Nothing is ever cut.

A row that is wider than the terminal goes on in the next line, indented and aligned with the rows above, as does the
head: half of a key, or of a number, is worse than none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len

GAP = 2
INDENT = 4
LEAST = 24
"""A terminal that says it is narrower is taken for one of this width."""


def grid(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], width: int | None
) -> list[list[str]]:
    """The lines of each row, the head's first. numeric: columns that go to the right. width: in cells; None: no end."""
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    folds = _folds(widths, max(width, LEAST)) if width else [list(range(len(widths)))]
    return [_folded(row, widths, numeric, folds, width) for row in (head, *rows)]


def wrapped(text: str, width: int | None, hang: int = 0) -> list[str]:
    """The lines of a text, each broken between words; what goes on is indented as its line is, and by `hang`."""
    found: list[str] = []
    for line in text.split("\n"):
        margin = line[: len(line) - len(line.lstrip())] + " " * hang
        if width is None or cell_len(line) <= width:
            found.append(line)
        else:
            found += textwrap.wrap(
                line, max(width, LEAST), subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
            )
    return found


def _folds(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each line that a row takes."""
    folds: list[list[int]] = []
    room = 0
    for column, wide in enumerate(widths):
        if not folds or GAP + wide > room:
            room = width - INDENT * bool(folds) + GAP
            folds.append([])
        folds[-1].append(column)
        room -= GAP + wide
    return folds


def _folded(
    row: Sequence[str],
    widths: Sequence[int],
    numeric: Sequence[bool],
    folds: Sequence[Sequence[int]],
    width: int | None,
) -> list[str]:
    found: list[str] = []
    for number, fold in enumerate(folds):
        margin = " " * INDENT * bool(number)
        line = (" " * GAP).join(_padded(row[column], widths[column], numeric[column]) for column in fold).rstrip()
        if line or not number:
            found += wrapped(margin + line, width)
    return found


def _padded(cell: str, width: int, numeric: bool) -> str:
    blank = " " * (width - cell_len(cell))
    return blank + cell if numeric else cell + blank
