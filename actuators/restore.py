"""After a reboot: what was confirmed is applied again, early, where it still fits.

Only the host's tunables and those of its initial namespace: other namespaces died with the boot. Only on the machine
and kernel release that it was confirmed on, only where the value that stands is the one that trimtab found before its
first write (anything else is somebody's new setting), and only within the bounds in force now. What does not fit is
said once and dropped; the deciders may find the need again.
"""

from __future__ import annotations

from actuators.keeper import Keeper
from actuators.kernel import Kernel
from actuators.parts import Parts
from actuators.records import Confirmed, Intent, Site, Spot, machine
from actuators.relations import Target, ordered


class Restore:
    """Applies what was confirmed in an earlier boot."""

    def __init__(self, parts: Parts) -> None:
        self._bounds = parts.bounds
        self._keeper: Keeper = parts.keeper
        self._kernel: Kernel = parts.kernel
        self._relations = parts.undo.relations
        self._voice = parts.voice

    def run(self) -> int:
        """Apply all that fits, in an order that breaks no relation. Returns how many were. Raises JournalError."""
        found = {Spot(one.tunable, self._place(one)): one for one in self._keeper.restorable()}
        moves = [Target(spot, one.value, one.ids[-1]) for spot, one in found.items()]
        done = 0
        for move in ordered(moves, self._relations, self._values(found)):
            one = found[move.spot]
            why = self._unfit(move.spot, one)
            done += not why and self._apply(move.spot, one)
            if why:
                self._voice.say(f"not applied again: {one.tunable} = {one.value}, confirmed before the reboot: {why}")
            self._keeper.forget(one.ids, why or "the host has rebooted since, and it was applied again")
        return done

    # --- how ------------------------------------------------------------------------------------------------------

    def _place(self, one: Confirmed) -> int:
        return 0 if one.scope == "host" else self._kernel.own

    def _unfit(self, spot: Spot, one: Confirmed) -> str:
        if one.machine != machine():
            return f"that was on {one.machine.partition(' ')[0] or 'another machine'}, this is {machine().split()[0]}"
        bounds = self._bounds.get(one.tunable)
        if not bounds or not bounds.low <= one.value <= bounds.high:
            return f"the bounds are {bounds.low} to {bounds.high} now" if bounds else "no such tunable any more"
        if self._keeper.held(spot):
            return self._keeper.held(spot)
        try:
            value = self._kernel.read(spot)
            beside = self._kernel.read(Spot(one.twin.name, spot.netns)) if one.twin else 0
        except OSError as error:
            return error.strerror or str(error)
        if one.twin and beside != one.twin.value:
            return f"{one.twin.name}, its twin, is {beside}, not {one.twin.value} as before trimtab"
        return "" if value == one.original else f"{value} stands there, not {one.original} as before trimtab"

    def _apply(self, spot: Spot, one: Confirmed) -> bool:
        site = self._kernel.site(spot.netns) if spot.netns else Site()
        why = f"confirmed in change {one.ids[-1]}, before the reboot"
        intent = Intent(spot, site, one.decider, one.original, one.value, why, {}, one.original, one.twin)
        number = self._keeper.intend(intent)
        swap = self._kernel.swap(spot, 0, one.original, one.value, one.twin)
        if swap.stands != one.value or swap.theirs:
            self._keeper.settle(spot, "failed", swap.error or f"{swap.stands} stands there", None, (number,))
            return False
        self._keeper.settle(spot, "confirmed", why, one.value, (number,))
        self._voice.changed(intent, number)
        return True

    def _values(self, found: dict[Spot, Confirmed]) -> dict[Spot, int]:
        values: dict[Spot, int] = {}
        for spot, one in found.items():
            tied = self._kernel.related((*self._relations.of(one.tunable), one.tunable), spot.netns, 0)
            values |= {Spot(name, spot.netns): value for name, value in tied.items()}
        return values
