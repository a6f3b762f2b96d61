"""observe, advise, enforce: what each opens, and what changing from one to another ends.

observe opens nothing for writing; advise writes the journal only; enforce also the kernel. Leaving enforce, and an
orderly stop, put back everything that is on trial. What a run that died left behind is put back at the next start, in
observe only on an operator's order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from actuators.change import Writer
from actuators.parts import Parts, StateLock
from actuators.restore import Restore
from actuators.state_dir import JournalError
from actuators.undo import LEFT_BEHIND, STOPPED, Ending, Tally
from bus.config import Mode
from bus.link import LinkError
from bus.schema import Answer


class Modes:
    """The mode that is in force, and the journal as far as it needs it."""

    def __init__(self, parts: Parts, writer: Writer, lock: StateLock, deciders: Collection[str]) -> None:
        self._parts = parts
        self.writer = writer
        self._lock = lock
        self._deciders = deciders
        self._trouble = ""

    def start(self, mode: Mode) -> None:
        """Begin in this mode. Raises LinkError when another actuator holds the state directory."""
        self.writer.mode = mode
        with contextlib.suppress(JournalError):
            self._lock.take()
        if mode == "observe":
            self._look_only()
            return
        self._open()
        self._leftovers()
        if mode == "enforce":
            self._enforce()

    def change(self, mode: Mode) -> Answer:
        """Go over to this mode, until the actuator ends."""
        before = self.writer.mode
        if mode == before:
            return Answer(True, [f"mode {mode} already"], {"mode": mode})
        if before == "observe":
            self._open()
            if self._parts.keeper.trouble:
                self._parts.keeper.close()
                return Answer(False, [f"mode {before} stays: {self._trouble}"])
            self._leftovers()
        tally = Tally()
        if before == "enforce":
            tally = self._parts.undo.trials(Ending("reverted", f"mode {mode}"))
        if mode == "enforce":
            self._enforce()
        if mode == "observe":
            self._parts.keeper.close()
        self.writer.mode = mode
        self._parts.voice.say(f"mode {mode} (was {before})")
        lines = [f"mode {mode} (was {before})"]
        if tally.undone or tally.left:
            lines.append(f"{tally.undone} put back" + (f", {tally.left} could not be" if tally.left else ""))
        return Answer(not tally.left, lines, {"mode": mode, "undone": tally.undone, "left": tally.left})

    def with_journal(self, order: Callable[[], Answer]) -> Answer:
        """Carry out an operator's order, for which the journal is opened also in observe."""
        if self.writer.mode != "observe":
            return order()
        self._open()
        try:
            self._parts.undo.recover()
            return order()
        finally:
            self._parts.keeper.close()
            self._parts.keeper.standing.clear()

    def tend(self) -> None:
        """In quiet moments: let the journal tidy up, and try again where it was in trouble."""
        if self.writer.mode == "observe":
            return
        if not self._parts.keeper.trouble:
            self._parts.keeper.flush()
            self._tell_trouble()
            return
        self._open()
        if not self._parts.keeper.trouble:
            self._leftovers()

    def stop(self) -> int:
        """Put back what is on trial. Returns how many values of ours stand still."""
        return self._parts.undo.trials(STOPPED).left

    def _enforce(self) -> None:
        self._parts.kernel.prepare(self._deciders)
        with contextlib.suppress(JournalError):
            Restore(self._parts).run()

    def _open(self) -> None:
        try:
            self._lock.take()
            for note in self._parts.keeper.open():
                self._parts.voice.say(note)
        except (JournalError, LinkError) as error:
            self._parts.keeper.trouble = str(error)
        self._tell_trouble()

    def _tell_trouble(self) -> None:
        trouble = self._parts.keeper.trouble
        if trouble != self._trouble:
            self._trouble = trouble
            self._parts.voice.say(
                f"no changes until the journal can be written: {trouble}"
                if trouble
                else "the journal can be written again"
            )

    def _leftovers(self) -> None:
        spots = self._parts.undo.recover()
        if spots:
            self._parts.undo.trials(LEFT_BEHIND, spots=spots)

    def _look_only(self) -> None:
        left = self._parts.keeper.leftovers()
        if left:
            self._parts.voice.say(
                f"{len(left)} keys may hold values that an earlier run left behind; mode observe "
                "leaves them, `trimtab rollback --all` puts them back"
            )
