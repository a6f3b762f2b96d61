"""When a raised TCP buffer limit only holds a queue: then it comes down by a step, where nobody loses by that.

Of a flow whose buffer is near the limit the path needs its rate times the least round trip (deciders.flow.used, as a
share of what the limit allows); what is under way beyond that waits in a queue, and makes the smoothed round trip
longer. How much longer is averaged over time, each second weighing exp(-1 / DECAY_S) of the next, since the limit last
changed: two sums of floating-point numbers of the size of a second, so that no size of a buffer matters and what is
long past has no say. (A correlation of buffers and round trips in whole numbers overflows for large buffers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from bus.schema import Wish
from deciders import tcp_wish
from deciders.flow import Flow
from deciders.limit import SECOND_NS, may
from deciders.tcp_limit import Knob, Policy, Sample, Standing

LONG = 1.5
"""A smoothed round trip so many times the least, ..."""
LONG_US = 10_000
"""... and so much longer, is a queue worth less room."""
DECAY_S = 10.0
STOOD_NS = 10 * SECOND_NS
"""So long it must have stood, with the limit as it is."""
WANTED_NS = 30 * SECOND_NS
"""And so long no flow must have had use for more than a step less."""
SPARE = 0.9
"""A step less must leave every flow below this share of what makes the limit grow. (In relation to the limit: a buffer
stays as large as it is when the limit comes down, for the sake of connections to come.)"""
EVERY_NS = 250_000_000
"""So often a sample is taken, of whichever flow is heard of then."""
HELD_NS = SECOND_NS
"""It holds until the next, but for so long at most."""
SAMPLES = 8
"""Of a flow, before it is the reason for a step."""


def watch(knob: Knob, flow: Flow, t_ns: int) -> bool:
    """One more sample of a flow near the limit, of which one each EVERY_NS counts: whether it has a queue."""
    standing = knob.standing
    if standing.epoch != knob.epoch:
        standing = knob.standing = Standing(knob.epoch, t_ns, t_ns)
    knob.watch_ns = t_ns + EVERY_NS
    seconds = min(max(0, t_ns - standing.t_ns), HELD_NS) / SECOND_NS
    if not flow.base_rtt_us:
        return False
    kept = exp(-seconds / DECAY_S)
    standing.t_ns = t_ns
    standing.weight = standing.weight * kept + seconds
    standing.longer = standing.longer * kept + seconds * flow.rtt_us / flow.base_rtt_us
    return flow.rtt_us >= LONG * flow.base_rtt_us


def pull_back(policy: Policy, knob: Knob, sample: Sample) -> Sequence[Wish]:
    """A step down, when all that the last one does is to hold a queue."""
    standing, flow, t_ns = knob.standing, sample.flow, sample.event.t_ns
    least = max(knob.original, knob.low)
    if knob.original <= 0 or knob.value <= least or not _queues(flow) or not _stood(knob, t_ns):
        return ()
    if not _may_turn(policy, knob, t_ns) or not may(knob, t_ns):
        return ()
    if not knob.falling:
        knob.falling, knob.backed_ns = True, t_ns
    knob.rest_until_ns, knob.lenient = t_ns + int(policy.rest_max_s * SECOND_NS), True
    want = max(least, -int(-knob.value // policy.factor))
    return (tcp_wish.pull(knob, want, standing, flow, sample.event),)


def _queues(flow: Flow) -> bool:
    longer_us = flow.rtt_us - flow.base_rtt_us
    return flow.samples >= SAMPLES and flow.used > 0 and longer_us >= max(LONG_US, (LONG - 1) * flow.base_rtt_us)


def _stood(knob: Knob, t_ns: int) -> bool:
    """The queue has, and nobody had use for what the step takes."""
    standing = knob.standing
    if standing.epoch != knob.epoch or t_ns - standing.since_ns < STOOD_NS or standing.mean < LONG:
        return False
    return t_ns - max(knob.wanted_ns, knob.changed_ns) >= WANTED_NS


def _may_turn(policy: Policy, knob: Knob, t_ns: int) -> bool:
    # Up, down and up again within an hour is enough. One step down after another is no turn.
    return knob.falling or not knob.backed_ns or t_ns - knob.backed_ns >= policy.rest_max_s * SECOND_NS
