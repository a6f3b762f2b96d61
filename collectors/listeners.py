"""The source `listeners`: how connections are set up where some could not be, and which sockets listen there.

Of a SYN that finds the accept queue full nobody is told: the kernel counts it and goes on (tcp_conn_request in
net/ipv4/tcp_input.c; no kfree_skb, seen on 6.18). Only a handshake that finds it full at its end is a drop that BPF
sees. So the counters of each namespace are glanced at in turn, at a fixed share of a core however many there are; one
in which they moved, or that such a drop speaks of, is looked at each second, with its sockets, until they have stood
still for a minute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from bus import roles
from bus.link import Subscriber
from bus.netns import Handle, NamespaceGoneError
from bus.schema import AnyEvent, Drops, Listener, ListenQueues, TcpRcvBuf, TcpSndBuf, UdpDrop
from collectors import owners, queues
from collectors.holders import Holders
from collectors.namespaces import Census
from collectors.owners import Owner
from collectors.queues import Look
from collectors.sockdiag import Listening
from collectors.source import Status, later

SECOND_NS = 1_000_000_000
LINGER_NS = 60 * SECOND_NS
GLANCE_SHARE = 300
"""What a round of glances took is not done again for this times as long: 0.3 % of a core, as much as the visits of
collectors.namespaces, or each second where there are a dozen namespaces."""
GLANCES = 16
"""In one round at most, so that it is short."""
SOON_NS = 200_000_000
"""A drop makes us look at once, but not more often than this."""
PLACES_MAX = 64
"""Namespaces looked at each second; those found later wait for one to become quiet."""
LISTENERS_MAX = 32
"""Of a namespace: those that dropped most."""
OWNERS_NS = 10 * SECOND_NS
"""So often a search for the programs of sockets is made again."""
PUBLISHER = "collector-bpf"
REASON = "TCP_LISTEN_OVERFLOW"


class Place(Struct):
    """A namespace as far as it is known here."""

    handle: Handle
    totals: ListenQueues | None = None
    until_ns: int = 0
    """Looked at each second until then; 0: glanced at in its turn."""
    looked_ns: int = 0
    owners_ns: int = 0
    owners: dict[int, Owner] = {}
    """By the inode of the socket."""
    nameless: set[int] = set()
    """Those whose owners are to be found."""


class ListenersSource:
    """See collectors.source.Source."""

    ready = True

    def __init__(self, run_dir: Path, census: Census) -> None:
        self._subscriber = Subscriber(roles.events_path(run_dir, PUBLISHER), PUBLISHER)
        self._census = census
        self._places: dict[int, Place] = {}
        self._turns: deque[int] = deque()
        self._glance_ns = 0
        self._holders = Holders()
        self._troubled = 0
        self._trouble = ""
        self._look_ns = 0
        self._nameless: list[Place] = []
        """Where sockets drop whose programs are yet to be found."""

    @property
    def due_ns(self) -> int:
        """The next look; at once where programs are to be found."""
        return 0 if self._nameless else self._look_ns

    def descriptors(self) -> tuple[int, ...]:
        """Readable when the probes may have said something (and then read until it is empty, zmq_getsockopt(3))."""
        return (int(self._subscriber.socket.FD),)

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """Of each namespace in trouble once a second, of one that a drop speaks of at once."""
        # After what was seen has been published: going through all descriptors of a host can take tenths of a second,
        # for which no change is to wait. The names are told with the next look.
        while self._nameless:
            _name(self._nameless.pop(), t_ns)
        wanted = self._told(t_ns)
        events: list[AnyEvent] = []
        if t_ns >= self._look_ns:
            self._look_ns = later(t_ns, SECOND_NS)
            self._know()
            events += self._glances(t_ns)
            wanted |= {cookie for cookie, place in self._places.items() if place.until_ns}
        handles = {cookie: place.handle for cookie, place in self._places.items()}
        return [*events, *self._looks(sorted(wanted), t_ns), *self._holders.find(handles, t_ns)]

    def status(self) -> Status:
        """How many namespaces are in trouble, and what cannot be read."""
        count = self._troubled
        watched = [f"listening sockets of {count} namespace{'' if count == 1 else 's'}"] if count else []
        return Status(watched, [f"listening sockets: {self._trouble}"] if self._trouble else [])

    def close(self) -> None:
        self._subscriber.close()

    def _told(self, t_ns: int) -> set[int]:
        """The namespaces where a handshake found the accept queue full at its end."""
        found: set[int] = set()
        while events := self._subscriber.receive():
            for event in events:
                if type(event) is UdpDrop or (isinstance(event, TcpRcvBuf | TcpSndBuf) and event.locked):
                    self._holders.wanted(event, t_ns)
                elif type(event) is Drops and event.reason == REASON:
                    place = self._places.get(event.netns)
                    if place and t_ns - place.looked_ns >= SOON_NS and self._wake(place, t_ns):
                        found.add(event.netns)
        return found

    def _wake(self, place: Place, t_ns: int) -> bool:
        """Whether it is looked at each second from now on."""
        if not place.until_ns and self._troubled >= PLACES_MAX:
            return False
        self._troubled += not place.until_ns
        place.until_ns = t_ns + LINGER_NS
        return True

    def _know(self) -> None:
        """The namespaces that there are now."""
        now = dict(self._census.places())
        for cookie in self._places.keys() - now.keys():
            self._troubled -= bool(self._places.pop(cookie).until_ns)
        for cookie, handle in now.items():
            self._places.setdefault(cookie, Place(handle)).handle = handle
        turns = [cookie for cookie in self._turns if cookie in now]
        self._turns = deque([*(now.keys() - set(turns)), *turns])

    def _glances(self, t_ns: int) -> list[AnyEvent]:
        """The next few in turn. Of those where it moved since the last time: how it stood then."""
        if t_ns < self._glance_ns:
            return []
        began_ns = time.process_time_ns()
        chosen = [self._turns[number] for number in range(min(GLANCES, len(self._turns)))]
        self._turns.rotate(-len(chosen))
        events: list[AnyEvent] = []
        for place, found in self._visit([one for one in chosen if not self._places[one].until_ns], glance=True):
            before, place.totals = place.totals, _totals(place, found, t_ns)
            if before and queues.moved(before, place.totals) and self._wake(place, t_ns):
                events.append(before)
        self._glance_ns = t_ns + (time.process_time_ns() - began_ns) * GLANCE_SHARE
        return events

    def _looks(self, cookies: Iterable[int], t_ns: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for place, found in self._visit(cookies):
            before, place.totals = place.totals, _totals(place, found, t_ns)
            if before and queues.moved(before, place.totals):
                events += [before] if t_ns - place.looked_ns > LINGER_NS else []
                place.until_ns = t_ns + LINGER_NS
            elif t_ns > place.until_ns:
                place.until_ns = 0
                self._troubled -= 1
            place.looked_ns = t_ns
            events += [place.totals, *_listeners(place, found.listening, t_ns)]
            if place.nameless:
                self._nameless.append(place)
        return events

    def _visit(self, cookies: Iterable[int], glance: bool = False) -> list[tuple[Place, Look]]:
        """What is found in each; one that has gone, or is another by now, is left out."""
        places = [(cookie, self._places[cookie]) for cookie in cookies]
        do = queues.glance_here if glance else queues.look_here
        seen: list[tuple[Place, Look]] = []
        for (cookie, place), found in zip(places, queues.visit([place.handle for _, place in places], do), strict=True):
            if isinstance(found, OSError):
                self._trouble = "" if isinstance(found, NamespaceGoneError) else found.strerror or str(found)
            elif found.cookie == cookie:
                self._trouble = ""
                seen.append((place, found))
        return seen


def _totals(place: Place, found: Look, t_ns: int) -> ListenQueues:
    return ListenQueues(t_ns, found.cookie, place.handle.inode, **found.totals)


def _listeners(place: Place, listening: Iterable[Listening], t_ns: int) -> list[Listener]:
    """Those that dropped most, and then those with most in their queue."""
    worst = sorted(listening, key=lambda one: (-one.dropped, -one.queued, one.cookie))[:LISTENERS_MAX]
    assert place.totals
    _owned(place, {one.inode for one in worst if one.dropped}, t_ns)
    made: list[Listener] = []
    for one in worst:
        owner = place.owners.get(one.inode, Owner(0, ""))
        made.append(
            Listener(t_ns, place.totals.netns, place.handle.inode, one.cookie, one.port, one.backlog, one.queued,
                     one.dropped, owner.pid, owner.program)
        )  # fmt: skip
    return made


def _owned(place: Place, inodes: set[int], t_ns: int) -> None:
    """Whose they are is known, or to be found, unless that was tried a moment ago."""
    place.owners = {inode: owner for inode, owner in place.owners.items() if inode in inodes}
    place.nameless = inodes - place.owners.keys() if t_ns - place.owners_ns >= OWNERS_NS else set()


def _name(place: Place, t_ns: int) -> None:
    place.owners_ns = t_ns
    place.owners |= owners.find(place.handle.inode, place.nameless)
    place.nameless = set()
