"""The dead-man: puts back what is on trial when nobody else can any more.

    python -I -m actuators.deadman --state-dir DIR

It does nothing while leases run. When one has run out (actuators.leases, CLOCK_BOOTTIME: no clock step and no suspend
moves it) and the actuator's lock is free, it takes the lock and puts back that decider's trials from the journal, as
`trimtab rollback` does without an actuator. Where the lock is held by an actuator that should have done so and has not
(stopped, hung), that process is killed first. It needs none of the other processes, and outlives the supervisor until
nothing is on trial any more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from actuators import history, leases, offline
from actuators.leases import LEASE_NS
from actuators.parts import BOOT_ID
from actuators.records import ON_TRIAL
from actuators.state_dir import LOCK, JournalError
from bus.config import STATE_DIR
from bus.link import LinkError
from bus.notify import notify
from bus.stop import stop_signals

SECOND_NS = 1_000_000_000
LOOK_NS = SECOND_NS
"""Between two looks, unless a lease ends earlier."""
AGAIN_NS = 150_000_000
"""The same, while something has lapsed and could not be put back yet."""
PATIENCE_NS = 700_000_000
"""How long an actuator that holds the lock has for what it should do itself at the lease's end."""
SELDOM = 5
"""Looks between two that also open the journal; leases alone are looked at in each."""
MARK = "deadman.pid"
"""The one dead-man of a state directory: a later one takes over."""


class Deadman:
    """Looks, and acts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boot_id = BOOT_ID.read_text().strip()
        self._parent = os.getppid()
        self._looks = 0
        self._end_ns = 0
        """When the first of the leases that are known ends; 0: none is."""

    def run(self, stop: int) -> None:
        """Until `stop` is readable, or there is nobody left and nothing to wait for."""
        self._mark()
        notify("READY=1")
        while not self._orphan():
            self.look()
            notify("WATCHDOG=1", "STATUS={}")
            if select.select([stop], [], [], self.pause_ns() / SECOND_NS)[0]:
                break
        notify("STOPPING=1")

    def pause_ns(self) -> int:
        """How long until the next look: no lease that is known of ends before it."""
        if not self._end_ns:
            return LOOK_NS
        left_ns = self._end_ns - leases.now_ns()
        return min(left_ns, LOOK_NS) if left_ns > 0 else AGAIN_NS

    def look(self) -> None:
        """Put back what has lapsed, if there is anything."""
        now_ns = leases.now_ns()
        ends = leases.read(self._folder)
        self._looks += 1
        self._end_ns = min(filter(None, (self._end_ns, *ends.values())), default=0)
        if self._looks % SELDOM and not 0 < self._end_ns <= now_ns:
            return
        ends = self._ends(ends)
        self._end_ns = min(ends.values(), default=0)
        lapsed = {decider: end_ns for decider, end_ns in ends.items() if end_ns <= now_ns}
        if not lapsed:
            return
        why = f"dead-man: no sign of life for {LEASE_NS // 1_000_000_000} s"
        try:
            for line in offline.end_trials(self._folder, lapsed, why):
                say(line)
        except LinkError:
            if now_ns > min(lapsed.values()) + PATIENCE_NS:
                lock = self._folder / LOCK
                pid = offline.holder(lock)
                # Else it has let go meanwhile, and the next look can act.
                if pid:
                    say(f"the actuator (pid {pid}) does not act; killing it")
                    offline.end(lock, pid, kill=True)

    # --- how ------------------------------------------------------------------------------------------------------

    def _ends(self, ends: leases.Ends) -> leases.Ends:
        """Decider with something on trial -> when its lease ends. A change made after the last save has its own age."""
        try:
            changes = history.standing(self._folder)
        except JournalError:
            # No journal that can be read: what the leases say is all there is, and originals.log knows what to do.
            return ends
        found: leases.Ends = {}
        for change in changes:
            if change.boot_id == self._boot_id and change.state in ON_TRIAL:
                end_ns = max(ends.get(change.decider, 0), change.boot_ns + LEASE_NS)
                found[change.decider] = max(found.get(change.decider, 0), end_ns)
        return found

    def _mark(self) -> None:
        with contextlib.suppress(OSError):
            (self._folder / MARK).write_text(str(os.getpid()))

    def _orphan(self) -> bool:
        """The supervisor has gone, and there is nothing to wait for, or another dead-man waits."""
        if os.getppid() == self._parent:
            return False
        with contextlib.suppress(OSError):
            if (self._folder / MARK).read_text() != str(os.getpid()):
                return True
        return not self._ends(leases.read(self._folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Watch until SIGTERM. Returns 0, or 1 with one line where it cannot."""
    parser = argparse.ArgumentParser("actuators.deadman", description=__doc__)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR)
    parser.add_argument("--config", type=Path)
    options = parser.parse_args(argv)
    try:
        with stop_signals() as stop:
            Deadman(options.state_dir).run(stop)
    except OSError as error:
        say(f"{error.strerror}: {error.filename}")
        return 1
    return 0


def say(line: str) -> None:
    """One line for the operator, if one is left to read it."""
    with contextlib.suppress(OSError):
        print(f"deadman: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
