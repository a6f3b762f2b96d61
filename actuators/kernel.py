"""The kernel's values by spot, whichever backend a row names. Reading is by sysctl for all but routes."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from actuators.namespaces import Namespaces
from actuators.netlink import NeighTables
from actuators.records import Site, Spot, Swap, Twin
from actuators.routes import Routes
from actuators.sysctl import Sysctl
from bus.tunables import Tunable, base

FILES_MAX = 8192
SWAPS_MAX = 4096
RECENT_MAX = 64
IN_FLIGHT_NS = 1_000_000_000
"""How long somebody else's write may be under way."""


class Window(Struct, frozen=True):
    """When we wrote a key, CLOCK_MONOTONIC, and what in place of what."""

    began_ns: int
    ended_ns: int
    old: int
    new: int


class Kernel:
    """Reads and writes spots. Methods raise NamespaceGoneError (a kind of OSError), or another OSError."""

    def __init__(self, rows: Mapping[str, Tunable], namespaces: Namespaces, sysctl: Sysctl | None = None) -> None:
        self._rows = rows
        self._namespaces = namespaces
        self._sysctl = sysctl or Sysctl(namespaces.enter, keep=_files() // 2)
        self._tables: NeighTables | None = None
        self.routes = Routes(namespaces.enter)
        self._swaps: dict[Spot, list[Window]] = {}
        self.own = namespaces.own
        """The cookie of the namespace that we run in."""

    def prepare(self, deciders: Collection[str]) -> None:
        """Get ready to write for these: what is slow to load is loaded now, not when a wish is waiting."""
        if any(row.backend == "neightbl" and row.decider in deciders for row in self._rows.values()):
            self._neigh_tables()

    def read(self, spot: Spot, inode: int = 0) -> int:
        """What stands there. inode: where to look for its namespace first."""
        if self._routed(spot):
            return self.routes.read(spot, inode)
        return self._sysctl.read(spot, inode)

    def swap(self, spot: Spot, inode: int, old: int, new: int, twin: Twin | None = None) -> Swap:
        """Write new if old stands there, and read back. twin: what stands in its twin where this one is 0. A 0 is put
        back by writing that."""
        if self._routed(spot):
            return self.routes.swap(spot, inode, old, new)
        row = self._rows.get(spot.tunable)
        aside = twin.value if twin else 0
        before, after = (old, 0 if old else aside), (new, 0 if new else aside)
        began_ns = time.monotonic_ns()
        try:
            if twin:
                return self._swap_pair(spot, Spot(twin.name, spot.netns), inode, before, after)
            if row and row.backend == "neightbl":
                return self._neigh_tables().swap(spot, old, new)
            return self._sysctl.swap(spot, inode, old, new)
        finally:
            self._note(spot, began_ns, old, new)
            if row and row.twin:
                self._note(Spot(row.twin, spot.netns), began_ns, before[1], after[1])

    def objection(self, spot: Spot, inode: int, new: int) -> str:
        """What there is in the kernel against this value there, in one sentence; empty when nothing is."""
        return self.routes.objection(spot, inode, new) if self._routed(spot) else ""

    def alive(self, netns: int) -> bool:
        """Whether a namespace is there for anybody but us."""
        return self._namespaces.alive(netns)

    def _routed(self, spot: Spot) -> bool:
        row = self._rows.get(base(spot.tunable))
        return row is not None and row.backend == "route"

    def _swap_pair(self, spot: Spot, beside: Spot, inode: int, old: tuple[int, int], new: tuple[int, int]) -> Swap:
        """As swap, for a tunable and its twin at once, one of which is 0. The one that shall not be 0 is written, and
        the kernel makes the other one 0. A 0 it refuses (vm.dirty_bytes, EINVAL) or takes so that both are 0, a limit
        of nothing (vm.dirty_ratio; dirty_bytes_handler and dirty_ratio_handler, mm/page-writeback.c)."""
        found = self.read(spot, inode), self.read(beside, inode)
        if found != old:
            return Swap(found[0], found[0], "", theirs=found != new)
        at = 0 if new[0] else 1
        swap = self._sysctl.swap((spot, beside)[at], inode, old[at], new[at])
        stands = self.read(spot, inode), self.read(beside, inode)
        theirs = swap.found != old[at] or (not swap.error and stands not in (old, new))
        return Swap(found[0], stands[0], swap.error, theirs)

    def _note(self, spot: Spot, began_ns: int, old: int, new: int) -> None:
        recent = [swap for swap in self._swaps.pop(spot, ()) if swap.ended_ns > began_ns - IN_FLIGHT_NS]
        self._swaps[spot] = [*recent[-RECENT_MAX:], Window(began_ns, time.monotonic_ns(), old, new)]
        if len(self._swaps) > SWAPS_MAX:
            del self._swaps[next(iter(self._swaps))]

    def overwritten(self, spot: Spot, t_ns: int, theirs: int) -> int | None:
        """The value that we may have written over theirs, which was seen on its way at t_ns: between our look and our
        write lies a moment for which the kernel has no lock. None: ours came first, or began from theirs."""
        recent = self._swaps.get(spot, [])
        # BPF sees a write before it is carried out; its process may be put aside in between.
        if not recent or not recent[-1].began_ns - IN_FLIGHT_NS <= t_ns <= recent[-1].ended_ns:
            return None
        return None if any(swap.old == theirs for swap in recent) else recent[-1].new

    def put(self, spot: Spot, inode: int, values: list[int]) -> str:
        """Write what somebody else had written, before we overwrote it. Returns the kernel's error, or nothing."""
        return self._sysctl.put(spot, inode, values)

    def site(self, netns: int) -> Site:
        """Where a namespace that has been read from is found, and what it is called."""
        return self._namespaces.site(netns) if netns else Site()

    def related(self, names: Iterable[str], netns: int, inode: int) -> dict[str, int]:
        """The values of these tunables in one place; those that cannot be read are left out."""
        found = {}
        for name in names:
            try:
                found[name] = self.read(Spot(name, netns), inode)
            except OSError:
                continue
        return found

    def _neigh_tables(self) -> NeighTables:
        if not self._tables:
            self._tables = NeighTables(self._sysctl)
        return self._tables

    def close(self) -> None:
        """Give all descriptors back."""
        self._sysctl.close()
        self.routes.close()
        if self._tables:
            self._tables.close()


def _files() -> int:
    """How many descriptors this process may have, after raising the soft limit (1024 is for select(2)'s sake)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
