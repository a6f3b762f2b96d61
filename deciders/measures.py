"""All series of all signals: events go in, windows and baselines come out. What they mean is for deciders.trials."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from bus.schema import Counters, Host, NeighTable, Netns, TcpRcvBuf, TcpSndBuf, Trial
from deciders.samples import Flows, FlowSample
from deciders.series import (
    SECOND_NS,
    Baseline,
    Series,
    Window,
    before,
    begin,
    close_bin,
    long_before,
    record,
    tick,
)
from deciders.signals import BY_TOPIC, ROWS, place

Key = tuple[int, int]
"""A row of ROWS and a place: one series."""

HEARD_NS = 10 * SECOND_NS
"""What was read so lately is heard."""
SERIES_MAX = 2048
_FLOW_ROWS = tuple((number, ROWS[number].read) for number in BY_TOPIC[FlowSample, ""])


class Measures(Struct):
    """Bounded by SERIES_MAX and deciders.samples.FLOWS_MAX; the oldest goes first."""

    window_s: float
    baseline_s: float
    flows: Flows
    series: dict[Key, Series]
    pages: int = 0
    """Of memory, in the host."""
    own: int = 0
    """The initial namespace."""


def read(measures: Measures, event: Counters | NeighTable) -> None:
    """What the event tells of each signal."""
    source = event.source if isinstance(event, Counters) else ""
    for number in BY_TOPIC.get((type(event), source), ()):
        signal = ROWS[number]
        reading = signal.read(event, measures.pages)
        if reading is not None:
            record(signal, _series(measures, (number, place(signal, event))), reading, event.t_ns)


def read_flow(measures: Measures, event: TcpSndBuf | TcpRcvBuf) -> None:
    """As read(), but these come by the thousand."""
    sample = measures.flows.sample(event)
    if sample is None:
        return
    t_ns, netns, known = sample.t_ns, sample.netns, measures.series
    for number, signal_read in _FLOW_ROWS:
        reading = signal_read(sample, 0)
        if reading is not None:
            key = (number, netns)
            series = known.get(key) or _series(measures, key)
            # As series.add(), without the call.
            if t_ns > series.heard_ns:
                series.heard_ns = t_ns
            series.much += reading[0]
            series.of += reading[1]


def learn(measures: Measures, event: Host | Netns) -> None:
    """Facts that readings need."""
    if isinstance(event, Host):
        measures.pages = event.mem_bytes // max(1, event.page_bytes)
    elif not event.alive:
        for key in [key for key in measures.series if key[1] == event.netns and ROWS[key[0]].per == "netns"]:
            del measures.series[key]
        measures.flows.forget(event.netns)
    elif event.name == "host":
        measures.own = event.netns


def mark(measures: Measures, netns: int, t_ns: int) -> None:
    """A change has just been made there: what was read until now was before it."""
    for key, series in measures.series.items():
        if key[1] == netns or ROWS[key[0]].per != "netns":
            close_bin(series, t_ns)


def windows(measures: Measures, t_ns: int) -> dict[Key, Window]:
    """A second has passed. The windows that are complete with it."""
    found: dict[Key, Window] = {}
    window_ns = int(measures.window_s * SECOND_NS)
    for key, series in measures.series.items():
        window = tick(ROWS[key[0]], series, t_ns, window_ns)
        if window:
            found[key] = window
    return found


def key_of(measures: Measures, number: int, trial: Trial) -> Key:
    """The series of that row that a trial is measured by."""
    return number, place(ROWS[number], trial, measures.own)


def earlier(measures: Measures, key: Key, since_ns: int) -> Baseline | None:
    """How it was before since_ns, where that was seen."""
    series = measures.series.get(key)
    return before(ROWS[key[0]], series, since_ns, measures.window_s, measures.baseline_s) if series else None


def much_earlier(measures: Measures, key: Key) -> Baseline | None:
    """How it was before anyone looked, where totals tell."""
    series = measures.series.get(key)
    return long_before(ROWS[key[0]], series) if series else None


def heard(measures: Measures, keys: Iterable[Key], now_ns: int) -> bool:
    """Whether any of these has been read lately."""
    return any(key in measures.series and now_ns - measures.series[key].heard_ns <= HEARD_NS for key in keys)


def _series(measures: Measures, key: Key) -> Series:
    series = measures.series.get(key)
    if series is None:
        if len(measures.series) >= SERIES_MAX:
            del measures.series[next(iter(measures.series))]
        series = measures.series[key] = begin(measures.baseline_s)
    return series
