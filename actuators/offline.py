"""Orders when no actuator runs: rollback, hold and release, straight from the journal, under the actuator's lock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actuators.parts import StateLock, assemble
from actuators.state_dir import JournalError
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
    lock = StateLock(folder)
    try:
        lock.take()
    except JournalError as error:
        return Answer(False, [str(error)])
    parts = assemble(_rows(), folder, said.append, lambda event: None)
    try:
        try:
            said += parts.keeper.open()
        except JournalError as error:
            said.append(f"the journal cannot be written: {error}")
        parts.undo.recover()
        answer = getattr(parts.orders, ask.verb)(ask)
    finally:
        parts.close()
        lock.close()
    return Answer(answer.ok, [*said, *answer.lines], answer.data)


def _rows() -> Mapping[str, Tunable]:
    try:
        return tunables.table(row for tuner in plugins.tuners() for row in tuner.rows)
    except (ConfigError, ValueError):
        return tunables.table()
