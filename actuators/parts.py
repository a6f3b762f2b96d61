"""The actuator put together, for its process (actuators.service) and for orders without one (actuators.offline)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from actuators import state_dir
from actuators.keeper import Keeper
from actuators.kernel import Kernel
from actuators.leases import Leases
from actuators.namespaces import Namespaces
from actuators.orders import Orders
from actuators.relations import Relations
from actuators.route_watch import RouteWatch
from actuators.undo import Undo
from actuators.voice import Voice
from bus.link import Lock
from bus.schema import AnyEvent
from bus.tunables import Bounds, Tunable, resolve

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Parts(Struct, frozen=True):
    """What works together on one state directory and one kernel."""

    rows: Mapping[str, Tunable]
    bounds: Mapping[str, Bounds]
    kernel: Kernel
    keeper: Keeper
    undo: Undo
    orders: Orders
    leases: Leases
    voice: Voice
    routes: RouteWatch

    def close(self) -> None:
        """Close the journal and all descriptors."""
        self.keeper.close()
        self.kernel.close()


def assemble(
    rows: Mapping[str, Tunable],
    folder: Path,
    say: Callable[[str], None],
    emit: Callable[[AnyEvent], None],
    kernel: Kernel | None = None,
) -> Parts:
    """Put the parts together. Opens nothing yet. OSError when the kernel does not say what is needed of it."""
    mem_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bounds = {name: resolve(row, mem_bytes) for name, row in rows.items()}
    kernel = kernel or Kernel(rows, Namespaces())
    relations = Relations(rows)
    voice = Voice(say, emit, rows)
    keeper = Keeper(folder, BOOT_ID.read_text().strip(), kernel.own, relations)
    undo = Undo(keeper, kernel, relations, voice)
    orders, routes = Orders(rows, keeper, undo), RouteWatch(keeper, kernel, undo)
    return Parts(rows, bounds, kernel, keeper, undo, orders, Leases(folder), voice, routes)


class StateLock:
    """The state directory's lock, which a full or read-only file system may deny for a while."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: Lock | None = None
        self._file: os.stat_result | None = None

    def take(self) -> None:
        """Have it. Raises LinkError naming the actuator that has it, or JournalError when it cannot be had."""
        path = self._folder / state_dir.LOCK
        if self._lock and self._file and state_dir.is_still(path, self._file):
            return
        # One that was removed keeps nobody out.
        self.close()
        state_dir.directory(self._folder)
        state_dir.file(path)
        if not os.access(path, os.W_OK):
            raise state_dir.JournalError(f"{path}: cannot be written", errno.EROFS)
        self._lock = Lock(path, "the actuator")
        self._file = path.lstat()

    def close(self) -> None:
        """Give it back."""
        if self._lock:
            self._lock.close()
            self._lock = None
