"""udp_mem[0..2]: what all UDP sockets together may hold, and the one change of it that is most wanted now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus.schema import VERSION, Evidence, Wish
from deciders.limit import SECOND_NS, Limit, asked, may, worth
from deciders.udp_room import NEW_NS, Pages, State, many

MEM = "net.ipv4.udp_mem"
VALID_NS = SECOND_NS
_PLACES = {f"{MEM}[{place}]": place for place in range(3)}


def limit(pages: Pages, tunable: str) -> Limit | None:
    """What is known of one of the three."""
    return pages.limits[_PLACES[tunable]] if tunable in _PLACES else None


def next_wish(state: State, event: Any) -> Sequence[Wish]:
    """More where it is nearly all held or was refused, from the top, so that the three are in order at every instant;
    less from the bottom, after a long quiet."""
    pages, policy, t_ns = state.pages, state.policy, event.t_ns
    first = pages.limits[0]
    if any(not one.value for one in pages.limits):
        return ()
    # A refusal counts once: by what has grown since, nothing was refused.
    refused = t_ns - pages.refused_ns < NEW_NS and bool(pages.refused)
    if refused or pages.held >= policy.full * first.value:
        pages.quiet_ns, pages.goals = t_ns, ()
        if state.spare < policy.spare:
            return ()
        return _grow(state, refused, event)
    return _shrink(state, event)


def _grow(state: State, refused: bool, event: Any) -> Sequence[Wish]:
    pages, factor = state.pages, state.policy.factor
    what = (
        f"{many(pages.refused)} refused for want of memory"
        if refused
        else f"UDP sockets hold {pages.held} pages of {pages.limits[0].value}"
    )
    wants = [_up(pages.limits[0], factor)]
    for one in pages.limits[1:]:
        # The upper two only where the lower one would pass them.
        wants.append(_up(one, factor) if wants[-1] > one.value else one.value)
    for place in (2, 1, 0):
        one, want = pages.limits[place], wants[place]
        if place < 2:
            want = min(want, pages.limits[place + 1].value)
        if want > one.value and worth(one, want) and may(one, event.t_ns):
            if place == 0:
                pages.refused = 0
            return (_wish(pages, place, want, what, event),)
    return ()


def _up(one: Limit, factor: float) -> int:
    want = int(one.value * factor)
    return max(one.value, min(want, one.high or want))


def _shrink(state: State, event: Any) -> Sequence[Wish]:
    pages, idle_ns = state.pages, int(state.policy.idle_s * SECOND_NS)
    least = [max(one.original, one.low) for one in pages.limits]
    if any(one.original < 0 for one in pages.limits) or not pages.quiet_ns:
        return ()
    if not pages.goals:
        grown = any(one.value > end for one, end in zip(pages.limits, least, strict=True))
        if event.t_ns - pages.quiet_ns < idle_ns or not grown:
            return ()
        pages.goals = tuple(max(end, (one.value + 1) // 2) for one, end in zip(pages.limits, least, strict=True))
    why = f"UDP sockets hold {pages.held} pages, and for {state.policy.idle_s:g} s no more than"
    why += f" {state.policy.empty:.0%} of udp_mem[0]; back towards the originals"
    for place, one in enumerate(pages.limits):
        want = max(pages.goals[place], pages.limits[place - 1].value if place else 0)
        if want < one.value and worth(one, want) and not one.held:
            return (_wish(pages, place, want, why, event),) if may(one, event.t_ns) else ()
    # There: the next halving after another quarter.
    pages.goals, pages.quiet_ns = (), event.t_ns - idle_ns + idle_ns // 4
    return ()


def _wish(pages: Pages, place: int, want: int, why: str, event: Any) -> Wish:
    one = pages.limits[place]
    asked(one, event.t_ns)
    evidence: Evidence = {
        "event": f"{type(event).__name__}@{event.t_ns}",
        "held_pages": pages.held,
        "refused": pages.refused,
        **{f"udp_mem[{number}]": each.value for number, each in enumerate(pages.limits)},
    }
    return Wish(VERSION, event.t_ns, VALID_NS, f"{MEM}[{place}]", 0, 0, one.value, want, why, evidence)
