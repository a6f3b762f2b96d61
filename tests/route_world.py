"""Two namespaces of the real kernel with a gateway between them, and an actuator without lanes that works in one."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from actuators import history
from actuators.change import Writer
from actuators.modes import Modes
from actuators.parts import Parts, StateLock, assemble
from actuators.trials import Trials
from bus import tunables
from bus.config import Mode
from bus.netns import cookie_here, inside
from bus.schema import AnyEvent, Outcome, Wish
from bus.tunables import Tunable

_numbers = itertools.count()
PREFIX = f"ttrt{os.getpid()}-"
ROWS = {
    name: msgspec.structs.replace(row, cooldown_s=0.0) if row.instances else row
    for name, row in tunables.table().items()
}
TO4, TO6 = "203.0.113.0/24", "2001:db8:7::/48"
BBR, RENO, CUBIC = (tunables.ALGORITHMS.index(name) for name in ("bbr", "reno", "cubic"))


class Net:
    """`here` reaches `there` by a gateway: 10.9.0.2 and fd09::2 on v0, to all that is not 10.9.0.0/24 or fd09::/64."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.here, self.there = f"{PREFIX}{number}here", f"{PREFIX}{number}there"
        for name in (self.here, self.there):
            _run(f"ip netns add {name}; ip -n {name} link set lo up")
        _run(f"ip -n {self.here} link add v0 type veth peer name v1 netns {self.there}")
        for name, device, last in ((self.here, "v0", 1), (self.there, "v1", 2)):
            _run(
                f"ip -n {name} link set {device} addrgenmode none; ip -n {name} addr add 10.9.0.{last}/24 dev {device}"
            )
            _run(f"ip -n {name} -6 addr add fd09::{last}/64 dev {device} nodad; ip -n {name} link set {device} up")
        _run(f"ip -n {self.there} addr add 203.0.113.5/32 dev lo; ip -n {self.there} addr add 198.51.100.5/32 dev lo")
        _run(f"ip -n {self.there} -6 addr add 2001:db8:7::5/128 dev lo nodad")
        self.ip("route add default via 10.9.0.2 dev v0 proto static metric 50 mtu 1400 advmss 1200")
        self.ip("-6 route add default via fd09::2 dev v0 mtu lock 1350")
        self.path = f"/run/netns/{self.here}"
        self.inode = os.stat(self.path).st_ino
        self.cookie = inside(self.path, cookie_here)

    def ip(self, words: str) -> str:
        return _run(f"ip -n {self.here} {words}")

    def route(self, to: str = TO4) -> str:
        """As ip-route(8) shows it; empty: there is none to this very destination."""
        return " ".join(self.ip(f"{'-6 ' if ':' in to else ''}route show exact {to}").split())

    def ours(self) -> list[str]:
        """The destinations of all routes of ours."""
        lines = (self.ip("route show proto 116") + self.ip("-6 route show proto 116")).splitlines()
        return [line.split()[0] for line in lines]

    def all(self) -> str:
        return self.ip("route show table all") + self.ip("-6 route show table all")

    def close(self) -> None:
        for name in (self.here, self.there):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def net() -> Iterator[Net]:
    made = Net()
    try:
        yield made
    finally:
        made.close()


class Live:
    """One run of an actuator on a state directory. Another one on the same directory is the next run."""

    def __init__(self, base: Path, place: Net, rows: Mapping[str, Tunable] = ROWS, mode: Mode = "enforce") -> None:
        self.state, self.place, self.rows = base / "state", place, rows
        self.lines: list[str] = []
        self.events: list[AnyEvent] = []
        self.parts: Parts = assemble(rows, self.state, self.lines.append, self.events.append)
        self.writer = Writer(self.parts, ())
        self.lock = StateLock(self.state)
        self.modes = Modes(self.parts, self.writer, self.lock, ())
        self.modes.start(mode)
        self.trials = Trials(self.parts, guarded=True)

    def wish(self, key: str, want: int, believed: int = 0, **more: Any) -> Outcome:
        fields = {"tunable": key, "netns": self.place.cookie, "netns_ino": self.place.inode, **more}
        wish = Wish(1, time.monotonic_ns(), 10**10, believed=believed, want=want, why="7 of 100 are lost",
                    evidence={"lost": 7}, **fields)  # fmt: skip
        before = len(self.events)
        self.writer.handle(wish, "congestion")
        return [event for event in self.events[before:] if isinstance(event, Outcome)][-1]

    def gets(self, key: str, want: int, believed: int = 0) -> Outcome:
        outcome = self.wish(key, want, believed)
        assert (outcome.verdict, outcome.value) == ("written", want), outcome.reason
        return outcome

    def hear(self) -> None:
        """What the kernel has to tell, as the actuator's loop does."""
        while select.select([self.parts.routes.waitable], [], [], 0.02)[0]:
            self.parts.routes.hear()

    def hears_that(self, key: str, verdict: str) -> Outcome:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.hear()
            for event in self.events:
                if isinstance(event, Outcome) and (event.tunable, event.verdict) == (key, verdict):
                    return event
        raise AssertionError(f"{key} is not {verdict}: {self.lines}")

    def states(self) -> list[str]:
        return [change.state for change in history.history(self.state)]

    def held(self) -> list[str]:
        return [hold.spot.tunable for hold in history.holds(self.state)]

    def close(self) -> None:
        self.parts.close()
        self.lock.close()


def _run(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], check=True, capture_output=True, text=True).stdout
