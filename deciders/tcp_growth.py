"""When a TCP buffer limit grows, whether that helped, and when it goes back.

A step upwards is an attempt with the flow that asked for it. Its verdict:
  waiting  the flow's buffer has not grown yet: nothing has been tried
  open     the soak is not over
  gain     the flow became faster, by more than its noise: go on at once
  none     not within the soak: after two such steps growth rests; at most `steps_without_gain` in all
  queue    no faster, but its round trips grew longer: the room holds only a queue, so the step is taken back
  silent   the flow has ended: counts like none
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.schema import Value, Wish
from bus.tunables import INT_MAX
from deciders import tcp_wish
from deciders.flow import SAMPLES_MIN, before, gained
from deciders.limit import may
from deciders.tcp_limit import Attempt, Knob, Policy, Sample, SocketEvent
from deciders.tcp_queue import pull_back
from deciders.tcp_scarce import gave_way

SECOND_NS = 1_000_000_000
SPACING_NS = 120_000_000
"""Between two changes of one limit; the row's cool-down is a little less."""
LOST_NS = 2 * SECOND_NS
"""A flow of which nothing is heard for so long after its soak has ended."""
RTT_ROSE = 1.25
RTT_ROSE_US = 2000
SOAK_ROUNDS = 24
"""Round trips in a soak, at least: BBR tries for more only in every eighth (net/ipv4/tcp_bbr.c)."""
STEPS_AT_ONCE = 2
"""Steps without a gain before growth rests."""
SLOWER = 0.8
FASTER = 1.25
"""A flow this much faster than when growth did not help it is another case."""
NO_QUEUE = 0.9
NO_QUEUE_SAMPLES = 8
"""So much of the limit used for so long without a queue ends the rest that another flow's queue has led to."""


def weigh(policy: Policy, knob: Knob, sample: Sample) -> Sequence[Wish]:
    """One more sample: is an attempt decided, is there a reason to grow?"""
    if knob.back:
        return go_back(knob, sample.event)
    attempt = knob.attempt
    if attempt is not None:
        verdict = _judge(policy, attempt, sample)
        if verdict == "open":
            return ()
        if verdict == "queue" and attempt.old >= knob.low and _may_go_back(policy, knob, sample.event.t_ns):
            return _take_back(policy, knob, attempt, sample)
        if verdict != "waiting":
            knob.attempt = None
            _note(policy, knob, sample, verdict)
    return _grow(policy, knob, sample) if sample.limiting else pull_back(policy, knob, sample)


def go_back(knob: Knob, event: SocketEvent | Value) -> Sequence[Wish]:
    """Down to knob.back, which has been decided."""
    return (tcp_wish.back(knob, event),) if may(knob, event.t_ns) else ()


