"""Every tunable at its bounds: the actuator's own code drives each row to its highest and to its lowest value on the
real kernel, and not one further. Only the pace is lifted, so that it takes a moment and not days."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from netns_world import cookie, named_namespaces

from actuators.change import Writer
from actuators.modes import Modes
from actuators.parts import Parts, StateLock, assemble
from bus import netns
from bus.schema import VERSION, AnyEvent, Outcome, Wish
from bus.tunables import TUNABLES, Tunable, table

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ROWS = {row.name: row for row in TUNABLES}
WRITTEN = [row for row in TUNABLES if row.risk != "manual" and not row.instances]
"""But those of destinations, which are routes' and no sysctls."""
FIRST = {
    "net.ipv4.tcp_rmem": ("ipv4/tcp_rmem", "4096 4096 65536"),
    "net.ipv4.tcp_wmem": ("ipv4/tcp_wmem", "4096 4096 65536"),
    "net.ipv4.ipfrag_high_thresh": ("ipv4/ipfrag_low_thresh", "0"),
    "net.ipv6.ip6frag_high_thresh": ("ipv6/ip6frag_low_thresh", "0"),
}
"""Sysctl -> what no row is for, and would stand in the way of a lowest value."""

TICKS = "net.core.netdev_budget_usecs"
"""Its least is two of the kernel's ticks, which is what stands there at first (net_hotdata in net/core/hotdata.c)."""


def families() -> list[list[Tunable]]:
    """Rows that are tied to each other together, the least of them first."""
    found: dict[str, list[Tunable]] = {}
    for row in WRITTEN:
        found.setdefault(row.name.rstrip("0123456789[]") if row.at_most or row.at_least else row.name, []).append(row)
    return [sorted(family, key=lambda row: row.name) for family in found.values()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with named_namespaces() as make, contextlib.closing(Bench(tmp_path, make("bounds"))) as made:
        yield made


class Bench:
    """The actuator without its lanes, and a namespace for what is each namespace's own."""

    def __init__(self, folder: Path, path: str) -> None:
        lifted = {
            name: msgspec.structs.replace(row, cooldown_s=0.0, per_hour=10**6, step=1.0)
            for name, row in table().items()
        }
        self.path, self.cookie, self.inode = path, cookie(path), os.stat(path).st_ino
        self.events: list[AnyEvent] = []
        self.parts: Parts = assemble(lifted, folder / "state", lambda line: None, self.events.append)
        self.writer = Writer(self.parts, ())
        self.lock = StateLock(folder / "state")
        self.modes = Modes(self.parts, self.writer, self.lock, ())
        self.modes.start("enforce")

    def close(self) -> None:
        self.modes.stop()
        self.parts.close()
        self.lock.close()

    def value(self, row: Tunable) -> int:
        """As the kernel says it, not as the actuator does."""

        def read() -> int:
            return int(Path("/proc/sys", row.path).read_text().split()[row.index])

        return netns.inside(self.path, read) if row.scope == "netns" else read()

    def ask(self, row: Tunable, want: int) -> Outcome:
        place = (self.cookie, self.inode) if row.scope == "netns" else (0, 0)
        about = (row.name, *place, self.value(row), want, "to its bounds", {"entries": 7})
        before = len(self.events)
        self.writer.handle(Wish(VERSION, time.monotonic_ns(), 10**9, *about), row.decider)
        (outcome,) = (event for event in self.events[before:] if isinstance(event, Outcome))
        return outcome

    def drive(self, row: Tunable, goal: int) -> None:
        """As many steps as it takes: each at most doubles, or takes all away."""
        while (value := self.value(row)) != goal:
            want = min(goal, 2 * max(value, 1)) if goal > value else goal
            outcome = self.ask(row, want)
            assert outcome.verdict == "written", outcome
            assert (outcome.value, self.value(row)) == (want, want)


def to_its_bounds(bench: Bench, family: list[Tunable]) -> None:
    before = {row.name: bench.value(row) for row in family}
    limits = {row.name: bench.parts.bounds[row.name] for row in family}
    # From the top on the way up, from the bottom on the way down: in order at every instant.
    for row in reversed(family):
        bench.drive(row, limits[row.name].high)
        over = bench.ask(row, limits[row.name].high + 1)
        assert (over.verdict, bench.value(row)) == ("refused", limits[row.name].high), over
        assert "lies outside" in over.reason, over
    for row in family:
        least = limits[row.name].low
        if row.name == TICKS and before[TICKS] > least:
            refused = bench.ask(row, least)
            assert (refused.verdict, refused.reason, bench.value(row)) == ("failed", "Invalid argument", refused.value)
            least = before[TICKS]
        bench.drive(row, least)
        under = bench.ask(row, limits[row.name].low - 1)
        assert (under.verdict, bench.value(row)) == ("refused", least), under
        assert "lies outside" in under.reason, under
    bench.modes.stop()
    assert {row.name: bench.value(row) for row in family} == before


of_namespaces = [family for family in families() if family[0].scope == "netns"]
of_the_host = [family for family in families() if family[0].scope == "host"]


@pytest.mark.parametrize("family", of_namespaces, ids=lambda family: family[0].name)
def test_a_namespaces_tunable_goes_to_its_bounds_there_and_no_further(bench: Bench, family: list[Tunable]) -> None:
    if first := FIRST.get(family[0].sysctl):
        netns.inside(bench.path, lambda: Path("/proc/sys/net", first[0]).write_text(first[1]))
    to_its_bounds(bench, family)


@pytest.fixture
def put_back(the_host: None) -> Iterator[None]:
    """All that is the host's, whatever becomes of the test."""
    paths = [Path("/proc/sys", row.path) for row in reversed(TUNABLES) if row.scope == "host" and not row.instances]
    before = {path: path.read_text() for path in paths if path.exists()}
    yield
    for path, text in before.items():
        if path.read_text() != text:
            path.write_text(text)


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("family", of_the_host, ids=lambda family: family[0].name)
def test_a_hosts_tunable_goes_to_its_bounds_and_no_further(bench: Bench, family: list[Tunable]) -> None:
    to_its_bounds(bench, family)


def test_what_is_for_people_to_set_is_not_written_at_its_bounds_either(bench: Bench) -> None:
    for row in (row for row in TUNABLES if row.risk == "manual"):
        before = bench.value(row)
        for want in (bench.parts.bounds[row.name].low, bench.parts.bounds[row.name].high):
            assert bench.ask(row, want).verdict == "refused"
        assert bench.value(row) == before


def test_every_row_is_tried() -> None:
    tried = {row.name for family in (*of_namespaces, *of_the_host) for row in family}
    assert tried == {row.name for row in TUNABLES if row.risk != "manual" and not row.instances}
