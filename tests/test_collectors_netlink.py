"""rtnetlink dumps and the netlink source: messages made by hand, and the running kernel."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from netns_world import PREFIX, cookie, ip, named_namespaces

from bus import netns, roles
from bus.codec import decode, encode
from bus.config import Config
from bus.schema import VERSION, AnyEvent, Attached, Batch, NeighTable, Netns
from collectors import netlink, rtnl
from collectors.netlink import STATE_NS, TABLE_NS, NetlinkSource
from collectors.rtnl import Prefix, Table

NONE: frozenset[int] = frozenset()
SECOND = 1_000_000_000
REPOSITORY = Path(netns.__file__).parents[1]
(ROLE,) = (role for role in roles.FIXED if role.name == "collector-netlink")


class Answers:
    """A netlink socket whose kernel says what it is told to."""

    def __init__(self, *datagrams: bytes) -> None:
        self.asked: list[bytes] = []
        self._datagrams = list(datagrams)

    def send(self, raw: bytes) -> None:
        self.asked.append(raw)

    def recv(self, _: int) -> bytes:
        return self._datagrams.pop(0)


def message(kind: int, body: bytes, flags: int = 2) -> bytes:
    raw = struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
    return raw + bytes(-len(raw) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    raw = struct.pack("=HH", 4 + len(value), kind) + value
    return raw + bytes(-len(raw) % 4)


def address(family: int, bits: int, interface: int, text: str) -> bytes:
    body = struct.pack("=BBBBI", family, bits, 0, 0, interface)
    return message(20, body + attribute(1, socket.inet_pton(family, text)) + attribute(3, b"veth0\0"))


DONE = message(rtnl.NLMSG_DONE, bytes(4))


def prefixes(*datagrams: bytes) -> set[Prefix]:
    return rtnl.prefixes(Answers(*datagrams))  # type: ignore[arg-type]


def test_addresses_become_the_networks_that_they_are_in_each_once() -> None:
    first = address(2, 24, 4, "10.1.2.3") + address(2, 24, 4, "10.1.2.4")
    second = address(10, 64, 4, "fd00::1") + address(2, 32, 5, "10.1.2.5") + address(2, 0, 6, "1.2.3.4") + DONE
    assert prefixes(first, second) == {
        Prefix(2, 4, 24, bytes([10, 1, 2, 0])),
        Prefix(10, 4, 64, b"\xfd" + bytes(15)),
        Prefix(2, 5, 32, bytes([10, 1, 2, 5])),
        Prefix(2, 6, 0, bytes(4)),
    }


def test_loopback_and_families_other_than_ip_are_not_networks_that_hold_neighbours() -> None:
    other = message(20, struct.pack("=BBBBI", 28, 0, 0, 0, 4) + attribute(1, b"\1\2"))
    bare = message(20, struct.pack("=BBBBI", 2, 24, 0, 0, 4))
    assert prefixes(address(2, 8, 1, "127.0.0.1") + other + bare, DONE) == set()


def test_a_dump_asks_for_all_of_every_family() -> None:
    kernel = Answers(DONE)
    rtnl.prefixes(kernel)  # type: ignore[arg-type]
    (asked,) = kernel.asked
    assert struct.unpack("=IHHII", asked[:16]) == (24, rtnl.RTM_GETADDR, 0x301, 1, 0)
    assert asked[16:] == bytes(8)


def test_what_the_kernel_refuses_is_an_os_error() -> None:
    with pytest.raises(PermissionError):
        prefixes(message(rtnl.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + bytes(16)))


def test_a_dump_that_was_interrupted_is_not_taken_for_the_whole() -> None:
    with pytest.raises(OSError, match="changed while it was read"):
        prefixes(address(2, 24, 4, "10.1.2.3"), message(rtnl.NLMSG_DONE, bytes(4), rtnl.NLM_F_DUMP_INTR))


def test_a_message_without_a_length_does_not_hold_up_the_reader() -> None:
    kernel = Answers(bytes(16) + DONE)
    assert list(rtnl.dump(kernel, rtnl.RTM_GETADDR, b"")) == [b""]  # type: ignore[arg-type]


def test_messages_begin_at_multiples_of_four() -> None:
    kernel = Answers(message(20, b"a") + message(20, b"bcdef") + DONE)
    assert list(rtnl.dump(kernel, rtnl.RTM_GETADDR, b"")) == [b"a", b"bcdef"]  # type: ignore[arg-type]


def test_attributes_end_with_their_message_even_when_their_length_lies() -> None:
    body = attribute(1, b"ab") + struct.pack("=HH", 0, 2) + struct.pack("=HH", 400, 0x8003) + b"x"
    assert rtnl.attributes(body, 0) == {1: b"ab", 2: b"", 3: b"x"}


# --- the running kernel -------------------------------------------------------------------------------------------


@pytest.fixture
def named() -> Iterator[Callable[[str], str]]:
    with named_namespaces() as make:
        yield make


def here() -> set[Prefix]:
    with rtnl.open_socket() as sock:
        return rtnl.prefixes(sock)


@pytest.mark.system
def test_the_networks_of_a_namespace_are_read_inside_it(named: Callable[[str], str]) -> None:
    path = named("a")
    assert netns.inside(path, here) == set()
    for words in (
        "link add one type veth peer name two",
        "link set lo up",
        "addr add 10.9.0.1/20 dev one",
        "addr add 10.9.0.2/20 dev one",
        "addr add 10.8.0.1 peer 10.7.0.1/32 dev two",
        "addr add fd01::1/64 dev one",
    ):
        ip("-n", PREFIX + "a", *words.split())
    found = netns.inside(path, here)
    assert {(prefix.family, prefix.bits, prefix.network) for prefix in found} >= {
        (2, 20, bytes([10, 9, 0, 0])),
        (2, 32, bytes([10, 7, 0, 1])),
        (10, 64, b"\xfd\x01" + bytes(14)),
    }
    assert len([prefix for prefix in found if prefix.family == 2]) == 2


def proc_stat(name: str, column: str) -> int:
    head, *cpus = (line.split() for line in Path(f"/proc/net/stat/{name}").read_text().splitlines())
    return sum(int(cpu[head.index(column)], 16) for cpu in cpus)


@pytest.mark.system
@pytest.mark.parametrize(("family", "name", "where"), [(2, "arp_cache", "ipv4"), (10, "ndisc_cache", "ipv6")])
def test_a_neighbour_table_says_what_proc_says(family: int, name: str, where: str) -> None:
    def both() -> tuple[Table, Table]:
        table = rtnl.table(family)
        assert table
        first, second, third = (
            int(Path(f"/proc/sys/net/{where}/neigh/default/gc_thresh{level}").read_text()) for level in (1, 2, 3)
        )
        entries = int(Path(f"/proc/net/stat/{name}").read_text().splitlines()[1].split()[0], 16)
        columns = [proc_stat(name, column) for column in ("allocs", "destroys", "forced_gc_runs", "table_fulls")]
        return table, Table(family, entries, (first, second, third), *columns)

    # Others may be using the table: what both say in the same moment is wanted, not what one says a moment later.
    assert any(table == proc for table, proc in (both() for _ in range(50)))


@pytest.mark.system
def test_a_table_that_the_kernel_does_not_have_is_none() -> None:
    assert rtnl.table(255) is None


def test_statistics_are_found_at_their_places_and_an_older_kernel_has_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = struct.pack("=HHI", 4, 400, 77) + bytes(24)
    stats = struct.pack("=11Q", *range(11, 22))
    levels = b"".join(attribute(kind, struct.pack("=I", 100 * kind)) for kind in (2, 3, 4))

    def table(stats: bytes) -> Table | None:
        body = bytes([2, 0, 0, 0]) + attribute(1, b"arp_cache\0") + levels
        parameters = message(64, body)
        whole = message(64, body + attribute(5, config) + attribute(7, stats))
        kernel = Answers(parameters + whole + DONE)
        monkeypatch.setattr(rtnl, "open_socket", lambda: Held(kernel))
        return rtnl.table(2)

    assert table(stats) == Table(
        family=2,
        entries=77,
        thresholds=(200, 300, 400),
        allocs=11,
        destroys=12,
        forced_gc_runs=20,
        table_fulls=21,
    )
    older = table(stats[:-8])
    assert older
    assert (older.forced_gc_runs, older.table_fulls) == (20, 0)


class Held:
    def __init__(self, kernel: Answers) -> None:
        self._kernel = kernel

    def __enter__(self) -> Answers:
        return self._kernel

    def __exit__(self, *_: object) -> None:
        return None


# --- the source ---------------------------------------------------------------------------------------------------


def of(events: list[AnyEvent], kind: type) -> list[AnyEvent]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def source() -> Iterator[NetlinkSource]:
    made = NetlinkSource(Config())
    yield made
    made.close()


@pytest.mark.system
def test_the_first_news_are_the_namespaces_their_networks_and_both_tables(
    source: NetlinkSource, named: Callable[[str], str]
) -> None:
    path = named("a")
    now = time.monotonic_ns()
    events = source.collect(now, NONE)
    assert Netns(now, cookie(path), os.stat(path).st_ino, PREFIX + "a", True) in events
    assert Attached(now, cookie(path), 2, 0, 0) in events
    assert {event.netns for event in of(events, Netns)} >= {cookie(path), netns.cookie_here()}
    assert [event.family for event in of(events, NeighTable)] == [2, 10]
    assert len({encode(Batch(VERSION, "p", 1, 0, [event])) for event in events}) == len(events)
    batch = Batch(VERSION, "p", 1, 0, events)
    assert decode(Batch, encode(batch)) == batch
    status = source.status()
    assert status.missing == []
    assert status.watched[:2] == ["ARP table", "ND table"]
    assert status.watched[2].endswith(" network namespaces")


@pytest.mark.system
def test_a_name_that_comes_or_goes_wakes_the_source_and_is_told_at_once(
    source: NetlinkSource, named: Callable[[str], str]
) -> None:
    now = time.monotonic_ns()
    source.collect(now, NONE)
    path = named("a")
    came = collect_until(source, lambda events: PREFIX + "a" in [event.name for event in of(events, Netns)])
    was = cookie(path)
    assert Netns(0, was, os.stat(path).st_ino, PREFIX + "a", True) in [undated(event) for event in of(came, Netns)]
    ip("netns", "del", PREFIX + "a")
    left = collect_until(source, lambda events: any(not event.alive for event in of(events, Netns)))
    assert [(event.netns, event.alive) for event in of(left, Netns) if event.name == PREFIX + "a"] == [(was, False)]


def undated(event: AnyEvent) -> Netns:
    assert isinstance(event, Netns)
    return Netns(0, event.netns, event.netns_ino, event.name, event.alive)


def collect_until(source: NetlinkSource, true: Callable[[list[AnyEvent]], bool]) -> list[AnyEvent]:
    """The news until they hold what is wanted, woken by the source's own descriptors and never by its clock."""
    (fd,) = source.descriptors()
    events: list[AnyEvent] = []
    end = time.monotonic() + 20
    while not true(events):
        assert time.monotonic() < end, "nothing woke the source"
        readable = frozenset({fd}) if ready(fd) else NONE
        events += source.collect(time.monotonic_ns(), readable)
        time.sleep(0.01)
    assert any(quiet(source) for _ in range(100)), "the source does not let the loop sleep"
    return events


