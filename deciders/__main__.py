"""One decider: `python -I -m deciders NAME --run-dir DIR --state-dir DIR --config FILE`. Needs no privilege.

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
from pathlib import Path
from typing import Any, cast

import msgspec

from bus import config, link, plugins, roles
from bus.arguments import EX_USAGE, RoleParser, UsageError
from bus.config import ConfigError
from bus.notify import notify
from bus.schema import TOPICS, VERSION, AnyEvent, Beat
from bus.stop import stop_signals
from deciders.engine import Decider, DeciderModule, decide

SECOND_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one decider until SIGTERM. Returns the exit code: 0 stopped in order, 1 cannot run, 64 usage."""
    try:
        options = _arguments(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"deciders: {error}", file=sys.stderr)
        return EX_USAGE
    try:
        settings = config.load(options.config)
        decider = load(options.name, settings)
        with stop_signals() as stop, contextlib.closing(Live(options.run_dir, decider, stop)) as live:
            live.run()
    except (OSError, ConfigError) as error:
        print(f"decider-{options.name}: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = RoleParser("deciders", "Decides on one thing, from events, and asks the actuator for it.")
    parser.add_argument("name", help="the decider, e.g. tcp_buffer")
    return parser.parse_args(argv)


def load(name: str, settings: config.Config) -> Decider:
    """The decider of this name with its policy. Raises ConfigError: no such decider, a wrong module, a wrong policy."""
    module = _module(name)
    policy = config.check(settings.policy.get(name, {}), module.Policy, f"policy.{name}")
    return Decider(module, policy)


def _module(name: str) -> DeciderModule:
    built_in = roles.BUILT_IN_DECIDERS.get(name)
    path = built_in.module if built_in else None
    if path is None:
        others = {tuner.name: tuner.module for tuner in plugins.tuners()}
        path = others.get(name)
        if path is None:
            known = ", ".join(sorted((*roles.BUILT_IN_DECIDERS, *others)))
            raise ConfigError(f"no decider {name!r}; there are: {known}")
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


class Live:
    """A decider on the lanes."""

    def __init__(self, run_dir: Path, decider: Decider, stop: int) -> None:
        self._decider = decider
        self._stop = stop
        self._subscribers = link.subscribers(run_dir, roles.publishers(), roles.events_path)
        self._sender = link.WishSender(roles.wish_path(run_dir, decider.name))
        self._beats = 0
        self._consumed = 0
        self._poller = link.Poller()
        self._poller.add(link.Descriptor(stop))
        for subscriber in self._subscribers:
            self._poller.add(subscriber)

    def run(self) -> None:
        """Decide until told to stop."""
        self._tell("READY=1")
        for _, wishes in decide(self._events(), [self._decider]):
            for wish in wishes:
                self._sender.send(wish)
        self._tell("STOPPING=1")

    def close(self) -> None:
        """Let go of the sockets."""
        for subscriber in self._subscribers:
            subscriber.close()
        self._sender.close()

    def _events(self) -> Iterator[AnyEvent]:
        told_s = time.monotonic()
        while True:
            ready = self._poller.wait(max(0.0, told_s + SECOND_S - time.monotonic()))
            for source in ready:
                if isinstance(source, link.Subscriber):
                    yield from source.receive()
                else:
                    return
            if time.monotonic() >= told_s + SECOND_S:
                told_s = time.monotonic()
                self._beat()
                self._tell()

    def _beat(self) -> None:
        """Keep the leases of what this decider has on trial, but only while it gets on: all that came since the last
        beat has been consumed, and something has. Deaf, it must not keep anything alive."""
        received = self._received()
        if received > self._consumed:
            sent = self._sender.sent
            self._sender.send(Beat(VERSION, time.monotonic_ns()))
            self._beats += self._sender.sent - sent
        self._consumed = received

    def _received(self) -> int:
        return sum(subscriber.received for subscriber in self._subscribers)

    def _tell(self, *lines: str) -> None:
        status = {
            "received": self._received(),
            "malformed": sum(subscriber.malformed for subscriber in self._subscribers),
            "gaps": {subscriber.publisher: subscriber.lost for subscriber in self._subscribers},
            "wishes": self._sender.sent - self._beats,
            "dropped": self._sender.dropped,
        }
        notify(*lines, "WATCHDOG=1", f"STATUS={msgspec.json.encode(status).decode()}")


if __name__ == "__main__":
    sys.exit(main())
