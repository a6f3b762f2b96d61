"""Orders when no actuator runs: rollback, hold and release, straight from the journal, under the actuator's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from actuators.parts import Parts, StateLock, assemble
from actuators.state_dir import JournalError
from actuators.undo import Ending
from bus import plugins, tunables
from bus.config import ConfigError
from bus.link import LinkError
from bus.schema import Answer, Ask
from bus.tunables import Tunable

VERBS = ("rollback", "hold", "release", "confirm", "revert")


def order(folder: Path, ask: Ask) -> Answer:
    """Carry out an order on the state directory `folder`. Raises LinkError where an actuator holds it: ask that one.

    Works with a broken configuration, a missing third party's tuner, and a journal that can only be read.
    """
    if ask.verb not in VERBS:
        raise LinkError(f"no actuator runs, and `{ask.verb}` needs one")
    said: list[str] = []
    try:
        with _opened(folder, said) as parts:
            answer: Answer = getattr(parts.orders, ask.verb)(ask)
    except JournalError as error:
        return Answer(False, [str(error)])
    return Answer(answer.ok, [*said, *answer.lines], answer.data)


def end_trials(folder: Path, deciders: Collection[str], why: str) -> list[str]:
    """Put back what these deciders have on trial. Returns what is to be said. LinkError where an actuator has it."""
    said: list[str] = []
    try:
        with _opened(folder, said) as parts:
            parts.undo.trials(Ending("reverted", why), deciders)
    except JournalError as error:
        said.append(str(error))
    return said


@contextlib.contextmanager
def _opened(folder: Path, said: list[str]) -> Iterator[Parts]:
    """The parts, with what stands taken up, under the actuator's lock."""
    with contextlib.closing(StateLock(folder)) as lock:
        lock.take()
        with contextlib.closing(assemble(_rows(), folder, said.append, lambda event: None)) as parts:
            try:
                said += parts.keeper.open()
            except JournalError as error:
                said.append(f"the journal cannot be written: {error}")
            parts.undo.recover()
            yield parts


def _rows() -> Mapping[str, Tunable]:
    try:
        return tunables.table(row for tuner in plugins.tuners() for row in tuner.rows)
    except (ConfigError, ValueError):
        return tunables.table()
