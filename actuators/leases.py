"""How long each decider's trials may still stand: a lease per decider, renewed by its beats, on CLOCK_BOOTTIME.

The ends are also kept in a file, for the dead-man (actuators.deadman), who reads them when the actuator cannot speak
any more. Not forced to disk: what a power cut loses here ended with the boot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

NAME = "leases.json"
LEASE_NS = 30_000_000_000
SAVE_NS = 1_000_000_000

Ends = dict[str, int]


class Leases:
    """The leases of the deciders that have something on trial."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._ends: Ends = {}
        self._saved_ns = 0
        self.kept = True
        """The file may name a lease: what an earlier process left there is cleared away."""

    def begin(self, decider: str) -> None:
        """Something of this decider's goes on trial now."""
        self.renew(decider)

    def renew(self, decider: str) -> None:
        """The decider was heard."""
        self._ends[decider] = now_ns() + LEASE_NS

    def lapsed(self, deciders: Collection[str]) -> list[str]:
        """Those of these deciders whose lease has run out. One that has none yet, as after a restart, gets one now."""
        for decider in deciders:
            self._ends.setdefault(decider, now_ns() + LEASE_NS)
        return [decider for decider in deciders if self._ends[decider] <= now_ns()]

    def save(self, deciders: Collection[str]) -> None:
        """Let the dead-man know, at most once a second. OSError where the file cannot be written: the dead-man then
        goes by the last that could, or by the age of the changes."""
        if not deciders and not self.kept:
            return
        if now_ns() - self._saved_ns < SAVE_NS:
            return
        self._saved_ns = now_ns()
        fresh = self._path.with_suffix(".new")
        ends = {decider: self._ends[decider] for decider in deciders if decider in self._ends}
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(ends))
        fresh.rename(self._path)
        self.kept = bool(ends)


def read(folder: Path) -> Ends:
    """Decider -> when its lease ends, CLOCK_BOOTTIME ns. Empty where nothing (sound) was kept."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=Ends)
    except (OSError, msgspec.DecodeError):
        return {}


def now_ns() -> int:
    """CLOCK_BOOTTIME: no step of the wall clock moves it, and suspend does not stop it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
