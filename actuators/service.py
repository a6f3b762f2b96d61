"""The actuator's process: lanes in, outcomes out, one thread. Wishes are taken a few per lane and turn, so that a flood
from one decider does not delay another's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from pathlib import Path

from actuators.control import Control, malformed
from actuators.foreign import Foreign
from actuators.modes import Modes
from actuators.parts import Parts
from actuators.route_watch import RouteWatch
from actuators.trials import Trials
from actuators.watch import Watch
from bus import roles
from bus.link import ControlServer, Descriptor, Poller, Publisher, Subscriber, WishIntake
from bus.notify import notify
from bus.schema import AnyEvent, Beat, SysctlWrite, Verdict, Wish

FAIR = 16
"""Wishes per lane and turn."""
STATUS_S = 1.1
LEVEL_S = 5.0
SOON_S = 0.3
"""What is due so soon is done now, so that the host wakes once and not twice. Deciders are heard each second or few: a
status that is due a little later than a second after the last goes out with what they send."""
WITNESS = "collector-bpf"
"""Who sees every write of a sysctl."""
CEDE_S = 60.0
"""How often is looked who else tunes this host."""
LEASE_S = 0.25
"""How often leases are looked at, while there is one."""


class Lanes:
    """Every socket of the actuator. Raises LinkError for one that cannot be bound."""

    def __init__(self, run_dir: Path, deciders: Collection[str], publisher: Publisher) -> None:
        self.publisher = publisher
        with contextlib.ExitStack() as bound:
            self.intakes: list[WishIntake] = []
            for name in deciders:
                intake = WishIntake(roles.wish_path(run_dir, name), name)
                bound.callback(intake.close)
                self.intakes.append(intake)
            self.control = ControlServer(roles.control_path(run_dir))
            bound.callback(self.control.close)
            self.writes = Subscriber(roles.events_path(run_dir, WITNESS), WITNESS)
            bound.callback(self.writes.close)
            self._bound = bound.pop_all()

    def malformed(self) -> dict[str, int]:
        """Messages that were none of ours, by lane."""
        return malformed(self.intakes, self.control)

    def close(self) -> None:
        """Close all but the publisher."""
        self._bound.close()


class Service:
    """The loop."""

    def __init__(self, parts: Parts, modes: Modes, lanes: Lanes, events: list[AnyEvent], cede: Collection[str]) -> None:
        """events: where the parts' voice puts what is to be published. cede: see bus.config.Config."""
        self._writer = writer = modes.writer
        self._modes = modes
        self._lanes = lanes
        self._events = events
        self._watch = Watch(parts)
        self._routes = parts.routes
        self._foreign = Foreign(parts)
        self._trials = Trials(parts, any(intake.decider == roles.GUARD for intake in lanes.intakes))
        self._control = Control(parts, writer, modes, self._trials)
        self._rows = dict(parts.rows)
        self._cede = cede
        self._status_s = self._level_s = self._lease_s = 0.0
        self._cede_s = time.monotonic() + CEDE_S
        self._watch.cede(Path("/"), cede)
        self._ready = False

    def run(self, stop: int) -> bool:
        """Until `stop` is readable; then put back what is on trial. Returns whether nothing of ours is left."""
        poller = Poller()
        poller.add(Descriptor(stop))
        poller.add(self._lanes.control)
        poller.add(self._lanes.writes)
        poller.add(self._routes)
        for intake in self._lanes.intakes:
            poller.add(intake)
        while True:
            self._tend()
            wait_s = min(self._status_s, self._level_s, self._lease_s) - time.monotonic()
            for source in poller.wait(max(0.0, wait_s)):
                if isinstance(source, WishIntake):
                    self._wishes(source)
                elif isinstance(source, Subscriber):
                    self._writes(source)
                elif isinstance(source, RouteWatch):
                    source.hear()
                    self._publish()
                elif isinstance(source, ControlServer):
                    source.serve(lambda ask: self._control.answer(ask, self._lanes.malformed()))
                    self._publish()
                else:
                    return self._stop()

    def _wishes(self, intake: WishIntake) -> None:
        for request in intake.receive(FAIR):
            match request:
                case Wish():
                    self._writer.handle(request, intake.decider)
                    self._lease_s = min(self._lease_s, time.monotonic() + LEASE_S)
                case Verdict():
                    self._trials.judge(request, intake.decider, time.monotonic_ns())
                case Beat():
                    self._trials.beat(intake.decider)
            # At once: a decider waits for its answer before it asks for more.
            self._publish()

    def _writes(self, source: Subscriber) -> None:
        for event in source.receive():
            if isinstance(event, SysctlWrite):
                self._foreign.written(event)
        self._publish()

    def _tend(self) -> None:
        now_s = time.monotonic()
        soon_s = now_s + SOON_S
        if soon_s >= self._level_s:
            self._level_s = now_s + LEVEL_S
            self._modes.tend()
            self._routes.level()
            self._watch.level()
            self._trials.expire()
            self._trials.tell(self._events.append, self._rows)
            self._publish()
        if now_s >= self._cede_s:
            self._cede_s = now_s + CEDE_S
            self._watch.cede(Path("/"), self._cede)
        if now_s >= self._lease_s:
            leased = self._trials.tend()
            listening = self._routes.tend()
            self._lease_s = now_s + (LEASE_S if leased or listening else LEVEL_S)
            self._publish()
        if soon_s >= self._status_s:
            self._status_s = now_s + STATUS_S
            status = self._control.status_line(self._lanes.publisher, self._lanes.malformed())
            notify(*([] if self._ready else ["READY=1"]), "WATCHDOG=1", f"STATUS={status}")
            self._ready = True

    def _stop(self) -> bool:
        notify("STOPPING=1")
        left = self._modes.stop()
        self._publish()
        return not left

    def _publish(self) -> None:
        self._watch.after(self._events[:])
        self._lanes.publisher.publish(self._events)
        self._events.clear()
