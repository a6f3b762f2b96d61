"""What the demo shows as it goes, and at the end: on a terminal, or in lines through a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from actuators.records import Change
from trimtab.plot import Section, plot
from trimtab.relay import Way

if TYPE_CHECKING:
    from trimtab.demo import Stage

TITLES = {
    "advise": "[1/3] advise: trimtab only says what it would do",
    "enforce": "[2/3] enforce: trimtab does it",
    "by hand": "[3/3] by hand: without trimtab, with limits that an expert would set, in fresh namespaces",
}
STYLES = {"advise": "yellow", "enforce": "green", "by hand": "cyan"}
LINE_S = 2.0
"""Where there is no terminal: a line of progress so often."""
WIDTH = 78
ENOUGH = 0.5
"""Of the path's rate: when not even limits set by hand let so much through, it was the processor that had no time."""


class View:
    """Prints to stdout, or to stderr when stdout is for JSON. A context manager: ends the moving line."""

    def __init__(self, as_json: bool) -> None:
        self._console = Console(stderr=as_json, highlight=False)
        self._top = 0.0
        self._status: Status | None = None
        self._told_s = 0.0
        self._stage = ""

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self._still()
        if kind in (KeyboardInterrupt, SystemExit):
            self._say("stopped early; nothing is left behind")

    def begin(self, path: Way, limit_bytes: int) -> None:
        """The scene."""
        self._top = path.rate_mbit
        self._say(
            f"two network namespaces, {2 * path.delay_ms:g} ms round trip, {path.rate_mbit:g} Mbit/s; "
            f"tcp_rmem and tcp_wmem at most {size(limit_bytes)}"
        )

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._still()
        self._say(f"\n{TITLES[name]}", STYLES[name])
        self._stage, self._told_s = name, 0.0
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()

    def sample(self, at_s: float, of_s: float, mbit: float) -> None:
        """What passes at the moment."""
        line = f"{at_s:5.1f} s of {of_s:.0f}   {mbit:6.1f} Mbit/s"
        if self._status:
            self._status.update(line)
        elif at_s - self._told_s >= LINE_S:
            self._told_s = at_s
            self._say(line)

    def change(self, change: Change, at_s: float, side: str) -> None:
        """A change was made, or became something else."""
        does = {"trial": "set", "advised": "would set"}.get(change.state, change.state)
        self._say(
            f"{at_s:5.1f} s {side}: {does} {change.tunable} {size(change.old)} -> {size(change.new)}: {change.why}",
            STYLES[self._stage],
        )

    def put_back(self, done: bool, limit_bytes: int) -> None:
        """Whether trimtab, once stopped, had undone all."""
        self._still()
        if done:
            self._say(f"stopped: trimtab has put both limits back to {size(limit_bytes)}")
        else:
            self._say("stopped, but a limit was not put back: this should not happen, please report it", "red")

    def report(self, stages: Sequence[Stage]) -> None:
        """The plot and the table."""
        self._still()
        self._say("")
        sections = [self._section(stage) for stage in stages]
        plain = not self._console.encoding.lower().startswith("utf")
        for line in plot(sections, "Mbit/s", min(WIDTH, self._console.width), top=self._top, plain=plain):
            line.rstrip()
            self._console.print(line, soft_wrap=True)
        self._say("")
        busy = too_busy(stages[-1].mbit, self._top)
        before, by_hand = (0.0, 0.0) if busy else (stages[0].mbit, stages[-1].mbit)
        table = Table("", "tcp_wmem[2]", "tcp_rmem[2]", "Mbit/s", "x before", "of by hand", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        names = ("before (advise)", "with trimtab", "by hand")
        for name, stage in zip(names, stages, strict=True):
            limits = (size(limit) for limit in stage.limits.values())
            table.add_row(
                name, *limits, f"{stage.mbit:.1f}", *ratios(stage.mbit, before, by_hand), style=STYLES[stage.name]
            )
        self._console.print(table)
        if busy:
            load = f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs"
            came = f"even by hand {stages[-1].mbit:.0f} of the path's {self._top:g} Mbit/s came through ({load})"
            self._say(f"too busy to show anything: {came}; try again when this machine is quieter", "red")

    def document(self, figures: dict[str, Any]) -> None:
        """The figures, as JSON on stdout."""
        sys.stdout.write(json.dumps(figures) + "\n")

    def _section(self, stage: Stage) -> Section:
        marks = [change.t_ns / 1e9 - stage.started_s for change in stage.changes if change.state != "advised"]
        return Section(stage.name, stage.seconds, stage.points, marks, STYLES[stage.name])

    def _still(self) -> None:
        if self._status:
            self._status.stop()
            self._status = None

    def _say(self, text: str, style: str = "") -> None:
        # soft_wrap: a pipe has no width, and a terminal wraps by itself.
        self._console.print(text, style=style, markup=False, soft_wrap=True)


def too_busy(by_hand: float, rate_mbit: float) -> bool:
    """No comparison would mean anything."""
    return by_hand < ENOUGH * rate_mbit


def ratios(mbit: float, before: float, by_hand: float) -> tuple[str, str]:
    """How many times the first figure, and which share of the last; empty without anything to compare with."""
    return (f"{mbit / before:.1f}" if before else "", f"{mbit / by_hand:.0%}" if by_hand else "")


def size(octets: int) -> str:
    """Bytes in words: the largest unit that leaves at least one."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if octets >= unit:
            return f"{octets / unit:.4g} {name}"
    return f"{octets} bytes"