def come_down(policy: Policy, knob: Knob, event: Value) -> Sequence[Wish]:
    """A step down, when nothing has needed the limit for long."""
    idle_ns = int(policy.idle_s * SECOND_NS)
    unused_ns = event.t_ns - knob.need_ns
    least = max(knob.original, knob.low)
    if unused_ns < idle_ns or knob.original <= 0 or knob.value <= least or not may(knob, event.t_ns):
        return ()
    want = max(least, -int(-knob.value // policy.factor))
    knob.need_ns = event.t_ns - idle_ns + idle_ns // 4
    knob.blind = max(0, knob.blind - 1)
    return (tcp_wish.idle(knob, want, unused_ns // SECOND_NS, event),)


def _judge(policy: Policy, attempt: Attempt, sample: Sample) -> str:
    flow, event, earlier = sample.flow, sample.event, attempt.before
    if event.socket != attempt.socket:
        return "silent" if event.t_ns > attempt.end_ns + LOST_NS else "open"
    if not attempt.taken:
        if sample.buffer_bytes <= attempt.buffer_bytes:
            return "waiting"
        attempt.taken, attempt.end_ns, flow.samples = True, event.t_ns + attempt.soak_ns, 0
    rose = flow.rtt_us > max(earlier.rtt_us * RTT_ROSE, earlier.rtt_us + RTT_ROSE_US)
    if gained(flow, earlier, policy.gain, policy.sigmas):
        return "gain"
    faster = flow.last_rate > earlier.rate * (1 + policy.gain)
    if faster and not rose and sample.record_bytes > attempt.record_bytes * (1 + policy.gain):
        return "gain"
    if event.t_ns < attempt.end_ns or flow.samples < SAMPLES_MIN:
        return "open"
    # A little faster is not enough to go on, but too much to lose; much slower is not for what one step can do.
    same = SLOWER * earlier.rate <= flow.rate < earlier.rate * (1 + policy.gain / 2)
    return "queue" if rose and same else "none"


def _note(policy: Policy, knob: Knob, sample: Sample, verdict: str) -> None:
    if verdict == "gain":
        _helped(knob, sample)
        return
    if verdict != "silent":
        sample.flow.judged_rate = sample.flow.rate
    knob.blind += 1
    longest_ns = int(policy.rest_max_s * SECOND_NS)
    if verdict == "queue":
        knob.rest_until_ns, knob.lenient = sample.event.t_ns + longest_ns, False
    elif knob.blind >= STEPS_AT_ONCE:
        knob.rest_ns = min(max(int(policy.rest_s * SECOND_NS), 2 * knob.rest_ns), longest_ns)
        knob.rest_until_ns = sample.event.t_ns + knob.rest_ns


def _helped(knob: Knob, sample: Sample) -> None:
    knob.blind = knob.rest_ns = knob.rest_until_ns = 0
    sample.flow.judged_rate = 0.0


def _may_go_back(policy: Policy, knob: Knob, t_ns: int) -> bool:
    # Up, down and up again within an hour is enough: the second time the step stays, and growth rests.
    return not knob.backed_ns or t_ns - knob.backed_ns >= policy.rest_max_s * SECOND_NS


def _take_back(policy: Policy, knob: Knob, attempt: Attempt, sample: Sample) -> Sequence[Wish]:
    flow, t_ns = sample.flow, sample.event.t_ns
    knob.attempt = None
    knob.back = attempt.old
    knob.backed_ns = t_ns
    knob.rest_until_ns, knob.lenient = t_ns + int(policy.rest_max_s * SECOND_NS), True
    flow.judged_rate = flow.rate
    knob.back_why = tcp_wish.why_back(knob, attempt, flow)
    return (tcp_wish.take_back(knob, attempt, flow, sample.event),) if may(knob, t_ns) else ()


def _grow(policy: Policy, knob: Knob, sample: Sample) -> Sequence[Wish]:
    event, flow = sample.event, sample.flow
    if event.t_ns < knob.changed_ns + SPACING_NS or not may(knob, event.t_ns) or _rests(knob, sample):
        return ()
    if gave_way(policy, knob, event.t_ns):
        return ()
    want = min(int(knob.value * policy.factor), knob.high or INT_MAX, sample.scale_bytes or INT_MAX)
    if want <= knob.value or want < knob.low or knob.blind >= policy.steps_without_gain:
        return ()
    soak_ns = max(int(policy.soak_s * SECOND_NS), int(SOAK_ROUNDS * flow.rtt_us * 1000))
    attempt = Attempt(event.socket, knob.value, want, sample.buffer_bytes, sample.record_bytes, before(flow), soak_ns)
    # A flow whose window is as large as its scale allows cannot gain by more, so there is nothing to judge.
    knob.wished = None if sample.scale_bytes else attempt
    knob.falling = False
    return (tcp_wish.grow(knob, want, sample),)


def _rests(knob: Knob, sample: Sample) -> bool:
    """Whether growth rests for this flow."""
    flow = sample.flow
    if flow.judged_rate and knob.blind >= STEPS_AT_ONCE:
        if flow.rate < FASTER * flow.judged_rate:
            return True
        _helped(knob, sample)
    if sample.event.t_ns >= knob.rest_until_ns:
        return False
    clean = flow.used >= NO_QUEUE and flow.samples >= NO_QUEUE_SAMPLES and not flow.judged_rate
    return not (knob.lenient and clean)
