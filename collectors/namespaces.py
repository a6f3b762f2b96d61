"""The network namespaces that are there, what they are called, and what each is attached to.

A scan finds handles; a visit (a thread inside) learns a namespace's cookie and addresses in 0.06 ms. Scans are made
when a mount comes or goes (a name is a mount) and every few seconds; in between a glance at the processes that have
just begun finds the namespaces that they made. Visits keep to a fixed share of a core, however many namespaces there
are. None is ever kept open.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from bus.netns import (
    HOST,
    Handle,
    NamespaceGoneError,
    cookie_of,
    handles,
    inside,
    inside_each,
    of_deciders,
    of_processes,
    processes,
)
from bus.schema import AnyEvent, Attached, Netns
from collectors import rtnl

SECOND_NS = 1_000_000_000
YOUNG_NS = SECOND_NS
"""A namespace is visited again so soon when it is new or has just changed; then ever later."""
SETTLED_NS = 5 * SECOND_NS
SPACING_NS = 20_000_000
"""All namespaces together are visited at most once in so long: 0.3 % of a core."""
REFUSED_NS = 60 * SECOND_NS
GLANCES = 2
"""So often a new process is looked at, since it may make its namespace a moment after it began."""
VISITS = 64
"""At one go, so that a thousand new ones do not hold up the loop."""
NAME_MAX = 128
CAP_SYS_PTRACE = 19

FAMILIES = {2: 32, 10: 128}
"""AF_INET, AF_INET6 -> bits of an address."""
SMALLEST = 256
"""Hosts that even a /32 counts for: addresses come and go on a link without a prefix that says so."""
IPV6_BITS = 16
"""An IPv6 prefix counts for 2**16 neighbours at most: nobody fills a /64."""


class Visit(Struct, frozen=True):
    """What was found inside a namespace."""

    cookie: int
    prefixes: frozenset[rtnl.Prefix]


class Known(Struct):
    """What is known of one namespace."""

    handle: Handle
    visit: Visit | None = None
    due_ns: int = 0
    interval_ns: int = 0
    refused: str = ""


def look() -> Visit:
    """Look around in the calling thread's namespace. Raises OSError."""
    with rtnl.open_socket() as sock:
        return Visit(cookie_of(sock), frozenset(rtnl.prefixes(sock)))


def attached(prefixes: Iterable[rtnl.Prefix], netns: int, t_ns: int) -> list[Attached]:
    """How many neighbours the prefixes of one namespace can hold, for IPv4 and for IPv6."""
    hosts = dict.fromkeys(FAMILIES, 0)
    count = dict.fromkeys(FAMILIES, 0)
    for prefix in prefixes:
        free = FAMILIES[prefix.family] - prefix.bits
        hosts[prefix.family] += max(SMALLEST, 1 << (min(free, IPV6_BITS) if prefix.family == 10 else free))
        count[prefix.family] += 1
    return [Attached(t_ns, netns, family, hosts[family], count[family]) for family in FAMILIES]


