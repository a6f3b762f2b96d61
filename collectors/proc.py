"""The source `proc`: the clock tick, facts about the host, counters under /proc."""

from __future__ import annotations

from pathlib import Path

from bus.netns import cookie_here
from bus.schema import AnyEvent, Counters, Host, Tick
from collectors import counters, host
from collectors.source import Status, later

SECOND_NS = 1_000_000_000
TICK_NS = SECOND_NS
HOST_NS = 5 * SECOND_NS
RETRY_NS = 30 * SECOND_NS
"""A file that is missing may come with a module (ipv6), so it is tried again; not often, so that idle stays idle."""


class ProcSource:
    """Needs no privilege. What cannot be read is missing, and the rest goes on."""

    ready = True

    def __init__(self, root: Path = Path("/proc"), files: tuple[counters.File, ...] = counters.FILES) -> None:
        self._root = root
        self._netns = cookie_here()
        self._open: dict[str, counters.OpenFile] = {}
        self._closed = {file.name: file for file in files}
        self._missing: dict[str, str] = {}
        self._seq = 0
        self._host_ns = 0
        self._retry_ns = 0
        self.due_ns = 0

    def descriptors(self) -> tuple[int, ...]:
        """None: nothing under /proc wakes a reader in time."""
        return ()

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """Each second everything, the Tick last: who acts on it has the state of that second."""
        if t_ns < self.due_ns:
            return []
        self.due_ns = later(t_ns, TICK_NS)
        self._reopen(t_ns)
        events: list[AnyEvent] = [*self._facts(t_ns)]
        for name in list(self._open):
            events += self._counters(name, t_ns)
        events.append(Tick(t_ns, self._seq))
        self._seq += 1
        return events

    def _facts(self, t_ns: int) -> list[Host]:
        if t_ns < self._host_ns:
            return []
        self._host_ns = t_ns + HOST_NS
        try:
            facts = [host.read(self._root, t_ns)]
        except (OSError, ValueError) as error:
            self._missing["host facts"] = _reason(error)
            return []
        self._missing.pop("host facts", None)
        return facts

    def _counters(self, name: str, t_ns: int) -> list[Counters]:
        try:
            return [self._open[name].read(t_ns, self._netns)]
        except (OSError, ValueError) as error:
            self._missing[name] = _reason(error)
            file = self._open.pop(name)
            file.close()
            self._closed[name] = file.file
            return []

    def _reopen(self, t_ns: int) -> None:
        if t_ns < self._retry_ns:
            return
        self._retry_ns = t_ns + RETRY_NS
        for name, file in list(self._closed.items()):
            try:
                self._open[name] = counters.OpenFile(self._root, file)
            except OSError as error:
                if not file.optional:
                    self._missing[name] = _reason(error)
                continue
            del self._closed[name]
            self._missing.pop(name, None)

    def status(self) -> Status:
        """What is read each second, and what is not."""
        return Status(["tick", "host facts", *self._open], [f"{what}: {why}" for what, why in self._missing.items()])

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
