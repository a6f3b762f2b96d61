"""The source `trials`: counters in the namespaces where a change is on trial, each second while it lasts: TCP's and
IPv4's, and where the change is of IPv6, that one's as well.

The counters of every namespace would be too many; those of one where nothing was changed, nobody asks for. The first
reading comes at once, so that what the totals say of the time before the change is not yet mixed with what came after.
Some time after the last trial reading goes on, since the next change of the same namespace finds a baseline then.

A namespace's files are read from inside, in a thread that ends there (bus.netns), and closed: an open one would keep
the namespace alive. Needs CAP_SYS_ADMIN, and CAP_SYS_PTRACE where its processes are other users'.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from pathlib import Path

from msgspec import Struct

from bus import netns, roles
from bus.link import Subscriber
from bus.netns import NamespaceGoneError
from bus.schema import AnyEvent, Counters, Outcome, Trial
from collectors import counters
from collectors.counters import File
from collectors.namespaces import Census
from collectors.source import Status, later

SECOND_NS = 1_000_000_000
LINGER_NS = 180 * SECOND_NS
RETRY_NS = 10 * SECOND_NS
SEARCH_NS = SECOND_NS // 2
"""A search that found nothing has entered every namespace there is: so soon there is no other."""
PLACES_MAX = 256
"""Namespaces read at once; those heard of later wait for one to end."""
PUBLISHER = "actuator"
INSIDE = Path("/proc/thread-self")
"""/proc/self/net would be the namespace of the process's first thread."""
FILES = tuple(file for file in counters.FILES if file.name in ("net/snmp", "net/netstat"))
SIX = tuple(file for file in counters.FILES if file.name == "net/snmp6")


class Place(Struct):
    """One namespace to read in."""

    cookie: int
    inode: int
    until_ns: int
    handle: str = ""
    retry_ns: int = 0
    missed: bool = False
    """It was not where the census says."""
    trouble: str = ""
    files: tuple[File, ...] = FILES


class TrialsSource:
    """See collectors.source.Source."""

    ready = True

    def __init__(self, run_dir: Path, own: int, census: Census | None = None) -> None:
        """own: the collector's own namespace, whose counters collector-proc reads always. census: who knows the others,
        so that hardly any needs to be searched for."""
        self._census = census
        self._search_ns = 0
        self._subscriber = Subscriber(roles.events_path(run_dir, PUBLISHER), PUBLISHER)
        self._own = own
        self._places: dict[int, Place] = {}
        self.due_ns = 0

    def descriptors(self) -> tuple[int, ...]:
        """Readable when the actuator may have said something (and then read until it is empty, zmq_getsockopt(3))."""
        return (int(self._subscriber.socket.FD),)

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """The counters of each namespace once a second, of a new one at once."""
        fresh = self._listen(t_ns)
        due = t_ns >= self.due_ns
        if due:
            self.due_ns = later(t_ns, SECOND_NS)
            for place in [place for place in self._places.values() if t_ns > place.until_ns]:
                del self._places[place.cookie]
        return self._read([place for place in self._places.values() if due or place.cookie in fresh], t_ns)

    def status(self) -> Status:
        """How many namespaces are read, and which cannot be."""
        missing = [
            f"counters of netns {place.cookie}: {place.trouble}" for place in self._places.values() if place.trouble
        ]
        count = len(self._places) - len(missing)
        return Status([f"TCP counters of {count} namespaces with a change on trial"] if count else [], missing)

    def close(self) -> None:
        self._subscriber.close()

    def _listen(self, t_ns: int) -> Collection[int]:
        """What is to be read from now on. Returns what is new."""
        fresh: list[int] = []
        while events := self._subscriber.receive():
            for event in events:
                if isinstance(event, Trial) or (isinstance(event, Outcome) and event.verdict == "written"):
                    fresh += self._wanted(event, t_ns)
        return fresh

    def _wanted(self, event: Trial | Outcome, t_ns: int) -> list[int]:
        """The namespace, where it was not wanted before."""
        if event.netns in (0, self._own):
            return []
        inode = event.netns_ino if isinstance(event, Trial) else 0
        place = self._places.get(event.netns)
        fresh = place is None and len(self._places) < PLACES_MAX
        if fresh:
            place = self._places[event.netns] = Place(event.netns, inode, 0)
        if place is None:
            return []
        place.until_ns, place.inode = t_ns + LINGER_NS, inode or place.inode
        if event.tunable.startswith("net.ipv6.") and place.files == FILES:
            place.files, fresh = (*FILES, *SIX), True
        return [event.netns] if fresh else []

    def _read(self, places: list[Place], t_ns: int) -> list[AnyEvent]:
        found = [place for place in places if self._find(place, t_ns)]
        events: list[AnyEvent] = []
        for files in {place.files: None for place in found}:
            some = [place for place in found if place.files == files]
            results = netns.inside_each([place.handle for place in some], functools.partial(read_here, files))
            for place, result in zip(some, results, strict=True):
                events += self._take(place, result, t_ns)
        return events

    def _find(self, place: Place, t_ns: int) -> bool:
        """Whether there is a handle for it."""
        if place.handle or t_ns < place.retry_ns:
            return bool(place.handle)
        known = dict(self._census.places()) if self._census else {}
        if place.cookie in known and not place.missed:
            place.handle = known[place.cookie].path
        elif t_ns >= self._search_ns:
            self._search(place, t_ns)
        return bool(place.handle)

    def _search(self, place: Place, t_ns: int) -> None:
        try:
            place.handle = netns.find(place.cookie, place.inode).handle
        except OSError as error:
            if isinstance(error, NamespaceGoneError):
                # It never comes back; but where nobody shows it for a moment, the actuator speaks of it again.
                place.until_ns = min(place.until_ns, t_ns + RETRY_NS // 2)
                self._search_ns = t_ns + SEARCH_NS
            self._failed(place, error, t_ns)

    def _take(self, place: Place, result: tuple[int, list[bytes]] | OSError, t_ns: int) -> list[Counters]:
        if isinstance(result, OSError):
            # The process behind the handle has ended; another may be inside.
            self._failed(place, result, 0)
            return []
        cookie, texts = result
        if cookie != place.cookie:
            place.handle, place.missed = "", True
            return []
        try:
            events = [
                counters.read(file, raw, t_ns, place.cookie) for file, raw in zip(place.files, texts, strict=True)
            ]
        except ValueError as error:
            place.trouble = str(error)
            return []
        place.trouble, place.missed = "", False
        return events

    def _failed(self, place: Place, error: OSError, t_ns: int) -> None:
        place.handle, place.retry_ns, place.missed = "", t_ns + RETRY_NS if t_ns else 0, True
        # One that has gone is not missed.
        place.trouble = "" if isinstance(error, NamespaceGoneError) else error.strerror or str(error)


def read_here(files: tuple[File, ...] = FILES) -> tuple[int, list[bytes]]:
    """The cookie of the calling thread's namespace, and what these files hold there."""
    texts: list[bytes] = []
    for file in files:
        fd = os.open(INSIDE / file.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            texts.append(counters.read_all(fd))
        finally:
            os.close(fd)
    return netns.cookie_here(), texts
