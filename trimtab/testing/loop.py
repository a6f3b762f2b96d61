"""A closed loop in memory: made-up worlds (worlds), a decider or two with their engine, and the model of gate
and the values (model), to which the worlds react. Time is made up as well: an hour takes as long as its events
take to decide.

    loop = Loop(["tcp_buffer"], [TcpFlow(Path(bandwidth=step(5, 50e6)))]).run(60)
    assert loop.peak("net.ipv4.tcp_rmem[2]") <= 8 << 20
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from msgspec import Struct

from actuators.records import Spot
from bus import tunables
from bus.config import Config
from bus.roles import GUARD
from bus.schema import AnyEvent, Host, Outcome, Tick, Verdict, Wish
from bus.tunables import Tunable
from deciders.__main__ import load
from deciders.engine import decide
from trimtab.tape.model import Key, Model
from trimtab.testing.worlds import World

SECOND_NS = 1_000_000_000
MEM_BYTES = 32 << 30
START_NS = 100 * SECOND_NS
LEVEL_S = 2.0
"""How often values and trials are told of."""

Faults = Callable[[AnyEvent], Iterable[AnyEvent]]
"""What a lane makes of an event: nothing (lost), itself twice, an earlier one beside it."""


class Change(Struct, frozen=True):
    """A value written: by a wish, or because the guard put one back."""

    seconds: float
    spot: Spot
    old: int
    new: int


class Standing(Mapping[Spot, int]):
    """What stands, whenever it is looked at."""

    def __init__(self, model: Model) -> None:
        self._keys = model.keys

    def __getitem__(self, spot: Spot) -> int:
        return self._keys[spot].value

    def __iter__(self) -> Iterator[Spot]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Loop:
    """See the module. What happened is in its attributes."""

    def __init__(
        self,
        deciders: Sequence[str],
        worlds: Sequence[World],
        config: Config | None = None,
        rows: Mapping[str, Tunable] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """deciders: one, and the guard if it is to watch. rows: all tunables, narrowed; default: trimtab's own. faults:
        of the lane to the deciders. Raises ConfigError for no such decider, or a wrong policy."""
        self.events: list[AnyEvent] = []
        """As the deciders consumed them: what trimtab.testing.made_tape.write makes a tape of."""
        self.wishes: list[Wish | Verdict] = []
        self.outcomes: list[Outcome] = []
        self.changes: list[Change] = []
        self.seconds = 0.0
        self._deciders = [load(name, config or Config()) for name in deciders]
        one = next((name for name in deciders if name != GUARD), GUARD)
        self.model = Model(one, rows or tunables.table(), MEM_BYTES, ())
        self._worlds = list(worlds)
        self._due = [0.0 for _ in worlds]
        self._faults = faults or (lambda event: (event,))
        for spot, value in (item for world in worlds for item in world.values.items()):
            self.model.begin(spot, value, value, spot.netns)

    @property
    def refused(self) -> list[str]:
        """Why, for each wish that the gate refused."""
        return [outcome.reason for outcome in self.outcomes if outcome.verdict == "refused"]

    def peak(self, tunable: str) -> int:
        """The most that stood in a tunable, wherever. LookupError: it is in none of the worlds."""
        return max(key.tally.peak for key in self._keys(tunable))

    def final(self, tunable: str) -> int:
        """The most that stands in a tunable now, wherever. LookupError as above."""
        return max(key.value for key in self._keys(tunable))

    def reversals(self, tunable: str) -> int:
        """How often a tunable has turned round, up after down or down after up, where it did so most often."""
        return max(key.tally.reversals for key in self._keys(tunable))

    def of(self, tunable: str) -> list[Change]:
        """The changes of one tunable, in all places."""
        return [change for change in self.changes if change.spot.tunable == tunable]

    def run(self, seconds: float) -> Loop:
        """So much longer."""
        end_s = self.seconds + seconds
        while self.seconds < end_s:
            before_s, self.seconds = self.seconds, min(self.seconds + 1.0, *self._due, end_s)
            # One by one: each tells what stands when it is told, after all that came of those before it.
            for event in chain(self._bus(before_s), self._turns()):
                self._show(event)
        return self

    def _keys(self, tunable: str) -> list[Key]:
        found = [key for spot, key in self.model.keys.items() if spot.tunable == tunable]
        if not found:
            raise LookupError(f"none of the worlds has {tunable}")
        return found

    def _t_ns(self) -> int:
        return START_NS + round(self.seconds * SECOND_NS)

    def _bus(self, before_s: float) -> Iterator[AnyEvent]:
        """What the actuator and the clock tell."""
        t_ns, seconds = self._t_ns(), self.seconds
        if seconds // 1 != before_s // 1 or not before_s:
            yield Tick(t_ns, int(seconds))
        if seconds // LEVEL_S != before_s // LEVEL_S or not before_s:
            yield Host(t_ns, "made up", "0", "none", 2, MEM_BYTES, 4096, 37)
            for key in list(self.model.keys.values()):
                yield self.model.value(key, t_ns)
            yield from list(self.model.level(t_ns))

    def _turns(self) -> Iterator[AnyEvent]:
        for number, world in enumerate(self._worlds):
            if self.seconds >= self._due[number]:
                # Counted, not added up: no error grows.
                self._due[number] = (round(self.seconds / world.every_s) + 1) * world.every_s
                yield from world.turn(self.seconds, self._t_ns(), Standing(self.model))

    def _show(self, event: AnyEvent) -> None:
        """An event on its lane, and at once what comes of it."""
        waiting = deque((event,))
        while waiting:
            for seen in self._faults(waiting.popleft()):
                self.events.append(seen)
                for _, asked in decide((seen,), self._deciders):
                    for wish in asked:
                        self.wishes.append(wish)
                        waiting.extend(self._answer(wish))

    def _answer(self, wish: Wish | Verdict) -> list[AnyEvent]:
        before, t_ns = {spot: key.value for spot, key in self.model.keys.items()}, self._t_ns()
        told = self.model.judge(wish, t_ns) if isinstance(wish, Verdict) else self.model.ask(wish, t_ns)
        self.outcomes += [event for event in told if isinstance(event, Outcome)]
        for spot, key in self.model.keys.items():
            # A key of a destination begins with the first wish for it.
            was = before.get(spot, key.base)
            if key.value != was:
                self.changes.append(Change(self.seconds, spot, was, key.value))
        return told
