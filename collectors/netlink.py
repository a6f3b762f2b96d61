"""The source `netlink`: neighbour tables, network namespaces, the networks that are attached to them."""

from __future__ import annotations

from bus.config import Config
from bus.schema import AnyEvent, NeighTable, Netns
from collectors import rtnl
from collectors.namespaces import Census, Mounts
from collectors.source import Status, later

SECOND_NS = 1_000_000_000
TABLE_NS = 2 * SECOND_NS
STATE_NS = 5 * SECOND_NS
SCAN_NS = 5 * SECOND_NS
GLANCE_NS = SECOND_NS
SCAN_SHARE = 1000
"""What took t is not done again for t * this: 0.1 % of a core each, however many processes there are."""
MOUNT_NS = 50_000_000
MOUNT_SHARE = 50
"""The same, while mounts come and go one after the other."""
SLACK_NS = 20_000_000
"""What is due so soon is done now, so that the host wakes once and not twice."""
TABLES = {2: "ARP", 10: "ND"}


class NetlinkSource:
    """With CAP_SYS_ADMIN and CAP_SYS_PTRACE every namespace; without them its own, and it says so."""

    ready = True

    def __init__(self, config: Config) -> None:
        self.census = self._census = Census(config.netns)
        """For whoever else looks into namespaces."""
        self._mounts = Mounts()
        self._tables: dict[int, str] = {}
        self._mount_ns = 0
        self._scan_ns = self._glance_ns = self._visit_ns = self._table_ns = self._state_ns = 0

    @property
    def due_ns(self) -> int:
        """The earliest of what is to be done."""
        return min(self._scan_ns, self._glance_ns, self._visit_ns, self._table_ns, self._state_ns)

    def descriptors(self) -> tuple[int, ...]:
        """Mounts: a namespace's name is one."""
        return (self._mounts.fileno(),)

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """News, and now and then everything as it stands."""
        if self._mounts.fileno() in readable:
            self._mounts.clear()
            self._scan_ns = min(self._scan_ns, max(t_ns, self._mount_ns))
        # The first visits say all there is to say.
        self._state_ns = self._state_ns or later(t_ns, STATE_NS)
        soon_ns = t_ns + SLACK_NS
        events: list[AnyEvent] = [*self._look(t_ns, soon_ns)]
        if soon_ns >= self._visit_ns:
            events += self._census.visit(t_ns)
            self._visit_ns = t_ns if self._census.more else later(t_ns, SECOND_NS)
        if soon_ns >= self._table_ns:
            self._table_ns = later(t_ns, TABLE_NS)
            events += self._neighbours(t_ns)
        if soon_ns >= self._state_ns:
            self._state_ns = later(t_ns, STATE_NS)
            events += self._census.state(t_ns)
        return events

    def _look(self, t_ns: int, soon_ns: int) -> list[Netns]:
        """Find out which namespaces there are; those that have gone."""
        if soon_ns >= self._scan_ns:
            gone, took_ns = self._census.scan(t_ns)
            self._scan_ns = later(t_ns, _pause(took_ns, SCAN_NS))
            self._mount_ns = t_ns + max(MOUNT_NS, took_ns * MOUNT_SHARE)
            self._glance_ns = max(self._glance_ns, later(t_ns, GLANCE_NS))
            self._visit_ns = t_ns
            return gone
        if soon_ns >= self._glance_ns:
            self._glance_ns = later(t_ns, _pause(self._census.glance(), GLANCE_NS))
            self._visit_ns = t_ns
        return []

    def _neighbours(self, t_ns: int) -> list[NeighTable]:
        tables = [self._neighbour_table(family, t_ns) for family in TABLES]
        return [table for table in tables if table]

    def _neighbour_table(self, family: int, t_ns: int) -> NeighTable | None:
        try:
            table = rtnl.table(family)
        except OSError as error:
            self._tables[family] = error.strerror or str(error)
            return None
        self._tables[family] = "" if table else "the kernel has none"
        if not table:
            return None
        first, second, third = table.thresholds
        return NeighTable(
            t_ns=t_ns,
            family=family,
            entries=table.entries,
            gc_thresh1=first,
            gc_thresh2=second,
            gc_thresh3=third,
            table_fulls=table.table_fulls,
            forced_gc_runs=table.forced_gc_runs,
            allocs=table.allocs,
            destroys=table.destroys,
        )

    def status(self) -> Status:
        """Tables and namespaces, and what of them cannot be seen."""
        watched = [f"{name} table" for family, name in TABLES.items() if not self._tables.get(family)]
        missing = [f"{TABLES[family]} table: {why}" for family, why in self._tables.items() if why]
        count = len(self._census)
        return Status(
            [*watched, f"{count} network namespace{'' if count == 1 else 's'}", "attached networks"],
            missing + self._census.missing(),
        )

    def close(self) -> None:
        self._mounts.close()


def _pause(took_ns: int, period_ns: int) -> int:
    """A whole number of seconds, so that all that is done shares its wake-ups."""
    return max(period_ns, -(-took_ns * SCAN_SHARE // SECOND_NS) * SECOND_NS)