class Mounts:
    """Tells when this mount namespace gains or loses a mount: poll(2) on /proc/self/mountinfo, proc(5)."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # An epoll of its own turns the exceptional condition into one that any poller waits for.
        self._epoll = select.epoll(1)
        self._epoll.register(self._file, select.EPOLLPRI)
        self.clear()

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._epoll.fileno()

    def clear(self) -> None:
        """Seen. The poll that told of it has cleared it already where polling an epoll asks the file itself."""
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._file)


class Census:
    """Every namespace that can be found; only those in the fence (all, when it is empty) are spoken of."""

    def __init__(self, fence: Iterable[int] = ()) -> None:
        self._fence = frozenset(fence)
        self._known: dict[int, Known] = {}
        self._gone: list[Netns] = []
        self._glanced: dict[str, int] = {}
        self._host_only = _no_entry()
        self._named_only = _no_links()
        self.more = False
        """More visits are due than were made."""

    def scan(self, t_ns: int) -> tuple[list[Netns], int]:
        """Find out which there are: those that have gone, and how long it took (ns of this thread's time)."""
        began_ns = time.thread_time_ns()
        found = handles()
        gone = self.found([next(iter(found))] if self._host_only else found, t_ns)
        return gone, time.thread_time_ns() - began_ns

    def glance(self) -> int:
        """Look for namespaces of processes that are new. How long it took (ns of this thread's time)."""
        if self._host_only:
            return 0
        began_ns = time.thread_time_ns()
        before = self._glanced
        self._glanced = {pid: before.get(pid, 0) + 1 for pid in processes()}
        for handle in of_processes(pid for pid, looks in self._glanced.items() if looks <= GLANCES):
            if handle.inode not in self._known and not of_deciders(handle):
                self._known[handle.inode] = Known(handle)
        return time.thread_time_ns() - began_ns

    def found(self, now: Iterable[Handle], t_ns: int) -> list[Netns]:
        """Take note of what a scan found; returns those that have gone."""
        there: set[int] = set()
        for handle in now:
            there.add(handle.inode)
            known = self._known.setdefault(handle.inode, Known(handle))
            if known.handle != handle:
                # Another way in may lead to another namespace, for an inode is used again.
                known.handle, known.due_ns = handle, 0
        return [event for inode in self._known.keys() - there for event in self._leave(self._known.pop(inode), t_ns)]

    def visit(self, t_ns: int) -> list[AnyEvent]:
        """Look into those that are due; what is new or has changed."""
        due = [known for known in self._known.values() if known.due_ns <= t_ns]
        self.more = len(due) > VISITS
        events: list[AnyEvent] = []
        for known, seen in zip(due, _visits(due[:VISITS]), strict=False):
            events += self._seen(known, seen, t_ns)
        return events

    def state(self, t_ns: int) -> list[AnyEvent]:
        """All of it, and once more those that have gone since the last time."""
        events: list[AnyEvent] = []
        for known in self._known.values():
            events += self._netns(known, t_ns)
            if known.visit and self._wanted(known.visit):
                events += attached(known.visit.prefixes, known.visit.cookie, t_ns)
        events += self._gone
        self._gone = []
        return events

    def places(self) -> list[tuple[int, Handle]]:
        """Those that may be looked into: cookie, and the way in."""
        visited = ((known.visit, known.handle) for known in self._known.values() if not known.refused)
        return [(visit.cookie, handle) for visit, handle in visited if visit and self._wanted(visit)]

    def missing(self) -> list[str]:
        """What cannot be seen, and why."""
        if self._host_only:
            return [f"other network namespaces: {self._host_only}"]
        refused = [known for known in self._known.values() if known.refused]
        missing = [f"network namespace {refused[0].handle.path} and alike: {refused[0].refused}"] if refused else []
        return missing + ([f"network namespaces without a name: {self._named_only}"] if self._named_only else [])

    def __len__(self) -> int:
        return sum(1 for known in self._known.values() if known.visit and self._wanted(known.visit))

    def _wanted(self, visit: Visit) -> bool:
        return not self._fence or visit.cookie in self._fence

    def _netns(self, known: Known, t_ns: int, alive: bool = True) -> list[Netns]:
        if not known.visit or not self._wanted(known.visit):
            return []
        # A file's name may be longer than a Name and need not be UTF-8.
        name = known.handle.name.encode(errors="replace").decode()[:NAME_MAX]
        return [Netns(t_ns, known.visit.cookie, known.handle.inode, name, alive)]

    def _leave(self, known: Known, t_ns: int) -> list[Netns]:
        gone = self._netns(known, t_ns, alive=False)
        self._gone += gone
        return gone

    def _seen(self, known: Known, seen: Visit | OSError, t_ns: int) -> list[AnyEvent]:
        if isinstance(seen, OSError):
            known.refused = "" if isinstance(seen, NamespaceGoneError) else seen.strerror or str(seen)
            known.due_ns = t_ns + (REFUSED_NS if known.refused else YOUNG_NS)
            return []
        before, known.visit, known.refused = known.visit, seen, ""
        longest = max(SETTLED_NS, SPACING_NS * len(self._known))
        known.interval_ns = min(2 * known.interval_ns, longest) if before == seen else YOUNG_NS
        known.due_ns = t_ns + known.interval_ns
        if before == seen or not self._wanted(seen):
            return []
        events: list[AnyEvent] = []
        if before and before.cookie != seen.cookie:
            events += self._leave(Known(known.handle, before), t_ns)
        return [*events, *self._netns(known, t_ns), *attached(seen.prefixes, seen.cookie, t_ns)]


def _visits(due: Sequence[Known]) -> list[Visit | OSError]:
    """A visit to each. Our own needs no thread and no privilege."""
    away = [known.handle.path for known in due if known.handle.name != HOST]
    found = iter(inside_each(away, look) if away else ())
    return [_home() if known.handle.name == HOST else next(found) for known in due]


def _home() -> Visit | OSError:
    try:
        return look()
    except OSError as error:
        return error


def _no_entry() -> str:
    """Why no other namespace can be entered; empty when it can. setns(2) into one's own asks for the same right."""
    try:
        inside("/proc/self/ns/net", int)
    except PermissionError as error:
        return f"setns: {error.strerror} (CAP_SYS_ADMIN)"
    return ""


def _no_links() -> str:
    """Why the namespaces of others' processes cannot be seen; empty when they can. proc(5), ptrace(2)."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> CAP_SYS_PTRACE & 1:
            return "those of other users' processes need CAP_SYS_PTRACE"
    return ""
