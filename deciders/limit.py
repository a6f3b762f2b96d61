"""What is known of one tunable: its value, its bounds, and what became of the wishes for it."""

from __future__ import annotations

from dataclasses import dataclass

from bus.schema import Outcome, Value
from bus.tunables import TUNABLES

SECOND_NS = 1_000_000_000
ASKED_NS = SECOND_NS
"""A wish that nothing came of is lost: made again after this (the engine holds back repetitions for as long)."""
ADVISED_NS = 5 * SECOND_NS
"""In mode advise nothing changes: so often the same advice is repeated."""
REVERTED_NS = 60 * SECOND_NS
RETRY_MAX_NS = 60 * SECOND_NS
"""Refusals are taken for an answer for 1 s, then 2 s, at most for so long."""
ROWS = {row.name: row for row in TUNABLES}


@dataclass(slots=True)
class Limit:
    """One tunable at one place."""

    value: int = 0
    t_ns: int = 0
    """When the value was so."""
    original: int = -1
    """What stood there before trimtab; -1: not known yet."""
    high: int = 0
    """The upper bound; 0: not known yet."""
    held: bool = False
    retry_ns: int = 0
    """No wish before this."""
    backoff_ns: int = 0
    asked_ns: int = 0
    """When it was last asked for."""
    low: int = 0
    """The lower bound. An original may lie below it; then there is no way back to it by wishes."""
    dead_band: float = 1 / 128
    """Its row's, once its name has been heard; until then that of most rows."""


def of_row(tunable: str) -> Limit:
    """A tunable of which nobody has told the bounds yet: not below its row's, whatever a host makes of that."""
    return Limit(low=ROWS[tunable].low, dead_band=ROWS[tunable].dead_band)


def learn(limit: Limit, value: int, t_ns: int) -> bool:
    """The value at t_ns; True when that is news. Publishers are not in step with each other: the newest holds."""
    if t_ns < limit.t_ns:
        return False
    limit.t_ns = t_ns
    if value == limit.value:
        return False
    limit.value, limit.asked_ns = value, 0
    return True


def bounds(limit: Limit, event: Value) -> None:
    """The actuator's word on everything but the value, which is for learn()."""
    limit.original, limit.held = event.original, event.held
    limit.low, limit.high = event.low, event.high
    limit.dead_band = ROWS[event.tunable].dead_band if event.tunable in ROWS else limit.dead_band


def answered(limit: Limit, event: Outcome) -> None:
    """What became of a wish, but for the value, which is for learn()."""
    if event.verdict == "written":
        limit.retry_ns = limit.backoff_ns = 0
    elif event.verdict == "advised":
        limit.retry_ns = event.t_ns + ADVISED_NS
    elif event.verdict == "reverted":
        limit.retry_ns = event.t_ns + REVERTED_NS
    elif event.verdict == "ceded":
        limit.held = True
    elif event.verdict == "failed" or (event.verdict == "refused" and event.value == event.believed):
        # A refusal because the value had moved on tells the value: that one may be asked for at once.
        limit.backoff_ns = min(max(SECOND_NS, 2 * limit.backoff_ns), RETRY_MAX_NS)
        limit.retry_ns = event.t_ns + limit.backoff_ns


def worth(limit: Limit, want: int) -> bool:
    """Whether the gate takes a change to this for one: it leads out of the dead band, to a bound, or back."""
    change = abs(want - limit.value)
    far = change >= int(limit.dead_band * limit.value)
    return change > 0 and (far or want in (limit.low, limit.high, limit.original))


def may(limit: Limit, t_ns: int) -> bool:
    """Whether to ask for it now: not held, not refused, not asked for a moment ago."""
    return not limit.held and t_ns >= limit.retry_ns and t_ns >= limit.asked_ns + ASKED_NS


def asked(limit: Limit, t_ns: int) -> None:
    """A wish for it goes out."""
    limit.asked_ns = t_ns
