"""What can be known of one TCP flow from the events about it: its rate, how noisy that is, and what limits it.

Rates are taken over spans of at least one round trip (within one, arrivals come in bursts) and averaged over the last
few, each new one weighing ALPHA. Noise is taken from how far a sample lies off the line through its two predecessors,
so that a rate that climbs does not pass for a noisy one (von Neumann's ratio, one order up).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from msgspec import Struct

ALPHA = 0.3
SPREAD = ALPHA / (2 - ALPHA)
"""Variance of such an average, relative to that of one sample."""
NOISE_ALPHA = 0.1
USUAL = 1.1
"""Without a queue, the average round trip is hardly more than this times the best. A connection that has known its path
only with the queue of its own slow start would take that for the path itself."""
NOISE_CLIP = 0.5
"""A jump beyond this share is a change, not noise."""
LINE_VARIANCE = 6
"""Variance of x - 2y + z, relative to that of one."""
NOISE_MAX2 = NOISE_CLIP * NOISE_CLIP / LINE_VARIANCE
BASE_CREEP = 0.00003
"""The base round trip forgets, a sample at a time: a route that has become longer is believed within the hour, ..."""
SLOWER = 0.8
"""... where the flow has become slower than this share of its best: the same bytes take longer to come back. A flow as
fast as ever has a queue, however long that stands; forgetting it would let the limit grow again, for the queue."""
SPAN_MIN_NS = 50_000_000
SPAN_MAX_NS = 2_000_000_000
"""Events further apart do not belong together."""
SAMPLES_MIN = 3
"""An average of fewer says nothing."""

UNKNOWN = -1


@dataclass(slots=True)
class Flow:
    """Averages over one flow's samples since the limit last changed. Rates in bytes/s, round trips in us.

    No msgspec.Struct: setting an attribute of one takes four times as long, and this is all that a replay does.
    """

    epoch: int = -1
    t_ns: int = 0
    """Where the current span began, and what had been transferred by then."""
    total: int = 0
    window: int = 0
    """Largest window seen in the span."""
    samples: int = 0
    rate: float = 0.0
    last_rate: float = 0.0
    last_change: float = 0.0
    noise2: float = 0.0025
    """Variance of one sample, relative to the rate; 5 % deviation until measured."""
    used: float = 0.0
    """What the flow would have on its way without any queue, as a share of what the limit lets it have."""
    rtt_us: float = 0.0
    last_used: float = 0.0
    record: int = 0
    """The most bytes in one round trip, in the kernel's own count, at the last sample."""
    base_rtt_us: float = 0.0
    """The least that the averaged round trip has been: what is above it is a queue. 0: not known yet."""
    best_rate: float = 0.0
    """The most that the averaged rate has been."""
    retransmits: int = 0
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


def add(flow: Flow, t_ns: int, total: int, rtt_us: int, best_rtt_us: int, held: float) -> None:
    """End the span at t_ns and average it in. best_rtt_us: a round trip that this flow once had; 0 when not known.

    held: bytes that the limit lets be under way; 0 where it is not felt. In ]0, 1]: the limit is felt, and this share
    of what it allows is under way. UNKNOWN: no telling now.
    """
    # Each event of a replay comes through here: plain comparisons, since min() and max() cost a call each.
    rate = (total - flow.total) * 1e9 / (t_ns - flow.t_ns)
    base = flow.base_rtt_us
    if not base or rtt_us < base:
        base = rtt_us
    if best_rtt_us and base > USUAL * best_rtt_us:
        base = USUAL * best_rtt_us
    if held > 1:
        used = rate * base / (held * 1e6)
    elif held > 0:
        used = held * base / rtt_us
    else:
        used = flow.used if held == UNKNOWN and flow.samples else 0.0
    flow.t_ns, flow.total, flow.window = t_ns, total, 0
    flow.samples = samples = flow.samples + 1
    if samples == 1:
        flow.rate, flow.used, flow.rtt_us = rate, used, float(rtt_us)
    else:
        alpha = 1 / samples if samples < SAMPLES_MIN else ALPHA
        flow.rate = mean = flow.rate + alpha * (rate - flow.rate)
        flow.used += alpha * (used - flow.used)
        flow.rtt_us += alpha * (rtt_us - flow.rtt_us)
        change = rate - flow.last_rate
        if samples > 2 and mean > 0:
            off = (change - flow.last_change) / mean
            noise2 = off * off / LINE_VARIANCE if -NOISE_CLIP < off < NOISE_CLIP else NOISE_MAX2
            flow.noise2 += NOISE_ALPHA * (noise2 - flow.noise2)
        flow.last_change = change
        if samples >= SAMPLES_MIN:
            best = flow.best_rate
            # Mostly the path is what it was: then there is nothing to learn.
            if not base == flow.base_rtt_us < flow.rtt_us or not SLOWER * best <= mean <= best:
                _learn_path(flow, mean, flow.rtt_us, best_rtt_us)
    flow.last_rate, flow.last_used = rate, used


def _learn_path(flow: Flow, rate: float, rtt_us: float, best_rtt_us: int) -> None:
    """The averages after one more sample: whether the path is what it was."""
    base = flow.base_rtt_us
    if rate > flow.best_rate:
        flow.best_rate = rate
    if not 0 < base < rtt_us:
        base = rtt_us
    elif rate < SLOWER * flow.best_rate:
        base += BASE_CREEP * (rtt_us - base)
    flow.base_rtt_us = USUAL * best_rtt_us if best_rtt_us and base > USUAL * best_rtt_us else base


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
