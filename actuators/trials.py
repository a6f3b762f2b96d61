"""Changes on trial: the leases they stand on, the guard's word on them, and telling everybody that they are there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from actuators.keeper import Standing
from actuators.leases import LEASE_NS
from actuators.parts import Parts
from actuators.records import stamp
from actuators.undo import Ending
from bus.roles import GUARD
from bus.schema import AnyEvent, Trial, Verdict
from bus.tunables import Tunable


class Trials:
    """Ends what is on trial: by the guard's verdict, or because its decider is not heard any more."""

    def __init__(self, parts: Parts, guarded: bool) -> None:
        self._keeper = parts.keeper
        self._undo = parts.undo
        self._orders = parts.orders
        self._leases = parts.leases
        self._say = parts.voice.say
        self._guarded = guarded
        self.late = 0
        """Verdicts that came too late, for a change that had ended, or from another lane."""
        self._told: set[int] = set()
        """Changes of which was said that they cannot be put back as the guard says."""

    def beat(self, decider: str) -> None:
        """A decider was heard."""
        self._leases.renew(decider)

    def judge(self, verdict: Verdict, lane: str, now_ns: int) -> None:
        """Do as the guard says. now_ns: CLOCK_MONOTONIC."""
        known = any(verdict.change in kept.on_trial() for kept in self._keeper.standing.values())
        if lane != GUARD or not verdict.t_ns <= now_ns <= verdict.t_ns + verdict.valid_ns or not known:
            self.late += 1
        elif verdict.confirm:
            self._orders.confirm_change(verdict.change, f"guard: {verdict.why}")
        else:
            answer = self._orders.revert_change(verdict.change, f"guard: {verdict.why}")
            if not answer.ok and verdict.change not in self._told:
                self._told.add(verdict.change)
                why = "; ".join(answer.lines)
                self._say(f"not put back as the guard asks (it will ask again): {why}  [guard: {verdict.why}]")

    def tend(self) -> None:
        """Put back what no living decider stands for."""
        deciders = {kept.decider for kept in self._keeper.standing.values() if kept.on_trial()}
        # A trial that nobody judges would never end, so it stands on the guard's lease as well.
        watching = {GUARD} if self._guarded and deciders else set()
        for decider in self._leases.lapsed(sorted(deciders | watching)):
            why = f"lease ran out: {decider} has not been heard for {LEASE_NS // 1_000_000_000} s"
            self._undo.trials(Ending("reverted", why), None if decider == GUARD else {decider})
        if deciders or not self._keeper.trouble:
            with contextlib.suppress(OSError):
                self._leases.save(deciders)

    def tell(self, emit: Callable[[AnyEvent], None], rows: dict[str, Tunable]) -> None:
        """Everything on trial, as level state."""
        self._told &= {number for kept in self._keeper.standing.values() for number in kept.on_trial()}
        for kept in self._keeper.standing.values():
            for number in kept.on_trial():
                emit(_trial(kept, number, rows[kept.spot.tunable].guards if kept.spot.tunable in rows else ()))


def _trial(kept: Standing, number: int, guards: tuple[str, ...]) -> Trial:
    stood = kept.changes[number]
    return Trial(
        stamp().t_ns,
        number,
        stood.decider,
        kept.spot.tunable,
        kept.spot.netns,
        kept.site.inode,
        stood.old,
        stood.new,
        stood.t_ns,
        guards,
    )
