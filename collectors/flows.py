"""The source `flows`: which congestion control a namespace has where BPF tells of flows; and the flows themselves, from
sock_diag, where BPF cannot.

Flows are told of in many namespaces, and which algorithms the kernel has, and which one stands, changes seldom: read
when a namespace is first heard of, then once a minute, and told every few seconds. Without the probes all namespaces
are looked through in turn, at a fixed share of a core however many sockets there are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from bus import netns, roles
from bus.link import Subscriber
from bus.netns import HOST, Handle, NamespaceGoneError, cookie_here
from bus.schema import Algorithms, AnyEvent, Flows, Probe
from collectors import sampled
from collectors.namespaces import Census
from collectors.sampled import Look, Sampled
from collectors.source import Status, later

SECOND_NS = 1_000_000_000
STATE_NS = 5 * SECOND_NS
READ_NS = 60 * SECOND_NS
LINGER_NS = 300 * SECOND_NS
PLACES_MAX = 256
"""Namespaces whose algorithms are told of; those heard of later wait for one to fall silent."""
SAMPLE_NS = SECOND_NS
SAMPLE_SHARE = 300
"""What a round of looks took is not done again for this times as long: 0.3 % of a core."""
SAMPLES = 16
"""In one round at most."""
PUBLISHER = "collector-bpf"
PROBES = ("flows_ended", "flows_going")
SYSCTL = Path("/proc/sys/net/ipv4")
"""Shows the namespace of the thread that looks (net_ctl_root in net/sysctl_net.c)."""
WORDS_MAX, WORD_MAX = 16, 128
T = TypeVar("T")


class Choice(Struct, frozen=True):
    """What a namespace has."""

    cookie: int
    available: tuple[str, ...]
    standing: str


class Place(Struct):
    """A namespace where flows were told of."""

    told_ns: int
    read_ns: int = 0
    choice: Choice | None = None


class FlowsSource:
    """See collectors.source.Source."""

    ready = True

    def __init__(self, run_dir: Path, census: Census) -> None:
        self._subscriber = Subscriber(roles.events_path(run_dir, PUBLISHER), PUBLISHER)
        self._census = census
        self._places: dict[int, Place] = {}
        self._off: dict[str, bool] = {}
        self._sampled: dict[int, Sampled] = {}
        self._turns: deque[int] = deque()
        self._sample_ns = self._state_ns = 0
        self._trouble = ""
        self.due_ns = 0

    @property
    def blind(self) -> bool:
        """No probe tells."""
        return len(self._off) == len(PROBES) and all(self._off.values())

    def descriptors(self) -> tuple[int, ...]:
        """Readable when the probes may have said something (and then read until it is empty, zmq_getsockopt(3))."""
        return (int(self._subscriber.socket.FD),)

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """What stands where flows are; and flows, without the probes."""
        fresh = self._listen(t_ns)
        events: list[AnyEvent] = []
        if t_ns >= self.due_ns:
            self.due_ns = later(t_ns, SECOND_NS)
            if self.blind:
                events += self._look(t_ns)
            fresh = self._due(t_ns)
        return [*events, *self._tell(fresh, t_ns)]

    def status(self) -> Status:
        """Whether flows are sampled, and what cannot be read."""
        watched = [f"flows of {len(self._sampled)} namespaces, from sock_diag"] if self.blind else []
        return Status(watched, [f"flows: {self._trouble}"] if self._trouble else [])

    def close(self) -> None:
        self._subscriber.close()

    def _listen(self, t_ns: int) -> list[int]:
        """Namespaces that were not heard of before."""
        fresh: list[int] = []
        while events := self._subscriber.receive():
            for event in events:
                if type(event) is Probe and event.name in PROBES:
                    self._off[event.name] = not event.road
                elif type(event) is Flows and self._heard(event.netns, t_ns):
                    fresh.append(event.netns)
        if not self.blind:
            self._sampled.clear()
        return fresh

    def _heard(self, cookie: int, t_ns: int) -> bool:
        place = self._places.get(cookie)
        if place:
            place.told_ns = t_ns
        elif len(self._places) < PLACES_MAX:
            self._places[cookie] = Place(t_ns)
            return True
        return False

    def _due(self, t_ns: int) -> list[int]:
        """Those to be told of again; forgets those where nothing is any more."""
        for cookie in [cookie for cookie, place in self._places.items() if t_ns - place.told_ns > LINGER_NS]:
            del self._places[cookie]
        if t_ns >= self._state_ns:
            self._state_ns = t_ns + STATE_NS
            return list(self._places)
        return [cookie for cookie, place in self._places.items() if not place.choice]

    def _tell(self, cookies: Iterable[int], t_ns: int) -> list[Algorithms]:
        handles = dict(self._census.places())
        chosen = [cookie for cookie in cookies if cookie in handles]
        stale = [cookie for cookie in chosen if t_ns - self._places[cookie].read_ns >= READ_NS]
        for cookie, found in self._visit([(cookie, handles[cookie]) for cookie in stale], choice_here):
            self._places[cookie].read_ns, self._places[cookie].choice = t_ns, found
        told = [(handles[cookie], self._places[cookie].choice) for cookie in chosen]
        return [
            Algorithms(t_ns, choice.cookie, handle.inode, choice.available, choice.standing)
            for handle, choice in told
            if choice
        ]

    def _look(self, t_ns: int) -> list[AnyEvent]:
        """The next few namespaces in turn."""
        if t_ns < self._sample_ns:
            return []
        began_ns = time.process_time_ns()
        handles = dict(self._census.places())
        turns = [cookie for cookie in self._turns if cookie in handles]
        self._turns = deque([*(handles.keys() - set(turns)), *turns])
        self._sampled = {cookie: one for cookie, one in self._sampled.items() if cookie in handles}
        chosen = [self._turns[number] for number in range(min(SAMPLES, len(self._turns)))]
        self._turns.rotate(-len(chosen))
        events: list[AnyEvent] = []
        for cookie, found in self._visit([(cookie, handles[cookie]) for cookie in chosen], talking_here):
            sums = self._sampled.setdefault(cookie, Sampled(cookie, handles[cookie].inode))
            events += sums.take(found.talking, t_ns)
        for netns_ in {event.netns for event in events if isinstance(event, Flows)}:
            self._heard(netns_, t_ns)
        self._sample_ns = t_ns + max(SAMPLE_NS, (time.process_time_ns() - began_ns) * SAMPLE_SHARE)
        return events

    def _visit(self, places: list[tuple[int, Handle]], do: Callable[[], T]) -> list[tuple[int, T]]:
        """What is found in each; one that has gone, or is another by now, is left out."""
        away = [handle.path for _, handle in places if handle.name != HOST]
        found = iter(netns.inside_each(away, do) if away else ())
        seen: list[tuple[int, T]] = []
        for cookie, handle in places:
            one = _home(do) if handle.name == HOST else next(found)
            if isinstance(one, OSError):
                self._trouble = "" if isinstance(one, NamespaceGoneError) else one.strerror or str(one)
            elif getattr(one, "cookie", 0) == cookie:
                self._trouble = ""
                seen.append((cookie, one))
        return seen


def _home(do: Callable[[], T]) -> T | OSError:
    try:
        return do()
    except OSError as error:
        return error


def choice_here() -> Choice:
    """Of the calling thread's namespace. Raises OSError."""
    available, standing = (
        (SYSCTL / f"tcp_{which}congestion_control").read_text().split() for which in ("available_", "")
    )
    words = tuple(word[:WORD_MAX] for word in available[:WORDS_MAX])
    return Choice(cookie_here(), words, (standing or [""])[0][:WORD_MAX])


def talking_here() -> Look:
    """The connections of the calling thread's namespace. Raises OSError."""
    return sampled.look_here(cookie_here())
