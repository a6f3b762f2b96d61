"""A plot for a terminal: values over time as bars of block characters, sections side by side, marks below the axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.text import Text

EIGHTHS = " ▁▂▃▄▅▆▇█"
HALVES = " .#"
"""For terminals and files that know ASCII alone."""
LABEL = 7
"""Columns for the numbers on the left."""


@dataclass(frozen=True)
class Section:
    """One stretch of time. Times are seconds from its beginning."""

    title: str
    span_s: float
    points: Sequence[tuple[float, float]]
    """(time, value from 0 up), in order of time."""
    marks: Sequence[float] = field(default=())
    style: str = ""
    """As rich names it."""


def plot(
    sections: Sequence[Section], unit: str, width: int = 72, height: int = 8, *, top: float = 0.0, plain: bool = False
) -> list[Text]:
    """The lines of a plot at most `width` columns wide. top: where the scale ends; 0: above all. plain: ASCII alone."""
    total_s = sum(section.span_s for section in sections)
    room = width - LABEL - 1
    widths = [max(1, int(room * section.span_s / total_s)) for section in sections]
    bars = [_means(section, columns) for section, columns in zip(sections, widths, strict=True)]
    top = top or _above(max((value for section in bars for value in section), default=0.0))
    lines = [Text(f"{unit:>{LABEL}}")]
    for row in reversed(range(height)):
        # The scale is written at the top and half way up.
        number = f"{top * (row + 1) / height:g}" if row + 1 in (height, height // 2) else ""
        line = Text(f"{number:>{LABEL}}" + ("|" if plain else "│"))
        for section, values in zip(sections, bars, strict=True):
            cells = (_cell(value / top * height - row, HALVES if plain else EIGHTHS) for value in values)
            line.append("".join(cells), section.style)
        lines.append(line)
    return [*lines, *_feet(sections, widths, plain)]


def _cell(filled: float, glyphs: str) -> str:
    steps = len(glyphs) - 1
    return glyphs[max(0, min(steps, round(filled * steps)))]


def _above(value: float) -> float:
    """The next round number: 1, 2, 4, 5 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    # The half of a percent is for a rate that is met a little too well.
    return next((step * power for step in (1, 2, 4, 5, 8) if value <= step * power * 1.005), 10 * power)


def _means(section: Section, columns: int) -> list[float]:
    """One value per column: the mean of its points, or what the column before it shows when it has none."""
    means: list[float] = []
    for column in range(columns):
        left, right = (section.span_s * edge / columns for edge in (column, column + 1))
        values = [value for t_s, value in section.points if left <= t_s < right]
        before = means[-1] if means else 0.0
        means.append(sum(values) / len(values) if values else before)
    return means


def _feet(sections: Sequence[Section], widths: Sequence[int], plain: bool) -> Iterator[Text]:
    corner, dash, mark = ("+", "-", "^") if plain else ("└", "─", "▲")
    yield Text(" " * LABEL + corner + "".join(_tick(columns, dash, corner) for columns in widths))
    marked, titles = Text(" " * (LABEL + 1)), Text(" " * (LABEL + 1))
    for section, columns in zip(sections, widths, strict=True):
        places = {min(columns - 1, int(columns * t_s / section.span_s)) for t_s in section.marks}
        marked.append("".join(mark if column in places else " " for column in range(columns)), section.style)
        titles.append(f"{section.title[: columns - 1]:<{columns}}", section.style)
    if marked.plain.strip():
        yield marked
    yield titles


def _tick(columns: int, dash: str, corner: str) -> str:
    return dash * (columns - 1) + ("┴" if corner == "└" else corner)
