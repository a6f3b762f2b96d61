"""The times that a user writes: of day, ISO 8601, or counted from a tape's beginning or end."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence

import click
from msgspec import Struct

from bus.tape_reader import Segment
from trimtab.tape.items import SEC, Trouble, last_ns, utc_ns

UNITS_NS = {"ms": SEC // 1000, "s": SEC, "m": 60 * SEC, "h": 3600 * SEC, "d": 86400 * SEC}
_COUNTED = re.compile(r"([+-])(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
Span = tuple[str | None, str | None]
"""--from and --to as they were written."""


class Window(Struct, frozen=True):
    """From when to when, CLOCK_REALTIME in ns. None: no limit there."""

    since_ns: int | None
    until_ns: int | None


def window(span: Span, strands: Sequence[Sequence[Segment]], trouble: Trouble) -> Window:
    """What --from and --to mean on these tapes. click.BadParameter names the word that is no time."""
    first_ns = min((_first_ns(strand) for strand in strands), default=0)

    def end_ns() -> int:
        # Only looked for where it is asked for: all of the last segment has to be read.
        return max((last_ns(strand, trouble) for strand in strands), default=0)

    since, until = (_moment(word, name, first_ns, end_ns) for word, name in zip(span, ("--from", "--to"), strict=True))
    if strands and since is not None and until is not None and since >= until:
        raise click.BadParameter(f"{span[1]!r} is not after --from {span[0]!r}", param_hint="--to")
    return Window(since, until)


def _first_ns(strand: Sequence[Segment]) -> int:
    return utc_ns(strand[0].head, strand[0].head.t_ns)


def _moment(word: str | None, option: str, first_ns: int, end_ns: Callable[[], int]) -> int | None:
    if word is None:
        return None
    counted = _COUNTED.fullmatch(word)
    if counted:
        sign, number, unit = counted.groups()
        span_ns = round(float(number) * UNITS_NS[unit])
        return first_ns + span_ns if sign == "+" else end_ns() - span_ns
    try:
        return _of_day(datetime.time.fromisoformat(word), first_ns) if ":" in word[:3] else _iso(word)
    except (ValueError, OverflowError):
        what = "no time; write 14:05:00, 2026-11-21T14:05Z, +90s (after the beginning) or -10m (before the end)"
        raise click.BadParameter(f"{word!r} is {what}", param_hint=option) from None


def _iso(word: str) -> int:
    return _ns(datetime.datetime.fromisoformat(word))


def _of_day(time: datetime.time, first_ns: int) -> int:
    """The first time that it is so late after the beginning of the tape; local time, unless the word says another."""
    begin = datetime.datetime.fromtimestamp(first_ns // SEC, datetime.UTC).astimezone(time.tzinfo)
    moment = datetime.datetime.combine(begin.date(), time, time.tzinfo)
    if _ns(moment) < first_ns // SEC * SEC:
        moment += datetime.timedelta(days=1)
    return _ns(moment)


def _ns(moment: datetime.datetime) -> int:
    # Of local time where it names no zone. Not timestamp(): a float does not hold microseconds of today exactly.
    since = moment.astimezone(datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(microseconds=1) * 1000
