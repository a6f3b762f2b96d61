"""The changes on trial as the guard sees them: what each is measured by, and whether that has got worse.

Worse is a window above three limits at once: so many standard deviations, a share, and an amount above what was before
the change. One such window is noise; `worse_windows` in a row are a regression, which began with the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import Trial
from deciders.measures import Key
from deciders.series import SECOND_NS, Baseline, Window
from deciders.signals import BY_NAME, ROWS, SPEED_ROW

WHY_MAX = 390
"""A message holds 400, and the actuator says whose words they are."""
STREAK_NS = 120 * SECOND_NS
"""A streak without a new window for so long has ended."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings, `policy.guard` in the configuration."""

    soak_s: Annotated[float, Meta(ge=1, le=7 * 86400)] = 600.0
    """A change that has not made anything worse for so long is confirmed."""
    window_s: Annotated[float, Meta(ge=1, le=600)] = 5.0
    worse_windows: Annotated[int, Meta(ge=1, le=100)] = 8
    """So many windows in a row that are worse are a regression."""
    baseline_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    """So long before a change (at most twice that ago) tells what to compare with."""
    sigmas: Annotated[float, Meta(ge=0, le=20)] = 4.0
    """Worse is above what was before by so many standard deviations of a window, ..."""
    margins: dict[str, Annotated[float, Meta(ge=0)]] = {}
    """... and by this share of it: signal -> share, instead of the signal's own."""

    def __post_init__(self) -> None:
        for name in self.margins:
            if name not in BY_NAME:
                raise ValueError(f"margins.{name}: no such signal; there are {', '.join(BY_NAME)}")


class Watch(Struct):
    """One series, as one trial sees it."""

    key: Key
    baseline: Baseline | None
    from_ns: int
    """Windows that begin earlier tell nothing of this trial."""
    latest: float | None = None
    """The newest window's value."""
    limit: float = 0.0
    streak: int = 0
    onset_ns: int = 0
    """When the first window of the streak began, ..."""
    onset_end_ns: int = 0
    """... and ended."""
    end_ns: int = 0
    """When the newest window ended."""

    def tell(self) -> str:
        """The numbers, for people."""
        signal = ROWS[self.key[0]]
        if self.latest is None or self.baseline is None or self.key[0] == SPEED_ROW:
            return ""
        return f"{signal.name} {signal.show(self.latest)} (before: {signal.show(self.baseline.mean)})"


class Decision(Struct, frozen=True):
    """What the guard says of a change, again and again until it is done."""

    confirm: bool
    why: str
    evidence: dict[str, int | str]


class Case(Struct):
    """One change on trial."""

    trial: Trial
    watches: list[Watch]
    needs: list[list[Key]]
    """For each guard that can always be read, the series of which one must be heard for time to count."""
    seen_ns: int
    """When the actuator last said that it is on trial."""
    doubt_ns: int = 0
    """When something became of a change of this key, perhaps of this one."""
    soaked_ns: int = 0
    waited_ns: int = 0
    decision: Decision | None = None
    urged_ns: int = 0
    """Since when it is insisted on; 0: not yet."""
    asked_ns: int = 0
    """When it was last asked for."""

    @property
    def key(self) -> tuple[str, int]:
        """What was changed."""
        return (self.trial.tunable, self.trial.netns)


class Speed(Struct, frozen=True):
    """What flows transfer now, and what before the change; None where that is not known."""

    now: float | None = None
    earlier: float | None = None


def judge(policy: Policy, watch: Watch, window: Window, speed: Speed) -> bool:
    """One more window. True when it makes a regression."""
    if watch.baseline is None or window.start_ns < watch.from_ns:
        return False
    watch.latest, watch.end_ns = window.value, window.end_ns
    if not _worse(policy, watch, window.value, speed):
        watch.streak = 0
        return False
    if not watch.streak:
        watch.onset_ns, watch.onset_end_ns = window.start_ns, window.end_ns
    watch.streak += 1
    return watch.streak >= policy.worse_windows


def _worse(policy: Policy, watch: Watch, value: float, speed: Speed) -> bool:
    signal, base = ROWS[watch.key[0]], watch.baseline
    assert base is not None
    relative = policy.margins.get(signal.name, signal.relative)
    watch.limit = base.mean + max(policy.sigmas * base.deviation, relative * base.mean, signal.absolute)
    if value <= watch.limit:
        return False
    if signal.paid and speed.now and speed.earlier:
        # Round trips are the path's own and the queue: 1 + queue. Faster by more than they grew: well spent.
        return speed.now * (1 + base.mean) < speed.earlier * (1 + value)
    return True


