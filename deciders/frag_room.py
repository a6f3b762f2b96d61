"""Room for the fragments of one namespace and family: what is known of it, and its next change.

Above the limit the kernel takes no fragment at all, not even the last one of a datagram (inet_frag_find() in
net/ipv4/inet_fragment.c), and what waits for the rest is given up after 30 s. So too small a limit fails nearly every
datagram, and doubling it up to the kernel's own default is tried at once. Beyond it each growth has to show that a
smaller share of the fragments fails, and that more datagrams become whole of as many: fragments of those that never do
(lost ones, an attack) fill any limit, and fail only after 30 s (IPv6: 60 s), so that until then every growth seems to
help. Where none becomes whole for seconds there is no growth beyond the default, and where fragments fail with room
left none at all; what has grown comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from bus.schema import Evidence
from deciders.climb import Climb, go_down, higher, judge, lower, may_change
from deciders.limit import SECOND_NS

USUAL_BYTES = 4 << 20
"""The kernel's default in each namespace (ipv4_frags_init_net in net/ipv4/ip_fragment.c)."""
FAST_NS, SLOW_NS = SECOND_NS // 10, 2 * SECOND_NS
"""Between two growths, up to the usual and beyond it."""
WAITS_NS = 40 * SECOND_NS
"""What found no room fails its datagram up to so much later: 30 s (ipfrag_time), and a little."""
FEW = 50
"""Fragments in a window from which no share is made."""
FACTOR = 2.0
NONE_WHOLE = 1e9
"""Fragments for each datagram that becomes whole, where none does or nobody knows."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """`policy.ip_frag` in the configuration."""

    full: Annotated[float, Meta(gt=0, le=1)] = 0.75
    """Grow when so much of the limit is in use."""
    window_s: Annotated[float, Meta(ge=1, le=60)] = 5.0
    """Shares of fragments are those of so long."""
    helps: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """A growth has helped where that share, and the fragments for each datagram that becomes whole, fell to this share
    of what they were."""
    patience: Annotated[int, Meta(ge=1, le=8)] = 3
    """So many growths beyond the usual that did not help in a row, and it goes back."""
    brake: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """With this share failing while there is room, nothing grows, and what has grown goes back ..."""
    brake_s: Annotated[float, Meta(ge=1)] = 60.0
    """... until so long after it was last seen."""
    rest_s: Annotated[float, Meta(ge=0, le=86400)] = 3600.0
    """After growing did not help, it is not tried for so long."""
    ram_share: Annotated[int, Meta(ge=1)] = 128
    """One namespace's limit is at most memory / ram_share ..."""
    all_share: Annotated[int, Meta(ge=1)] = 32
    """... and all that was ever added in all of them memory / all_share."""
    idle_s: Annotated[float, Meta(ge=1)] = 600.0
    """Quiet for so long, a limit goes halfway back to its original, and again after a quarter of it."""


@dataclass(slots=True)
class Room:
    """One limit."""

    climb: Climb = field(default_factory=lambda: Climb(FAST_NS))
    held: int = 0
    """What fragments took there lately, in bytes."""
    refused: int = 0
    full_ns: int = 0
    """When there was last little room left; 0: never."""
    vain_ns: int = 0
    """When it was last so while no datagram became whole; 0: never."""
    refused_ns: int = 0
    """When there was last none; 0: never."""
    near_ns: int = 0
    """When they last took more than a little; at first, since when it is known."""
    totals: tuple[int, int, int] = (0, 0, 0)
    """At counted_ns: fragments asked to be put together, failures, datagrams put together."""
    counted_ns: int = 0
    window: tuple[int, int, int] = (0, 0, 0)
    """When the share was last made: time, fragments, failures."""
    share: float = -1.0
    """Failures for each fragment in the last window; -1: not known."""
    cost: float = 0.0
    """Fragments for each datagram that became whole between the last two readings; 0: not known."""
    cost_before: float = NONE_WHOLE
    """The same when growth was last wished for."""
    whole_ns: int = 0
    """When one last did, or there were no fragments; 0: not known."""
    since: tuple[int, int, int, int] = (0, 0, 0, 0)
    """First totals after the last growth: time, fragments, failures, datagrams that became whole."""
    braked_ns: int = 0
    """When fragments last failed with room left; 0: never."""


def on_memory(policy: Policy, room: Room, held: int, t_ns: int) -> None:
    """So many bytes wait at t_ns."""
    room.held = held
    if held >= policy.full * room.climb.limit.value:
        room.full_ns = t_ns
        room.vain_ns = t_ns if in_vain(policy, room, t_ns) else room.vain_ns
    if held >= room.climb.limit.value:
        room.refused_ns = t_ns
    if held >= room.climb.limit.value // 4:
        room.near_ns = t_ns


