"""When one TCP buffer limit grows, whether that helped, and when it goes back: the rules of deciders.tcp_buffer.

A step upwards is a trial on the flow that asked for it. It ends with one of
  gain    the flow became faster, by more than its noise: go on at once
  none    not within the soak: two such steps, and growth rests; at most `steps_without_gain` in all
  queue   no faster, but its round trips grew longer: the room holds only a queue, so the step is taken back
  silent  the flow has ended: counts like none
  untaken the flow's buffer did not grow: nothing has been tried
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import VERSION, Evidence, TcpRcvBuf, TcpSndBuf, Value, Wish
from bus.tunables import INT_MAX
from deciders.flow import SAMPLES_MIN, Before, Flow, before, gained
from deciders.limit import Limit, learn, may

SECOND_NS = 1_000_000_000
VALID_NS = SECOND_NS
SPACING_NS = 100_000_000
"""Between two changes of one limit; the row's cool-down is a little less."""
LOST_NS = 2 * SECOND_NS
"""A flow of which nothing is heard for so long after its soak has ended."""
RTT_ROSE = 1.25
RTT_ROSE_US = 2000
SOAK_ROUNDS = 24
"""Round trips in a soak, at least: BBR tries for more only in every eighth (net/ipv4/tcp_bbr.c)."""
STEPS_AT_ONCE = 2
"""Steps without a gain before growth rests."""
FASTER = 1.25
"""A flow this much faster than when growth did not help it is another case."""

