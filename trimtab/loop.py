"""A closed loop in memory: made-up worlds, the deciders with their engine, and the gate with the host's values behind
it, which react to what is written. Time is made up as well: an hour takes as long as its events take to decide.

    loop = Loop(["tcp_buffer"], [TcpFlow(Path(bandwidth=step(5, 50e6)))]).run(60)
    assert loop.peak("net.ipv4.tcp_rmem[2]") <= 8 << 20
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from msgspec.structs import replace

from actuators import gate
from actuators.gate import Refused, View
from actuators.pace import Move, Pace
from actuators.records import Spot
from bus import tunables
from bus.config import Config
from bus.schema import AnyEvent, Host, Outcome, Tick, Trial, Value, Verdict, Wish
from bus.tunables import Tunable
from deciders.__main__ import load
from deciders.engine import decide
from trimtab.worlds import World

SECOND_NS = 1_000_000_000
MEM_BYTES = 32 << 30
START_NS = 100 * SECOND_NS
ANSWER_NS = 3_000_000
"""From a wish to what became of it: decoding, journal, write."""
LEVEL_S = 2.0
"""How often the actuator tells its values and trials."""

Faults = Callable[[AnyEvent], Iterable[AnyEvent]]
"""What a lane makes of an event: nothing (lost), itself twice, an earlier one beside it."""


@dataclass(frozen=True)
class Change:
    """A value written, by a wish or because the guard put one back."""

    seconds: float
    spot: Spot
    old: int
    new: int


class Gate:
    """The gate itself (actuators.gate), with values, trials and pace of a host that is only made up."""

    def __init__(self, worlds: Sequence[World], rows: Mapping[str, Tunable]) -> None:
        self.original = {spot: value for world in worlds for spot, value in world.values.items()}
        self.values = dict(self.original)
        self.changes: list[Change] = []
        self.refused: list[tuple[Refused, Wish]] = []
        self.trials: dict[int, Trial] = {}
        self.parked: set[Spot] = set()
        """Where the guard has put something back: hands off."""
        self._rows = rows
        self._bounds = {name: tunables.resolve(row, MEM_BYTES) for name, row in rows.items()}
        self._pace = Pace()
        self._number = 0

    def ask(self, wish: Wish, asker: str) -> list[Outcome]:
        """Grant or refuse one wish, and write what is granted; what became of it."""
        now_ns, spot, row = wish.t_ns + ANSWER_NS, Spot(wish.tunable, wish.netns), self._rows.get(wish.tunable)
        value = self.values.get(spot, 0)
        bounds = self._bounds.get(wish.tunable, tunables.Bounds(0, 0))
        answer = gate.admit(row, bounds, wish, asker, self._view(spot, row, now_ns), now_ns)
        if isinstance(answer, Refused):
            self.refused.append((answer, wish))
            return [_outcome(wish, asker, now_ns, "refused", answer.reason, (value, 0))]
        self._number += 1
        guards = row.guards if row else ()
        about = (self._number, asker, *_place(spot), value, answer.new, now_ns, guards)
        self.trials[self._number] = Trial(now_ns, *about)
        self._write(spot, answer.new, asker, now_ns)
        return [_outcome(wish, asker, now_ns, "written", wish.why, (answer.new, self._number))]

    def judge(self, verdict: Verdict) -> list[Outcome]:
        """Confirm a change, or put it back with all later ones of its key; what became of them."""
        trial = self.trials.get(verdict.change)
        if trial is None:
            return []
        spot, now_ns = Spot(trial.tunable, trial.netns), verdict.t_ns + ANSWER_NS
        mine = [one for one in self.trials.values() if (one.tunable, one.netns) == (trial.tunable, trial.netns)]
        ended = [one for one in mine if (one.change <= trial.change) == verdict.confirm or one is trial]
        for one in ended:
            del self.trials[one.change]
        if not verdict.confirm:
            self._write(spot, trial.old, trial.decider, now_ns, undo=True)
            self.parked.add(spot)
        kind: Literal["confirmed", "reverted"] = "confirmed" if verdict.confirm else "reverted"
        value = self.values[spot]
        return [
            Outcome(now_ns, one.decider, *_place(spot)[:2], one.old, one.new, kind, verdict.why, value, one.change)
            for one in ended
        ]

    def level(self, t_ns: int) -> Iterator[AnyEvent]:
        """What stands, and what is on trial."""
        for spot, value in self.values.items():
            if bounds := self._bounds.get(spot.tunable):
                yield Value(
                    t_ns, *_place(spot), value, self.original[spot], bounds.low, bounds.high, spot in self.parked
                )
        for trial in self.trials.values():
            yield replace(trial, t_ns=t_ns)

    def _view(self, spot: Spot, row: Tunable | None, now_ns: int) -> View:
        self._pace.forget(now_ns)
        value = self.values.get(spot, 0)
        near = {name: self.values.get(Spot(name, spot.netns)) for name in (row.related if row else ())}
        return View(
            value,
            self.original.get(spot, value),
            held="parked by the guard" if spot in self.parked else "",
            related={name: its for name, its in near.items() if its is not None},
            changed_ns=self._pace.changed_ns(spot),
            turns=self._pace.turns(spot),
            rising=self._pace.rising(spot),
        )

    def _write(self, spot: Spot, new: int, asker: str, now_ns: int, *, undo: bool = False) -> None:
        old = self.values[spot]
        if new != old:
            self.values[spot] = new
            self._pace.note(Move(now_ns, spot, asker, new > old, undo))
            self.changes.append(Change((now_ns - START_NS) / SECOND_NS, spot, old, new))


def _place(spot: Spot) -> tuple[str, int, int]:
    return spot.tunable, spot.netns, spot.netns


def _outcome(
    wish: Wish, asker: str, t_ns: int, verdict: Literal["written", "refused"], why: str, left: tuple[int, int]
) -> Outcome:
    """left: what stands now, and the change's number."""
    return Outcome(t_ns, asker, wish.tunable, wish.netns, wish.believed, wish.want, verdict, why, *left)


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
        """deciders: by name. rows: all tunables, narrowed; default: trimtab's own. faults: of the lane to them."""
        self.deciders = [load(name, config or Config()) for name in deciders]
        self.events: list[AnyEvent] = []
        """As the deciders consumed them: what `trimtab.made_tape.write` makes a tape of."""
        self.wishes: list[Wish | Verdict] = []
        self.seconds = 0.0
        self.gate = Gate(worlds, rows or tunables.table())
        self._worlds = list(worlds)
        self._faults = faults or (lambda event: (event,))
        self._answers: deque[AnyEvent] = deque()
        self._due: list[float] = [0.0 for _ in self._worlds]

    @property
    def changes(self) -> list[Change]:
        """What was written."""
        return self.gate.changes

    @property
    def refused(self) -> list[tuple[Refused, Wish]]:
        """What the gate refused."""
        return self.gate.refused

    def peak(self, tunable: str) -> int:
        """The most that stood in a tunable, wherever."""
        stood = [value for spot, value in self.gate.original.items() if spot.tunable == tunable]
        return max(*stood, *(change.new for change in self.of(tunable)), 0)

    def final(self, tunable: str) -> int:
        """The most that stands in a tunable now, wherever."""
        return max(value for spot, value in self.gate.values.items() if spot.tunable == tunable)

    def of(self, tunable: str) -> list[Change]:
        """The changes of one tunable, in all places."""
        return [change for change in self.changes if change.spot.tunable == tunable]

    def reversals(self, tunable: str) -> int:
        """How often a tunable has turned round, up after down or down after up, where it did so most often."""
        ways: dict[Spot, list[bool]] = {}
        for change in self.of(tunable):
            ways.setdefault(change.spot, []).append(change.new > change.old)
        return max((sum(one != other for one, other in pairwise(way)) for way in ways.values()), default=0)

    # --- time passes ----------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> Loop:
        """So much longer."""
        end_s = self.seconds + seconds
        while self.seconds < end_s:
            before_s, self.seconds = self.seconds, min(self._next(), end_s)
            for event in [*self._bus(before_s), *self._worlds_turn()]:
                self._show(event)
        return self

    def _next(self) -> float:
        return min(self.seconds + 1.0, *self._due)

    def _worlds_turn(self) -> Iterator[AnyEvent]:
        for number, world in enumerate(self._worlds):
            if self.seconds >= self._due[number]:
                # Counted, not added up: no error grows.
                self._due[number] = (round(self.seconds / world.every_s) + 1) * world.every_s
                yield from world.turn(self.seconds, self._t_ns, self.gate.values)

    @property
    def _t_ns(self) -> int:
        return START_NS + round(self.seconds * SECOND_NS)

    def _bus(self, before_s: float) -> Iterator[AnyEvent]:
        """What the actuator and the collectors tell of themselves."""
        t_ns, seconds = self._t_ns, self.seconds
        while self._answers:
            yield self._answers.popleft()
        if seconds // 1 != before_s // 1 or not before_s:
            yield Tick(t_ns, int(seconds))
        if seconds // LEVEL_S == before_s // LEVEL_S and before_s:
            return
        yield Host(t_ns, "made up", "0", "none", 2, MEM_BYTES, 4096, 37)
        yield from self.gate.level(t_ns)

    def _show(self, event: AnyEvent) -> None:
        for seen in self._faults(event):
            self.events.append(seen)
            for decider in self.deciders:
                for _, asked in decide((seen,), [decider]):
                    for wish in asked:
                        self.wishes.append(wish)
                        told = self.gate.judge(wish) if isinstance(wish, Verdict) else self.gate.ask(wish, decider.name)
                        self._answers.extend(told)