def may_confirm(policy: Policy, case: Case, now_ns: int) -> bool:
    """Whether nothing looks as if it got worse, and it has been looked at for as long as it takes to see that."""
    sight_ns = int((policy.worse_windows + 2) * policy.window_s * SECOND_NS)
    return not any(
        now_ns - watch.from_ns < sight_ns or (watch.streak and now_ns - watch.end_ns < STREAK_NS)
        for watch in case.watches
    )


def to_blame(cases: Iterable[Case], worse: Watch, burst_ns: int) -> Case:
    """The change that a regression goes back to: the newest that began before the first bad window ended.

    What stood longer stood well without it, so the newest is the likeliest; if it was not the one, the others go on
    being watched, and the next newest follows. Steps of one key that came within one window of each other cannot be
    told apart: then it is the first of these, with which the later ones are undone.
    """
    suspects = [
        case
        for case in cases
        if not case.decision
        and case.trial.since_ns < worse.onset_end_ns
        and any(watch.key == worse.key for watch in case.watches)
    ]
    suspects.sort(key=lambda case: (case.trial.since_ns, case.trial.change), reverse=True)
    blamed = suspects[0]
    for case in suspects:
        if case.key == blamed.key and blamed.trial.since_ns - case.trial.since_ns <= burst_ns:
            blamed = case
    return blamed


def regression(case: Case, worse: Watch, now_ns: int) -> Decision:
    """Put it back."""
    signal, base = ROWS[worse.key[0]], worse.baseline
    assert base is not None
    assert worse.latest is not None
    lasted_s = (worse.end_ns - worse.onset_ns) // SECOND_NS
    after_s = max(0, worse.onset_ns - case.trial.since_ns) // SECOND_NS
    why = (
        f"{signal.name} got worse {after_s} s after the change, and for {lasted_s} s:"
        f" {signal.show(worse.latest)} {signal.what}, {signal.show(base.mean)} before"
        f" (noise and margin end at {signal.show(worse.limit)})"
    )
    evidence: dict[str, int | str] = {
        "event": f"Tick@{now_ns}",
        "signal": signal.name,
        "now_ppm": ppm(worse.latest),
        "before_ppm": ppm(base.mean),
        "deviation_ppm": ppm(base.deviation),
        "limit_ppm": ppm(worse.limit),
        "onset_ns": worse.onset_ns,
        "windows": worse.streak,
    }
    return Decision(False, why, evidence)


def unmeasured(case: Case, names: Iterable[str]) -> Decision:
    """Put it back: nobody could tell."""
    waited_s = case.waited_ns // SECOND_NS
    why = f"not confirmed: in {waited_s} s there was not enough to be read of {', '.join(names)}"
    return Decision(False, why, {"waited_s": waited_s, "soaked_s": case.soaked_ns // SECOND_NS})


def confirmation(case: Case, now_ns: int) -> Decision:
    """It may stay."""
    soaked_s = case.soaked_ns // SECOND_NS
    told = list(filter(None, (watch.tell() for watch in case.watches)))
    why = (
        f"not worse in {soaked_s} s: {'; '.join(told)}"
        if told
        else f"nothing to be seen in {soaked_s} s of what guards it"
    )
    evidence: dict[str, int | str] = {"event": f"Tick@{now_ns}", "soaked_s": soaked_s}
    for watch in case.watches[:10]:
        if watch.latest is not None and watch.baseline is not None:
            name = f"{ROWS[watch.key[0]].name}_{ROWS[watch.key[0]].topic.__name__}"
            evidence[f"{name}_ppm"] = ppm(watch.latest)
            evidence[f"{name}_before_ppm"] = ppm(watch.baseline.mean)
    return Decision(True, why[:WHY_MAX], evidence)


def speed_of(watches: Mapping[Key, Watch], place: int) -> Speed:
    """What is known of the speed of flows in a namespace."""
    watch = watches.get((SPEED_ROW, place))
    if watch is None or watch.baseline is None:
        return Speed()
    return Speed(watch.latest, watch.baseline.mean)


def ppm(value: float) -> int:
    """Millionths, as evidence has them: whole numbers only."""
    return min(2**62, round(value * 1e6))
