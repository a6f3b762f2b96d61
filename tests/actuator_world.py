"""An actuator without its lanes, on a fake /proc/sys whose faults a test can choose."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from actuators import history
from actuators.change import Writer
from actuators.kernel import Kernel
from actuators.modes import Modes
from actuators.parts import Parts, StateLock, assemble
from actuators.records import Change, Site, Spot, Swap, Twin
from actuators.sysctl import Sysctl
from bus import tunables
from bus.config import Mode
from bus.netns import NamespaceGoneError
from bus.schema import AnyEvent, Outcome, Wish
from bus.tunables import Tunable

RMEM = "net.ipv4.tcp_rmem[2]"
THRESH = [f"net.ipv4.neigh.default.gc_thresh{level}" for level in (1, 2, 3)]
WEB = 7
DECIDERS = {"net.ipv4.tcp_rmem[2]": "tcp_buffer"}
# The neighbour tables' real backend has a kernel of its own to be tested with (test_actuators_netlink).
ROWS = {name: msgspec.structs.replace(row, backend="sysctl", cooldown_s=0.0) for name, row in tunables.table().items()}


class Namespaces:
    """Namespaces as folders: `current` is a link to the one that we are in."""

    own = 1
    sysctl = Sysctl
    """What reads and writes the files."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.alive = {1, WEB}
        for cookie in self.alive:
            files = base / str(cookie) / "net/ipv4"
            (files / "neigh/default").mkdir(parents=True)
            (files / "tcp_rmem").write_text("4096\t131072\t262144\n")
            for level, value in zip((1, 2, 3), (128, 512, 1024), strict=True):
                (files / f"neigh/default/gc_thresh{level}").write_text(f"{value}\n")
        self.root = base / "current"
        self.root.symlink_to("1")

    def enter(self, cookie: int, inode: int, do: Callable[[], Any]) -> Any:
        cookie = cookie or self.own
        if cookie not in self.alive:
            raise NamespaceGoneError(errno.ENOENT, f"no namespace with cookie {cookie}")
        self._go(cookie)
        try:
            return do()
        finally:
            self._go(self.own)

    def _go(self, cookie: int) -> None:
        self.root.unlink()
        self.root.symlink_to(str(cookie))

    def site(self, cookie: int) -> Site:
        return Site(4026532000 + cookie, "web" if cookie == WEB else "host")

    def file(self, key: str, netns: int) -> Path:
        return self._base / str(netns or 1) / key.partition("[")[0].replace(".", "/")


class FakeKernel(Kernel):
    """The real reading and writing, with a moment between look and write in which a test can act."""

    def __init__(self, namespaces: Any, rows: Mapping[str, Tunable] = ROWS) -> None:
        super().__init__(rows, namespaces, namespaces.sysctl(namespaces.enter, namespaces.root))
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.error = ""
        self.written: list[tuple[str, int]] = []

    def swap(self, spot: Spot, inode: int, old: int, new: int, twin: Twin | None = None) -> Swap:
        self.before()
        if self.error:
            value = self.read(spot, inode)
            return Swap(value, value, self.error)
        swap = super().swap(spot, inode, old, new, twin)
        if swap.found == old:
            self.written.append((spot.tunable, new))
        self.after()
        return msgspec.structs.replace(swap, stands=self.read(spot, inode))


class World:
    """One run of an actuator without its lanes. Another World on the same folder is the next run."""

    def __init__(
        self,
        base: Path,
        mode: Mode = "enforce",
        namespaces: Namespaces | None = None,
        rows: Mapping[str, Tunable] = ROWS,
    ) -> None:
        self.state = base / "state"
        self.rows = rows
        self.namespaces = namespaces or Namespaces(base)
        self.kernel = FakeKernel(self.namespaces, rows)
        self.lines: list[str] = []
        self.events: list[AnyEvent] = []
        self.parts: Parts = assemble(rows, self.state, self.lines.append, self.events.append, self.kernel)
        self.writer = Writer(self.parts, ())
        self.lock = StateLock(self.state)
        self.modes = Modes(self.parts, self.writer, self.lock, ())
        self.modes.start(mode)

    def value(self, key: str = RMEM, netns: int = WEB) -> int:
        words = self.namespaces.file(key, netns).read_text().split()
        return int(words[2 if key.endswith("]") else 0])

    def foreign(self, value: int, key: str = RMEM, netns: int = WEB) -> None:
        text = f"4096\t131072\t{value}\n" if key.endswith("]") else f"{value}\n"
        self.namespaces.file(key, netns).write_text(text)

    def wish(self, want: int, key: str = RMEM, netns: int = WEB, **more: Any) -> Outcome:
        row = self.rows[key]
        netns = 0 if row.scope == "host" else netns
        fields = {"believed": self.value(key, netns) if netns in (0, 1, WEB) else 0, "asker": row.decider, **more}
        asker = fields.pop("asker")
        wish = Wish(
            1, time.monotonic_ns(), 10**9, key, netns, 0, want=want, why="7 drops", evidence={"drops": 7}, **fields
        )
        before = len(self.events)
        self.writer.handle(wish, asker)
        return [event for event in self.events[before:] if isinstance(event, Outcome)][-1]

    def changes(self) -> list[Change]:
        return history.history(self.state)

    def states(self) -> list[str]:
        return [change.state for change in self.changes()]

    def next_run(self, base: Path, mode: Mode = "enforce") -> World:
        self.close()
        return World(base, mode, self.namespaces, self.rows)

    def close(self) -> None:
        self.parts.close()
        self.lock.close()
