"""The host as a model, for replays by another policy: what would stand in its tunables, and what of that was refused,
put back or confirmed.

Wishes go through the gate itself (actuators.gate), which sees of the model what it would see of the host: the values,
the pace, the turns, what is held. What comes of them are the same events as the actuator's. Time is that of the events,
and an answer comes at once. What a model cannot know is what the traffic would have done: it stays as recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from actuators import gate
from actuators.gate import Refused, View
from actuators.pace import Move, Pace
from actuators.records import STOPPED_WHY, Spot, others
from actuators.relations import Relations
from actuators.voice import clipped
from bus.schema import AnyEvent, Outcome, Trial, Value, Verdict, Wish
from bus.tunables import Tunable, base, resolve, row_of
from trimtab.tape.model_keys import Key, Stood, Tally, on_trial

__all__ = ["LEVEL_NS", "Key", "Model", "Tally"]

LEVEL_NS = 5_000_000_000
"""How often the actuator tells what stands (actuators.service)."""


class Model:
    """The tunables of one decider, and those tied to them."""

    def __init__(self, decider: str, rows: Mapping[str, Tunable], mem_bytes: int, fence: Collection[int]) -> None:
        self.keys: dict[Spot, Key] = {}
        self.tallies: dict[Spot, Tally] = {}
        """Of all keys, also of namespaces that have gone."""
        self.relations = Relations(rows)
        self._decider = decider
        self._rows = rows
        self._bounds = {name: resolve(row, mem_bytes) for name, row in rows.items()}
        self._fence = fence
        self._pace = Pace()
        self._number = 1 << 40
        """Of the last change: far from all that a journal counted."""

    def begin(self, spot: Spot, value: int, original: int, ino: int) -> Key:
        """A key is heard of."""
        tally = self.tallies.setdefault(spot, Tally(value, value, value))
        if tally.idle:
            tally.start = tally.final = tally.peak = value
        key = self.keys[spot] = Key(spot, ino, value, value, tally)
        self._adopt(key, original)
        return key

    def learn(self, key: Key, event: Value, early: bool) -> None:
        """What the recorded actuator says of a key. early: the recorded policy has not written it yet."""
        key.ino = event.netns_ino or key.ino
        if early and event.value == key.value and not key.touched and not key.changes:
            self._adopt(key, event.original)

    def _adopt(self, key: Key, original: int) -> None:
        if original != key.value:
            # Changed before the tape began. Of that nothing is known, so it counts as confirmed.
            key.original = original
            key.changes = {0: Stood(original, key.value, 0, on_trial=False)}

    def follow(self, key: Key, value: int) -> None:
        """Somebody else has set a key that nothing of the model's stands in."""
        key.value = value
        if not key.changes:
            key.original = value
        key.tally.final, key.tally.peak = value, max(key.tally.peak, value)

    # --- requests -------------------------------------------------------------------------------------------------

    def ask(self, wish: Wish, t_ns: int) -> list[AnyEvent]:
        """A wish of the decider's. What came of it."""
        spot, row = Spot(wish.tunable, wish.netns), row_of(self._rows, wish.tunable)
        if row is None:
            # Of a tuner that has rows there and none here.
            return []
        key = self.keys.get(spot) or self.begin(spot, wish.believed, wish.believed, wish.netns_ino)
        self._pace.forget(t_ns)
        answer = gate.admit(row, self._bounds[base(row.name)], wish, self._decider, self._view(key, row, wish), t_ns)
        if isinstance(answer, Refused):
            key.tally.refused[answer.kind] = key.tally.refused.get(answer.kind, 0) + 1
            if answer.kind == "turns":
                self.hold(spot, f"parked: {answer.reason}")
            return [self._outcome(key, wish, "refused", answer.reason, t_ns)]
        self._number += 1
        if not key.changes:
            key.original = answer.old
        key.changes[self._number] = Stood(answer.old, answer.new, t_ns, on_trial=True)
        key.touched = True
        key.tally.changes += 1
        self._set(key, answer.new, t_ns)
        return [self._outcome(key, wish, "written", wish.why, t_ns, self._number), self.value(key, t_ns)]

    def judge(self, verdict: Verdict, t_ns: int) -> list[AnyEvent]:
        """The guard's word on a change on trial. What came of it."""
        key = next((key for key in self.keys.values() if on_trial(key, verdict.change)), None)
        if key is None:
            return []
        why = f"guard: {verdict.why}"
        if not verdict.confirm:
            return self._revert(key, verdict.change, why, t_ns)
        for number in [number for number in key.changes if number <= verdict.change and on_trial(key, number)]:
            stood, leased = key.changes[number], self._life_s(key)
            if stood.judged:
                return []
            key.changes[number] = Stood(stood.old, stood.new, stood.t_ns, on_trial=bool(leased), judged=True)
            key.tally.confirmed += 1
        told = self._told(key, "confirmed", why, t_ns, (verdict.change, key.value))
        return [told, self.value(key, t_ns)]

    def _revert(self, key: Key, change: int, why: str, t_ns: int) -> list[AnyEvent]:
        """As actuators.undo.since: with it goes what was changed since at tied keys, and stands in the way."""
        first = {key.spot: change}
        while True:
            targets = {spot: self.keys[spot].before(number) for spot, number in first.items()}
            broken = self._broken(targets)
            since = {spot: number for spot in broken - first.keys() if (number := self._after(spot, change))}
            if not since:
                break
            first |= since
        if broken:
            return []
        told: list[AnyEvent] = []
        for spot, number in first.items():
            one = self.keys[spot]
            later = [each for each in one.changes if each >= number]
            one.tally.reverted += len(later)
            told += [self._undo(one, later, targets[spot], why, t_ns), *self.hold(spot, f"parked: {why}", t_ns)]
        return told

    def _broken(self, targets: dict[Spot, int]) -> set[Spot]:
        """Keys beside which others may not go to their targets."""
        values = {spot: key.value for spot, key in self.keys.items()} | targets
        return {
            Spot(name, spot.netns)
            for spot, target in targets.items()
            for name in self.relations.broken(
                spot.tunable,
                target,
                lambda name, netns=spot.netns: values.get(Spot(name, netns)),  # type: ignore[misc]
            )
        }

    def _after(self, spot: Spot, change: int) -> int:
        """The first change there after this one; 0: none."""
        return min((number for number in self.keys[spot].changes if number > change), default=0)

    # --- what happens to the host ---------------------------------------------------------------------------------

    def stop(self, why: str, t_ns: int, spots: Collection[Spot] | None = None) -> list[AnyEvent]:
        """What is on trial (at these spots) is put back, by no policy's decision. When trimtab stops in order, what
        stood until then is still what a policy has come to; not when it has come back."""
        told: list[AnyEvent] = []
        last = why == STOPPED_WHY
        for key in list(self.keys.values()) if spots is None else [self.keys[spot] for spot in spots]:
            going = [number for number in key.changes if on_trial(key, number)]
            final = key.tally.final
            if going:
                told += [self._undo(key, going, key.before(going[0]), why, t_ns, turn=False), self.value(key, t_ns)]
            key.tally.final = final if last else key.value
        return told

    def give_back(self, key: Key, value: int, why: str, t_ns: int) -> list[AnyEvent]:
        """Somebody else has written a key, or had it put back: it is theirs."""
        key.changes.clear()
        key.value = key.original = key.tally.final = value
        key.tally.peak = max(key.tally.peak, value)
        return self.hold(key.spot, why, t_ns)

    def hold(self, spot: Spot, why: str, t_ns: int = 0) -> list[AnyEvent]:
        """Hands off a key and those tied to it."""
        family = [Spot(name, spot.netns) for name in self.relations.family(spot.tunable)]
        held = [self.keys[one] for one in family if one in self.keys]
        for key in held:
            key.held = key.held or why
        return [self.value(key, t_ns) for key in held] if t_ns else []

    def forget(self, netns: int) -> None:
        """A namespace has gone."""
        for spot in [spot for spot in self.keys if spot.netns == netns]:
            del self.keys[spot]

    # --- what is told ---------------------------------------------------------------------------------------------

    def level(self, t_ns: int) -> Iterator[AnyEvent]:
        """What stands where the model has written, and what is on trial; before that, the end of what has outlived its
        time."""
        for spot in [key.spot for key in self.keys.values() if self._outlived(key, t_ns)]:
            yield from self.stop(f"its time of {self._life_s(self.keys[spot])} s is over", t_ns, [spot])
        for key in self.keys.values():
            if (key.touched or key.held) and t_ns - key.told_ns >= LEVEL_NS:
                yield self.value(key, t_ns)
            row = row_of(self._rows, key.spot.tunable)
            guards = row.guards if row else ()
            for number, stood in key.changes.items():
                if stood.on_trial and not stood.judged:
                    about = (number, self._decider, key.spot.tunable, key.spot.netns, key.ino, stood.old, stood.new)
                    yield Trial(t_ns, *about, stood.t_ns, guards)

    def value(self, key: Key, t_ns: int) -> Value:
        """A key as it stands."""
        key.told_ns = t_ns
        bounds, spot = self._bounds[base(key.spot.tunable)], key.spot
        about = (spot.tunable, spot.netns, key.ino, key.value, key.base, bounds.low, bounds.high)
        return Value(t_ns, *about, bool(key.held))

    # --- how ------------------------------------------------------------------------------------------------------

    def _view(self, key: Key, row: Tunable, wish: Wish) -> View:
        spot, pace = key.spot, self._pace
        twin = self.keys.get(Spot(row.twin, spot.netns))
        return View(
            key.value,
            key.base,
            key.held,
            {name: self._tied(name, row, wish) for name in row.related},
            pace.changed_ns(spot),
            self._fence,
            pace.turns(spot),
            pace.rising(spot),
            pace.by[self._decider],
            pace.by.total(),
            twin is not None and bool(twin.changes),
            sum(others(spot, one) for one, its in self.keys.items() if its.changes) if row.instances else 0,
        )

    def _life_s(self, key: Key) -> int:
        row = row_of(self._rows, key.spot.tunable)
        return row.life_s if row else 0

    def _outlived(self, key: Key, t_ns: int) -> bool:
        newest_ns = max((stood.t_ns for stood in key.changes.values()), default=t_ns)
        return 0 < self._life_s(key) * 1_000_000_000 <= t_ns - newest_ns

    def _tied(self, name: str, row: Tunable, wish: Wish) -> int:
        """What no event tells (tcp_rmem[1]) is taken to stand in nobody's way."""
        key = self.keys.get(Spot(name, wish.netns))
        if key:
            return key.value
        return 0 if name == row.twin else wish.want

    def _set(self, key: Key, value: int, t_ns: int, *, undo: bool = False, turn: bool = True) -> None:
        tally, rises = key.tally, value > key.value
        if value != key.value and turn:
            self._pace.note(Move(t_ns, key.spot, self._decider, rises, undo))
            tally.reversals += key.rising not in (None, rises)
            key.rising = rises
        key.value = tally.final = value
        tally.peak = max(tally.peak, value)

    def _undo(self, key: Key, ids: list[int], target: int, why: str, t_ns: int, *, turn: bool = True) -> Outcome:
        told = self._told(key, "reverted", why, t_ns, (max(ids), target))
        for number in ids:
            del key.changes[number]
        self._set(key, target, t_ns, undo=True, turn=turn)
        return told

    def _told(
        self, key: Key, verdict: Literal["reverted", "confirmed"], why: str, t_ns: int, what: tuple[int, int]
    ) -> Outcome:
        """what: the change, and the value that stands now."""
        change, value = what
        about = (self._decider, key.spot.tunable, key.spot.netns, key.value, key.original, verdict, clipped(why))
        return Outcome(t_ns, *about, value, change)

    def _outcome(
        self, key: Key, wish: Wish, verdict: Literal["written", "refused"], why: str, t_ns: int, change: int = 0
    ) -> Outcome:
        about = (self._decider, wish.tunable, wish.netns, wish.believed, wish.want, verdict, why, key.value, change)
        return Outcome(t_ns, *about)
