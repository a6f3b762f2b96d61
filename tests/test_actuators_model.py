"""The actuator against a simple model of it: any order of wishes, lies, foreign writes, silence, orders, stops, crashes
and full disks. The real code on a real journal; what it wrote is seen in the files that stand for the kernel's values,
one write at a time, never by its own word."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from actuator_world import RMEM, ROWS, THRESH, WEB, FakeKernel, World
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actuators import history, originals
from actuators.foreign import Foreign
from actuators.originals import Originals
from actuators.parts import BOOT_ID
from actuators.records import Spot
from actuators.state_dir import JournalError
from actuators.store import Store
from actuators.trials import Trials
from actuators.watch import Watch
from bus.roles import GUARD
from bus.schema import Ask, Outcome, SysctlWrite, Verdict, Wish

SPOTS = [Spot(RMEM, WEB), Spot(RMEM, 1), *(Spot(name, 0) for name in THRESH)]
WANTS = {
    RMEM: [180000, 220000, 262144, 300000, 350000, 400000, 500000],
    **dict(zip(THRESH, ([90, 128, 256, 500, 700], [400, 512, 700, 1400], [900, 1024, 1500, 2048]), strict=True)),
}
FOREIGN = {RMEM: [4096, 262144, 300000, 333333, 2**30], **{name: [8, 512, 600, 1024, 2**22] for name in THRESH}}
LEASE_NS = 30 * 10**9
WISH_NS = 11_700_000
"""Between two wishes: of more than a hundred refusals in a second not all are told."""
HOUR_NS = 3600 * 10**9
TURNS = 2
MIDWAY = 10**9
"""The id of a change in whose middle the actuator died: the journal knows its real one."""
DECIDERS = ["tcp_buffer", "neigh_table", GUARD]


class Killed(BaseException):
    """What SIGKILL would be, in a place of our choosing."""


def kill(*_: object, **__: object) -> None:
    raise Killed


POINTS: dict[str, Callable[[World], None]] = {
    "between two wishes": lambda world: None,
    "before the intent": lambda world: setattr(world.parts.keeper, "intend", kill),
    "before the write": lambda world: setattr(world.kernel, "before", kill),
    "after the write": lambda world: setattr(world.kernel, "after", kill),
    "before the outcome": lambda world: setattr(world.parts.keeper, "settle", kill),
    "before it is told": lambda world: setattr(world.writer, "_tell", kill),
}


@dataclass
class Ours:
    """A key where something of ours stands."""

    original: int
    stands: int
    changes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """id -> old, new; oldest first."""
    trials: set[int] = field(default_factory=set)

    def before(self, change: int) -> int:
        return self.original if change == min(self.changes) else self.changes[change][0]

    def values(self) -> set[int]:
        return {self.original, *itertools.chain(*self.changes.values())}


def family(spot: Spot) -> set[Spot]:
    return {Spot(name, 0) for name in THRESH} if spot.tunable in THRESH else {spot}


class Actuator(RuleBasedStateMachine):
    """The model, and the real one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.ahead_ns, self.ticks = 0, itertools.count(0, 1000)
        starts = {clock: time.clock_gettime_ns(clock) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME,
                                                                   time.CLOCK_TAI, time.CLOCK_REALTIME)}  # fmt: skip
        self.patch.setattr(time, "clock_gettime_ns", lambda clock: starts[clock] + self.ahead_ns + next(self.ticks))
        self.patch.setattr(time, "monotonic_ns", lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        self.disk = True
        for owner, name in ((Store, "transaction"), (Originals, "_append")):
            self.patch.setattr(owner, name, self.on_disk(getattr(owner, name)))
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.base = Path(self.folder.name)
        self.ours: dict[Spot, Ours] = {}
        self.held: set[Spot] = set()
        self.theirs: set[Spot] = set()
        """Taken from us by a foreign write: not to be written until release."""
        self.unseen: set[Spot] = set()
        """Written by somebody else, which nobody has told the actuator."""
        self.unsaved: set[Spot] = set()
        """Taken from us or put back while the disk was full: the next run cannot know."""
        self.past: dict[Spot, set[int]] = {spot: set() for spot in SPOTS}
        """What was found there or written there by us, ever."""
        self.disturbed = False
        """Somebody else put the thresholds out of order."""
        self.foreign: dict[Spot, set[int]] = {spot: set() for spot in SPOTS}
        self.moves: dict[Spot, list[tuple[int, bool]]] = {spot: [] for spot in SPOTS}
        self.ends: dict[str, int] = {}
        self.begin(World(self.base))
        self.now = self.values()
        self.wants = dict(self.now)
        """What the model says stands."""
        self.first = dict(self.now)

    def teardown(self) -> None:
        self.world.close()
        self.patch.undo()
        self.folder.cleanup()

    def begin(self, world: World) -> None:
        self.world = world
        self.trials = Trials(world.parts, guarded=True)
        self.witness = Foreign(world.parts)
        self.witness._blind = False
        self.watch = Watch(world.parts)
        world.kernel.after = self.look
        self.ends = {}

    def on_disk(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **more: Any) -> Any:
            if not self.disk:
                raise JournalError("disk full")
            return real(*arguments, **more)

        return write

    def clock_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    # --- the witness ------------------------------------------------------------------------------------------------

    def values(self) -> dict[Spot, int]:
        return {spot: self.world.value(spot.tunable, spot.netns) for spot in SPOTS}

    def look(self) -> None:
        """Whatever has changed, and was not written in somebody else's name, the actuator wrote."""
        for spot, value in self.values().items():
            if value != self.now[spot]:
                self.now[spot] = value
                self.wrote(spot, value)

    def wrote(self, spot: Spot, value: int) -> None:
        assert spot not in self.theirs | self.unseen, f"{value} was written over a foreign write of {spot}"
        ours = self.ours.get(spot)
        back = ours.values() if ours else self.past[spot] if spot in self.unsaved else set()
        assert self.disk or value in back, f"{spot} became {value} without a journal"
        bounds = self.world.parts.bounds[spot.tunable]
        assert value in back or bounds.low <= value <= bounds.high, f"{spot} became {value}"
        levels = [self.now[Spot(name, 0)] for name in THRESH]
        assert self.disturbed or levels == sorted(levels), f"the thresholds were {levels} for a moment"

    # --- the model --------------------------------------------------------------------------------------------------

    def taken(self, spot: Spot) -> None:
        self.ours.pop(spot, None)
        self.unseen.discard(spot)
        self.theirs.add(spot)
        self.held |= family(spot)
        self.unsaved |= set() if self.disk else {spot}

    def put_back(self, spot: Spot, ids: Collection[int], turn: bool = True, held: bool = False) -> None:
        ours = self.ours[spot]
        target = ours.before(min(ids))
        if self.wants[spot] not in (ours.stands, target):
            self.taken(spot)
            return
        if ours.stands != target and turn:
            self.moves[spot].append((self.clock_ns(), target > ours.stands))
        for change in ids:
            del ours.changes[change]
            ours.trials.discard(change)
        self.wants[spot] = ours.stands = target
        self.unseen.discard(spot)
        self.unsaved |= set() if self.disk else {spot}
        if not ours.changes:
            del self.ours[spot]
        if held:
            self.held |= family(spot)

    def end_trials(self, deciders: Collection[str] = DECIDERS, turn: bool = True) -> None:
        for spot, ours in list(self.ours.items()):
            if ours.trials and ROWS[spot.tunable].decider in deciders:
                self.put_back(spot, sorted(ours.trials), turn)

    def refusal(self, spot: Spot, want: int) -> str:
        """Why an honest wish must be refused; empty where it must be granted."""
        value, row, ours = self.wants[spot], ROWS[spot.tunable], self.ours.get(spot)
        bounds = self.world.parts.bounds[spot.tunable]
        if spot in self.held:
            return "held"
        change = abs(want - value)
        small = change < value // 128 and want not in (bounds.low, bounds.high, ours.original if ours else value)
        if not bounds.low <= want <= bounds.high or change == 0 or small or change > max(1, row.step * value):
            return "size"
        ways = [up for t_ns, up in self.moves[spot] if t_ns > self.clock_ns() - HOUR_NS]
        turns = sum(one != other for one, other in itertools.pairwise(ways))
        if ways and ways[-1] != (want > value) and turns >= TURNS:
            return "turns"
        if spot.tunable == RMEM:
            return "order" if want < 131072 else ""
        levels = [want if name == spot.tunable else self.wants[Spot(name, 0)] for name in THRESH]
        place = THRESH.index(spot.tunable)
        beside = levels[max(0, place - 1) : place + 2]
        return "order" if beside != sorted(beside) else ""

    def judged(self, spot: Spot, want: int) -> str:
        """What a wish does to the model, whether or not it is granted. Returns why it is refused, if it is."""
        self.ahead_ns += WISH_NS
        if spot in self.unseen and self.wants[spot] != self.ours[spot].stands:
            self.taken(spot)
        refusal = self.refusal(spot, want)
        if refusal == "turns" and self.disk:
            self.held |= family(spot)
        return refusal or ("" if self.disk else "journal")

    def granted(self, spot: Spot, want: int, change: int) -> None:
        value = self.wants[spot]
        self.moves[spot].append((self.clock_ns(), want > value))
        ours = self.ours.setdefault(spot, Ours(value, value))
        ours.changes[change] = value, want
        ours.trials.add(change)
        self.past[spot] |= {value, want}
        self.wants[spot] = ours.stands = want
        self.ends[ROWS[spot.tunable].decider] = self.clock_ns() + LEASE_NS

    def on_trial(self) -> list[int]:
        return sorted(change for ours in self.ours.values() for change in ours.trials)

    @initialize(spots=st.sampled_from([SPOTS, SPOTS[:1], SPOTS[2:], SPOTS[1:2] + SPOTS[4:]]))
    def about(self, spots: list[Spot]) -> None:
        """A story about few keys goes deeper."""
        self.spots = spots

    # --- wishes -----------------------------------------------------------------------------------------------------

    def choice(self, spot: Spot, number: int) -> int:
        """A value to wish for: mostly one that will be granted, where there is one."""
        good = [want for want in WANTS[spot.tunable] if not self.refusal(spot, want)]
        wants = good if good and number < 7 else WANTS[spot.tunable]
        return wants[number % len(wants)]

    @rule(asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=4))
    def wishes(self, asked: list[tuple[int, int]]) -> None:
        for place, number in asked:
            spot = self.spots[place % len(self.spots)]
            want = self.choice(spot, number)
            refusal = self.judged(spot, want)
            outcome = self.world.wish(want, spot.tunable, spot.netns)
            self.look()
            assert outcome.verdict == ("refused" if refusal else "written"), (refusal, outcome.reason)
            if not refusal:
                self.granted(spot, want, outcome.change)

    @rule(
        place=st.integers(0, 5),
        lie=st.sampled_from(
            [
                {"want": 2**31},
                {"want": -1},
                {"want": 1},
                {"want": 2**31 - 1},
                {"t_ns": 1},
                {"t_ns": 2**62},
                {"valid_ns": 0, "t_ns": 10},
                {"asker": "nobody"},
                {"asker": GUARD},
                {"believed": -7},
                {"tunable": "kernel.panic"},
                {"tunable": "net.ipv4.tcp_rmem[1]"},
                {"netns": 2**60},
                {"why": "\x1b[2J"},
            ]
        ),
    )
    def evil_wish(self, place: int, lie: dict[str, Any]) -> None:
        spot = self.spots[place % len(self.spots)]
        self.ahead_ns += WISH_NS
        fields = {"want": WANTS[spot.tunable][0], "believed": self.now[spot], **lie}
        if spot in self.unseen and "t_ns" not in lie and not lie.keys() & {"asker", "tunable", "netns", "why"}:
            self.taken(spot)  # it is right about nothing, but it makes the actuator look
        assert evil(self.world, spot, **fields) == "refused"
        self.look()

    @precondition(lambda self: self.disk)
    @rule(place=st.integers(0, 5), number=st.integers(0, 8), when=st.sampled_from(["before", "after"]))
    def wish_that_meets_a_foreign_write(self, place: int, number: int, when: str) -> None:
        spot = self.spots[place % len(self.spots)]
        want = self.choice(spot, number)
        if self.judged(spot, want):
            self.world.wish(want, spot.tunable, spot.netns)
            return
        up = want > self.wants[spot]
        theirs = 77777 + (self.wants[spot] == 77777)

        def meet() -> None:
            self.look()
            setattr(self.world.kernel, when, lambda: None)
            self.write(spot, theirs)

        setattr(self.world.kernel, when, meet)
        outcome = self.world.wish(want, spot.tunable, spot.netns)
        self.world.kernel.before, self.world.kernel.after = lambda: None, self.look
        assert outcome.verdict == "ceded", outcome
        self.moves[spot].append((self.clock_ns(), up))
        self.ends[ROWS[spot.tunable].decider] = self.clock_ns() + LEASE_NS
        self.taken(spot)

    # --- somebody else ----------------------------------------------------------------------------------------------

    def write(self, spot: Spot, value: int) -> None:
        self.world.foreign(value, spot.tunable, spot.netns)
        self.now[spot] = self.wants[spot] = value
        self.foreign[spot].add(value)
        levels = [self.now[Spot(name, 0)] for name in THRESH]
        self.disturbed = self.disturbed or levels != sorted(levels) or (spot.tunable in THRESH and bool(self.ours))

    def tell(self, spot: Spot, value: int) -> None:
        text = f"4096\t131072\t{value}" if spot.tunable == RMEM else f"{value}"
        path = ROWS[spot.tunable].path
        self.witness.written(
            SysctlWrite(time.monotonic_ns(), spot.netns or 1, 7, 1, 0, "sysctl", path, old="", new=text)
        )

    @rule(place=st.integers(0, 5), number=st.integers(0, 4), told=st.booleans())
    def foreign_write(self, place: int, number: int, told: bool) -> None:
        spot = self.spots[place % len(self.spots)]
        value = FOREIGN[spot.tunable][number]
        ours = self.ours.get(spot)
        self.write(spot, value)
        if ours and told:
            self.taken(spot)
        elif ours and value != ours.stands:
            self.unseen.add(spot)
        else:
            # Of the very value that we wrote, and nobody has seen it.
            self.unseen.discard(spot)
        if told:
            self.tell(spot, value)
            self.look()

    @precondition(lambda self: self.ours)
    @rule(data=st.data())
    def foreign_write_of_our_own_value(self, data: st.DataObject) -> None:
        spot = data.draw(st.sampled_from(sorted(self.ours)))
        value = self.ours[spot].stands
        self.write(spot, value)
        self.taken(spot)
        self.tell(spot, value)
        self.look()

    # --- time -------------------------------------------------------------------------------------------------------

    # No sum of these is a lease to the microsecond.
    @rule(seconds=st.sampled_from([0.3, 13.1, 31.0, 3700.0]), silent=st.sets(st.sampled_from(DECIDERS), max_size=1))
    def time_passes(self, seconds: float, silent: set[str]) -> None:
        self.ahead_ns += int(seconds * 1e9)
        for decider in sorted({*DECIDERS} - silent):
            self.trials.beat(decider)
            self.ends[decider] = self.clock_ns() + LEASE_NS
        trying = {ROWS[spot.tunable].decider for spot, ours in self.ours.items() if ours.trials}
        watching = {GUARD} if trying else set()
        lapsed = [name for name in trying | watching if self.ends.setdefault(name, 2**62 + LEASE_NS) <= self.clock_ns()]
        for name in watching:
            self.ends[name] = min(self.ends[name], self.clock_ns() + LEASE_NS)
        self.trials.tend()
        self.look()
        self.end_trials(DECIDERS if GUARD in lapsed else lapsed)

    @precondition(lambda self: self.on_trial())
    @rule(who=st.sampled_from(DECIDERS))
    def one_falls_silent(self, who: str) -> None:
        self.time_passes(13.1, set())
        self.time_passes(31.0, {who})

    @rule()
    def a_quiet_moment(self) -> None:
        self.world.modes.tend()
        self.watch.level()
        self.look()
        for spot in sorted(self.unseen):
            self.taken(spot)

    # --- who may say so ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.on_trial())
    @rule(data=st.data(), confirm=st.booleans(), guard=st.booleans())
    def verdict(self, data: st.DataObject, confirm: bool, guard: bool) -> None:
        change = data.draw(st.sampled_from(self.on_trial()))
        [spot] = [spot for spot, ours in self.ours.items() if change in ours.changes]
        refused = not confirm and self.breaks_the_order(spot, change)
        if guard:
            word = Verdict(1, time.monotonic_ns(), 10**9, change, confirm, "retransmits 0.1 % -> 3 %", {})
            self.trials.judge(word, GUARD, time.monotonic_ns())
        else:
            verb = "confirm" if confirm else "revert"
            assert getattr(self.world.parts.orders, verb)(Ask(verb, change=change)).ok != refused or self.unseen
        self.look()
        if confirm:
            self.ours[spot].trials -= {number for number in self.ours[spot].trials if number <= change}
        elif not refused:
            self.put_back(spot, [number for number in self.ours[spot].changes if number >= change], held=True)

    @precondition(lambda self: self.ours)
    @rule(data=st.data(), every=st.booleans())
    def rollback(self, data: st.DataObject, every: bool) -> None:
        spot = data.draw(st.sampled_from(sorted(self.ours)))
        change = data.draw(st.sampled_from(sorted(self.ours[spot].changes)))
        refused = not every and self.breaks_the_order(spot, change)
        self.world.parts.orders.rollback(Ask("rollback", change=0 if every else change))
        self.look()
        if every:
            for each, ours in list(self.ours.items()):
                self.put_back(each, sorted(ours.changes), held=True)
        elif not refused:
            self.put_back(spot, [number for number in self.ours[spot].changes if number >= change], held=True)

    def breaks_the_order(self, spot: Spot, change: int) -> bool:
        if spot.tunable == RMEM:
            return self.ours[spot].before(change) < 131072
        values = [self.wants[Spot(name, 0)] for name in THRESH]
        place = THRESH.index(spot.tunable)
        values[place] = self.ours[spot].before(change)
        beside = values[max(0, place - 1) : place + 2]
        return beside != sorted(beside)

    @rule(place=st.integers(0, 5))
    def hold(self, place: int) -> None:
        spot = self.spots[place % len(self.spots)]
        answer = self.world.parts.orders.hold(Ask("hold", tunable=spot.tunable, netns=spot.netns))
        assert answer.ok == self.disk
        if self.disk:
            self.held |= family(spot)

    @rule(place=st.integers(0, 5))
    def release(self, place: int) -> None:
        spot = self.spots[place % len(self.spots)]
        held = self.held & family(spot)
        answer = self.world.parts.orders.release(Ask("release", tunable=spot.tunable, netns=spot.netns))
        assert answer.ok == (self.disk and bool(held))
        if self.disk:
            self.held -= held
            self.theirs -= held

    # --- ends and starts --------------------------------------------------------------------------------------------

    @rule()
    def stop_and_start(self) -> None:
        assert self.world.modes.stop() == 0
        self.look()
        self.end_trials(turn=False)
        self.start()

    @rule(place=st.integers(0, 5), number=st.integers(0, 8), point=st.sampled_from(sorted(POINTS)))
    def crash_and_start(self, place: int, number: int, point: str) -> None:
        spot = self.spots[place % len(self.spots)]
        want = self.choice(spot, number)
        if point != "between two wishes":
            taken = spot in self.unseen and self.wants[spot] != self.ours[spot].stands
            if not (taken and point == "before the outcome") and not self.judged(spot, want):
                self.midway(spot, want, point)
            POINTS[point](self.world)
            with contextlib.suppress(Killed):
                self.world.wish(want, spot.tunable, spot.netns)
        # What is on disk now is what a process that was killed leaves: closing would still tidy it up.
        shutil.copytree(self.world.state, self.base / "copy")
        self.start(self.base / "copy")

    def midway(self, spot: Spot, want: int, point: str) -> None:
        """Its journal may know of a change, and the kernel too."""
        if point == "before the intent":
            return
        old = self.wants[spot]
        self.granted(spot, want, MIDWAY)
        if point == "before the write":
            self.wants[spot] = self.ours[spot].stands = old
        else:
            self.now[spot] = want

    def start(self, copy: Path | None = None) -> None:
        self.world.close()
        if copy:
            shutil.rmtree(self.world.state)
            copy.rename(self.world.state)
        for spot, ours in list(self.ours.items()):
            if self.wants[spot] in ours.values():
                # It may have been ours on its way back: what is the value of neither can be told, this cannot.
                self.unseen.discard(spot)
        self.theirs -= self.unsaved
        new = next_world(self)
        self.begin(new)
        self.look()
        for spot, ours in list(self.ours.items()):
            if self.wants[spot] not in ours.values():
                self.taken(spot)
            else:
                ours.stands = self.wants[spot]
        self.end_trials(turn=False)
        if not self.disk or self.unsaved:
            self.forget()
        self.unsaved = set()

    def forget(self) -> None:
        """What could not be journaled is not known to the next run."""
        keeper = self.world.parts.keeper
        self.held = {spot for spot in SPOTS if keeper.held(spot)}
        self.theirs &= self.held
        for spot, kept in keeper.standing.items():
            changes = {number: (stood.old, stood.new) for number, stood in kept.changes.items()}
            self.ours[spot] = Ours(kept.original, kept.stands, changes, set(kept.on_trial()))
        self.ours = {spot: ours for spot, ours in self.ours.items() if spot in keeper.standing}
        self.unseen &= set(self.ours)
        self.wants = dict(self.now)
        pace = keeper.pace
        self.moves = {spot: [(move.t_ns, move.up) for move in pace._of.get(spot, ())] for spot in SPOTS}

    # --- the disk ---------------------------------------------------------------------------------------------------

    @rule(stays_well=st.integers(0, 3))
    def disk_full(self, stays_well: int) -> None:
        self.disk = self.disk and bool(stays_well)

    @precondition(lambda self: not self.disk)
    @rule()
    def disk_back(self) -> None:
        self.disk = True
        self.a_quiet_moment()
        self.unsaved = set()

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def what_stands_is_what_the_model_says(self) -> None:
        assert self.values() == self.wants
        keeper = self.world.parts.keeper
        stands = {spot: (kept.original, kept.stands) for spot, kept in keeper.standing.items()}
        assert stands == {spot: (ours.original, ours.stands) for spot, ours in self.ours.items()}
        trials = sorted(number for kept in keeper.standing.values() for number in kept.on_trial())
        assert trials == self.on_trial()
        assert {spot for spot in SPOTS if keeper.held(spot)} == self.held

    @invariant()
    def every_value_is_within_bounds_or_theirs_or_the_original(self) -> None:
        for spot, value in self.now.items():
            bounds = self.world.parts.bounds[spot.tunable]
            known = {*self.foreign[spot], self.first[spot]}
            assert value in known or bounds.low <= value <= bounds.high

    @invariant()
    def the_disk_knows_every_original(self) -> None:
        if not self.disk:
            return
        self.world.parts.keeper.flush()
        wanted = {spot: ours.original for spot, ours in self.ours.items()}
        assert {key.spot: key.original for key in history.keys(self.world.state)} == wanted
        log = originals.read(self.world.state, BOOT_ID.read_text().strip())
        assert {write.spot: write.original for write in log.writes} == wanted

    @invariant()
    def no_trial_outlives_its_lease(self) -> None:
        for spot, ours in self.ours.items():
            if ours.trials:
                assert self.clock_ns() < self.ends[ROWS[spot.tunable].decider] + 10**9


