"""The limits and the flows of one direction, receive or send: found, made, forgotten. Bounded."""

from __future__ import annotations

from dataclasses import dataclass

from bus.schema import Value
from deciders.flow import SPAN_MAX_NS, Flow, begin
from deciders.tcp_limit import Knob, SocketEvent, learn_limit

IN_USE = 0.4
"""A buffer of this share of the limit makes use of it."""
FLOWS_MAX = 4096
KNOBS_MAX = 4096


@dataclass(slots=True)
class Side:
    """All of one direction. Bounded: KNOBS_MAX namespaces, FLOWS_MAX flows (the one begun longest ago goes first)."""

    tunable: str
    probe: str
    noun: str
    knobs: dict[int, Knob]
    flows: dict[tuple[int, int], Flow]
    spare: float = 0.0
    """A flow that uses less of the limit than this could do with a step less."""
    heard_ns: int = 0
    """When the probe was last known to work."""


def heard(side: Side, event: SocketEvent, buffer_bytes: int, total: int, rtt_us: int) -> tuple[Knob, Flow | None]:
    """The limit that the event is about, with what the event tells of it; and the flow, when the event adds to a span
    that began under the limit in force."""
    # Each event of a replay comes through here.
    netns, t_ns, limit_bytes = event.netns, event.t_ns, event.limit_bytes
    knob = side.knobs.get(netns) or knob_of(side, event)
    if t_ns >= knob.t_ns:
        if limit_bytes != knob.value:
            learn_limit(knob, limit_bytes, t_ns)
        knob.t_ns = t_ns
        if buffer_bytes >= IN_USE * limit_bytes and t_ns > knob.need_ns:
            knob.need_ns = t_ns
    flow = side.flows.get((netns, event.socket))
    if flow is None or not 0 <= t_ns - flow.t_ns < SPAN_MAX_NS or flow.epoch != knob.epoch or total < flow.total:
        _begin(side, knob, flow, event, total, rtt_us)
        return knob, None
    return knob, flow


def knob_of(side: Side, event: SocketEvent | Value) -> Knob:
    """The limit of the event's namespace, made when it is new."""
    knob = side.knobs.get(event.netns)
    if knob is not None:
        return knob
    if len(side.knobs) >= KNOBS_MAX:
        del side.knobs[next(iter(side.knobs))]
    knob = side.knobs[event.netns] = Knob(
        tunable=side.tunable, noun=side.noun, netns=event.netns, netns_ino=event.netns_ino, need_ns=event.t_ns
    )
    return knob


def _begin(side: Side, knob: Knob, flow: Flow | None, event: SocketEvent, total: int, rtt_us: int) -> None:
    """A span of the flow begins here, unless the event is an old one."""
    key, t_ns = (event.netns, event.socket), event.t_ns
    if flow is None:
        flow = Flow()
    elif t_ns <= flow.t_ns:
        return
    elif total < flow.total:
        flow = Flow()  # another socket of that name
    side.flows.pop(key, None)
    if len(side.flows) >= FLOWS_MAX:
        del side.flows[next(iter(side.flows))]
    side.flows[key] = flow
    # What arrives within a round trip of a change was sent before it.
    if t_ns >= knob.changed_ns + rtt_us * 1000:
        begin(flow, knob.epoch, t_ns, total)


def needed(side: Side, t_ns: int) -> None:
    """What has been needed until t_ns is not known: take it that all was."""
    for knob in side.knobs.values():
        knob.need_ns = max(knob.need_ns, t_ns)


def forget(side: Side, netns: int) -> None:
    """The namespace has gone."""
    if side.knobs.pop(netns, None) is not None:
        for key in [key for key in side.flows if key[0] == netns]:
            del side.flows[key]