def on_totals(policy: Policy, room: Room, totals: tuple[int, int, int], t_ns: int) -> None:
    """The kernel's counters since the namespace began."""
    asked, failed, whole = totals
    if t_ns < room.counted_ns:
        return
    if not room.counted_ns or any(now < before for now, before in zip(totals, room.totals, strict=True)):
        room.window, room.since = (t_ns, asked, failed), (t_ns, *totals)
    elif asked - room.totals[0] >= FEW:
        room.cost = _cost(asked - room.totals[0], whole - room.totals[2])
    if not room.counted_ns or asked <= room.totals[0] or whole != room.totals[2]:
        room.whole_ns = t_ns
    room.totals, room.counted_ns = totals, t_ns
    if room.since[0] <= room.climb.grown_ns < t_ns:
        room.since = (t_ns, *totals)
    begun_ns, asked_then, failed_then = room.window
    if t_ns - begun_ns < policy.window_s * SECOND_NS:
        return
    room.window = (t_ns, asked, failed)
    room.share = (failed - failed_then) / (asked - asked_then) if asked - asked_then >= FEW else -1.0
    if room.share >= policy.brake and (not room.refused_ns or begun_ns - room.refused_ns > WAITS_NS):
        room.braked_ns = t_ns


def want(policy: Policy, room: Room, ceiling: int, t_ns: int) -> tuple[int, str]:
    """The value wanted now and why; 0 for none."""
    climb, limit = room.climb, room.climb.limit
    climb.spacing_ns = FAST_NS if limit.value * FACTOR <= USUAL_BYTES else SLOW_NS
    if not limit.value or not may_change(climb, t_ns):
        return 0, ""
    _come_down(policy, room, t_ns)
    if down := lower(climb):
        return down, climb.why
    if room.full_ns != t_ns or (room.braked_ns and t_ns - room.braked_ns < policy.brake_s * SECOND_NS):
        return 0, ""
    if limit.value * FACTOR > USUAL_BYTES:
        if not _judged(policy, room, t_ns):
            return 0, ""
        if down := lower(climb):
            return down, climb.why
        if in_vain(policy, room, t_ns):
            return 0, ""
    climb.asked_rate, room.cost_before = room.share if room.share >= 0 else 1.0, room.cost or NONE_WHOLE
    return higher(climb, FACTOR, ceiling, t_ns), f"fragments that wait take {room.held} of {limit.value} bytes"


def _judged(policy: Policy, room: Room, t_ns: int) -> bool:
    """The last growth has been looked at. Where nothing helped, the way back begins here."""
    climb = room.climb
    if not climb.judged:
        begun_ns, asked_then, failed_then, whole_then = room.since
        asked = room.totals[0] - asked_then
        if begun_ns <= climb.grown_ns or room.counted_ns - begun_ns < SECOND_NS or asked <= 0:
            return False
        dearer = _cost(asked, room.totals[2] - whole_then) > policy.helps * room.cost_before
        judge(climb, 1.0 if dearer else (room.totals[1] - failed_then) / asked, t_ns, policy.helps)
    if climb.useless >= policy.patience or (climb.useless and in_vain(policy, room, t_ns)):
        # Not below what every namespace begins with: others' fragments are to have that much.
        goal = max(climb.start, min(USUAL_BYTES, climb.limit.value))
        why = (
            f"{climb.limit.value} bytes are as full of fragments as {climb.start} were, and no more datagrams become"
            f" whole: the rest of their fragments does not come; back to {goal}"
        )
        climb.useless = 0
        go_down(climb, goal, why, t_ns, policy.rest_s)
    return True


def in_vain(policy: Policy, room: Room, t_ns: int) -> bool:
    """Fragments come, and for a while no datagram has become whole."""
    return bool(room.whole_ns) and t_ns - room.whole_ns >= policy.window_s * SECOND_NS


def _cost(asked: int, whole: int) -> float:
    return asked / whole if whole > 0 else NONE_WHOLE


def _come_down(policy: Policy, room: Room, t_ns: int) -> None:
    """Back to the original where fragments fail with room left; halfway back after a long quiet."""
    climb, limit = room.climb, room.climb.limit
    if climb.goal or not 0 <= limit.original < limit.value:
        return
    if room.braked_ns and t_ns - room.braked_ns < policy.brake_s * SECOND_NS:
        why = f"{room.share:.0%} of the fragments fail with room left: a larger limit than {limit.original} only fills"
        go_down(climb, limit.original, why, t_ns)
        return
    idle_ns = int(policy.idle_s * SECOND_NS)
    if room.near_ns and t_ns - room.near_ns >= idle_ns:
        why = f"for {policy.idle_s:g} s few fragments waited where {limit.value} bytes may; back to {limit.original}"
        go_down(climb, max(limit.original, (limit.value + 1) // 2), why, t_ns)
        room.near_ns = t_ns - idle_ns + idle_ns // 4


def evidence(room: Room) -> Evidence:
    """The numbers, for a wish."""
    asked, failed, whole = room.totals
    return {
        "held_bytes": room.held,
        "refused": room.refused,
        "reasm_reqds": asked,
        "reasm_fails": failed,
        "reasm_oks": whole,
        "original": room.climb.limit.original,
    }
