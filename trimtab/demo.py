"""`trimtab demo`: what trimtab does, shown in a minute on two namespaces of the demo's own.

Bulk TCP over a path with a 40 ms round trip and 256 KiB buffer limits: with trimtab in advise, which changes nothing,
then in enforce, then without it but with limits set by hand. Nothing of the host's is touched (trimtab is fenced to the
two namespaces) and nothing is left, however the demo ends: see trimtab.lab and trimtab.instance.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actuators.records import Change
from trimtab.demo_view import View, too_busy
from trimtab.instance import Instance
from trimtab.lab import Lab, NetNs, Plan, Way

SCHEMA = "trimtab.demo/v1"
PATH = Way(delay_ms=20, rate_mbit=400, queue_kib=4096)
"""Both ways. The rate is far below what the relay can move, so that the network is the limit and not the processor; the
queue is about twice what the path itself holds (rate times round trip)."""
ROUND_TRIP_MS = int(2 * PATH.delay_ms)
LIMIT_BYTES = 256 << 10
BY_HAND_BYTES = 16 << 20
LIMITS = ("net.ipv4.tcp_wmem", "net.ipv4.tcp_rmem")
"""The sender's and the receiver's; the third number of each is the limit."""
DECIDER = "tcp_buffer"
SHARES = {"advise": 0.2, "enforce": 0.55, "by hand": 0.25}
"""Of the time for transfers."""
RECONNECT_S = 2.5
"""A new connection so often: an open one need not profit from a larger limit. Its window scale was settled when it was
opened (tcp_select_initial_window in net/ipv4/tcp_output.c), and its receive buffer grows only when more arrives in one
round trip than ever before (tcp_rcv_space_adjust in tcp_input.c), which at a full window is up to chance."""
LAST_S = 6.0
"""The last connection of a stage is left in peace for so long, ..."""
STEADY_S = 4.0
"""... and the stage's figure is the mean of its last seconds: at most so many, at most half of the stage."""


@dataclass(frozen=True)
class Stage:
    """One transfer and what trimtab did meanwhile. Times are CLOCK_MONOTONIC seconds."""

    name: str
    seconds: float
    started_s: float
    mbit: float
    """Mean Mbit/s of payload, once steady."""
    points: list[tuple[float, float]]
    """(seconds since the start, Mbit/s)"""
    changes: list[Change] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """tunable -> bytes at the end: the sender's tcp_wmem[2], the receiver's tcp_rmem[2]."""


class MeddlingError(OSError):
    """Somebody else changes limits in the demo's namespaces, so that it can show nothing."""


def show(seconds: float, as_json: bool) -> int:
    """Run the demo, with `seconds` of transfers in all, and print it. OSError when something fails."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with View(as_json) as view, Lab() as lab:
        view.begin(PATH, LIMIT_BYTES)
        ends = _joined(lab, LIMIT_BYTES)
        stages = [_with_trimtab(view, lab, ends, "advise", seconds)]
        if not _untouched(ends):
            raise MeddlingError(
                "something else changes TCP limits in all namespaces (a second trimtab?): stop it first"
            )
        stages.append(_with_trimtab(view, lab, ends, "enforce", seconds))
        view.put_back(_untouched(ends), LIMIT_BYTES)
        stages.append(_by_hand(view, lab, seconds))
        view.report(stages)
    if as_json:
        view.document(document(stages))
    return 0


def document(stages: Sequence[Stage]) -> dict[str, Any]:
    """The figures, for programs."""
    before, after, by_hand = (round(stage.mbit, 1) for stage in stages)
    return {
        "schema": SCHEMA,
        "round_trip_ms": ROUND_TRIP_MS,
        "rate_mbit": PATH.rate_mbit,
        "limit_bytes": LIMIT_BYTES,
        "by_hand_bytes": BY_HAND_BYTES,
        "before_mbit": before,
        "trimtab_mbit": after,
        "by_hand_mbit": by_hand,
        "gain": round(after / before, 2) if before else None,
        "share_of_by_hand": round(after / by_hand, 3) if by_hand else None,
        "too_busy": too_busy(stages[-1].mbit, PATH.rate_mbit),
        "stages": [
            {
                "name": stage.name,
                "seconds": stage.seconds,
                "mbit": round(stage.mbit, 1),
                "limits": stage.limits,
                "changes": [_row(change, stage) for change in stage.changes],
            }
            for stage in stages
        ],
    }


def _row(change: Change, stage: Stage) -> dict[str, Any]:
    return {
        "after_s": round(change.t_ns / 1e9 - stage.started_s, 2),
        "tunable": change.tunable,
        "netns": change.netns,
        "old": change.old,
        "new": change.new,
        "why": change.why,
        "state": change.state,
    }


def _joined(lab: Lab, limit_bytes: int) -> tuple[NetNs, NetNs]:
    ends = lab.netns("sender"), lab.netns("receiver")
    lab.relay(*ends, PATH)
    for netns in ends:
        for key in LIMITS:
            least, default, _ = netns.sysctl(key).split()
            netns.sysctl(key, f"{least} {min(int(default), limit_bytes)} {limit_bytes}")
    return ends


def _limit(netns: NetNs, key: str) -> int:
    return int(netns.sysctl(key).split()[2])


def _untouched(ends: tuple[NetNs, NetNs]) -> bool:
    return all(_limit(netns, key) == LIMIT_BYTES for netns in ends for key in LIMITS)


def _with_trimtab(view: View, lab: Lab, ends: tuple[NetNs, NetNs], mode: str, seconds: float) -> Stage:
    view.stage(mode)
    with Instance(mode, DECIDER, [netns.cookie for netns in ends]) as trimtab:
        trimtab.wait_ready()
        return _transfer(view, lab, ends, (mode, SHARES[mode] * seconds), trimtab)


def _by_hand(view: View, lab: Lab, seconds: float) -> Stage:
    view.stage("by hand")
    # Fresh namespaces, so that nothing of what came before (TCP's memory of the path, say) can matter.
    return _transfer(view, lab, _joined(lab, BY_HAND_BYTES), ("by hand", SHARES["by hand"] * seconds), None)


def _transfer(
    view: View, lab: Lab, ends: tuple[NetNs, NetNs], what: tuple[str, float], trimtab: Instance | None
) -> Stage:
    name, seconds = what
    sides = {netns.cookie: netns.name for netns in ends}
    changes: list[Change] = []
    flow = lab.bulk(*ends, Plan(seconds, reconnect_s=RECONNECT_S, last_s=LAST_S))
    for sample in flow:
        view.sample(sample.t_s - flow.started_s, seconds, sample.mbit)
        found = trimtab.changes() if trimtab else []
        for change in found:
            if change not in changes:
                view.change(change, change.t_ns / 1e9 - flow.started_s, sides.get(change.netns, "host"))
        changes = found
    points = [(sample.t_s - flow.started_s, sample.mbit) for sample in flow.samples]
    mbit = flow.mbit(min(STEADY_S, seconds / 2))
    limits = {f"{key}[2]": _limit(netns, key) for netns, key in zip(ends, LIMITS, strict=True)}
    stage = Stage(name, seconds, flow.started_s, mbit, points, changes, limits)
    flow.close()
    return stage
