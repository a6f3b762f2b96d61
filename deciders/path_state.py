"""What is known of one destination and of its namespace, and whether something else is worth a try there."""

from __future__ import annotations

import math

from msgspec import Struct, field

from bus.schema import Flows
from bus.tunables import ALGORITHMS
from deciders.limit import SECOND_NS, Limit
from deciders.path_lines import Line, Score, Sums, put, score, speed
from deciders.path_try import ENOUGH, Policy, Try

KEYS = ("congctl", "initcwnd")
ARMS_MAX = 6
LEAST_NS = 1800 * SECOND_NS
"""The least round trip is that of the last half hour, and of the one before."""
LOCAL_US = 1000
"""On shorter paths bbr is never wished for: it halves a fast one (kata-containers/packaging#1069)."""
LOCAL_RATE = 50e6
LONG_US = 20_000
CONNECTIONS = 4
SEGMENTS = 500
SHORT_BYTES = 15_000
"""What the kernel's own first window of 10 segments holds."""
SHORTS = 40
SHORT_LOSS = 0.001
MOST_US = 1 << 40
MSS, LEFT = 1448, 1.7
"""Of a segment in each round trip, by the root of the loss: cubic's part, a little above that of Reno."""


class Arm(Struct):
    """One congestion control towards one destination."""

    t_ns: int
    totals: tuple[int, ...]
    line: Line = field(default_factory=Line)


class Place(Struct):
    """One namespace."""

    available: tuple[str, ...] = ()
    standing: str = ""
    trying: str = ""
    """The destination at which something is being tried."""


class Path(Struct):
    """One destination."""

    netns: int
    netns_ino: int
    prefix: str
    limits: dict[str, Limit]
    """By key."""
    arms: dict[str, Arm] = {}
    """By algorithm; the one heard of last is the last."""
    shorts: Line = field(default_factory=Line)
    tries: dict[str, Try] = {}
    """By key."""
    least_us: tuple[int, int, int] = (0, 0, 0)
    """Since when, the least round trip before, and the least since; 0: none."""
    next_ns: int = 0
    """No try before this, ..."""
    rest_ns: dict[str, int] = {}
    """... nor of this word (Try.word)."""
    losses: dict[str, int] = {}
    """How often a word was tried in vain."""

    @property
    def rtt_us(self) -> int:
        """The least round trip; 0: not known."""
        known = [each for each in self.least_us[1:] if each]
        return min(known) if known else 0


def told(path: Path, event: Flows) -> tuple[Sums, Sums] | None:
    """What is more than when the event's algorithm was last told of, of long connections and of short ones. None where
    that cannot be said: it is the first that is told, it is late, or the counting began anew."""
    _least(path, event)
    now = (
        *(event.connections, event.delivered_bytes, event.busy_us, event.limited_us, event.segments, event.resent),
        *(event.samples, event.srtt_sum_us, event.short_connections, event.short_bytes, event.short_busy_us),
        *(event.short_segments, event.short_resent),
    )
    arm = path.arms.pop(event.algorithm, None)
    if arm is None:
        path.arms[event.algorithm] = Arm(event.t_ns, now)
        if len(path.arms) > ARMS_MAX:
            del path.arms[next(iter(path.arms))]
        return None
    path.arms[event.algorithm] = arm
    if event.t_ns <= arm.t_ns:
        return None
    more = [new - old for new, old in zip(now, arm.totals, strict=True)]
    arm.t_ns, arm.totals = event.t_ns, now
    if min(more) < 0:
        return None
    ended, bytes_, busy, limited, segments, resent, samples, srtt, shorts, short_bytes, short_busy, sent, again = more
    long = (bytes_, busy, limited, segments, resent, samples, srtt, ended)
    return long, (short_bytes, short_busy, 0, sent, again, shorts, 0, shorts)


def _least(path: Path, event: Flows) -> None:
    since_ns, before, now = path.least_us
    if event.t_ns - since_ns > LEAST_NS:
        since_ns, before, now = event.t_ns, now, 0
    if event.min_rtt_us:
        now = min(now or MOST_US, event.min_rtt_us)
    path.least_us = (since_ns, before, now)


def fresh(policy: Policy, line: Line, t_ns: int) -> Score | None:
    """What the slices that still count come to; None where they are too few."""
    since_ns = t_ns - int(policy.evidence_s * SECOND_NS)
    found = [one for one in line.done if one.begin_ns >= since_ns]
    return score(found) if len(found) >= ENOUGH else None


