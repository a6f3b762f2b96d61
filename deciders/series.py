"""One signal of one place over time: seconds, windows made of them, and how it was before a moment.

Readings are summed up to the next Tick, which makes a bin of about a second. A window is so many bins that it lasts
window_s and weighs enough; a busy signal has one each window_s, a quiet one fewer. Bins of the last while are kept, so
that what was before a change is known to the second although the change is heard of later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from msgspec import Struct

from deciders.signals import Reading, Signal

SECOND_NS = 1_000_000_000
LAPSE_NS = 10 * SECOND_NS
"""Totals further apart than this are no second of this one, but tell how it has been until now."""
STALE_NS = 60 * SECOND_NS
"""A window that does not fill for so long is begun anew."""
SLACK_NS = 50_000_000
"""The clocks of publishers agree, their lanes do not: so much later may a bin end that is still before a change."""
ENOUGH = 0.1
"""Of a window's weight: the least to call a baseline."""
GROUPS_MIN = 4
"""Fewer windows say nothing of a spread."""


class Window(Struct, frozen=True, gc=False):
    """What a signal was from start_ns to end_ns."""

    start_ns: int
    end_ns: int
    value: float


class Baseline(Struct, frozen=True, gc=False):
    """What a signal was before a change."""

    mean: float
    deviation: float
    """Standard deviation of its windows, as far as there were enough, and of the mean."""


@dataclass(slots=True)
class Series:
    """The state of one series. No msgspec.Struct: setting an attribute of one takes four times as long."""

    bins_max: int
    bins: list[tuple[int, float | int, float | int]]
    """(end_ns, how much, of how much), oldest first; the last bins_max."""
    last: Reading | None = None
    heard_ns: int = 0
    prior: Reading | None = None
    """What the totals told of the time before they were read each second."""
    much: float | int = 0.0
    of: float | int = 0.0
    window_ns: int = 0
    window_much: float | int = 0.0
    window_of: float | int = 0.0


def begin(baseline_s: float) -> Series:
    """A series with nothing in it."""
    return Series(int(baseline_s) + 15, [])


def record(signal: Signal, series: Series, reading: Reading, t_ns: int) -> None:
    """One reading at t_ns."""
    if not signal.grows:
        add(series, reading, t_ns)
        return
    since_ns = t_ns - series.heard_ns
    if since_ns <= 0:
        return
    series.heard_ns = t_ns
    last, series.last = series.last, reading
    if last is None:
        series.prior = reading
        return
    much, of = reading[0] - last[0], reading[1] - last[1]
    if much < 0 or of < 0:
        # The counters began anew.
        return
    if since_ns > LAPSE_NS:
        series.prior = (much, of)
        return
    series.much += much
    series.of += of


def add(series: Series, reading: Reading, t_ns: int) -> None:
    """One reading at t_ns, of a signal that does not grow."""
    if t_ns > series.heard_ns:
        series.heard_ns = t_ns
    series.much += reading[0]
    series.of += reading[1]


def close_bin(series: Series, t_ns: int) -> None:
    """What has been read until now belongs together."""
    if series.of > 0:
        series.bins.append((t_ns, series.much, series.of))
        if len(series.bins) > series.bins_max:
            del series.bins[0]
        series.window_much += series.much
        series.window_of += series.of
        series.much = series.of = 0.0


def tick(signal: Signal, series: Series, t_ns: int, window_ns: int) -> Window | None:
    """A second has passed. The window that is complete with it, if one is."""
    close_bin(series, t_ns)
    start_ns = series.window_ns
    if not start_ns:
        _anew(series, t_ns)
        return None
    if t_ns - start_ns < window_ns:
        return None
    full = series.window_of >= signal.weight
    if not full and t_ns - start_ns < STALE_NS:
        return None
    value = series.window_much / series.window_of if full else 0.0
    _anew(series, t_ns)
    return Window(start_ns, t_ns, value) if full else None


def _anew(series: Series, t_ns: int) -> None:
    series.window_ns, series.window_much, series.window_of = t_ns, 0.0, 0.0


def before(signal: Signal, series: Series, since_ns: int, window_s: float, baseline_s: float) -> Baseline | None:
    """How the signal was before since_ns; None when that is not known."""
    oldest_ns = since_ns - int(2 * baseline_s * SECOND_NS)
    bins = [each for each in series.bins if oldest_ns < each[0] <= since_ns + SLACK_NS]
    much, of = sum(each[1] for each in bins), sum(each[2] for each in bins)
    return _baseline(signal, much, of, _groups(signal, bins, int(window_s * SECOND_NS)))


def long_before(signal: Signal, series: Series) -> Baseline | None:
    """What the totals tell of the time before anyone looked; None where they tell nothing."""
    return _baseline(signal, *series.prior, []) if series.prior else None


def _baseline(signal: Signal, much: float, of: float, windows: list[float]) -> Baseline | None:
    if of < signal.weight * ENOUGH:
        return None
    # As if one event more had been seen: none in a hundred may be one in a hundred.
    unsure = (much + 1) / of / of if signal.counts else 0.0
    return Baseline(much / of, sqrt(_variance(windows) + unsure))


def _groups(signal: Signal, bins: Iterable[tuple[int, float, float]], window_ns: int) -> list[float]:
    values: list[float] = []
    start_ns, much, of = 0, 0.0, 0.0
    for end_ns, more, of_more in bins:
        start_ns = start_ns or end_ns - SECOND_NS
        much += more
        of += of_more
        if end_ns - start_ns >= window_ns and of >= signal.weight:
            values.append(much / of)
            start_ns, much, of = end_ns, 0.0, 0.0
    return values


def _variance(values: list[float]) -> float:
    if len(values) < GROUPS_MIN:
        return 0.0
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
