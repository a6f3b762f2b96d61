"""The BPF collector's source: takes the probes over from the loader, reads their rings, says what road each took.

Needs no capability: the descriptors come by socket, rings and drop counters are read by mmap (bpf(2) itself is refused
to us where kernel.unprivileged_bpf_disabled is set). Closing the descriptors detaches the probes, so they end with us.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, cast

from bpf import PROBES, Probe
from bus import roles, schema
from bus.schema import AnyEvent
from collectors import handoff
from collectors.drops import Tally
from collectors.handoff import Handed, HandOffError
from collectors.ring import Drops, Ring, Row
from collectors.source import Status
from collectors.words import prefix_of, value, word

REPUBLISH_NS = 5_000_000_000
PATIENCE_NS = 10_000_000_000
"""How long to be not ready for want of a loader, ..."""
AT_WORK_NS = 20_000_000_000
"""... and while one is connected, which compiles: seconds on a busy host. The service manager waits
for 30 s (trimtab.units), of which a busy host takes some before the first look."""
CALLERS = 4
"""So many may be connected without having said anything; the one that has been longest makes way for the next."""


def sysctl_write(*row: Any) -> schema.SysctlWrite:
    """One record of sysctl_write.c as an event."""
    t_ns, netns, netns_ino, pid, uid, comm, name, old, new = row
    return schema.SysctlWrite(t_ns, netns, netns_ino, pid, uid, word(comm), word(name), value(old), value(new))


def flows(*row: Any) -> schema.Flows:
    """One record of flows.c as an event."""
    t_ns, netns, netns_ino, family, address, algorithm, *totals = row
    return schema.Flows(t_ns, netns, netns_ino, family, prefix_of(family, address), word(algorithm), *totals)


MAKERS: dict[str, Callable[..., AnyEvent]] = {"SysctlWrite": sysctl_write, "Flows": flows}
"""Of topics with words in their records."""


def maker(probe: Probe, names: dict[int, str]) -> Callable[..., AnyEvent]:
    """What makes an event of one of the probe's records."""
    if probe.topic in MAKERS:
        return MAKERS[probe.topic]
    topic = cast("Callable[..., AnyEvent]", schema.TOPICS[probe.topic])
    if not probe.names:
        return topic
    at = probe.names.field

    def named(*row: Any) -> AnyEvent:
        return topic(*row[:at], names.get(row[at], str(row[at])), *row[at + 1 :])

    return named


class Attached:
    """What the loader handed over, mapped. Raises HandOffError when it does not map."""

    def __init__(self, handed: Handed) -> None:
        self._handed = handed
        self._rings: dict[int, tuple[Ring, Callable[..., AnyEvent]]] = {}
        self._drops: Drops | None = None
        try:
            for probe in PROBES:
                row = handed.rows[probe.name]
                if row.road:
                    self._rings[row.ring] = Ring(row.ring, probe.ring_bytes, probe.record), maker(probe, row.names)
            if self._rings:
                self._drops = Drops(handed.drops, len(PROBES))
        except OSError as error:
            self.close()
            raise HandOffError(f"what the loader sent does not map: {error.strerror}") from None

    @property
    def rows(self) -> dict[str, handoff.Row]:
        """What became of each probe."""
        return self._handed.rows

    def descriptors(self) -> list[int]:
        """The rings, readable when there is something in them."""
        return list(self._rings)

    def read(self, descriptors: frozenset[int]) -> list[AnyEvent]:
        """The events in these rings."""
        found: list[AnyEvent] = []
        for fd in descriptors & self._rings.keys():
            ring, make = self._rings[fd]
            rows: list[Row] = ring.read()
            found.extend(starmap(make, rows))
        return found

    def lost(self) -> dict[str, int]:
        """Records that found no room since the probes were loaded, or were malformed."""
        counts = self._drops.read() if self._drops else [0] * len(PROBES)
        lost = {probe.name: dropped for probe, dropped in zip(PROBES, counts, strict=True)}
        for name, row in self.rows.items():
            if row.ring in self._rings:
                lost[name] += self._rings[row.ring][0].malformed
        return lost

    def close(self) -> None:
        """Unmap and close all, which detaches the probes."""
        for ring, _ in self._rings.values():
            ring.close()
        if self._drops:
            self._drops.close()
        self._handed.close()


