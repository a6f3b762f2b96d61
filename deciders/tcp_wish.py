"""Wishes for TCP buffer limits: the sentence for the operator and the numbers behind it."""

from __future__ import annotations

from math import sqrt

from bus.schema import VERSION, Evidence, TcpRcvBuf, TcpSndBuf, Value, Wish
from deciders.flow import Flow
from deciders.limit import asked
from deciders.tcp_limit import Attempt, Knob, Sample, SocketEvent, Standing

VALID_NS = 1_000_000_000


def grow(knob: Knob, want: int, sample: Sample) -> Wish:
    """Up, for a flow that the limit holds back."""
    flow, event = sample.flow, sample.event
    text = f"{knob.noun} of port {min(event.sport, event.dport)} full at {knob.value} bytes: "
    text += f"{_mbit(flow.rate)} at {flow.rtt_us / 1000:.1f} ms; "
    if isinstance(event, TcpSndBuf):
        text += "the send buffer is the limit"
    elif sample.scale_bytes:
        text += f"as large as its scale of {event.wscale} allows, so only new connections can use more"
    else:
        text += "the window is the limit"
    return _wish(knob, want, text, event, _numbers(sample))


def why_back(knob: Knob, attempt: Attempt, flow: Flow) -> str:
    """The sentence for take_back and back."""
    earlier = attempt.before
    return (
        f"no faster with {attempt.new} bytes of {knob.noun} ({_mbit(flow.rate)}, before {_mbit(earlier.rate)}), but"
        f" round trips of {flow.rtt_us / 1000:.1f} ms instead of {earlier.rtt_us / 1000:.1f} ms: it only holds a queue"
    )


def take_back(knob: Knob, attempt: Attempt, flow: Flow, event: SocketEvent) -> Wish:
    """Down again: the step only made a queue longer."""
    earlier = attempt.before
    numbers: Evidence = {
        "socket": attempt.socket,
        "kbit_s_before": _kbit(earlier.rate),
        "kbit_s": _kbit(flow.rate),
        "rtt_us_before": int(earlier.rtt_us),
        "rtt_us": int(flow.rtt_us),
    }
    return _wish(knob, knob.back, knob.back_why, event, numbers)


def back(knob: Knob, event: SocketEvent | Value) -> Wish:
    """The same once more, when the first one was lost or came at a bad time."""
    return _wish(knob, knob.back, knob.back_why, event, {})


def pull(knob: Knob, want: int, standing: Standing, flow: Flow, event: SocketEvent) -> Wish:
    """Down: the path is full with less."""
    text = (
        f"{knob.noun} of port {min(event.sport, event.dport)}: {_mbit(flow.rate)} need {flow.used:.0%} of {knob.value}"
        f" bytes, and the rest is a queue, round trips of {flow.rtt_us / 1000:.1f} ms instead of"
        f" {flow.base_rtt_us / 1000:.1f} ms"
    )
    numbers: Evidence = {
        "socket": event.socket,
        "kbit_s": _kbit(flow.rate),
        "kbit_s_best": _kbit(flow.best_rate),
        "used_percent": int(flow.used * 100),
        "rtt_us": int(flow.rtt_us),
        "base_rtt_us": int(flow.base_rtt_us),
        "longer_percent": int(standing.mean * 100),
        "stood_s": (event.t_ns - standing.since_ns) // 1_000_000_000,
    }
    return _wish(knob, want, text, event, numbers)


def idle(knob: Knob, want: int, unused_s: int, event: Value) -> Wish:
    """Down: nobody needs it."""
    text = f"no socket has made use of {knob.value} bytes of {knob.noun} for {unused_s} s; back towards {knob.original}"
    return _wish(knob, want, text, event, {"unused_s": unused_s, "original_bytes": knob.original})


def scarce(knob: Knob, want: int, held: int, limit: int, event: Value) -> Wish:
    """Down: TCP's memory is used up."""
    text = f"TCP holds {held} of {limit} pages, and tcp_mem can grow no more: back towards {knob.original}"
    numbers: Evidence = {"held_pages": held, "tcp_mem2": limit, "original_bytes": knob.original}
    return _wish(knob, want, text, event, numbers)


def _wish(knob: Knob, want: int, why: str, event: SocketEvent | Value, numbers: Evidence) -> Wish:
    asked(knob, event.t_ns)
    evidence = {"event": f"{type(event).__name__}@{event.t_ns}"} | numbers
    return Wish(
        VERSION, event.t_ns, VALID_NS, knob.tunable, knob.netns, knob.netns_ino, knob.value, want, why, evidence
    )


def _numbers(sample: Sample) -> Evidence:
    flow, event = sample.flow, sample.event
    numbers: Evidence = {
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
        return numbers | {
            "rcvbuf_bytes": event.rcvbuf_bytes,
            "rcv_wnd_bytes": event.rcv_wnd_bytes,
            "copied_per_rtt_bytes": event.copied_per_rtt_bytes,
            "wscale": event.wscale,
        }
    return numbers | {
        "sndbuf_bytes": event.sndbuf_bytes,
        "queued_bytes": event.queued_bytes,
        "in_flight_packets": event.in_flight_packets,
        "cwnd_packets": event.cwnd_packets,
        "snd_wnd_bytes": event.snd_wnd_bytes,
        "min_rtt_us": event.min_rtt_us,
        "limited_by": event.limited_by,
    }


def _kbit(rate: float) -> int:
    return int(rate * 8 / 1000)


def _mbit(rate: float) -> str:
    return f"{rate * 8 / 1e6:.0f} Mbit/s" if rate >= 12.5e6 else f"{rate * 8 / 1e6:.3g} Mbit/s"
