"""The census of namespaces: who comes, goes, changes; the fence; how much it costs. Real namespaces throughout."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from netns_world import PREFIX, cookie, ip, named_namespaces

from bus import netns
from bus.codec import decode, encode
from bus.netns import Handle
from bus.schema import VERSION, AnyEvent, Attached, Batch, Netns
from collectors import namespaces, rtnl
from collectors.namespaces import REFUSED_NS, SETTLED_NS, SPACING_NS, VISITS, YOUNG_NS, Census, Mounts
from collectors.rtnl import Prefix

pytestmark = pytest.mark.system
SECOND = 1_000_000_000
HERE = "/proc/self/ns/net"


@pytest.fixture
def named() -> Iterator[Callable[[str], str]]:
    with named_namespaces() as make:
        yield make


def handle(path: str, inode: int = 0, changed_ns: int = 0) -> Handle:
    return Handle(inode or os.stat(path).st_ino, Path(path).name, path, changed_ns)


def of(events: Sequence[AnyEvent], path_or_name: str) -> list[tuple[int, bool]]:
    """(cookie, alive) as told of the namespace with this name."""
    name = Path(path_or_name).name
    return [(event.netns, event.alive) for event in events if isinstance(event, Netns) and event.name == name]


def networks(events: Sequence[AnyEvent], cookie: int) -> dict[int, tuple[int, int]]:
    return {
        event.family: (event.hosts, event.prefixes)
        for event in events
        if isinstance(event, Attached) and event.netns == cookie
    }


# --- how many neighbours ------------------------------------------------------------------------------------------


def attached(*prefixes: Prefix) -> dict[int, tuple[int, int]]:
    return networks(namespaces.attached(prefixes, 7, 1), 7)


@pytest.mark.parametrize(
    ("family", "bits", "hosts"),
    [
        *[(2, 32, 256), (2, 24, 256), (2, 23, 512), (2, 16, 65536), (2, 0, 1 << 32)],
        *[(10, 128, 256), (10, 120, 256), (10, 112, 65536), (10, 64, 65536), (10, 0, 65536)],
    ],
)
def test_a_network_holds_its_addresses_at_least_256_and_in_ipv6_at_most_65536(
    family: int, bits: int, hosts: int
) -> None:
    other = 12 - family
    assert attached(Prefix(family, 4, bits, b"")) == {family: (hosts, 1), other: (0, 0)}


def test_networks_add_up_by_family() -> None:
    found = attached(Prefix(2, 4, 24, b"a"), Prefix(2, 5, 24, b"a"), Prefix(2, 4, 22, b"b"), Prefix(10, 4, 64, b"c"))
    assert found == {2: (1536, 3), 10: (65536, 1)}


# --- who comes, goes, changes -------------------------------------------------------------------------------------


def test_one_that_is_found_is_visited_and_told_with_its_networks(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    ip("-n", PREFIX + "a", "link", "add", "one", "type", "veth", "peer", "name", "two")
    ip("-n", PREFIX + "a", "addr", "add", "10.9.0.1/20", "dev", "one")
    assert census.found([handle(path)], 0) == []
    assert len(census) == 0
    events = census.visit(5)
    assert of(events, path) == [(cookie(path), True)]
    assert networks(events, cookie(path)) == {2: (4096, 1), 10: (0, 0)}
    assert {event.t_ns for event in events} == {5}
    assert len(census) == 1


def test_one_that_has_gone_is_told_at_once_and_once_more_with_the_state(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    was = cookie(path)
    census.found([handle(path), handle(HERE)], 0)
    census.visit(0)
    assert of(census.found([handle(HERE)], 1), path) == [(was, False)]
    assert census.found([handle(HERE)], 2) == []
    assert of(census.state(3), path) == [(was, False)]
    assert of(census.state(4), path) == []


def test_one_that_was_never_seen_from_inside_goes_without_a_word(named: Callable[[str], str]) -> None:
    census = Census()
    census.found([handle(named("a"))], 0)
    assert census.found([], 1) == []


def test_what_stands_is_said_again_when_asked(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    census.found([handle(path)], 0)
    first = census.visit(1)
    assert census.state(1) == first
    assert census.visit(2) == []


def test_a_namespace_behind_a_reused_inode_is_another_one(named: Callable[[str], str]) -> None:
    a, b, census = named("a"), named("b"), Census()
    census.found([handle(a, inode=7)], 0)
    census.visit(0)
    assert census.found([handle(b, inode=7)], 1) == []
    events = census.visit(1)
    assert [(event.netns, event.alive) for event in events if isinstance(event, Netns)] == [
        (cookie(a), False),
        (cookie(b), True),
    ]
    assert set(networks(events, cookie(b))) == {2, 10}


def test_a_name_made_anew_over_the_same_inode_is_looked_at_again_at_once(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    was = cookie(path)
    census.found([handle(path, inode=7, changed_ns=1)], 0)
    census.visit(0)
    ip("netns", "del", PREFIX + "a")
    named("a")
    census.found([handle(path, inode=7, changed_ns=2)], 1)
    assert of(census.visit(1), path) == [(was, False), (cookie(path), True)]


def test_even_an_unchanged_handle_is_looked_behind_again(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    was = cookie(path)
    census.found([handle(path, inode=7)], 0)
    census.visit(0)
    ip("netns", "del", PREFIX + "a")
    named("a")
    census.found([handle(path, inode=7)], 1)
    assert census.visit(1) == []
    assert of(census.visit(YOUNG_NS), path) == [(was, False), (cookie(path), True)]


def test_addresses_that_come_and_go_are_told(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    ip("-n", PREFIX + "a", "link", "add", "one", "type", "veth", "peer", "name", "two")
    census.found([handle(path)], 0)
    census.visit(0)
    ip("-n", PREFIX + "a", "addr", "add", "10.9.0.1/16", "dev", "one")
    assert networks(census.visit(SECOND), cookie(path))[2] == (65536, 1)
    ip("-n", PREFIX + "a", "addr", "del", "10.9.0.1/16", "dev", "one")
    assert networks(census.visit(2 * SECOND), cookie(path))[2] == (0, 0)


def test_a_real_scan_finds_names_and_processes_and_misses_those_that_went(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    _, took_ns = census.scan(0)
    assert took_ns > 0
    while True:
        events = census.visit(0)
        if of(events, path):
            break
        assert census.more
    was = cookie(path)
    ip("netns", "del", PREFIX + "a")
    gone, _ = census.scan(SECOND)
    assert of(gone, path) == [(was, False)]
    assert census.missing() == []


class Wanderer:
    """A process that makes a namespace of its own a while after it began, when told to."""

    def __init__(self) -> None:
        argv = ["sh", "-c", "echo; read line; exec unshare --net sh -c 'echo; exec sleep 60'"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._expect()

    def move(self) -> int:
        """The cookie of where it is now."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self._expect()
        return cookie(f"/proc/{self.process.pid}/ns/net")

    def _expect(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == b"\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def wanderer() -> Iterator[Wanderer]:
    made = Wanderer()
    yield made
    made.end()


def told(census: Census, t_ns: int) -> set[int]:
    """Cookies of those told alive by all the visits that are due."""
    events: list[AnyEvent] = []
    while True:
        events += census.visit(t_ns)
        if not census.more:
            return {event.netns for event in events if isinstance(event, Netns) and event.alive}


def test_a_glance_finds_what_a_new_process_makes_a_moment_after_it_began(wanderer: Wanderer) -> None:
    census = Census()
    assert census.glance() > 0
    told(census, 0)
    there = wanderer.move()
    census.glance()
    assert there in told(census, 1)


def test_what_an_old_process_makes_is_found_by_a_scan(wanderer: Wanderer) -> None:
    census = Census()
    for _ in range(namespaces.GLANCES):
        census.glance()
    told(census, 0)
    there = wanderer.move()
    census.glance()
    assert there not in told(census, 1)
    census.scan(2)
    assert there in told(census, 2)


def test_a_glance_looks_at_new_processes_only(wanderer: Wanderer, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[set[str]] = []

    def of_processes(pids: Iterable[str]) -> list[Handle]:
        looked.append(set(pids))
        return []

    monkeypatch.setattr(namespaces, "of_processes", of_processes)
    census = Census()
    for _ in range(namespaces.GLANCES + 1):
        census.glance()
    own = str(wanderer.process.pid)
    assert [own in pids for pids in looked] == [True] * namespaces.GLANCES + [False]


def test_a_glance_takes_nobody_for_gone(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    census.found([handle(path)], 0)
    census.visit(0)
    for _ in range(namespaces.GLANCES + 1):
        census.glance()
    assert of(census.state(1), path) == [(cookie(path), True)]


def test_none_is_kept_alive(named: Callable[[str], str]) -> None:
    # A veth pair ends with either side's namespace: the peer tells when the kernel has let go of it.
    name, peer = PREFIX + "a", f"tcs{os.getpid() % 100000}"
    path, outer, census = named("a"), named("b"), Census()
    ip("link", "add", peer, "netns", PREFIX + "b", "type", "veth", "peer", "name", "inner", "netns", name)
    census.found([handle(path)], 0)
    census.visit(0)
    ip("netns", "del", name)
    end = time.monotonic() + 20
    while peer in netns.inside(outer, lambda: Path("/proc/thread-self/net/dev").read_text()):
        assert time.monotonic() < end, "something keeps the namespace"
        time.sleep(0.02)


def test_neither_thread_nor_descriptor_is_left(named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    fds, threads = os.listdir("/proc/self/fd"), threading.active_count()
    for second in range(20):
        census.found([handle(path), handle(HERE), handle("/etc/hostname")], 0)
        census.visit(second * SECOND)
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == (fds, threads)


@pytest.mark.parametrize("name", ["x" * 200, b"\xff\xfe\x80".decode(errors="surrogateescape"), "ü" * 100])
def test_a_name_that_does_not_fit_on_the_wire_is_made_to_fit(name: str, named: Callable[[str], str]) -> None:
    path, census = named("a"), Census()
    census.found([Handle(7, name, path, 0)], 0)
    events = census.visit(0)
    assert decode(Batch, encode(Batch(VERSION, "p", 1, 0, events))).events == events
    assert [event.alive for event in events if isinstance(event, Netns)] == [True]


# --- the fence ----------------------------------------------------------------------------------------------------


def test_of_those_outside_the_fence_nothing_is_said(named: Callable[[str], str]) -> None:
    inside, outside = named("a"), named("b")
    census = Census([cookie(inside)])
    census.found([handle(inside), handle(outside), handle(HERE)], 0)
    events = census.visit(0)
    assert {event.netns for event in events if isinstance(event, Netns | Attached)} == {cookie(inside)}
    assert census.state(0) == events
    assert len(census) == 1
    gone = census.found([handle(inside)], 1)
    assert gone == []
    assert of(census.found([], 2), inside) == [(cookie(inside), False)]


# --- what cannot be entered ---------------------------------------------------------------------------------------


def test_one_that_has_just_gone_is_tried_again_soon_and_is_no_news() -> None:
    census = Census()
    census.found([handle("/run/netns/nobody", inode=7)], 0)
    assert census.visit(0) == []
    assert census.missing() == []
    assert [known.due_ns for known in census._known.values()] == [YOUNG_NS]


def test_one_that_refuses_is_missing_with_the_reason_and_tried_seldom(
    named: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, census = named("a"), Census()
    real = netns.inside_each
    refused = PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(namespaces, "inside_each", lambda paths, _: [refused] * len(paths))
    census.found([handle(path), handle("/run/netns/another", inode=7)], 0)
    assert census.visit(0) == []
    assert census.missing() == [f"network namespace {path} and alike: Operation not permitted"]
    monkeypatch.setattr(namespaces, "inside_each", real)
    assert census.visit(SETTLED_NS) == []
    assert of(census.visit(REFUSED_NS), path) == [(cookie(path), True)]
    assert census.missing() == []


def test_who_may_enter_none_does_not_try_each_one(named: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    named("a")
    monkeypatch.setattr(namespaces, "_no_entry", lambda: "setns: no")
    visited, census = Visited(monkeypatch), Census()
    census.scan(0)
    assert census.glance() == 0
    assert [event.name for event in census.visit(0) if isinstance(event, Netns)] == [netns.HOST]
    assert visited.paths == []
    assert census.missing() == ["other network namespaces: setns: no"]


def test_ones_own_that_cannot_be_read_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rtnl, "open_socket", refuse)
    census = Census()
    census.found([Handle(os.stat(HERE).st_ino, netns.HOST, HERE, 0)], 0)
    assert census.visit(0) == []
    assert census.missing() == [f"network namespace {HERE} and alike: Permission denied"]


# --- what it costs ------------------------------------------------------------------------------------------------


class Visited:
    """Counts visits by path, in place of making them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.prefixes: frozenset[Prefix] = frozenset()
        monkeypatch.setattr(namespaces, "inside_each", self.visit)

    def visit(self, paths: Sequence[str], _: object) -> list[namespaces.Visit]:
        self.paths += paths
        return [namespaces.Visit(int(path), self.prefixes) for path in paths]


def many(count: int) -> list[Handle]:
    return [Handle(number, "", str(number), 0) for number in range(1, count + 1)]


def test_a_namespace_where_nothing_changes_is_visited_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    visited, census = Visited(monkeypatch), Census()
    census.found(many(1), 0)
    when = []
    for second in range(40):
        before = len(visited.paths)
        census.visit(second * SECOND)
        if len(visited.paths) > before:
            when.append(second)
    assert when == [0, 1, 3, 7, 12, 17, 22, 27, 32, 37]


def test_a_change_makes_visits_frequent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    visited, census = Visited(monkeypatch), Census()
    census.found(many(1), 0)
    for second in range(13):
        census.visit(second * SECOND)
    visited.prefixes = frozenset([Prefix(2, 4, 24, b"a")])
    assert len(networks(census.visit(17 * SECOND), 1)) == 2
    count = len(visited.paths)
    census.visit(18 * SECOND)
    assert len(visited.paths) == count + 1


def test_a_thousand_are_visited_at_a_bounded_pace_and_no_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    visited, census = Visited(monkeypatch), Census()
    handles = many(1000)
    census.found(handles, 0)
    rounds = 0
    while True:
        census.visit(0)
        rounds += 1
        assert len(visited.paths) <= rounds * VISITS
        if not census.more:
            break
    assert sorted(visited.paths) == sorted(handle.path for handle in handles)
    for second in range(1, 200):
        census.visit(second * SECOND)
        while census.more:
            census.visit(second * SECOND)
    visited.paths.clear()
    for second in range(200, 300):
        census.visit(second * SECOND)
        while census.more:
            census.visit(second * SECOND)
    assert len(visited.paths) <= 1.1 * 100 * SECOND // SPACING_NS
    assert set(visited.paths) == {handle.path for handle in handles}


# --- mounts -------------------------------------------------------------------------------------------------------


def waiting(mounts: Mounts) -> bool:
    return bool(select.select([mounts], [], [], 0)[0])


def quiet(mounts: Mounts) -> bool:
    """No news after the last was seen; others on this host may mount something at any moment, but not each time."""
    for _ in range(100):
        mounts.clear()
        if not waiting(mounts):
            return True
    return False


def test_a_mount_that_comes_or_goes_is_news_until_it_was_seen(named: Callable[[str], str]) -> None:
    mounts = Mounts()
    assert quiet(mounts)
    named("a")
    assert waiting(mounts)
    assert quiet(mounts)
    ip("netns", "del", PREFIX + "a")
    assert waiting(mounts)
    assert quiet(mounts)
    mounts.close()
