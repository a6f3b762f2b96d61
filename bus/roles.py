"""The processes: one row each says what is started, as whom, with which capabilities, after what.

The supervisor (`trimtab run`) and the systemd units are both made from these rows. Modules are named as strings, since
bus imports no role.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

UID_BASE = 2_046_820_352
"""First of the numeric users for roles in the foreground: a range that neither Debian policy nor systemd hands out
(1879048192-2147483647, systemd's UIDS-GIDS). No account is made; under systemd the units name users."""
GROUP = UID_BASE
"""Every role's supplementary group: who may listen to events."""
DECIDERS = range(100, 1000)
"""Offsets of our own deciders' users."""
THIRD_PARTIES = range(1000, 66000)
"""Those of third parties' deciders: so many that two names seldom meet."""
EVENTS = "events.sock"
WISH = "wish.sock"
CONTROL = "control.sock"
PROBES = "probes.sock"


class Role(Struct, frozen=True, kw_only=True):
    """One process."""

    name: str
    module: str
    """Python module whose main(argv) the process runs."""
    argv: tuple[str, ...] = ()
    uid_offset: int = 0
    """uid = gid = UID_BASE + this; 0: stays root."""
    capabilities: tuple[str, ...] = ()
    network: bool = True
    """False: has an empty network namespace instead of the host's, and shuts itself in (bus.sandbox)."""
    publishes: bool = False
    oneshot_for: str = ""
    """Not a daemon: started again whenever that role has started, and done when it exits."""
    kind: Literal["deadman", "actuator", "collector", "decider", "loader"]
    summary: str

    @property
    def uid(self) -> int:
        """The numeric user in the foreground."""
        return UID_BASE + self.uid_offset if self.uid_offset else 0


FIXED: tuple[Role, ...] = (
    Role(
        name="deadman",
        module="actuators.deadman",
        # What the actuator has: it does the actuator's work when that cannot.
        capabilities=("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
        kind="deadman",
        summary="puts back what is on trial when nobody else can any more",
    ),
    Role(
        name="actuator",
        module="actuators.__main__",
        # net.* needs NET_ADMIN; vm.*, kernel.* uid 0; another namespace SYS_ADMIN for setns and, where its
        # processes belong to other users, SYS_PTRACE.
        capabilities=("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
        publishes=True,
        kind="actuator",
        summary="the one writer",
    ),
    Role(
        name="collector-bpf",
        module="collectors.__main__",
        argv=("bpf",),
        uid_offset=1,
        publishes=True,
        kind="collector",
        summary="reads the BPF ring: buffers near their limit, neighbours, sysctl writes",
    ),
    Role(
        name="loader",
        module="collectors.loader",
        # It begins when the collector does, which listens a moment later.
        argv=("--wait", "10"),
        # BPF, PERFMON to load and read kernel memory; NET_ADMIN, SYS_ADMIN for cgroup programs;
        # DAC_READ_SEARCH for tracefs.
        capabilities=("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"),
        oneshot_for="collector-bpf",
        kind="loader",
        summary="compiles and attaches the probes, hands their descriptors over, exits",
    ),
    Role(
        name="collector-proc",
        module="collectors.__main__",
        argv=("proc",),
        uid_offset=2,
        publishes=True,
        kind="collector",
        summary="host facts, the clock tick, counters under /proc",
    ),
    Role(
        name="collector-netlink",
        module="collectors.__main__",
        argv=("netlink",),
        uid_offset=3,
        # setns into other namespaces for their addresses, and to learn their cookies.
        capabilities=("CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
        publishes=True,
        kind="collector",
        summary="namespaces that come and go, neighbour tables, attached networks",
    ),
)


PROCESSES: dict[str, int] = {"guard": 100, "tcp": 101, "network": 102}
"""The processes that run deciders of ours, with their users' uid_offset, which is their own for good: tapes on disk
belong to it. A process each would be the simplest; a few, each for what may well end together, is what an idle host can
be asked for (8 MiB and its share of every event each)."""


class BuiltIn(Struct, frozen=True):
    """A decider of ours."""

    module: str
    process: str
    """Of PROCESSES. The guard has its own: it judges the others."""


BUILT_IN_DECIDERS: dict[str, BuiltIn] = {
    "guard": BuiltIn("deciders.guard", "guard"),
    "neigh_table": BuiltIn("deciders.neigh_table", "network"),
    "tcp_buffer": BuiltIn("deciders.tcp_buffer", "tcp"),
    "receive_path": BuiltIn("deciders.receive_path", "network"),
    "listen_queue": BuiltIn("deciders.listen_queue", "tcp"),
    "udp_buffer": BuiltIn("deciders.udp_buffer", "network"),
    "ip_frag": BuiltIn("deciders.ip_frag", "network"),
    "tcp_memory": BuiltIn("deciders.tcp_memory", "tcp"),
    "ports": BuiltIn("deciders.ports", "network"),
    "conntrack": BuiltIn("deciders.conntrack", "network"),
    "congestion": BuiltIn("deciders.congestion", "tcp"),
}
GUARD = "guard"
"""The one that owns no tunable, and whose lane carries verdicts."""


def third_party_offsets(names: Iterable[str]) -> dict[str, int]:
    """Third party's decider -> uid_offset, for all that are installed. It hangs on the name, so that it stays the same
    whichever others are installed or enabled; only where two names meet the later one, by name, moves on."""
    offsets: dict[str, int] = {}
    for name in sorted(set(names) - BUILT_IN_DECIDERS.keys()):
        slot = zlib.crc32(name.encode()) % len(THIRD_PARTIES)
        while THIRD_PARTIES[slot] in offsets.values():
            slot = (slot + 1) % len(THIRD_PARTIES)
        offsets[name] = THIRD_PARTIES[slot]
    return offsets


def decider_roles(deciders: Iterable[str], installed: Iterable[str] = ()) -> tuple[Role, ...]:
    """The rows that run these deciders: ours by their processes, each third party's in one of its own. No privilege at
    all. installed: every decider there is, whether enabled or not."""
    chosen = sorted(deciders)
    ours = {
        process: tuple(name for name in chosen if name in BUILT_IN_DECIDERS and _process(name) == process)
        for process in PROCESSES
    }
    offsets = PROCESSES | third_party_offsets({*chosen, *installed})
    others = {name: (name,) for name in chosen if name not in BUILT_IN_DECIDERS}
    return tuple(
        Role(
            name=f"decider-{process}",
            module="deciders.__main__",
            argv=names,
            uid_offset=offsets[process],
            network=False,
            kind="decider",
            summary=f"decides on {', '.join(name.replace('_', ' ') for name in names)}",
        )
        for process, names in (ours | others).items()
        if names
    )


def _process(name: str) -> str:
    return BUILT_IN_DECIDERS[name].process


def is_decider(uid: int) -> bool:
    """This numeric user is a decider in the foreground."""
    return DECIDERS.start <= uid - UID_BASE < THIRD_PARTIES.stop


def roles(deciders: Iterable[str], installed: Iterable[str] = ()) -> tuple[Role, ...]:
    """Every row for these deciders, in the order in which they start (they stop in the reverse). installed: every
    decider there is, whether enabled or not."""
    return FIXED + decider_roles(deciders, installed)


def publishers() -> tuple[str, ...]:
    """The roles that publish events."""
    return tuple(role.name for role in FIXED if role.publishes)


def events_path(run_dir: Path, role: str) -> Path:
    """Where a role publishes."""
    return run_dir / role / EVENTS


def wish_path(run_dir: Path, decider: str) -> Path:
    """Where one decider's wishes go in."""
    return run_dir / "wish" / decider / WISH


def control_path(run_dir: Path) -> Path:
    """Where the operator speaks to the actuator."""
    return run_dir / "control" / CONTROL


def tapes_dir(state_dir: Path) -> Path:
    """Where all tapes are."""
    return state_dir / "tapes"


def tape_dir(state_dir: Path, decider: str) -> Path:
    """Where one decider's tapes are: the only place where it may write."""
    return tapes_dir(state_dir) / decider


def probes_path(run_dir: Path) -> Path:
    """Where the loader hands descriptors over to the BPF collector."""
    return run_dir / "collector-bpf" / PROBES