def next_world(machine: Actuator) -> World:
    """The next run, whose writes are seen from its first on."""
    real = FakeKernel.swap

    def swap(kernel: FakeKernel, *arguments: Any) -> Any:
        kernel.after = machine.look
        return real(kernel, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeKernel, "swap", swap)
        return World(machine.base, "enforce", machine.world.namespaces)


def evil(world: World, spot: Spot, **lie: Any) -> str:
    """The verdict on a wish with these lies in it."""
    fields = {
        "t_ns": time.monotonic_ns(),
        "valid_ns": 10**9,
        "tunable": spot.tunable,
        "netns": spot.netns,
        "netns_ino": 0,
        "why": "7 drops",
        "evidence": {},
        **lie,
    }
    asker = fields.pop("asker", ROWS[spot.tunable].decider)
    before = len(world.events)
    world.writer.handle(Wish(version=1, **fields), asker)
    return [event for event in world.events[before:] if isinstance(event, Outcome)][-1].verdict


def test_a_turn_that_a_revert_made_counts_also_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    for want in (180000, 262144):
        assert world.wish(want).verdict == "written"
    assert world.parts.orders.rollback(Ask("rollback", change=2)).ok
    world = world.next_run(tmp_path)
    assert world.parts.orders.release(Ask("release", tunable=RMEM)).ok
    assert "turn 3 within the hour" in world.wish(300000).reason
    world.close()


QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""A story that fails is told as it is: to make it short can take minutes."""
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_whatever_happens_in_whatever_order_the_actuator_does_as_the_model_says() -> None:
    run_state_machine_as_test(
        Actuator, settings=settings(max_examples=60, stateful_step_count=30, phases=QUICK, **COMMON)
    )


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_model_holds_in_many_long_stories() -> None:
    run_state_machine_as_test(Actuator, settings=settings(max_examples=300, stateful_step_count=50, **COMMON))
