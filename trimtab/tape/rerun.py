"""One decider, with the guard, on a recording as another policy would have it: wishes meet the model (model),
and what that answers stands in place of what was recorded of the same tunables.

As recorded stay all other events, and what others did to the decider's own tunables: the administrator's writes, holds
and orders, and the starts and stops of trimtab itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from actuators.records import LEFT_BEHIND_WHY, STOPPED_WHY, Spot
from bus.config import Config
from bus.roles import GUARD
from bus.schema import (
    AnyEvent,
    Netns,
    Outcome,
    Tick,
    Trial,
    Value,
    Verdict,
)
from bus.tunables import Tunable, base
from deciders.__main__ import load
from deciders.engine import Asked, Decider, decide
from trimtab.tape import shown
from trimtab.tape.model import LEVEL_NS, Key, Model

GUARDED = "guard: "
"""How the actuator's reason for the guard's reverts begins (actuators.trials)."""
ROLLED_BACK = "rolled back"
"""How its reason for an operator's begins (actuators.orders)."""
TURNED = "would be turn"
"""In the gate's reason for a refusal that parks a key."""
AS_RECORDED = "held on the recorded host"
Events = Sequence[AnyEvent]


class Rerun:
    """Feed it the blocks of a recording in their order."""

    def __init__(self, decider: str, config: Config, rows: Mapping[str, Tunable], mem_bytes: int) -> None:
        """rows: as the configuration has narrowed them. Raises ConfigError for a decider or a policy that is none."""
        self.model = Model(decider, rows, mem_bytes, config.netns)
        self._decider = decider
        self._config = config
        self._on = config.deciders.get(decider, True)
        self._mine = {name for name, row in rows.items() if row.decider == decider}
        self._settled: set[Spot] = set()
        """Keys that the recorded policy has written: what stood there from then on is its doing."""
        self._stood: dict[Spot, int] = {}
        """What last stood in the recorded host."""
        self._parked: set[Spot] = set()
        """What was held on the recorded host because of what the recorded policy had done."""
        self._answers: deque[AnyEvent] = deque()
        self._level_ns = 0
        own: dict[type[Any], Callable[[Any], Events]] = {
            Value: self._value,
            Outcome: self._outcome,
            Trial: self._trial,
            Netns: self._netns,
            Tick: self._tick,
        }
        self._recorded = {**dict.fromkeys(shown.BY_TOPIC, self._shows), **own}
        self.restart()

    def restart(self) -> None:
        """The deciders' processes begin anew."""
        names = [self._decider, GUARD] if self._on else []
        self._deciders: list[Decider] = [
            load(name, self._config) for name in names if self._config.deciders.get(name, True)
        ]

    def stop(self, t_ns: int) -> None:
        """The actuator's process begins anew: what was on trial has been put back."""
        self._answers.extend(self.model.stop(LEFT_BEHIND_WHY, t_ns))

    def feed(self, events: Events) -> None:
        """The next events."""
        for event, wishes in decide(self._stream(events), self._deciders):
            for wish in wishes:
                self._answers.extend(self.answer(wish, event.t_ns))

    def answer(self, wish: Asked, t_ns: int) -> Events:
        """What comes of a wish or a verdict."""
        return self.model.judge(wish, t_ns) if isinstance(wish, Verdict) else self.model.ask(wish, t_ns)

    # --- what the deciders hear ------------------------------------------------------------------------------------

    def _stream(self, events: Events) -> Iterator[AnyEvent]:
        answers = self._answers
        for event in events:
            # Asked for on the way: answered before anything else happens.
            while answers:
                yield answers.popleft()
            seen = self._recorded.get(type(event))
            if seen is None:
                yield event
            else:
                yield from seen(event)
        while answers:
            yield answers.popleft()

    def _shows(self, event: Any) -> Events:
        changed: dict[str, int] = {}
        for row in shown.rows(event):
            if base(row.tunable) not in self._mine:
                continue
            spot, value = shown.spot(row, event), getattr(event, row.field)
            key = self.model.keys.get(spot)
            if key is None:
                key = self.model.begin(spot, value, value, getattr(event, "netns_ino", 0))
            if key.value != value:
                self._follow(key, value)
                if key.value != value:
                    changed[row.field] = key.value
        return (replace(event, **changed),) if changed else (event,)

    def _follow(self, key: Key, value: int) -> None:
        if not key.touched and not key.changes and key.spot not in self._settled:
            self.model.follow(key, value)

    def _tick(self, event: Tick) -> Events:
        if 0 <= event.t_ns - self._level_ns < LEVEL_NS:
            return (event,)
        self._level_ns = event.t_ns
        return (event, *self.model.level(event.t_ns))

    def _netns(self, event: Netns) -> Events:
        if not event.alive:
            self.model.forget(event.netns)
        return (event,)

    def _trial(self, event: Trial) -> Events:
        return () if base(event.tunable) in self._mine else (event,)

    # --- what the recorded actuator said ---------------------------------------------------------------------------

    def _value(self, event: Value) -> Events:
        if base(event.tunable) not in self._mine:
            return (event,)
        spot = Spot(event.tunable, event.netns)
        stood = self._stood.get(spot)
        self._stood[spot] = event.value
        key = self.model.keys.get(spot)
        if key is None:
            key = self.model.begin(spot, event.value, event.original, event.netns_ino)
        self._follow(key, event.value)
        self.model.learn(key, event, spot not in self._settled)
        self._held(key, event)
        told: Events = ()
        if spot not in self._settled and stood not in (None, event.value) and key.value != event.value:
            # Nothing of the recorded policy's was there, so somebody else wrote it: here they wrote over the model's.
            told = self.model.give_back(key, event.value, f"somebody else wrote {event.value}", event.t_ns)
        return (*told, self.model.value(key, event.t_ns))

    def _held(self, key: Key, event: Value) -> None:
        if not event.held:
            self._parked.discard(key.spot)
            if key.held == AS_RECORDED:
                key.held = ""
        elif key.spot not in self._parked:
            key.held = key.held or AS_RECORDED

    def _outcome(self, event: Outcome) -> Events:
        if base(event.tunable) not in self._mine:
            return (event,)
        spot = Spot(event.tunable, event.netns)
        self._stood[spot] = event.value
        key = self.model.keys.get(spot)
        if event.verdict == "written":
            self._written(spot, key, event)
        elif event.verdict == "refused":
            if TURNED in event.reason:
                self._parked.update(self._family(spot))
        elif event.verdict == "ceded" and key:
            return (event, *self.model.give_back(key, event.value, event.reason, event.t_ns))
        elif event.verdict == "reverted":
            return self._reverted(spot, event)
        return ()

    def _written(self, spot: Spot, key: Key | None, event: Outcome) -> None:
        if spot in self._settled:
            return
        self._settled.add(spot)
        if key is None:
            self.model.begin(spot, event.believed, event.believed, 0)
        elif not key.touched and not key.changes:
            # An event that came before this one may have shown the new value.
            self.model.begin(spot, event.believed, event.believed, key.ino)

    def _reverted(self, spot: Spot, event: Outcome) -> Events:
        if event.reason.startswith(GUARDED):
            self._parked.update(self._family(spot))
            return ()
        if event.reason in (STOPPED_WHY, LEFT_BEHIND_WHY):
            return self.model.stop(event.reason, event.t_ns)
        key = self.model.keys.get(spot)
        if key is None:
            return ()
        if event.reason.startswith(ROLLED_BACK):
            return self.model.give_back(key, key.base, event.reason, event.t_ns)
        # A lease that ran out, or another order. Whether it is held from now on, the next Value tells.
        return self.model.stop(event.reason, event.t_ns, [spot])

    def _family(self, spot: Spot) -> Collection[Spot]:
        return [Spot(name, spot.netns) for name in self.model.relations.family(spot.tunable)]
