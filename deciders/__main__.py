"""Deciders: `python -I -m deciders NAME... --run-dir DIR --state-dir DIR --config FILE`. Needs no privilege, and shuts
itself in (bus.sandbox) before it imports what may be a third party's.

The only impure module here: it fetches the events, folds them through the engine, sends the wishes, tells the service
manager how it goes. Replay uses load() and the engine, and none of the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from bus import config, link, plugins, roles, sandbox, tunables
from bus.arguments import EX_USAGE, RoleParser, UsageError
from bus.config import ConfigError
from bus.notify import notify
from bus.recorder import Recorder, Session
from bus.recordings import Recordings
from bus.revision import revision
from bus.sandbox import Sandbox
from bus.schema import TOPICS, VERSION, AnyEvent, Beat, Probe
from bus.stop import stop_signals
from bus.tape import Head, Memory
from deciders.engine import Asked, Decider, DeciderModule, decide_apart

SECOND_S = 1.0
EARLY_S = 0.3
"""What is due so soon is done when there is something else to do: collectors speak each second, and so one wake-up does
for both."""
BEAT_S = 3.0
"""A tenth of a lease (actuators.leases): each beat wakes the actuator, and there is one for each decider."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run these deciders until SIGTERM. Returns the exit code: 0 stopped in order, 1 cannot run, 64 usage."""
    try:
        options = _arguments(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"deciders: {error}", file=sys.stderr)
        return EX_USAGE
    try:
        shut_in = sandbox.enter([options.tapes / name for name in options.names] if options.tapes else [])
        settings = config.load(options.config)
        deciders = [load(name, settings) for name in options.names]
        with stop_signals() as stop, contextlib.closing(Live(options.run_dir, deciders, stop, shut_in)) as live:
            if options.tapes and settings.tape.on:
                live.record(options.tapes, settings)
            live.run()
    except (OSError, ConfigError) as error:
        print(f"deciders: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = RoleParser("deciders", "Decides from events, and asks the actuator for what is decided.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a decider, e.g. tcp_buffer")
    parser.add_argument("--tapes", type=Path, default=None, help="record below this directory, in NAME; default: no")
    return parser.parse_args(argv)


def load(name: str, settings: config.Config) -> Decider:
    """The decider of this name with its policy. Raises ConfigError: no such decider, a wrong module, a wrong policy."""
    module = _module(name)
    policy = config.check(settings.policy.get(name, {}), module.Policy, f"policy.{name}")
    return Decider(module, policy)


def place(name: str) -> str:
    """The module of the decider of this name. Raises ConfigError when there is none."""
    built_in = roles.BUILT_IN_DECIDERS.get(name)
    if built_in:
        return built_in.module
    others = {tuner.name: tuner.module for tuner in plugins.tuners()}
    if name not in others:
        known = ", ".join(sorted((*roles.BUILT_IN_DECIDERS, *others)))
        raise ConfigError(f"no decider {name!r}; there are: {known}")
    return others[name]


def _module(name: str) -> DeciderModule:
    path = place(name)
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise ConfigError(f"decider {name}: {path} cannot be imported: {error}") from None
    wrong = shape(name, module)
    if wrong:
        raise ConfigError(f"decider {name}: {path} {wrong}")
    return cast("DeciderModule", module)


def shape(name: str, module: Any) -> str:
    """What keeps a module from being the decider of this name (see engine.DeciderModule); empty when nothing does."""
    missing = [what for what in ("NAME", "TOPICS", "Policy", "start", "step") if not hasattr(module, what)]
    if missing:
        return f"lacks {', '.join(missing)}"
    if name != module.NAME:
        return f"calls itself {module.NAME!r}"
    known = list(TOPICS.values())
    if not isinstance(module.TOPICS, tuple) or not module.TOPICS or any(topic not in known for topic in module.TOPICS):
        return "has a TOPICS that is no tuple of event types of bus.schema"
    fields = getattr(module.Policy, "__struct_config__", None)
    if not isinstance(module.Policy, type) or fields is None or not fields.forbid_unknown_fields:
        return "has a Policy that is no msgspec.Struct with forbid_unknown_fields=True"
    uncallable = [what for what in ("start", "step") if not callable(getattr(module, what))]
    return f"has a {uncallable[0]} that cannot be called" if uncallable else ""


class Seat:
    """One decider of this process, with its way to the actuator and its tape."""

    def __init__(self, run_dir: Path, decider: Decider) -> None:
        self.decider = decider
        self.sender = link.WishSender(roles.wish_path(run_dir, decider.name))
        self.recorder: Recorder | None = None
        self.wishes = 0

    def ask(self, wishes: Sequence[Asked], folded: int) -> None:
        """Send what is wished for after so many events, and record it."""
        for wish in wishes:
            sent = self.sender.sent
            self.sender.send(wish)
            self.wishes += self.sender.sent - sent
            if self.recorder:
                self.recorder.asked(folded, wish)


class Live:
    """Deciders on the lanes: each event goes to all of them, and each has a lane of its own to the actuator."""

    def __init__(self, run_dir: Path, deciders: Sequence[Decider], stop: int, shut_in: Sandbox) -> None:
        self._seats = {decider.name: Seat(run_dir, decider) for decider in deciders}
        self._shut_in = shut_in
        self._stop = stop
        self._subscribers = link.subscribers(run_dir, roles.publishers(), roles.events_path)
        self._consumed = 0
        self._beat_s = 0.0
        self._folded = 0
        self._probes: dict[str, Probe] = {}
        self._recordings = Recordings(_say)
        self._poller = link.Poller()
        self._poller.add(link.Descriptor(stop))
        for subscriber in self._subscribers:
            self._poller.add(subscriber)

    def record(self, folder: Path, settings: config.Config) -> None:
        """Keep a tape for each decider, below this folder. Raises ConfigError, or OSError where the sources of one are
        not to be read."""
        rows = config.narrowed(tunables.table(row for tuner in plugins.tuners() for row in tuner.rows), settings)
        for name, seat in self._seats.items():
            module = place(name)
            session = Session(name, module, revision(module), settings, rows.values())
            head = partial(self._head, session, seat.decider)
            seat.recorder = self._recordings.add(name, folder / name, settings.tape, head)
        for subscriber in self._subscribers:
            subscriber.tap = self._recordings.batch

    def run(self) -> None:
        """Decide until told to stop."""
        self._tell("READY=1")
        for event, asked in decide_apart(self._events(), [seat.decider for seat in self._seats.values()]):
            self._folded += 1
            if type(event) is Probe:
                self._probes[event.name] = event
            for decider, wishes in asked:
                self._seats[decider.name].ask(wishes, self._folded)
        self._recordings.close(time.monotonic_ns(), self._folded)
        self._tell("STOPPING=1")

    def close(self) -> None:
        """Let go of the sockets."""
        for subscriber in self._subscribers:
            subscriber.close()
        for seat in self._seats.values():
            seat.sender.close()

    def _head(self, session: Session, decider: Decider, number: int) -> Head:
        heard = {each.publisher: (each.numbering.epoch_ns, each.numbering.next) for each in self._subscribers}
        memory = Memory(self._folded, heard, *decider.remember())
        return session.head(number, memory, self._probes.values())

    def _events(self) -> Iterator[AnyEvent]:
        told_s = time.monotonic()
        while True:
            # Whoever asks for the next event has folded the last one: here, all that came is done.
            self._recordings.turn(time.monotonic_ns(), self._folded)
            ready = self._poller.wait(max(0.0, told_s + SECOND_S - time.monotonic()))
            for source in ready:
                if isinstance(source, link.Subscriber):
                    yield from source.receive()
                else:
                    return
            if time.monotonic() >= told_s + SECOND_S - EARLY_S:
                told_s = time.monotonic()
                self._beat()
                self._tell()

    def _beat(self) -> None:
        """Keep the leases of what these deciders have on trial, but only while they get on: all that came since the
        last beat has been consumed, and something has. Deaf, they must not keep anything alive."""
        now_s = time.monotonic()
        if now_s < self._beat_s:
            return
        received = self._received()
        if received > self._consumed:
            self._beat_s = now_s + BEAT_S - EARLY_S
            for seat in self._seats.values():
                seat.sender.send(Beat(VERSION, time.monotonic_ns()))
        self._consumed = received

    def _received(self) -> int:
        return sum(subscriber.received for subscriber in self._subscribers)

    def _tell(self, *lines: str) -> None:
        seats = self._seats.values()
        tapes = self._recordings.status(self._folded)
        names = ", ".join(self._seats)
        advice = [line for seat in seats for line in seat.decider.advice()]
        status = {
            "received": self._received(),
            "malformed": sum(subscriber.malformed for subscriber in self._subscribers),
            "gaps": {subscriber.publisher: subscriber.lost for subscriber in self._subscribers},
            "wishes": sum(seat.wishes for seat in seats),
            "dropped": sum(seat.sender.dropped for seat in seats),
            "sandbox": self._shut_in.holds,
            **tapes,
            "missing": [*(f"{part} (decider {names})" for part in self._shut_in.missing), *tapes["missing"]],
            **({"advice": advice} if advice else {}),
        }
        notify(*lines, "WATCHDOG=1", f"STATUS={msgspec.json.encode(status).decode()}")


def _say(line: str) -> None:
    """One line for the operator. A reader that has gone must not stop the decider."""
    with contextlib.suppress(OSError):
        print(f"deciders: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