def quiet(source: NetlinkSource) -> bool:
    """Nothing is left to read after a turn; others on this host may mount something, but not each time."""
    source.collect(time.monotonic_ns(), frozenset(source.descriptors()))
    return not ready(source.descriptors()[0])


def ready(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


class Clocked:
    """A census whose scans and glances take so long, and when they were made in ten seconds."""

    def __init__(self, source: NetlinkSource, monkeypatch: pytest.MonkeyPatch, took_ns: int, mounts: bool) -> None:
        self.now = 0
        self.scans: list[int] = []
        self.glances: list[int] = []

        def scan(t_ns: int) -> tuple[list[AnyEvent], int]:
            self.scans.append(t_ns)
            return [], took_ns

        def glance() -> int:
            self.glances.append(self.now)
            return took_ns

        monkeypatch.setattr(source._census, "scan", scan)
        monkeypatch.setattr(source._census, "glance", glance)
        readable = frozenset(source.descriptors() if mounts else ())
        step_ns = SECOND // 100 if mounts else SECOND // 10
        for self.now in range(SECOND, 11 * SECOND - step_ns, step_ns):
            source.collect(self.now, readable)


@pytest.mark.system
@pytest.mark.parametrize(("took_ms", "scans", "glances"), [(0, 2, 8), (1, 2, 8), (3, 2, 3), (10, 1, 1)])
def test_scans_and_glances_keep_to_a_share_of_a_core(
    source: NetlinkSource, monkeypatch: pytest.MonkeyPatch, took_ms: int, scans: int, glances: int
) -> None:
    made = Clocked(source, monkeypatch, took_ms * 1_000_000, mounts=False)
    assert (len(made.scans), len(made.glances)) == (scans, glances)


@pytest.mark.system
@pytest.mark.parametrize(("took_ms", "scans"), [(0, 250), (10, 20), (100, 3)])
def test_scans_keep_to_a_share_of_a_core_however_fast_mounts_come(
    source: NetlinkSource, monkeypatch: pytest.MonkeyPatch, took_ms: int, scans: int
) -> None:
    made = Clocked(source, monkeypatch, took_ms * 1_000_000, mounts=True)
    assert 0.6 * scans <= len(made.scans) <= 1.4 * scans


@pytest.mark.system
def test_everything_is_said_again_every_few_seconds_and_tables_more_often(source: NetlinkSource) -> None:
    start = time.monotonic_ns()
    first = source.collect(start, NONE)
    later = [source.collect(start + second * SECOND, NONE) for second in range(1, 6)]
    tables = [bool(of(events, NeighTable)) for events in later]
    assert tables == [False, True, False, True, False]
    assert TABLE_NS == 2 * SECOND
    host = netns.cookie_here()
    assert host in [event.netns for event in of(first, Netns)]
    assert [host in [event.netns for event in of(events, Netns)] for events in later] == [False] * 4 + [True]
    assert STATE_NS == 5 * SECOND


@pytest.mark.system
def test_a_table_that_cannot_be_read_is_missing_with_the_reason_and_the_rest_goes_on(
    source: NetlinkSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rtnl.table

    def table(family: int) -> Table | None:
        if family == 2:
            raise PermissionError(1, "Operation not permitted")
        return None

    monkeypatch.setattr(netlink.rtnl, "table", table)
    events = source.collect(SECOND, NONE)
    assert of(events, NeighTable) == []
    assert of(events, Netns)
    assert source.status().missing[:2] == ["ARP table: Operation not permitted", "ND table: the kernel has none"]
    assert "ARP table" not in source.status().watched
    monkeypatch.setattr(netlink.rtnl, "table", real)
    assert len(of(source.collect(SECOND + TABLE_NS, NONE), NeighTable)) == 2
    assert source.status().missing == []


# As the supervisor starts a role: what it needs is imported before it drops to its user, who may not get to the code.
LOOK = """
import sys, time
from bus.config import Config
from bus.schema import Netns
from collectors.netlink import NetlinkSource
from trimtab.privilege import drop
drop(65534, (), sys.argv[1:])
source = NetlinkSource(Config())
events = source.collect(time.monotonic_ns(), frozenset())
print(sorted({event.netns for event in events if isinstance(event, Netns)}))
print(sum(type(event).__name__ == "NeighTable" for event in events))
print(*source.status().missing, sep="\\n")
"""


def look_with(capabilities: Iterable[str]) -> tuple[list[int], int, list[str]]:
    """Cookies, neighbour tables, what is missing: as seen by another user with these capabilities alone."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *capabilities], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    namespaces, tables, *missing = done.stdout.splitlines()
    return [int(word) for word in namespaces.strip("[]").split(",")], int(tables), [line for line in missing if line]


@pytest.mark.system
def test_without_privilege_it_watches_its_own_namespace_and_says_so(named: Callable[[str], str]) -> None:
    named("a")
    namespaces, tables, missing = look_with(())
    assert namespaces == [netns.cookie_here()]
    assert tables == 2
    assert missing == ["other network namespaces: setns: Operation not permitted (CAP_SYS_ADMIN)"]


@pytest.mark.system
def test_with_the_roles_own_capabilities_it_sees_names_and_the_namespaces_of_others_processes(
    named: Callable[[str], str],
) -> None:
    path = named("a")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        nameless = cookie(f"/proc/{child.pid}/ns/net")
        namespaces, _, missing = look_with(ROLE.capabilities)
        child.kill()
    assert {cookie(path), nameless, netns.cookie_here()} <= set(namespaces)
    assert missing == []


@pytest.mark.system
def test_with_setns_alone_it_says_what_it_does_not_see(named: Callable[[str], str]) -> None:
    path = named("a")
    namespaces, _, missing = look_with(set(ROLE.capabilities) - {"CAP_SYS_PTRACE"})
    assert {cookie(path), netns.cookie_here()} <= set(namespaces)
    assert len(missing) == 1
    assert "CAP_SYS_PTRACE" in missing[0]