class BpfSource:
    """Events of the probes, and one Probe event for each, again and again. See collectors.source.Source.
    fence: cookies of the only namespaces that are spoken of (all, when it is empty)."""

    def __init__(self, run_dir: Path, fence: Collection[int] = ()) -> None:
        self._fence = frozenset({0, *fence}) if fence else frozenset()
        """Whose events are given out, 0: what is of no namespace; empty: all."""
        self._listener = handoff.listen(roles.probes_path(run_dir))
        self._callers: dict[int, socket.socket] = {}
        self._attached: Attached | None = None
        self._reason = "no loader has come"
        self._refused = 0
        self._settled = False
        self._started_ns = 0
        self._due_ns = 0
        self._lost: dict[str, int] = {}
        self._tally = Tally()

    @property
    def ready(self) -> bool:
        """The loader came, or failed to."""
        return self._settled

    @property
    def due_ns(self) -> int:
        """When the Probe events are due again."""
        return self._due_ns

    def descriptors(self) -> Sequence[int]:
        """The rings, and where the loader calls."""
        return [
            self._listener.fileno(),
            *self._callers,
            *(self._attached.descriptors() if self._attached else ()),
        ]

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """What the probes say, preceded by what became of them when that is news."""
        self._started_ns = self._started_ns or t_ns
        changed = self._welcome(readable)
        if not self._settled and t_ns - self._started_ns > (AT_WORK_NS if self._callers else PATIENCE_NS):
            self._settled = changed = True
        events: list[AnyEvent] = []
        if changed or t_ns >= self._due_ns:
            self._due_ns = t_ns + REPUBLISH_NS
            offsets = {row.name: row.offsets for row in self._attached.rows.values()} if self._attached else {}
            events += [schema.Probe(t_ns, *row, offsets.get(row[0], {})) for row in self._roads()]
            events += self._losses(t_ns)
        if self._attached:
            found = self._within(self._attached.read(readable))
            self._tally.take(found)
            events += found
        return events

    def _within(self, events: list[AnyEvent]) -> list[AnyEvent]:
        """Those of the fence's namespaces and of none. Writes are the actuator's to judge, wherever they were made."""
        if not self._fence:
            return events
        return [
            event for event in events
            if isinstance(event, schema.SysctlWrite) or getattr(event, "netns", 0) in self._fence
        ]  # fmt: skip

    def status(self) -> Status:
        """What is watched, and how many records were lost."""
        without = {probe.name: probe.without for probe in PROBES}
        roads = self._roads()
        missing = [f"{name}: {reason}; {without[name]}" for name, road, reason in roads if not road]
        if self._attached and self._reason:
            missing.append(f"a second loader: {self._reason}")
        lost = self._attached.lost() if self._attached else {}
        counters = {"ring_drops": sum(lost.values()), "refused_loaders": self._refused}
        return Status(
            watched=[f"{name} ({road})" for name, road, _ in roads if road],
            missing=missing if self._settled else [],
            counters=counters | {f"ring_drops_{name}": n for name, n in lost.items() if n},
            drops=self._tally.most(time.monotonic_ns()),
        )

    def close(self) -> None:
        """Detach the probes, stop listening."""
        for caller in self._callers.values():
            caller.close()
        self._listener.close()
        if self._attached:
            self._attached.close()

    def _roads(self) -> list[tuple[str, str, str]]:
        """(name, road, reason) of each probe."""
        if not self._attached:
            reason = "the loader is still at work" if self._callers else self._reason
            return [(probe.name, "", reason) for probe in PROBES]
        return [(row.name, row.road, row.reason) for row in self._attached.rows.values()]

    def _welcome(self, readable: frozenset[int]) -> bool:
        """See who calls and what they bring. True when something became of it."""
        if self._listener.fileno() in readable:
            self._let_in()
        ringing = readable & self._callers.keys()
        for fd in ringing:
            with self._callers.pop(fd) as caller:
                self._take(caller)
        return bool(ringing)

    def _let_in(self) -> None:
        try:
            caller = handoff.accept(self._listener)
        except HandOffError:
            self._refused += 1
        else:
            if caller:
                self._callers[caller.fileno()] = caller
            if len(self._callers) > CALLERS:
                self._callers.pop(next(iter(self._callers))).close()

    def _take(self, caller: socket.socket) -> None:
        self._settled = True
        try:
            attached = Attached(handoff.receive(caller))
        except HandOffError as error:
            # Probes that were handed over before stay as they are.
            self._reason = str(error)
            return
        if self._attached:
            self._attached.close()
        self._attached, self._reason, self._lost = attached, "", {}

    def _losses(self, t_ns: int) -> list[AnyEvent]:
        """A Gap for each ring that overflowed since the last look."""
        now = self._attached.lost() if self._attached else {}
        before, self._lost = self._lost, now
        return [
            schema.Gap(t_ns, f"ring {name}", lost - before.get(name, 0), False)
            for name, lost in now.items()
            if lost > before.get(name, 0)
        ]
