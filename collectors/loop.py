"""The loop that every collector runs: wait, collect, publish at once, tell the service manager how it goes."""

from __future__ import annotations

import sys
import time

import msgspec

from bus.link import Descriptor, Poller, Publisher
from bus.notify import notify
from bus.schema import AnyEvent
from collectors.source import Source, Status, later

SECOND_NS = 1_000_000_000
STATUS_NS = SECOND_NS
PAUSE_NS = SECOND_NS
"""How long a source that failed is left alone."""


class Loop:
    """One source and one publisher, until `stop` is readable."""

    def __init__(self, role: str, source: Source, publisher: Publisher, stop: int) -> None:
        self._role = role
        self._source = source
        self._publisher = publisher
        self._stop = stop
        self._poller = Poller()
        self._waiting: dict[int, Descriptor] = {}
        self._status_ns = 0
        self._paused_ns = 0
        self._failure = ""
        self._ready = False
        self._missing: list[str] = []

    def run(self) -> None:
        """Returns when told to stop."""
        while self._stop not in (readable := self._wait()):
            t_ns = time.monotonic_ns()
            if t_ns >= self._paused_ns:
                events = self._collect(t_ns, readable)
                if events:
                    self._publisher.publish(events)
            if t_ns >= self._status_ns or (self._source.ready and not self._ready):
                self._status_ns = later(t_ns, STATUS_NS)
                self._tell()
        notify("STOPPING=1")

    def _wait(self) -> frozenset[int]:
        now = time.monotonic_ns()
        paused = now < self._paused_ns
        self._watch({self._stop, *(() if paused else self._source.descriptors())})
        due_ns = min(self._status_ns, self._paused_ns if paused else self._source.due_ns)
        found = self._poller.wait(max(0, due_ns - now) / SECOND_NS)
        return frozenset(source.waitable for source in found if isinstance(source, Descriptor))

    def _watch(self, wanted: set[int]) -> None:
        if self._waiting.keys() == wanted:
            return
        for fd in self._waiting.keys() - wanted:
            self._poller.remove(self._waiting.pop(fd))
        for fd in wanted - self._waiting.keys():
            self._waiting[fd] = Descriptor(fd)
            self._poller.add(self._waiting[fd])

    def _collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        try:
            events = self._source.collect(t_ns, readable)
        except OSError as error:
            # Sources deal with the failures that they expect; this one must neither spin nor end the role.
            self._failure = f"{self._role}: {error}"
            self._paused_ns = t_ns + PAUSE_NS
            return []
        self._failure = ""
        return events

    def _tell(self) -> None:
        status = self._source.status()
        missing = status.missing + ([self._failure] if self._failure else [])
        self._log(missing)
        lines = ["WATCHDOG=1", f"STATUS={self._json(status, missing)}"]
        if not self._ready and (self._source.ready or self._failure):
            self._ready = True
            lines.insert(0, "READY=1")
        notify(*lines)

    def _json(self, status: Status, missing: list[str]) -> str:
        return msgspec.json.encode(
            {
                "published": self._publisher.published,
                "watched": status.watched,
                "missing": missing,
                **status.counters,
                **({"drops": status.drops} if status.drops else {}),
            }
        ).decode()

    def _log(self, missing: list[str]) -> None:
        for what in missing:
            if what not in self._missing:
                print(f"{self._role}: without {what}", file=sys.stderr, flush=True)
        for what in self._missing:
            if what not in missing:
                print(f"{self._role}: again with {what.partition(':')[0]}", file=sys.stderr, flush=True)
        self._missing = missing
