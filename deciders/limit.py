"""What is known of one tunable: its value, its bounds, and what became of the wishes for it."""

from __future__ import annotations

from msgspec import Struct

from bus.schema import Outcome, Value

SECOND_NS = 1_000_000_000
ADVISED_NS = 5 * SECOND_NS
"""In mode advise nothing changes: so often the same advice is repeated."""
REVERTED_NS = 60 * SECOND_NS
RETRY_MAX_NS = 60 * SECOND_NS
"""Refusals are taken for an answer for 1 s, then 2 s, at most for so long."""


class Limit(Struct):
    """One tunable at one place."""

    value: int = 0
    t_ns: int = 0
    """When the value was so."""
    original: int = 0
    """What stood there before trimtab; 0: not known yet."""
    high: int = 0
    """The upper bound; 0: not known yet."""
    held: bool = False
    retry_ns: int = 0
    """No wish before this."""
    backoff_ns: int = 0


def learn(limit: Limit, value: int, t_ns: int) -> bool:
    """The value at t_ns; True when that is news. Publishers are not in step with each other: the newest holds."""
    if t_ns < limit.t_ns:
        return False
    changed = value != limit.value
    limit.value, limit.t_ns = value, t_ns
    return changed


def bounds(limit: Limit, event: Value) -> None:
    """The actuator's word on everything but the value, which is for learn()."""
    limit.original, limit.high, limit.held = event.original, event.high, event.held


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


def may(limit: Limit, t_ns: int) -> bool:
    """Whether it may be asked for now."""
    return not limit.held and t_ns >= limit.retry_ns
