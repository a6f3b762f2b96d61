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
    heard_ns: int = 0
    """When the probe was last known to work."""


def seen(side: Side, event: SocketEvent, buffer_bytes: int) -> Knob:
    """The limit that the event is about, with what the event tells of it."""
    knob = side.knobs.get(event.netns) or knob_of(side, event)
    t_ns, limit_bytes = event.t_ns, event.limit_bytes
    if t_ns >= knob.t_ns:
        if limit_bytes != knob.value:
            learn_limit(knob, limit_bytes, t_ns)
        knob.t_ns = t_ns
        if buffer_bytes >= IN_USE * limit_bytes and t_ns > knob.need_ns:
            knob.need_ns = t_ns
    return knob


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


def flow_of(side: Side, knob: Knob, event: SocketEvent, total: int, rtt_us: int) -> Flow | None:
    """The flow, when the event adds to a span that began under the limit in force."""
    key, t_ns = (event.netns, event.socket), event.t_ns
    flow = side.flows.get(key)
    if flow is None:
        flow = Flow()
    elif flow.epoch == knob.epoch and 0 <= t_ns - flow.t_ns < SPAN_MAX_NS and total >= flow.total:
        return flow
    elif t_ns <= flow.t_ns:
        return None
    elif total < flow.total:
        flow = Flow()  # another socket of that name
    side.flows.pop(key, None)
    if len(side.flows) >= FLOWS_MAX:
        del side.flows[next(iter(side.flows))]
    side.flows[key] = flow
    # What arrives within a round trip of a change was sent before it.
    if t_ns >= knob.changed_ns + rtt_us * 1000:
        begin(flow, knob.epoch, t_ns, total)
    return None


def needed(side: Side, t_ns: int) -> None:
    """What has been needed until t_ns is not known: take it that all was."""
    for knob in side.knobs.values():
        knob.need_ns = max(knob.need_ns, t_ns)


def forget(side: Side, netns: int) -> None:
    """The namespace has gone."""
    if side.knobs.pop(netns, None) is not None:
        for key in [key for key in side.flows if key[0] == netns]:
            del side.flows[key]
