"""Numbers into lines. A plot is WIDE by HIGH units, whatever size it has on a screen; y grows downwards, as in SVG."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.report_page.series import Bin

WIDE, HIGH = 1000, 100
SECOND_NS = 1_000_000_000
BREAK_NS = 15 * SECOND_NS
"""Readings further apart than this are not joined."""
LOG_RATIO = 16
"""Values that differ by more than so many times get a logarithmic scale."""
TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
DAY_S = 86400
BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
DECIMAL = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))


@dataclass(frozen=True)
class Axis:
    """The time that a plot shows, TAI nanoseconds."""

    from_ns: int
    to_ns: int

    def x(self, t_ns: int) -> float:
        """Where a moment stands, kept inside."""
        share = (t_ns - self.from_ns) / max(1, self.to_ns - self.from_ns)
        return round(WIDE * min(1.0, max(0.0, share)), 1)

    def ticks(self, offset_s: int) -> list[tuple[float, str]]:
        """(x, UTC) of about five round moments. offset_s: TAI - UTC."""
        first_s, last_s = self.from_ns / SECOND_NS - offset_s, self.to_ns / SECOND_NS - offset_s
        apart = next((step for step in TICKS_S if (last_s - first_s) / step <= 6), DAY_S)
        apart = max(apart, math.ceil((last_s - first_s) / 6 / DAY_S) * DAY_S) if apart == DAY_S else apart
        start = math.ceil(first_s / apart) * apart
        moments = range(start, math.floor(last_s) + 1, apart)
        style = "%d %b" if apart >= DAY_S else "%H:%M" if apart >= 60 else "%H:%M:%S"
        return [
            (self.x((moment + offset_s) * SECOND_NS), time.strftime(style, time.gmtime(moment))) for moment in moments
        ]


@dataclass(frozen=True)
class Scale:
    """Values from low (at the bottom) to high."""

    low: float
    high: float
    log: bool = False

    def y(self, value: float) -> float:
        """Where a value stands, kept inside."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        share = (value - low) / (high - low)
        return round(HIGH * (1 - min(1.0, max(0.0, share))), 1)

    def holds(self, value: float) -> bool:
        """Whether it can be shown."""
        return self.low <= value <= self.high

    @property
    def middle(self) -> float:
        """The value half way up."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


def scale(values: Iterable[float], least: float = 0.0, even: bool = False) -> Scale:
    """One that shows all of them, with some air above. least: the top is not below it, so that noise stays small.
    even: never logarithmic."""
    found = list(values)
    top = max([*found, least])
    if top <= 0:
        return Scale(0.0, 1.0)
    positive = [value for value in found if value > 0]
    bottom = min(positive, default=top)
    if not even and top / bottom > LOG_RATIO and len(positive) == len(found):
        return Scale(bottom / 1.3, top * 1.3, log=True)
    return Scale(0.0, top * 1.12)


def marks(size: Scale, binary: bool) -> list[float]:
    """Three round values to write beside a scale, from the top."""
    if not size.log:
        top = _round(size.high / 1.04, binary)
        return [top, top / 2, size.low]
    found = (_round(value, binary) for value in (size.high / 1.1, size.middle * 1.1, size.low * 1.6))
    return [value for value in found if size.holds(value)]


def _round(value: float, binary: bool) -> float:
    """The next round number below: a few times a power of ten, or of two."""
    if value <= 0:
        return value
    base, steps = (2.0, (1.75, 1.5, 1.25, 1.0)) if binary else (10.0, (8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.0))
    power = base ** math.floor(math.log(value, base))
    return next((step * power for step in steps if step * power <= value), power)


def steps(axis: Axis, size: Scale, points: Sequence[tuple[int, int]], until_ns: int) -> str:
    """The points of a polyline that goes on level until the value changes."""
    found: list[str] = []
    y_before: float | None = None
    for t_ns, value in points:
        x, y = axis.x(t_ns), size.y(value)
        if y_before is not None:
            found.append(f"{x:g},{y_before:g}")
        found.append(f"{x:g},{y:g}")
        y_before = y
    if y_before is not None:
        found.append(f"{axis.x(until_ns):g},{y_before:g}")
    return " ".join(found)


def runs(points: Sequence[tuple[int, Bin]], width_ns: int) -> list[list[tuple[int, Bin]]]:
    """Cut where nothing was read for long."""
    found: list[list[tuple[int, Bin]]] = []
    last_ns = 0
    for t_ns, one in points:
        if not found or t_ns - last_ns > max(BREAK_NS, 2 * width_ns):
            found.append([])
        found[-1].append((t_ns, one))
        last_ns = t_ns
    return found


def curve(axis: Axis, size: Scale, run: Sequence[tuple[int, Bin]]) -> str:
    """The points of a polyline through the means; a lone one becomes a dash."""
    found = [(axis.x(t_ns), size.y(one.mean)) for t_ns, one in run]
    if len(found) == 1:
        (x, y), found = found[0], []
        found = [(x - 1, y), (x + 1, y)]
    return " ".join(f"{x:g},{y:g}" for x, y in found)


def band(axis: Axis, size: Scale, run: Sequence[tuple[int, Bin]]) -> str:
    """The points of a polygon from the least to the most of each bin; empty where these hardly differ."""
    above = [(axis.x(t_ns), size.y(one.high)) for t_ns, one in run]
    below = [(axis.x(t_ns), size.y(one.low)) for t_ns, one in run]
    if all(abs(high[1] - low[1]) < 1.5 for high, low in zip(above, below, strict=True)):
        return ""
    return " ".join(f"{x:g},{y:g}" for x, y in [*above, *reversed(below)])


def number(value: float, unit: str) -> str:
    """A value in words."""
    if unit == "bytes":
        return _sized(value, BINARY, "bytes")
    if unit == "bit/s":
        return _sized(value, DECIMAL, "bit/s")
    if unit == "us":
        return f"{value / 1000:.4g} ms" if value >= 1000 else f"{value:.3g} µs"
    if unit == "%":
        return f"{value * 100:.3g} %"
    if unit == "/s":
        return f"{value:,.0f}/s" if abs(value) >= 100 else f"{value:.3g}/s"
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def move(old: float, new: float, unit: str, arrow: str = " → ") -> str:
    """From one value to another, with what they share said once."""
    if old == new:
        return number(old, unit)
    first, last = number(old, unit), number(new, unit)
    word = last.rpartition(" ")[2]
    return f"{first.removesuffix(' ' + word)}{arrow}{last}"


def _sized(value: float, names: Sequence[tuple[float, str]], plain: str) -> str:
    for size, name in names:
        if abs(value) >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:.4g} {plain}" if value != int(value) else f"{int(value)} {plain}"


def clock(t_ns: int, offset_s: int, style: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A TAI moment in UTC."""
    return time.strftime(style, time.gmtime(t_ns / SECOND_NS - offset_s))


def duration(ns: int) -> str:
    """A stretch of time in words, to two places."""
    seconds = round(ns / SECOND_NS)
    parts = [(seconds // DAY_S, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"