def worth(policy: Policy, path: Path, place: Place, t_ns: int) -> Try | None:
    """What may be tried there now."""
    if place.trying or t_ns < path.next_ns or not path.rtt_us:
        return None
    return _other_algorithm(policy, path, place, t_ns) or _larger_window(policy, path, t_ns)


def _other_algorithm(policy: Policy, path: Path, place: Place, t_ns: int) -> Try | None:
    arm = path.arms.get(place.standing)
    now = fresh(policy, arm.line, t_ns) if arm and "congctl" not in path.tries else None
    if now is None or not 0 < now.lasts_s <= policy.lasts_s or now.sums.connections < CONNECTIONS:
        return None
    may = (each for each in policy.candidates if _may(path, place, each, t_ns) and hopeful(path, each, now))
    word = next(may, "")
    if not word:
        return None
    reason = why(policy, path, place, now)
    if not reason:
        return None
    text = f"{place.standing}: {speed(now.rate)}, {reason}; a try of {word} for at most {policy.slot_s:g} s"
    return Try("congctl", word, ALGORITHMS.index(word), now, t_ns, text, phase_ns=t_ns)


def _may(path: Path, place: Place, word: str, t_ns: int) -> bool:
    if word == place.standing or word not in place.available or word not in ALGORITHMS[1:]:
        return False
    return t_ns >= path.rest_ns.get(word, 0) and not forbidden(path, word)


def hopeful(path: Path, word: str, now: Score) -> bool:
    """What losses leave an algorithm that takes each for congestion is known (Mathis et al., 1997): a try where that is
    less than what there is would only leave connections behind that crawl."""
    if word == "bbr" or not now.loss:
        return True
    return LEFT * MSS / (path.rtt_us / 1e6 * math.sqrt(now.loss)) >= now.rate


def forbidden(path: Path, word: str) -> bool:
    """Whatever comes of it."""
    return word == "bbr" and path.rtt_us < LOCAL_US


def why(policy: Policy, path: Path, place: Place, now: Score) -> str:
    """Why there is something to win by another algorithm; empty where there is not."""
    rtt_us, queue_us = path.rtt_us, now.srtt_us - path.rtt_us
    if now.loss >= policy.loss and now.sums.segments >= SEGMENTS:
        return f"{now.loss:.2%} sent again"
    if queue_us >= policy.queue_s * 1e6 and now.srtt_us >= 3 * rtt_us:
        return f"round trips of {now.srtt_us / 1e3:.0f} ms on a path of {rtt_us / 1e3:.3g} ms"
    if now.limited > 0.5:
        return ""
    if now.rate * rtt_us / 1e6 >= policy.flight_bytes:
        return f"{now.rate * rtt_us / 1e12:.3g} MB on the way at once"
    if place.standing == "bbr" and rtt_us < LOCAL_US and now.rate >= LOCAL_RATE:
        return f"bbr on a path of {rtt_us / 1e3:.3g} ms"
    return ""


def _larger_window(policy: Policy, path: Path, t_ns: int) -> Try | None:
    if not policy.initcwnd or "initcwnd" in path.tries or path.rtt_us < LONG_US:
        return None
    now = fresh(policy, path.shorts, t_ns)
    if now is None or t_ns < path.rest_ns.get("initcwnd", 0) or now.sums.parts < SHORTS or now.loss > SHORT_LOSS:
        return None
    size = now.sums.delivered_bytes // now.sums.parts
    if size < SHORT_BYTES:
        return None
    text = (
        f"short connections of {size / 1e3:.0f} kB over {path.rtt_us / 1e3:.0f} ms, {now.loss:.2%} sent again:"
        f" a try of {policy.initcwnd} segments at once"
    )
    return Try("initcwnd", "initcwnd", policy.initcwnd, now, t_ns, text, phase_ns=t_ns)


def measured(policy: Policy, path: Path, place: Place, event: Flows, more: tuple[Sums, Sums]) -> None:
    """What is more, into the lines that it belongs to."""
    (long, short), algorithm, t_ns = more, event.algorithm, event.t_ns
    if long[5]:
        put(path.arms[algorithm].line, t_ns, long, policy.slice_s)
    if short[5]:
        put(path.shorts, t_ns, short, policy.slice_s)
    for one in path.tries.values():
        if not one.stands:
            continue
        its = short if one.key == "initcwnd" else long
        wanted = place.standing if one.phase == "check" else one.word
        if its[5] and (one.key == "initcwnd" or algorithm == wanted):
            put(one.line, t_ns, its, policy.slice_s)
