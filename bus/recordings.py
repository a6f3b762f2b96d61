"""The tapes of all deciders of one process: written by one thread, told of together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.config import Tape
from bus.disk import Disk
from bus.recorder import Recorder
from bus.tape import Head

MIB = 1 << 20
SETTLE_S = 1.0
"""How long the ends of the tapes may take to be written when all else is done."""


class Recordings:
    """None at first. See Recorder for what is to be called when."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: takes a line for the operator."""
        self._say = say
        self._disk = Disk()
        self._of: dict[str, Recorder] = {}
        self._all: list[Recorder] = []
        self._broken: dict[str, str] = {}

    def add(self, name: str, folder: Path, size: Tape, begin: Callable[[int], Head]) -> Recorder:
        """Record the decider of this name, in a folder of its own."""
        recorder = Recorder(folder, size.max_mib * MIB, size.segment_mib * MIB, begin, self._disk)
        self._of[name] = recorder
        self._all = list(self._of.values())
        return recorder

    def batch(self, raw: bytes) -> None:
        """A batch that has come."""
        for recorder in self._all:
            recorder.batch(raw)

    def turn(self, t_ns: int, events: int) -> None:
        """All that came is folded, and its wishes are out."""
        for recorder in self._all:
            recorder.turn(t_ns, events)

    def close(self, t_ns: int, events: int) -> None:
        """The process ends."""
        for recorder in self._all:
            recorder.close(t_ns, events)
        self._disk.settle(SETTLE_S)

    def status(self, events: int) -> dict[str, Any]:
        """How they are. What keeps one from being written is also said, once when it begins and once when it ends."""
        broken = {name: recorder.trouble for name, recorder in self._of.items() if recorder.trouble}
        if begun := [name for name in broken if name not in self._broken]:
            self._say(f"not recorded: {', '.join(begun)}: {broken[begun[0]]}")
        if ended := [name for name in self._broken if name not in broken]:
            lost = max(self._of[name].lost(events) for name in ended)
            self._say(f"recorded again: {', '.join(ended)}; {lost} events are on no tape")
        self._broken = broken
        return {
            "tape": next(iter(broken.values()), "") if self._of else "off",
            "tape_bytes": sum(recorder.written for recorder in self._all),
            "tape_lost": sum(recorder.lost(events) for recorder in self._all),
            "missing": [f"the recording of {name}: {why}" for name, why in broken.items()],
        }
