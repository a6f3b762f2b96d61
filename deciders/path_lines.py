"""What is measured of TCP towards one destination: slices of some seconds, and what several of them come to."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from deciders.limit import SECOND_NS

PARTS = 4
"""In a slice are at least so many connections, or looks at one that goes on."""
SLICES_MAX = 8
STALE_NS = 60 * SECOND_NS
"""A slice that has not become one in so long begins anew."""
MOST = 1 << 60
"""No number of a state passes 64 bits, whatever is told."""


class Slice(Struct):
    """Sums."""

    begin_ns: int
    end_ns: int = 0
    delivered_bytes: int = 0
    busy_us: int = 0
    limited_us: int = 0
    segments: int = 0
    resent: int = 0
    parts: int = 0
    srtt_sum_us: int = 0
    connections: int = 0
    """That have ended."""


Sums = tuple[int, int, int, int, int, int, int, int]
"""What Slice adds up, in its order."""


class Line(Struct):
    """The last few slices, oldest first, and the one that grows."""

    done: list[Slice] = []
    growing: Slice | None = None


class Score(Struct, frozen=True):
    """What slices come to."""

    rate: float
    """Bytes/s of a connection that has something to send."""
    best: float
    """The same in the best of them."""
    loss: float
    """Share of the segments that were sent again."""
    srtt_us: float
    limited: float
    """Share of the time in which buffers were in the way."""
    lasts_s: float
    """How long a connection has something to send; 0 where none has ended."""
    sums: Slice
    slices: int


def put(line: Line, t_ns: int, more: Sums, slice_s: float) -> bool:
    """More was measured by t_ns. True when that made a slice whole, which takes slice_s at least."""
    one = line.growing
    if one is None or t_ns - one.begin_ns > STALE_NS:
        one = line.growing = Slice(t_ns)
    _add(one, more)
    one.end_ns = t_ns
    if t_ns - one.begin_ns < slice_s * SECOND_NS or one.parts < PARTS:
        return False
    line.done.append(one)
    del line.done[:-SLICES_MAX]
    line.growing = None
    return True


def _add(one: Slice, more: Sums) -> None:
    delivered_bytes, busy_us, limited_us, segments, resent, parts, srtt_sum_us, connections = more
    one.delivered_bytes = min(MOST, one.delivered_bytes + delivered_bytes)
    one.busy_us = min(MOST, one.busy_us + busy_us)
    one.limited_us = min(MOST, one.limited_us + limited_us)
    one.segments = min(MOST, one.segments + segments)
    one.resent = min(MOST, one.resent + resent)
    one.parts = min(MOST, one.parts + parts)
    one.srtt_sum_us = min(MOST, one.srtt_sum_us + srtt_sum_us)
    one.connections = min(MOST, one.connections + connections)


def sums(one: Slice) -> Sums:
    """What is in a slice."""
    return (
        *(one.delivered_bytes, one.busy_us, one.limited_us, one.segments),
        *(one.resent, one.parts, one.srtt_sum_us, one.connections),
    )


def score(slices: Sequence[Slice]) -> Score | None:
    """None where nothing was sent."""
    whole = Slice(0)
    for one in slices:
        _add(whole, sums(one))
    if not whole.busy_us or not whole.parts:
        return None
    return Score(
        rate=_rate(whole),
        best=max(_rate(one) for one in slices),
        loss=whole.resent / max(1, whole.segments),
        srtt_us=whole.srtt_sum_us / whole.parts,
        limited=whole.limited_us / whole.busy_us,
        lasts_s=whole.busy_us / 1e6 / whole.connections if whole.connections else 0.0,
        sums=whole,
        slices=len(slices),
    )


def _rate(one: Slice) -> float:
    return one.delivered_bytes * 1e6 / one.busy_us if one.busy_us else 0.0


def speed(rate: float) -> str:
    """Bytes/s for people."""
    return f"{rate / 1e6:.3g} MB/s" if rate >= 1e6 else f"{rate / 1e3:.3g} kB/s"
