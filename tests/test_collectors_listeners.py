"""The source of listening sockets on the real kernel: real queues that are full, in namespaces of our own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from listen_world import PORT, clients, server
from netns_world import cookie, ip, named_namespaces

from bus import netns, roles
from bus.link import Publisher
from bus.schema import AnyEvent, Drops, Event, Listener, ListenQueues, Owner, UdpDrop
from collectors import listeners, owners
from collectors.holders import Holders
from collectors.listeners import ListenersSource
from collectors.namespaces import Census

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
E = TypeVar("E", bound=Event)


@pytest.fixture
def make() -> Iterator[Callable[[str], str]]:
    with named_namespaces() as make:
        yield make


@pytest.fixture
def path(make: Callable[[str], str]) -> str:
    """A namespace in which lo is up."""
    made = make("listen")
    ip("-n", Path(made).name, "link", "set", "lo", "up")
    return made


class Watch:
    """A source, at times of our own making."""

    def __init__(self, run_dir: Path) -> None:
        self.census = Census()
        (run_dir / listeners.PUBLISHER).mkdir()
        self.publisher = Publisher(roles.events_path(run_dir, listeners.PUBLISHER), listeners.PUBLISHER)
        self.source = ListenersSource(run_dir, self.census)
        self.t_ns = time.monotonic_ns()
        self.look_around()

    def look_around(self) -> None:
        self.census.scan(self.t_ns)
        self.census.visit(self.t_ns)
        while self.census.more:
            self.census.visit(self.t_ns)

    def collect(self, after_ns: int = SECOND_NS) -> list[AnyEvent]:
        self.t_ns += after_ns
        return self.source.collect(self.t_ns, frozenset())

    def rounds(self) -> None:
        """Every namespace has been glanced at."""
        for _ in range(2 + len(self.census.places()) // listeners.GLANCES):
            self.source._glance_ns = 0
            self.collect()

    def close(self) -> None:
        self.source.close()
        self.publisher.close()


@pytest.fixture
def watch(path: str, tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.close()


def of(kind: type[E], events: list[AnyEvent], where: int) -> list[E]:
    return [event for event in events if isinstance(event, kind) and event.netns == where]  # type: ignore[attr-defined]


def overflow(path: str, backlog: int = 4, count: int = 20) -> int:
    """Connect so many to a queue with room for `backlog`; how many it had to drop."""

    def inside() -> int:
        with server(backlog), clients(count):
            time.sleep(0.05)
            return count - backlog - 1

    return netns.inside(path, inside)


def test_where_connections_are_dropped_is_found_and_how_it_stood_before(watch: Watch, path: str) -> None:
    where = cookie(path)
    watch.rounds()
    dropped = overflow(path)
    found: list[AnyEvent] = []
    for _ in range(2 + len(watch.census.places()) // listeners.GLANCES):
        watch.source._glance_ns = 0
        found += watch.collect()
    before, *then = of(ListenQueues, found, where)
    assert (before.overflows, before.opened) == (0, 0)
    assert (then[0].overflows, then[0].drops, then[0].opened) == (dropped, dropped, 5)
    assert then[0].t_ns > before.t_ns
    assert then[0].netns_ino == os.stat(path).st_ino


def test_where_all_is_well_nothing_is_told(watch: Watch, path: str) -> None:
    watch.rounds()
    assert overflow(path, backlog=100, count=5) < 0
    for _ in range(3):
        watch.source._glance_ns = 0
        assert not of(ListenQueues, watch.collect(), cookie(path))


def test_a_namespace_in_trouble_is_told_of_each_second_until_it_has_been_quiet_for_a_minute(
    watch: Watch, path: str
) -> None:
    where = cookie(path)
    watch.rounds()
    overflow(path)
    watch.rounds()
    assert len(of(ListenQueues, watch.collect(), where)) == 1
    assert len(of(ListenQueues, watch.collect(MINUTE_NS + 5 * SECOND_NS), where)) == 1
    assert not of(ListenQueues, watch.collect(), where)
    assert watch.source.status().watched == []


def test_a_drop_that_the_probe_tells_of_makes_it_look_at_once(watch: Watch, path: str) -> None:
    where = cookie(path)
    watch.rounds()
    overflow(path)
    watch.publisher.publish([Drops(watch.t_ns, where, 1, 0, "TCP_LISTEN_OVERFLOW", 1)])
    found: list[AnyEvent] = []
    deadline_s = time.monotonic() + 5
    while not found and time.monotonic() < deadline_s:
        found = watch.collect(listeners.SOON_NS)
        time.sleep(0.01)
    assert [event.overflows for event in of(ListenQueues, found, where)] == [0, 15]


def test_a_listening_socket_is_told_with_its_backlog_its_queue_its_drops_and_its_program(
    watch: Watch, path: str
) -> None:
    where = cookie(path)
    watch.rounds()

    def inside() -> list[AnyEvent]:
        with server(4), clients(20):
            time.sleep(0.05)
            # What was seen is told at once, and whose it is as soon as that is found.
            for _ in range(2 + len(watch.census.places()) // listeners.GLANCES):
                watch.source._glance_ns = 0
                seen = watch.collect()
                if of(Listener, seen, where):
                    break
            assert watch.source.due_ns == 0
            return [*seen, *watch.collect()]

    unnamed, told = of(Listener, netns.inside(path, inside), where)
    assert (unnamed.pid, unnamed.program, unnamed.dropped) == (0, "", 15)
    assert watch.source.due_ns > 0
    assert (told.port, told.backlog, told.queued, told.dropped) == (PORT, 4, 5, 15)
    assert (told.pid, told.program) == (os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert told.netns_ino == os.stat(path).st_ino


def test_with_the_capabilities_of_its_role_it_finds_whose_a_socket_is() -> None:
    role = next(role for role in roles.FIXED if role.name == "collector-netlink")
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in role.capabilities)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\nfrom collectors import owners\n"
        "print(*[owner.pid for owner in owners.find(0, {int(sys.argv[1])}).values()])"
    )
    with socket.socket() as sock:
        argv = [
            "setpriv", f"--reuid={role.uid}", f"--regid={role.uid}", "--clear-groups",
            f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set=-all,{kept}",
            "/usr/bin/python3", "-c", code, str(os.fstat(sock.fileno()).st_ino),
            str(Path(owners.__file__).parents[1]), str(Path(msgspec.__file__).parents[1]),
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout.split() == [str(os.getpid())], done.stderr


def test_glances_keep_to_their_share_of_a_core(watch: Watch) -> None:
    began_ns = time.process_time_ns()
    watch.source._glance_ns = 0
    watch.collect()
    spent_ns = time.process_time_ns() - began_ns
    assert watch.t_ns < watch.source._glance_ns <= watch.t_ns + spent_ns * listeners.GLANCE_SHARE


def test_whose_a_udp_socket_is_that_drops_is_told_once_a_minute(watch: Watch, path: str) -> None:
    where = cookie(path)
    watch.collect()

    def bound() -> socket.socket:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", PORT))
        return sock

    def told() -> list[Owner]:
        watch.publisher.publish([UdpDrop(watch.t_ns, where, 1, 5, 2, PORT, 4096, True, "SOCKET_RCVBUFF", 1)])
        found: list[AnyEvent] = []
        for _ in range(20):
            time.sleep(0.01)
            found += watch.collect(SECOND_NS // 10)
        return of(Owner, found, where)

    with netns.inside(path, bound):
        (owner,) = told()
        assert (owner.port, owner.pid) == (PORT, os.getpid())
        assert owner.program == Path("/proc/self/comm").read_text().strip()
        assert told() == []
        watch.t_ns += MINUTE_NS
        assert len(told()) == 1


def test_whose_nobody_has_any_more_is_looked_for_again_soon(watch: Watch, path: str) -> None:
    holders, drop = Holders(), UdpDrop(1, cookie(path), 1, 5, 2, PORT, 4096, True, "SOCKET_RCVBUFF", 1)
    watch.collect()
    handles = dict(watch.census.places())
    holders.wanted(drop, watch.t_ns)
    assert holders.find(handles, watch.t_ns) == []
    with netns.inside(path, lambda: socket.socket(type=socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", PORT))
        holders.wanted(drop, watch.t_ns + 4 * SECOND_NS)
        assert holders.find(handles, watch.t_ns + 4 * SECOND_NS) == []
        holders.wanted(drop, watch.t_ns + 5 * SECOND_NS)
        assert [owner.pid for owner in holders.find(handles, watch.t_ns + 5 * SECOND_NS)] == [os.getpid()]
