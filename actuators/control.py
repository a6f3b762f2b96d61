"""What the operator asks of a running actuator, and what it says of itself once a second."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actuators.change import Writer
from actuators.modes import Modes
from actuators.parts import Parts
from actuators.trials import Trials
from bus.link import ControlServer, Publisher, WishIntake
from bus.schema import Answer, Ask


class Control:
    """Answers asks. None of them raises."""

    def __init__(self, parts: Parts, writer: Writer, modes: Modes, trials: Trials) -> None:
        self._parts = parts
        self._writer = writer
        self._modes = modes
        self._trials = trials

    def answer(self, ask: Ask, lanes: dict[str, int]) -> Answer:
        """Carry an order out. lanes: malformed messages by lane."""
        orders = self._parts.orders
        match ask.verb:
            case "ping":
                return Answer(True)
            case "status":
                return self._status(lanes)
            case "mode":
                return self._modes.change(ask.mode) if ask.mode else Answer(True, [f"mode {self._writer.mode}"])
            case "rollback":
                return self._modes.with_journal(lambda: orders.rollback(ask))
            case "confirm":
                return self._modes.with_journal(lambda: orders.confirm(ask))
            case "revert":
                return self._modes.with_journal(lambda: orders.revert(ask))
            case "hold":
                return self._modes.with_journal(lambda: orders.hold(ask))
            case "release":
                return self._modes.with_journal(lambda: orders.release(ask))

    def status_line(self, publisher: Publisher, lanes: dict[str, int]) -> str:
        """One line of JSON for STATUS=."""
        keeper = self._parts.keeper
        troubled = keeper.trouble and self._writer.mode != "observe"
        return msgspec.json.encode(
            {
                "mode": self._writer.mode,
                "changes": _counts(keeper.counts),
                "refused": self._writer.refused,
                "malformed": lanes,
                "published": publisher.published,
                "standing": len(keeper.standing),
                "late_verdicts": self._trials.late,
                "missing": [f"journal: {keeper.trouble}"] if troubled else [],
            }
        ).decode()

    def _status(self, lanes: dict[str, int]) -> Answer:
        keeper = self._parts.keeper
        return Answer(
            True,
            [f"mode {self._writer.mode}, {len(keeper.standing)} keys changed"],
            {
                "mode": self._writer.mode,
                "journal": keeper.trouble or "ok",
                "standing": len(keeper.standing),
                "changes": _counts(keeper.counts),
                "refused": dict(self._writer.refused),
                "malformed": lanes,
                "late_verdicts": self._trials.late,
            },
        )


def malformed(intakes: Sequence[WishIntake], control: ControlServer) -> dict[str, int]:
    """Messages that were none of ours, by lane."""
    return {intake.decider: intake.malformed for intake in intakes} | {"control": control.malformed}


def _counts(counts: dict[str, int]) -> dict[str, int]:
    return {state: count for state, count in counts.items() if count}
