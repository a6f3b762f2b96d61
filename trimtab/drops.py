"""`trimtab drops`: what the kernel drops, where and why, in words, and which tunable can cure it.

From the BPF collector's STATUS, as `trimtab status` has it: the kinds that drop most, since the probe was loaded.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bus import netns
from bus.drops import BY_NAME, Reason
from trimtab import exits, show
from trimtab.process import printable

SCHEMA = "trimtab.drops/v1"
PROBE = "drops: "


class Drop(Struct, frozen=True):
    """Packets dropped in one namespace, at one device, for one reason."""

    schema: str
    netns: int
    """Cookie; 0: known to belong to none."""
    netns_inode: int
    ifindex: int
    """0 where a socket dropped it."""
    reason: str
    """As the kernel names it."""
    meaning: str
    """The same in words; empty for a reason that trimtab has no words for."""
    per_s: float
    """Over the last 5 to 10 s."""
    dropped: int
    """Since the probe was loaded."""
    cure: tuple[str, ...]
    """The sysctls of which a higher value can stop it; none where no tunable can."""
    by_hand: str
    """What else to look at."""


class _Said(Struct):
    drops: list[tuple[int, int, int, str, float, int]] = []


def told(statuses: Iterable[dict[str, Any]]) -> list[Drop]:
    """The rows in what roles said of themselves, which may be anything: none where it is something else."""
    found: list[Drop] = []
    for status in statuses:
        try:
            rows = msgspec.convert(status, _Said).drops
        except msgspec.ValidationError:
            continue
        found += [_drop(*row) for row in rows]
    return found


def _drop(cookie: int, inode: int, ifindex: int, name: str, per_s: float, dropped: int) -> Drop:
    name = printable(name)
    reason = BY_NAME.get(name, Reason(name, ""))
    return Drop(SCHEMA, cookie, inode, ifindex, name, reason.meaning, per_s, dropped, reason.cure, reason.by_hand)


def show_drops(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Print them. 3 where nobody counts: no instance, or no probe."""
    from trimtab import status

    found = status.read(run_dir, state_dir)
    blind = [what for what in found.missing if what.startswith(PROBE)]
    if not found.roles:
        blind = [found.problem]
    if as_json:
        show.as_json(*found.drops)
    elif found.drops:
        _print(found.drops)
    elif not blind:
        print("nothing dropped since the probe was loaded")
    for what in blind:
        print(f"without {what}" if found.roles else f"trimtab: {what}", file=sys.stderr)
    return exits.DEGRADED if blind else exits.FINE


def _print(drops: Iterable[Drop]) -> None:
    show.table(
        ["namespace", "device", "reason", "per second", "total", "what it means", "cure"],
        [[*_place(drop), drop.reason, f"{drop.per_s:.1f}", drop.dropped, drop.meaning, cure(drop)] for drop in drops],
    )


def cure(drop: Drop) -> str:
    """What can be done, in words."""
    return "; ".join(filter(None, (", ".join(drop.cure), drop.by_hand))) or "none"


def _place(drop: Drop) -> tuple[str, str]:
    """What people call the namespace and the device; as numbers where that is not to be known."""
    if not drop.netns:
        return "none", ""
    if drop.netns == netns.cookie_here():
        return netns.HOST, _device(drop.ifindex)
    device = f"if{drop.ifindex}" if drop.ifindex else ""
    if os.geteuid():
        # Others' namespaces are root's to look into.
        return str(drop.netns), device
    try:
        namespace = netns.find(drop.netns, drop.netns_inode)
        device = netns.inside(namespace.handle, lambda: _device(drop.ifindex))
    except OSError:
        return str(drop.netns), device
    return namespace.name or str(drop.netns), device


def _device(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex) if ifindex else ""
    except OSError:
        return f"if{ifindex}"
