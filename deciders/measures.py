"""All series of all signals: events go in, windows and baselines come out. What they mean is for deciders.trials."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from bus.drops import CURABLE
from bus.schema import Counters, Drops, Host, NeighTable, Netns, TcpRcvBuf, TcpSndBuf, Trial
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
DROPS_MAX = 4096
"""Places and reasons of which packets were dropped."""
PLACES_MAX = 512
"""Namespaces in which packets were dropped: each is a series, of which others need some."""
(_DROPS_ROW,) = BY_TOPIC[Drops, ""]
_FLOW_ROWS = tuple((number, ROWS[number].read) for number in BY_TOPIC[FlowSample, ""])


class Measures(Struct):
    """Bounded by SERIES_MAX, DROPS_MAX and deciders.samples.FLOWS_MAX; the oldest goes first."""

    window_s: float
    baseline_s: float
    flows: Flows
    series: dict[Key, Series]
    pages: int = 0
    """Of memory, in the host."""
    own: int = 0
    """The initial namespace."""
    drops: dict[tuple[int, int, str], int] = {}
    """(namespace, device, reason) -> what the probe told last."""
    dropped: dict[int, int] = {}
    """Namespace -> packets dropped for a reason that a tunable can cure, since the first was heard of."""


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


def read_drops(measures: Measures, event: Drops) -> None:
    """Added up by namespace; what it comes to is read at each tick, for the probe is silent where nothing happens."""
    if event.reason not in CURABLE:
        return
    kind = (event.netns, event.ifindex, event.reason)
    before = measures.drops.pop(kind, 0)
    measures.drops[kind] = event.dropped
    if len(measures.drops) > DROPS_MAX:
        del measures.drops[next(iter(measures.drops))]
    # From 1 again where the probe forgot it. The first that is heard of may be the sum of days.
    more = event.dropped - before if before and event.dropped >= before else 1
    measures.dropped[event.netns] = measures.dropped.pop(event.netns, 0) + more
    if len(measures.dropped) > PLACES_MAX:
        del measures.dropped[next(iter(measures.dropped))]


def learn(measures: Measures, event: Host | Netns) -> None:
    """Facts that readings need."""
    if isinstance(event, Host):
        measures.pages = event.mem_bytes // max(1, event.page_bytes)
    elif not event.alive:
        for key in [key for key in measures.series if key[1] == event.netns and ROWS[key[0]].per == "netns"]:
            del measures.series[key]
        measures.dropped.pop(event.netns, None)
        for kind in [kind for kind in measures.drops if kind[0] == event.netns]:
            del measures.drops[kind]
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
    for netns, total in measures.dropped.items():
        record(ROWS[_DROPS_ROW], _series(measures, (_DROPS_ROW, netns)), (total, t_ns / SECOND_NS), t_ns)
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
