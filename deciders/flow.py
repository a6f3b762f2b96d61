"""What can be known of one TCP flow from the events about it: its rate, how noisy that is, and what limits it.

Rates are taken over spans of at least one round trip (within one, arrivals come in bursts) and averaged over the last
few, each new one weighing ALPHA. Noise is taken from the difference of neighbouring samples, so that a rate that climbs
does not pass for a noisy one (von Neumann, 1941).
"""

from __future__ import annotations

from math import sqrt

from msgspec import Struct

ALPHA = 0.3
SPREAD = ALPHA / (2 - ALPHA)
"""Variance of such an average, relative to that of one sample."""
NOISE_ALPHA = 0.1
NOISE_CLIP = 0.3
"""A jump beyond this share is a change, not noise."""
SPAN_MIN_NS = 50_000_000
SPAN_MAX_NS = 2_000_000_000
"""Events further apart do not belong together."""
SAMPLES_MIN = 3
"""An average of fewer says nothing."""


class Flow(Struct, gc=False):
    """Averages over one flow's samples since the limit last changed. Rates in bytes/s, round trips in us."""

    epoch: int = 0
    t_ns: int = 0
    """Where the current span began, and what had been transferred by then."""
    total: int = 0
    window: int = 0
    """Largest window seen in the span."""
    samples: int = 0
    rate: float = 0.0
    last_rate: float = 0.0
    noise2: float = 0.0025
    """Variance of one sample, relative to the rate; 5 % deviation until measured."""
    used: float = 0.0
    """How much the limit was felt: share of the window in use, or share of time that the send buffer held it back."""
    rtt_us: float = 0.0
    judged_rate: float = 0.0
    """The rate at which more room was found not to help; 0: not found so."""


class Before(Struct, frozen=True, gc=False):
    """A flow's averages at one moment, for comparison."""

    rate: float
    spread2: float
    rtt_us: float


def begin(flow: Flow, epoch: int, t_ns: int, total: int) -> None:
    """Forget the averages (but not the noise): from here on, the samples are of another time."""
    flow.epoch, flow.t_ns, flow.total, flow.window, flow.samples = epoch, t_ns, total, 0, 0


def add(flow: Flow, t_ns: int, total: int, rtt_us: int, used: float) -> None:
    """End the span at t_ns and average it in. used: see Flow.used."""
    rate = (total - flow.total) * 1e9 / (t_ns - flow.t_ns)
    flow.t_ns, flow.total, flow.window = t_ns, total, 0
    flow.samples += 1
    if flow.samples == 1:
        flow.rate, flow.used, flow.rtt_us = rate, used, float(rtt_us)
    else:
        alpha = max(ALPHA, 1 / flow.samples)
        flow.rate += alpha * (rate - flow.rate)
        flow.used += alpha * (used - flow.used)
        flow.rtt_us += alpha * (rtt_us - flow.rtt_us)
        if flow.rate > 0:
            change = min(NOISE_CLIP, abs(rate - flow.last_rate) / flow.rate)
            flow.noise2 += NOISE_ALPHA * (change * change / 2 - flow.noise2)
    flow.last_rate = rate


def before(flow: Flow) -> Before:
    """The averages as they stand."""
    return Before(flow.rate, _spread2(flow), flow.rtt_us)


def gained(flow: Flow, earlier: Before, least: float, sigmas: float) -> bool:
    """Whether the rate rose by the share `least`, and by so many standard deviations of what is only noise."""
    if flow.samples < SAMPLES_MIN or earlier.rate <= 0:
        return False
    noise = sigmas * sqrt(_spread2(flow) + earlier.spread2)
    return flow.rate >= earlier.rate * (1 + max(least, noise))


def _spread2(flow: Flow) -> float:
    return flow.noise2 * max(SPREAD, 1 / max(flow.samples, 1))
