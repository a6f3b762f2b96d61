"""Floods of neighbours that claim another hardware address, unasked: what to tell people of them.

Only they can know whether it is an attack, two hosts with one address, or a cluster whose fail-over lives on it: so
drop_gratuitous_arp (for IPv6 drop_unsolicited_na) is advised, and never written.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.schema import NeighMoves
from deciders.limit import SECOND_NS

LASTS_NS = 5 * SECOND_NS
"""Shorter than this it is a fail-over: a cluster tells of all its addresses at once."""
PAUSE_NS = 10 * SECOND_NS
"""What comes so long after the last is another flood."""
SHOWN_NS = 600 * SECOND_NS
FLOODS_MAX = 64
CURES = {2: ("gratuitous ARP", "net.ipv4", "drop_gratuitous_arp"), 10: ("NDISC", "net.ipv6", "drop_unsolicited_na")}


@dataclass(slots=True)
class Flood:
    """On one device, in one family."""

    netns_ino: int
    since_ns: int
    since_moves: int
    t_ns: int
    moves: int


Floods = dict[tuple[int, int, int], Flood]
"""By namespace, family and device."""


def on_moves(floods: Floods, event: NeighMoves) -> None:
    """One more second of it. Those longest silent are forgotten first."""
    key = (event.netns, event.family, event.ifindex)
    flood = floods.pop(key, None)
    if flood is None or event.t_ns - flood.t_ns > PAUSE_NS or event.moves < flood.moves:
        flood = Flood(event.netns_ino, event.t_ns, event.moves, event.t_ns, event.moves)
    flood.t_ns, flood.moves = max(event.t_ns, flood.t_ns), event.moves
    floods[key] = flood
    if len(floods) > FLOODS_MAX:
        del floods[next(iter(floods))]


def forget_old(floods: Floods, t_ns: int) -> None:
    """Nobody needs to be told any more."""
    for key in [key for key, flood in floods.items() if t_ns - flood.t_ns > SHOWN_NS]:
        del floods[key]


def forget_netns(floods: Floods, netns: int) -> None:
    """It has gone."""
    for key in [key for key in floods if key[0] == netns]:
        del floods[key]


def advice(floods: Floods) -> list[str]:
    """A line for each flood that is none of a fail-over."""
    return [
        _line(key, flood)
        for key, flood in floods.items()
        if key[1] in CURES and flood.t_ns - flood.since_ns >= LASTS_NS
    ]


def _line(key: tuple[int, int, int], flood: Flood) -> str:
    what, prefix, cure = CURES[key[1]]
    per_s = (flood.moves - flood.since_moves) * SECOND_NS / (flood.t_ns - flood.since_ns)
    return (
        f"device {key[2]} of netns {flood.netns_ino}: neighbours claim another hardware address unasked ({what}),"
        f" {per_s:.0f}/s: two hosts with one address, or an attack; {prefix}.conf.all.{cure} = 1 there ignores it,"
        " but also the fail-over of a cluster (VRRP)"
    )
