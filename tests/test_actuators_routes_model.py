"""Routes of ours in any story: wishes, lies, routes that others make, change and take away, touches of ours, silence,
verdicts, orders, stops and crashes. The real code with a real journal, on a main table in memory that keeps the
kernel's rules; what it did is seen in that table, never by its own word."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from route_world import BBR, CUBIC, RENO, Live

from actuators import history, route, routes
from actuators.ears import Ears
from actuators.namespaces import Namespaces
from actuators.records import Spot, stamp
from actuators.route import Route, UnfitError
from actuators.rtnetlink import RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE
from actuators.undo import Ending
from bus.prefix import network
from bus.roles import GUARD
from bus.schema import Ask, Verdict

PREFIXES = ("203.0.113.0/24", "203.0.112.0/20", "2001:db8:7::/48")
KEYS = [f"route.{name}@{to}" for to in PREFIXES for name in ("congctl", "initcwnd")]
WANTS = {"congctl": [0, RENO, CUBIC, BBR], "initcwnd": [0, 4, 20, 30, 64]}
EVIL = [-1, 3, 65, 1000, 2**31, 99]
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}


class Table:
    """A main table, and the socket to it: what the kernel would say (fib_table_insert, fib_table_delete)."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        if kind != RTM_GETROUTE:
            return []
        family, protocol = body[0], body[5]
        found = [one for one in self.routes if route.family(one.to) == family and protocol in (0, one.protocol)]
        return [route.message(one) for one in found]

    def get(self, kind: int, body: bytes) -> bytes:
        asked = route.parse(body)
        assert asked
        found = [one for one in self.routes if route.inside(asked.to, one.to)]
        if not found:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return route.message(min(found, key=lambda one: (-one.to.prefixlen, one.priority)))

    def change(self, kind: int, flags: int, body: bytes) -> None:
        asked = route.parse(body)
        assert asked
        there = [one for one in self.routes if one.to == asked.to]
        if kind == RTM_NEWROUTE:
            if any(one.priority == asked.priority for one in there):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.routes.append(asked)
        elif kind == RTM_DELROUTE:
            exact = [one for one in there if one.same(asked)]
            if not exact:
                raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
            self.routes.remove(exact[0])


def theirs(to: str, last: int, priority: int = 0) -> Route:
    """A route of somebody else's by the gateway that ends so."""
    where = network(to) if to not in DEFAULTS.values() else network_of(to)
    size = 4 if where.version == 4 else 16
    attributes = (
        (1, where.network_address.packed), (4, b"\3\0\0\0"), (5, bytes(size - 1) + bytes((last,))),
        (6, priority.to_bytes(4, "little")), (15, b"\xfe\0\0\0"), (8, b"\x08\0\2\0\x78\5\0\0"),
    )  # fmt: skip
    return Route(where, 0, 0, 254, 4, 0, 1, 0, attributes)


def network_of(to: str) -> Any:
    from ipaddress import ip_network

    return ip_network(to)


