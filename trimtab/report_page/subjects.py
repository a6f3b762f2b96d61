"""What is drawn of which tunable: one row says which measures stand with it and above it. Its guards come on top of
these, from its row in the tape. A tunable that no row names gets a drawing of its own, with its guards alone."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from msgspec import Struct

from deciders.samples import FlowSample
from deciders.signals import SIGNALS, Signal

Unit = Literal["bytes", "bit/s", "us", "%", "/s", ""]


class Measure(Struct, frozen=True):
    """Something that was read again and again."""

    name: str
    title: str
    unit: str
    told: str = ""
    """In a sentence."""


class Subject(Struct, frozen=True):
    """Tunables that belong in one drawing."""

    tunables: str
    """A pattern, as in a shell."""
    title: str
    inside: str = ""
    """The measure that is held against the tunables, in their own unit and plot."""
    above: tuple[str, ...] = ()


def _short(signal: Signal) -> str:
    """Its name for people. Of one name that several signals have, the flows' and the rate say so."""
    name = {"srtt_us": "queueing delay"}.get(signal.name, signal.name.replace("_", " ").replace("psi", "pressure:"))
    if signal.topic is FlowSample and signal.name != "srtt_us":
        return f"{name} of these flows"
    return f"{name} pressures" if (signal.name, signal.unit) == ("tcp_memory", "/s") else name


SUBJECTS: tuple[Subject, ...] = (
    Subject("net.ipv4.tcp_rmem*", "TCP receive buffers", "rcvbuf", ("speed_in", "rtt_in")),
    Subject("net.ipv4.tcp_wmem*", "TCP send buffers", "sndbuf", ("speed_out", "rtt_out")),
    Subject("net.ipv4.neigh.default.gc_thresh*", "ARP table", "entries_2"),
    Subject("net.ipv6.neigh.default.gc_thresh*", "Neighbour discovery table", "entries_10"),
)

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("rcvbuf", "socket buffers", "bytes"),
        Measure("sndbuf", "socket buffers", "bytes"),
        Measure("speed_in", "speed of a flow near its limit", "bit/s"),
        Measure("speed_out", "speed of a flow near its limit", "bit/s"),
        Measure("rtt_in", "its round trip", "us"),
        Measure("rtt_out", "its round trip", "us"),
        Measure("entries_2", "entries", "entries"),
        Measure("entries_10", "entries", "entries"),
        *(
            Measure(f"signal_{number}", _short(signal), signal.unit, f"{_short(signal)}: {signal.what}")
            for number, signal in enumerate(SIGNALS)
        ),
    )
}


def subject(tunable: str) -> Subject:
    """The row of a tunable, or one of its own."""
    for row in SUBJECTS:
        if fnmatchcase(tunable, row.tunables):
            return row
    return Subject(tunable, tunable.partition("[")[0])


def guards(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """The measures of the signals of these names, each with its row in SIGNALS."""
    return [(f"signal_{number}", number) for number, signal in enumerate(SIGNALS) if signal.name in names]