SocketEvent = TcpRcvBuf | TcpSndBuf


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.tcp_buffer` in the configuration."""

    near: Annotated[float, Meta(gt=0, le=1)] = 0.6
    """A buffer of so much of the limit is near it."""
    window_used: Annotated[float, Meta(gt=0, le=1)] = 0.6
    """A receive limit holds a flow back when the flow, without any queue, would use so much of the largest window."""
    send_used: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """The same of a send limit and the bytes in flight. A receive limit has to be ahead, see tcp_buffer._fills."""
    factor: Annotated[float, Meta(gt=1, le=1.5)] = 1.5
    """One step."""
    gain: Annotated[float, Meta(gt=0, le=1)] = 0.12
    """A rate that rose by this share, and by `sigmas` standard deviations of its noise, is a gain."""
    sigmas: Annotated[float, Meta(ge=0, le=10)] = 3.0
    soak_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.5
    """How long to wait for a gain; at least 24 round trips."""
    hold_s: Annotated[float, Meta(ge=1, le=86400)] = 5.0
    """Rest after two steps without a gain; twice as long each time, up to hold_max_s."""
    hold_max_s: Annotated[float, Meta(ge=1, le=86400)] = 3600.0
    """Also the rest after a step that was taken back."""
    steps_without_gain: Annotated[int, Meta(ge=1, le=16)] = 4
    """No limit goes further than so many steps beyond where growth last helped."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """A limit that nobody needed for so long comes down a step, and another each quarter of it."""


class Trial(Struct, gc=False):
    """A step upwards, from the wish to the verdict."""

    socket: int
    old: int
    new: int
    buffer_bytes: int
    record_bytes: int
    before: Before
    soak_ns: int
    end_ns: int = 0
    taken: bool = False
    """The flow's buffer has grown. A receiver's does only when it copies more in a round trip than ever before."""


class Knob(Limit, kw_only=True):
    """One limit: of one namespace, in one direction."""

    tunable: str
    noun: str
    netns: int
    netns_ino: int
    need_ns: int
    """When a socket last made use of it."""
    changed_ns: int = 0
    epoch: int = 0
    """Counts the changes."""
    wished: Trial | None = None
    trial: Trial | None = None
    back: int = 0
    """The value to go back to, because of back_why; 0: none."""
    back_why: str = ""
    blind: int = 0
    """Steps since one last brought a gain."""
    hold_ns: int = 0
    hold_until_ns: int = 0


class Sample(Struct, gc=False):
    """What one event adds: its flow's averages are up to date."""

    event: SocketEvent
    flow: Flow
    buffer_bytes: int
    record_bytes: int
    """The most that was copied in one round trip, as the kernel measured it; 0 where it does not."""
    limiting: bool
    """This limit is what holds the flow back."""
    scale_bytes: int
    """The flow's window is as large as its scale allows: how far the limit may grow for others' sake; else 0."""


def learn_limit(knob: Knob, value: int, t_ns: int) -> None:
    """The limit as it was at t_ns."""
    if not learn(knob, value, t_ns):
        return
    wished, trial = knob.wished, knob.trial
    knob.epoch += 1
    knob.changed_ns = t_ns
    knob.wished = None
    if value == knob.back:
        knob.blind = max(0, knob.blind - 1)
    knob.back = 0
    if wished is not None and wished.new == value:
        knob.trial = wished
        wished.end_ns = t_ns + wished.soak_ns
    elif trial is not None and trial.new != value:
        # Another hand: whatever the flow does now tells nothing of our step.
        knob.trial = None


def weigh(policy: Policy, knob: Knob, sample: Sample) -> Sequence[Wish]:
    """One more sample: is a trial decided, is there a reason to grow?"""
    if knob.back:
        return go_back(knob, sample.event)
    trial = knob.trial
    if trial is not None:
        verdict = _judge(policy, knob, trial, sample)
        if verdict == "open":
            return ()
        knob.trial = None
        if verdict == "queue":
            return _take_back(policy, knob, trial, sample)
        _note(policy, knob, sample, verdict)
    return _grow(policy, knob, sample) if sample.limiting else ()


def go_back(knob: Knob, event: SocketEvent | Value) -> Sequence[Wish]:
    """Down to knob.back, which has been decided."""
    if not may(knob, event.t_ns):
        return ()
    return (_wish(knob, knob.back, knob.back_why, event, {}),)


def come_down(policy: Policy, knob: Knob, event: Value) -> Sequence[Wish]:
    """A step down, when nothing has needed the limit for long."""
    idle_ns = int(policy.idle_s * SECOND_NS)
    unused_ns = event.t_ns - knob.need_ns
    if unused_ns < idle_ns or not 0 < knob.original < knob.value or not may(knob, event.t_ns):
        return ()
    want = max(knob.original, -int(-knob.value // policy.factor))
    knob.need_ns = event.t_ns - idle_ns + idle_ns // 4
    knob.blind = max(0, knob.blind - 1)
    why = f"no socket has made use of {knob.value} bytes of {knob.noun} for {unused_ns // SECOND_NS} s"
    return (_wish(knob, want, f"{why}; back towards {knob.original}", event, {}),)


def _judge(policy: Policy, knob: Knob, trial: Trial, sample: Sample) -> str:
    flow, event = sample.flow, sample.event
    if event.socket != trial.socket:
        return "silent" if event.t_ns > trial.end_ns + LOST_NS else "open"
    if not trial.taken and sample.buffer_bytes > trial.buffer_bytes:
        trial.taken, trial.end_ns, flow.samples = True, event.t_ns + trial.soak_ns, 0
    if not trial.taken:
        return "open" if event.t_ns < knob.changed_ns + SPACING_NS else "untaken"
    rose = flow.rtt_us > max(trial.before.rtt_us * RTT_ROSE, trial.before.rtt_us + RTT_ROSE_US)
    if gained(flow, trial.before, policy.gain, policy.sigmas):
        return "gain"
    copied_more = sample.record_bytes > trial.record_bytes * (1 + policy.gain)
    if copied_more and flow.last_rate > trial.before.rate * (1 + policy.gain) and not rose:
        return "gain"
    if event.t_ns < trial.end_ns or flow.samples < SAMPLES_MIN:
        return "open"
    # A little faster is not enough to go on, but too much to lose.
    return "queue" if rose and flow.rate < trial.before.rate * (1 + policy.gain / 2) else "none"


def _note(policy: Policy, knob: Knob, sample: Sample, verdict: str) -> None:
    if verdict == "gain":
        _helped(knob, sample.flow)
    if verdict in ("gain", "untaken"):
        return
    if verdict == "none":
        sample.flow.judged_rate = sample.flow.rate
    knob.blind += 1
    if knob.blind >= STEPS_AT_ONCE:
        longest_ns = int(policy.hold_max_s * SECOND_NS)
        knob.hold_ns = min(max(int(policy.hold_s * SECOND_NS), 2 * knob.hold_ns), longest_ns)
        knob.hold_until_ns = sample.event.t_ns + knob.hold_ns


def _helped(knob: Knob, flow: Flow) -> None:
    knob.blind = knob.hold_ns = knob.hold_until_ns = 0
    flow.judged_rate = 0.0


def _take_back(policy: Policy, knob: Knob, trial: Trial, sample: Sample) -> Sequence[Wish]:
    flow, earlier = sample.flow, trial.before
    flow.judged_rate = flow.rate
    knob.back = trial.old
    knob.back_why = (
        f"no faster with {trial.new} bytes of {knob.noun} ({_mbit(flow.rate)}, before {_mbit(earlier.rate)}), but round"
        f" trips of {flow.rtt_us / 1000:.1f} ms instead of {earlier.rtt_us / 1000:.1f} ms: it only holds a queue"
    )
    knob.hold_until_ns = sample.event.t_ns + int(policy.hold_max_s * SECOND_NS)
    if not may(knob, sample.event.t_ns):
        return ()
    evidence: Evidence = {
        "socket": trial.socket,
        "kbit_s_before": _kbit(earlier.rate),
        "kbit_s": _kbit(flow.rate),
        "rtt_us_before": int(earlier.rtt_us),
        "rtt_us": int(flow.rtt_us),
    }
    return (_wish(knob, knob.back, knob.back_why, sample.event, evidence),)


def _grow(policy: Policy, knob: Knob, sample: Sample) -> Sequence[Wish]:
    event, flow, limit = sample.event, sample.flow, knob.value
    if flow.judged_rate and knob.blind >= STEPS_AT_ONCE:
        if flow.rate < FASTER * flow.judged_rate:
            return ()
        _helped(knob, flow)
    if event.t_ns < max(knob.hold_until_ns, knob.changed_ns + SPACING_NS) or not may(knob, event.t_ns):
        return ()
    want = min(int(limit * policy.factor), knob.high or INT_MAX, sample.scale_bytes or INT_MAX)
    if want <= limit or knob.blind >= policy.steps_without_gain:
        return ()
    # A flow whose window is as large as its scale allows cannot gain by more; connections to come can.
    soak_ns = max(int(policy.soak_s * SECOND_NS), int(SOAK_ROUNDS * flow.rtt_us * 1000))
    trial = Trial(event.socket, limit, want, sample.buffer_bytes, sample.record_bytes, before(flow), soak_ns)
    knob.wished = None if sample.scale_bytes else trial
    return (_wish(knob, want, _why(knob, sample), event, _evidence(sample)),)


def _why(knob: Knob, sample: Sample) -> str:
    flow, event = sample.flow, sample.event
    text = f"{knob.noun} of port {min(event.sport, event.dport)} full at {knob.value} bytes: "
    text += f"{_mbit(flow.rate)} at {flow.rtt_us / 1000:.1f} ms; "
    if isinstance(event, TcpSndBuf):
        return f"{text}the send buffer is the limit"
    if sample.scale_bytes:
        return f"{text}as large as its scale of {event.wscale} allows, so only new connections can use more"
    return f"{text}the window is the limit"


def _evidence(sample: Sample) -> Evidence:
    flow, event = sample.flow, sample.event
    evidence: Evidence = {
        "socket": event.socket,
        "sport": event.sport,
        "dport": event.dport,
        "kbit_s": _kbit(flow.rate),
        "rtt_us": int(flow.rtt_us),
        "base_rtt_us": int(flow.base_rtt_us),
        "used_percent": int(flow.used * 100),
        "noise_percent": int(sqrt(flow.noise2) * 100),
        "limit_bytes": event.limit_bytes,
    }
    if isinstance(event, TcpRcvBuf):
        return evidence | {
            "rcvbuf_bytes": event.rcvbuf_bytes,
            "rcv_wnd_bytes": event.rcv_wnd_bytes,
            "copied_per_rtt_bytes": event.copied_per_rtt_bytes,
            "wscale": event.wscale,
        }
    return evidence | {
        "sndbuf_bytes": event.sndbuf_bytes,
        "queued_bytes": event.queued_bytes,
        "in_flight_packets": event.in_flight_packets,
        "cwnd_packets": event.cwnd_packets,
        "snd_wnd_bytes": event.snd_wnd_bytes,
        "min_rtt_us": event.min_rtt_us,
        "limited_by": event.limited_by,
    }


def _wish(knob: Knob, want: int, why: str, event: SocketEvent | Value, evidence: Evidence) -> Wish:
    about = {"event": f"{type(event).__name__}@{event.t_ns}"} | evidence
    return Wish(VERSION, event.t_ns, VALID_NS, knob.tunable, knob.netns, knob.netns_ino, knob.value, want, why, about)


def _kbit(rate: float) -> int:
    return int(rate * 8 / 1000)


def _mbit(rate: float) -> str:
    return f"{rate * 8 / 1e6:.3g} Mbit/s"