class Story:
    """The actuator beside what may be."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.patch = patch
        self.folder = folder
        self.table = Table()
        self.patch.setattr(routes, "Socket", lambda: self.table)
        self.patch.setattr(Ears, "listen", lambda ears, netns: None)
        self.patch.setattr("actuators.change.REFUSALS_TOLD", 1 << 20)  # in a second; a quick machine refuses more
        self.place: Any = SimpleNamespace(cookie=Namespaces().own, inode=0)
        self.table.routes = [theirs(DEFAULTS[4], 1), theirs(DEFAULTS[6], 1)]
        self.others = list(self.table.routes)
        """What nobody but these rules may have changed."""
        self.touched: set[str] = set()
        """Destinations of which somebody has changed our route, and may have it."""
        self.live = Live(self.folder, self.place)
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        """One thing more happens, whichever, and what must be is."""
        happens, weights = zip(*HAPPENS.items(), strict=True)
        [what] = self.rng.choices(happens, weights)
        self.done[what.__name__] += 1
        what(self)
        self.no_route_of_others_is_altered()
        self.ours_are_where_and_what_they_may_be()
        self.nothing_is_ever_confirmed()

    # --- what may happen ----------------------------------------------------------------------------------------------

    def an_honest_wish(self) -> None:
        key = self.rng.choice(KEYS)
        want = self.rng.choice(WANTS[key.partition("@")[0].partition(".")[2]])
        held, stood = self.held(key), self.value(key)
        if self.live.wish(key, want, believed=stood).verdict == "written":
            self.done["written"] += 1
            assert not held
            assert self.value(key) == want
            self.fresh(key)

    def a_lie(self) -> None:
        key, want, believed = self.rng.choice(KEYS), self.rng.choice(EVIL), self.rng.randint(-2, 70)
        before = self.ours()
        assert self.live.wish(key, want, believed=believed).verdict == "refused"
        assert all(one in before for one in self.ours())

    def somebody_has_another_default(self) -> None:
        version, last = self.rng.choice([4, 6]), self.rng.choice([1, 2])
        self.others = [one for one in self.others if str(one.to) != DEFAULTS[version]]
        self.others.append(theirs(DEFAULTS[version], last))
        self.theirs_are(self.others)
        if self.rng.random() < 0.5:
            self.the_kernel_tells()

    def somebody_makes_a_route_or_takes_it_away(self) -> None:
        to = self.rng.choice([*PREFIXES, "203.0.113.64/26", "203.0.0.0/8", *DEFAULTS.values()])
        there = [one for one in self.others if str(one.to) == to]
        self.others = [one for one in self.others if one not in there] + ([] if there else [theirs(to, 2, 5)])
        self.theirs_are(self.others)

    def all_is_as_at_first(self) -> None:
        self.theirs_are([theirs(DEFAULTS[4], 1), theirs(DEFAULTS[6], 1)])
        for key in KEYS:
            self.live.parts.orders.release(Ask("release", tunable=key))

    def somebody_touches_ours(self) -> None:
        ours, how = self.ours(), self.rng.choice(["deleted", "changed", "replaced"])
        if not ours:
            return
        one = self.rng.choice(ours)
        self.table.routes.remove(one)
        if how == "changed":
            self.table.routes.append(route.copy(one, one.to, {route.RTAX_INITCWND: b"\x09\0\0\0"}))
            self.touched.add(str(one.to))
        if how == "replaced":
            self.others.append(theirs(str(one.to), 3))
            self.theirs_are(self.others)
        keys = [spot.tunable for spot in self.live.parts.keeper.standing if spot.tunable.endswith(f"@{one.to}")]
        whole = self.leads(one)
        self.the_kernel_tells()
        assert keys or str(one.to) in self.touched
        for key in keys:
            assert ("somebody else" in self.held(key)) or (how == "deleted" and not whole)

    def leads(self, ours: Route) -> bool:
        """Whether what it is a copy of is there still."""
        try:
            cover = route.cover([one for one in self.table.routes if one.to != ours.to], ours.to)
        except UnfitError:
            return False
        return route.copy(cover, ours.to, route.ours_of(ours)).same(ours)

    def the_kernel_tells(self) -> None:
        self.live.parts.routes.level()
        self.sound()

    def an_hour_may_pass(self) -> None:
        seconds = self.rng.choice([1, 1800, 3600])
        later = seconds * 10**9
        standing = list(self.live.parts.keeper.standing.values())
        self.live.parts.routes.level()
        for kept in standing:
            for number, stood in kept.changes.items():
                kept.changes[number] = replace(stood, t_ns=stood.t_ns - later)
        self.live.trials.expire()
        if seconds == 3600:
            assert self.live.parts.keeper.standing == {}
            self.nothing_left()

    def the_guard_judges(self) -> None:
        confirm = self.rng.random() < 0.7
        trials = [number for kept in self.live.parts.keeper.standing.values() for number in kept.on_trial()]
        if trials:
            now_ns = stamp().t_ns
            number = self.rng.choice(trials)
            self.live.trials.judge(Verdict(1, now_ns, 10**9, number, confirm, "so", {}), GUARD, now_ns)
            there = [kept for kept in self.live.parts.keeper.standing.values() if number in kept.on_trial()]
            assert bool(there) == confirm

    def an_order_to_roll_back(self) -> None:
        trials = [number for kept in self.live.parts.keeper.standing.values() for number in kept.on_trial()]
        change = self.rng.choice([0, *trials])
        self.live.parts.routes.level()
        self.live.parts.orders.rollback(Ask("rollback", change=change, who="a test"))
        if not change:
            self.nothing_left()

    def hold_or_release(self) -> None:
        key, verb = self.rng.choice([*KEYS, "route.congctl"]), self.rng.choice(["hold", "release", "release"])
        getattr(self.live.parts.orders, verb)(Ask(verb, tunable=key, netns=self.place.cookie, who="a test"))

    def the_decider_falls_silent(self) -> None:
        self.live.parts.undo.trials(Ending("reverted", "lease ran out"), {"congestion"})
        self.nothing_left()

    def it_ends_and_begins_anew(self) -> None:
        if self.rng.random() < 0.5:
            assert self.live.modes.stop() == 0
            self.nothing_left()
        self.live.close()
        self.live = Live(self.folder, self.place)
        self.nothing_left()
        assert self.live.parts.keeper.standing == {}

    # --- what must be -------------------------------------------------------------------------------------------------

    def no_route_of_others_is_altered(self) -> None:
        assert sorted(map(repr, self.of_others())) == sorted(map(repr, self.others))

    def ours_are_where_and_what_they_may_be(self) -> None:
        for one in self.ours():
            assert str(one.to) in PREFIXES
            assert one.metrics.keys() <= {2, route.RTAX_CC_ALGO, route.RTAX_INITCWND}
            if str(one.to) not in self.touched:
                assert route.number(one.metrics.get(route.RTAX_INITCWND, b"")) in WANTS["initcwnd"]

    def nothing_is_ever_confirmed(self) -> None:
        assert "confirmed" not in {change.state for change in history.standing(self.live.state)}

    # --- how ----------------------------------------------------------------------------------------------------------

    def ours(self) -> list[Route]:
        return [one for one in self.table.routes if one.ours]

    def of_others(self) -> list[Route]:
        return [one for one in self.table.routes if not one.ours]

    def theirs_are(self, others: list[Route]) -> None:
        self.others = list(others)
        self.table.routes = [*self.ours(), *others]

    def value(self, key: str) -> int:
        return self.live.parts.kernel.read(Spot(key, self.place.cookie))

    def held(self, key: str) -> str:
        return self.live.parts.keeper.held(Spot(key, self.place.cookie))

    def fresh(self, key: str) -> None:
        """What has just been set is a copy of what leads there."""
        to = network(key.partition("@")[2])
        ours = route.to_exactly(self.table.routes, to)
        if ours:
            cover = route.cover(self.table.routes, to)
            assert route.copy(cover, to, route.ours_of(ours)).same(ours)

    def sound(self) -> None:
        """After a look: what stands is known, and a copy of what leads there now."""
        standing = {spot.tunable: kept.stands for spot, kept in self.live.parts.keeper.standing.items()}
        assert {key: self.value(key) for key in standing} == standing
        for one in self.ours():
            if str(one.to) in self.touched:
                continue
            try:
                cover = route.cover(self.table.routes, one.to)
            except UnfitError as error:
                raise AssertionError(f"{one.to}: {error}") from None
            assert route.copy(cover, one.to, route.ours_of(one)).same(one)
            assert any(key.endswith(f"@{one.to}") for key in standing)

    def nothing_left(self) -> None:
        assert {str(one.to) for one in self.ours()} <= self.touched


HAPPENS: dict[Callable[[Story], None], int] = {
    Story.an_honest_wish: 30,
    Story.a_lie: 2,
    Story.somebody_has_another_default: 5,
    Story.somebody_makes_a_route_or_takes_it_away: 3,
    Story.all_is_as_at_first: 4,
    Story.somebody_touches_ours: 3,
    Story.the_kernel_tells: 5,
    Story.an_hour_may_pass: 2,
    Story.the_guard_judges: 3,
    Story.an_order_to_roll_back: 1,
    Story.hold_or_release: 2,
    Story.the_decider_falls_silent: 1,
    Story.it_ends_and_begins_anew: 2,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    # In memory: what a journal forces to disk is not what is tried here.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


def tell(patch: pytest.MonkeyPatch, folder: Path, seed: int, steps: int) -> Story:
    story = Story(patch, folder, seed)
    try:
        for _ in range(steps):
            story.step()
    finally:
        story.live.close()
    return story


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_no_route_of_others_is_altered_and_none_of_ours_outlives_its_reason(
    monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int
) -> None:
    assert tell(monkeypatch, folder, seed, 300).done["written"] > 10


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_routes_are_sound_in_many_long_stories(monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int) -> None:
    tell(monkeypatch, folder, seed, 1000)
