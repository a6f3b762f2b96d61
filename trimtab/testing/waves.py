"""Signals over time, made up: step, ramp, square wave, sawtooth, burst, noise, and what they make together.

A Wave is a function of time: seconds since its beginning in, a number out, in whatever unit its user says. Waves are
pure and keep nothing: the same seconds give the same number, in any order, in any process.

    load = constant(2e6) + step(at_s=5, height=50e6) * noise(seed=1, share=0.1)

trimtab.testing.worlds turns waves into events: of a path with a TCP flow, of a neighbour table that fills, of counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wave:
    """A signal. `+` and `*` join it with another, or with a number, value by value."""

    at: Callable[[float], float]
    """Seconds -> value."""

    def __call__(self, seconds: float) -> float:
        return self.at(seconds)

    def __add__(self, other: Wave | float) -> Wave:
        added = _wave(other)
        return Wave(lambda s: self.at(s) + added.at(s))

    def __mul__(self, other: Wave | float) -> Wave:
        factor = _wave(other)
        return Wave(lambda s: self.at(s) * factor.at(s))

    __radd__ = __add__
    __rmul__ = __mul__

    def clip(self, low: float = 0.0, high: float = math.inf) -> Wave:
        """Never below low nor above high."""
        return Wave(lambda s: min(high, max(low, self.at(s))))

    def until(self, end_s: float) -> Wave:
        """0 from then on."""
        return Wave(lambda s: self.at(s) if s < end_s else 0.0)


def constant(value: float) -> Wave:
    """The same for ever."""
    return Wave(lambda _: value)


def step(at_s: float, height: float) -> Wave:
    """0, and from at_s on height."""
    return Wave(lambda s: height if s >= at_s else 0.0)


def ramp(from_s: float, to_s: float, height: float) -> Wave:
    """0, rising evenly from from_s on, height from to_s on. ValueError when that is no time."""
    if to_s <= from_s:
        raise ValueError(f"a ramp from {from_s} s to {to_s} s takes no time: that is a step")
    return Wave(lambda s: height * min(1.0, max(0.0, (s - from_s) / (to_s - from_s))))


def square(period_s: float, height: float, duty: float = 0.5) -> Wave:
    """height for the first `duty` (0 to 1) of each period, then 0."""
    _period(period_s)
    return Wave(lambda s: height if s % period_s < duty * period_s else 0.0)


def sawtooth(period_s: float, height: float) -> Wave:
    """From 0 evenly up to height, and at once down again."""
    _period(period_s)
    return Wave(lambda s: height * (s % period_s) / period_s)


def burst(at_s: float, length_s: float, height: float) -> Wave:
    """0, but height for length_s from at_s on."""
    return Wave(lambda s: height if at_s <= s < at_s + length_s else 0.0)


def noise(seed: int, share: float, every_s: float = 0.1) -> Wave:
    """A factor about 1: evenly spread from 1 - share to 1 + share, another one every every_s. To multiply with."""
    _period(every_s)
    return Wave(lambda s: 1.0 + share * (2.0 * chance(seed, int(s // every_s)) - 1.0))


def chance(seed: int, number: int) -> float:
    """0 up to 1, evenly spread: the number-th throw of this seed. No state: splitmix64 (Steele et al., OOPSLA 2014)."""
    z = (seed * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


def _wave(value: Wave | float) -> Wave:
    return value if isinstance(value, Wave) else constant(value)


def _period(seconds: float) -> None:
    if seconds <= 0:
        raise ValueError(f"a period of {seconds} s is none")
