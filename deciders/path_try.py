"""A try of another value towards one destination, from the first wish to its end.

try    the value stands, and what comes of it is compared with what was before: worse ends it at once, better is
       kept if it is so by far, else checked
check  the value is taken back for as long as it takes to see that it was the value, and not the time
kept   it stands until it is worse than what was before, or its time is over (the row's life_s)
leave  it is taken back
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from bus.events import Name
from deciders.limit import SECOND_NS
from deciders.path_lines import Line, Score, score, speed

QUEUE_US = 20_000
LOSS = 0.02
"""What another value may add to the round trip and to what is sent again, beside half of the one and as much again of
the other: more is at others' cost."""
DELAY = 0.6
"""A round trip of so much less is worth having where nothing is lost by it."""
ENOUGH, MANY = 2, 4
"""Slices: so many tell what is so, and after so many that are neither better nor worse it is enough."""
EARLY = 3
"""So many connections, or looks, may end a try before a slice is whole, where it is this many margins worse."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.congestion` in the configuration."""

    candidates: Annotated[tuple[Name, ...], Meta(max_length=8)] = ("bbr", "cubic", "htcp")
    """What may be tried, in this order, where it is available."""
    explore_s: Annotated[float, Meta(ge=3600, le=30 * 86400)] = 3600.0
    """One try for each destination in so long."""
    slot_s: Annotated[float, Meta(ge=10, le=120)] = 120.0
    """No try takes longer."""
    win: Annotated[float, Meta(ge=1.05, le=10)] = 1.15
    """Better is so many times what it was at its best, ..."""
    clear_win: Annotated[float, Meta(ge=1.3, le=100)] = 2.0
    """... and this is so much that it need not be checked."""
    margin: Annotated[float, Meta(ge=0.02, le=0.5)] = 0.1
    """Worse is so much less than what it was on average."""
    evidence_s: Annotated[float, Meta(ge=10, le=3600)] = 600.0
    """What is older tells nothing of now."""
    loss: Annotated[float, Meta(ge=0, le=1)] = 0.002
    """A try is worth it where so much is sent again, ..."""
    flight_bytes: Annotated[int, Meta(ge=1)] = 1 << 20
    """... or so much is on the way at once, ..."""
    queue_s: Annotated[float, Meta(ge=0)] = 0.05
    """... or waits so long on the way."""
    slice_s: Annotated[float, Meta(ge=0.5, le=60)] = 5.0
    """What is measured is looked at in slices that last so long at least."""
    lasts_s: Annotated[float, Meta(ge=0.1, le=30)] = 10.0
    """Connections that last longer keep what they began with, so that a try could not be ended: none there."""
    initcwnd: Annotated[int, Meta(ge=0, le=64)] = 20
    """Segments at once for short connections over long paths; 0: as it is."""


Phase = Literal["try", "check", "kept", "leave"]


class Try(Struct):
    """One value of one key."""

    key: Literal["congctl", "initcwnd"]
    word: str
    """What is tried: the algorithm, or "initcwnd"."""
    want: int
    base: Score
    """What it is measured by."""
    began_ns: int
    why: str
    phase: Phase = "try"
    stands: bool = False
    """What the phase wants is so."""
    phase_ns: int = 0
    """Since when."""
    line: Line = field(default_factory=Line)
    """What was measured since then."""
    found: Score | None = None
    """Of a value that is being checked."""
    lost: bool = False
    """It was no better."""

    @property
    def target(self) -> int:
        """What is to stand there."""
        return self.want if self.phase in ("try", "kept") else 0


def worse(policy: Policy, now: Score, base: Score, margins: int = 1) -> str:
    """How it is worse than what was before; empty where it is not."""
    if now.rate < (1 - margins * policy.margin) * base.rate:
        return f"{speed(now.rate)} instead of {speed(base.rate)}"
    if now.loss > 2 * base.loss + margins * LOSS:
        return f"{now.loss:.2%} sent again instead of {base.loss:.2%}"
    if base.srtt_us and now.srtt_us > 1.5 * base.srtt_us + margins * QUEUE_US:
        return f"round trips of {now.srtt_us / 1e3:.0f} ms instead of {base.srtt_us / 1e3:.0f} ms"
    return ""


def better(now: Score, base: Score, win: float) -> str:
    """How it is better; empty where it is not."""
    if now.rate >= win * base.best:
        return f"{speed(now.rate)} instead of {speed(base.rate)}"
    if now.rate >= base.rate and 0 < now.srtt_us <= DELAY * base.srtt_us and base.srtt_us - now.srtt_us >= QUEUE_US:
        return f"round trips of {now.srtt_us / 1e3:.0f} ms instead of {base.srtt_us / 1e3:.0f} ms"
    return ""


def go(one: Try, phase: Phase, why: str, t_ns: int) -> None:
    """On to another phase."""
    one.stands = one.stands and one.target == (one.want if phase in ("try", "kept") else 0)
    one.phase, one.why, one.phase_ns = phase, why, t_ns
    if phase != "kept":
        one.line = Line()


def judge(policy: Policy, one: Try, t_ns: int) -> None:
    """What is to become of it, by what was measured and by the time."""
    if one.phase == "leave":
        return
    if one.stands:
        _measured(policy, one, t_ns)
    if one.phase in ("try", "check") and t_ns - one.phase_ns > policy.slot_s * SECOND_NS:
        go(one, "leave", f"{one.word}: not enough to be seen of it in {policy.slot_s:g} s", t_ns)


def _measured(policy: Policy, one: Try, t_ns: int) -> None:
    slices = one.line.done[-ENOUGH:] if one.phase == "kept" else one.line.done
    now = score(slices)
    if one.phase == "kept" and len(slices) < ENOUGH:
        return
    if now is None:
        growing = score([one.line.growing] if one.line.growing else [])
        if one.phase == "try" and growing and growing.sums.parts >= EARLY:
            _leave_if(one, worse(policy, growing, one.base, EARLY), t_ns)
    elif one.phase == "check":
        _checked(policy, one, now, t_ns)
    elif bad := worse(policy, now, one.base):
        _leave_if(one, bad, t_ns)
    elif one.phase == "try" and now.slices >= ENOUGH:
        _tried(policy, one, now, t_ns)


def _tried(policy: Policy, one: Try, now: Score, t_ns: int) -> None:
    if now.rate >= policy.clear_win * one.base.best:
        go(one, "kept", f"{one.word}: {speed(now.rate)} instead of {speed(one.base.rate)}", t_ns)
    elif found := better(now, one.base, policy.win):
        one.found = now
        go(one, "check", f"{one.word}: {found}; whether that was it shows without it", t_ns)
    elif now.slices >= MANY:
        _leave_if(one, f"no better: {speed(now.rate)}, {speed(one.base.rate)} before", t_ns)


def _checked(policy: Policy, one: Try, now: Score, t_ns: int) -> None:
    if now.slices < ENOUGH or one.found is None:
        return
    # Of both times that it was without, the better one.
    base = now if now.best >= one.base.best else one.base
    if found := better(one.found, base, policy.win):
        one.base = base
        go(one, "kept", f"{one.word}: {found}, and without it {speed(now.rate)} again", t_ns)
        one.line = Line()
    else:
        _leave_if(one, f"no better: {speed(now.rate)} without it", t_ns)


def _leave_if(one: Try, bad: str, t_ns: int) -> None:
    if bad:
        one.lost = True
        go(one, "leave", f"{one.word}: {bad}", t_ns)
