"""Changes on trial: the leases they stand on, the guard's word on them, and telling everybody that they are there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from actuators.leases import LEASE_NS
from actuators.parts import Parts
from actuators.records import stamp
from actuators.standing import Standing
from actuators.undo import Ending
from bus.roles import GUARD
from bus.schema import AnyEvent, Trial, Verdict
from bus.tunables import Tunable, row_of


class Trials:
    """Ends what is on trial: by the guard's verdict, or because its decider is not heard any more."""

    def __init__(self, parts: Parts, guarded: bool) -> None:
        self._keeper = parts.keeper
        self._undo = parts.undo
        self._orders = parts.orders
        self._leases = parts.leases
        self._say = parts.voice.say
        self._voice = parts.voice
        self._rows = parts.rows
        self._guarded = guarded
        self.late = 0
        """Verdicts that came too late, for a change that had ended, or from another lane."""
        self._told: set[int] = set()
        """Changes of which was said that they cannot be put back as the guard says."""
        self._found_good: set[int] = set()
        """Changes that the guard would confirm, and that stay on their leases: it is not asked again."""

    def beat(self, decider: str) -> None:
        """A decider was heard."""
        self._leases.renew(decider)

    def judge(self, verdict: Verdict, lane: str, now_ns: int) -> None:
        """Do as the guard says. now_ns: CLOCK_MONOTONIC."""
        known = any(verdict.change in kept.on_trial() for kept in self._keeper.standing.values())
        if lane != GUARD or not verdict.t_ns <= now_ns <= verdict.t_ns + verdict.valid_ns or not known:
            self.late += 1
        elif verdict.confirm:
            self._confirm(verdict.change, f"guard: {verdict.why}")
        else:
            answer = self._orders.revert_change(verdict.change, f"guard: {verdict.why}")
            if not answer.ok and verdict.change not in self._told:
                self._told.add(verdict.change)
                why = "; ".join(answer.lines)
                self._say(f"not put back as the guard asks (it will ask again): {why}  [guard: {verdict.why}]")

    def _confirm(self, change: int, why: str) -> None:
        kept = next(kept for kept in self._keeper.standing.values() if change in kept.on_trial())
        if not self._life_s(kept):
            self._orders.confirm_change(change, why)
        elif change not in self._found_good:
            self._found_good |= {number for number in kept.on_trial() if number <= change}
            self._keeper.settle(kept.spot, "trial", why, kept.stands, (change,))
            self._undo.leased(kept, change, why)

    def expire(self) -> None:
        """Put back what has stood for as long as it may: its decider has to ask anew."""
        now_ns = stamp().t_ns
        for kept in list(self._keeper.standing.values()):
            life_s = self._life_s(kept)
            if life_s and now_ns - kept.changes[kept.newest].t_ns >= life_s * 1_000_000_000:
                why = f"its time of {life_s} s is over"
                self._undo.trials(Ending("reverted", why, turn=False), spots={kept.spot})

    def _life_s(self, kept: Standing) -> int:
        row = row_of(self._rows, kept.spot.tunable)
        return row.life_s if row else 0

    def tend(self) -> bool:
        """Put back what no living decider stands for. Returns whether a lease runs, or the dead-man is yet to be told
        that none does."""
        deciders = {kept.decider for kept in self._keeper.standing.values() if kept.on_trial()}
        # A trial that nobody judges would never end, so it stands on the guard's lease as well.
        watching = {GUARD} if self._guarded and deciders else set()
        for decider in self._leases.lapsed(sorted(deciders | watching)):
            why = f"lease ran out: {decider} has not been heard for {LEASE_NS // 1_000_000_000} s"
            self._undo.trials(Ending("reverted", why), None if decider == GUARD else {decider})
        if deciders or not self._keeper.trouble:
            with contextlib.suppress(OSError):
                self._leases.save(deciders)
        return bool(deciders) or (self._leases.kept and not self._keeper.trouble)

    def tell(self, emit: Callable[[AnyEvent], None], rows: dict[str, Tunable]) -> None:
        """Everything on trial, as level state."""
        trials = {number for kept in self._keeper.standing.values() for number in kept.on_trial()}
        self._told &= trials
        self._found_good &= trials
        for kept in self._keeper.standing.values():
            row = row_of(rows, kept.spot.tunable)
            for number in kept.on_trial():
                if number not in self._found_good:
                    emit(_trial(kept, number, row.guards if row else ()))


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
