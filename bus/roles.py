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


class BuiltIn(Struct, frozen=True):
    """A decider of ours. uid_offset is its own for good: tapes on disk belong to it."""

    module: str
    uid_offset: int


BUILT_IN_DECIDERS: dict[str, BuiltIn] = {
    "guard": BuiltIn("deciders.guard", 100),
    "neigh_table": BuiltIn("deciders.neigh_table", 101),
    "tcp_buffer": BuiltIn("deciders.tcp_buffer", 102),
    "receive_path": BuiltIn("deciders.receive_path", 103),
    "listen_queue": BuiltIn("deciders.listen_queue", 104),
    "ip_frag": BuiltIn("deciders.ip_frag", 106),
    "tcp_memory": BuiltIn("deciders.tcp_memory", 107),
}
GUARD = "guard"
"""The one that owns no tunable, and whose lane carries verdicts."""


def decider_offsets(names: Iterable[str]) -> dict[str, int]:
    """Decider -> uid_offset, for all that are installed. A third party's hangs on its name, so that it stays the same
    whichever others are installed or enabled; only where two names meet the later one, by name, moves on."""
    offsets = {name: built_in.uid_offset for name, built_in in BUILT_IN_DECIDERS.items()}
    for name in sorted(set(names) - offsets.keys()):
        slot = zlib.crc32(name.encode()) % len(THIRD_PARTIES)
        while THIRD_PARTIES[slot] in offsets.values():
            slot = (slot + 1) % len(THIRD_PARTIES)
        offsets[name] = THIRD_PARTIES[slot]
    return offsets


def decider_role(name: str, installed: Iterable[str] = ()) -> Role:
    """The row of one decider: no privilege at all. installed: every decider there is, whether enabled or not."""
    return Role(
        name=f"decider-{name}",
        module="deciders.__main__",
        argv=(name,),
        uid_offset=decider_offsets({name, *installed})[name],
        network=False,
        kind="decider",
        summary=f"decides on {name.replace('_', ' ')}",
    )


def is_decider(uid: int) -> bool:
    """This numeric user is a decider in the foreground."""
    return DECIDERS.start <= uid - UID_BASE < THIRD_PARTIES.stop


def roles(deciders: Iterable[str], installed: Iterable[str] = ()) -> tuple[Role, ...]:
    """Every row for these deciders, in the order in which they start (they stop in the reverse). installed: every
    decider there is, whether enabled or not."""
    chosen = sorted(deciders)
    known = {*chosen, *installed}
    return FIXED + tuple(decider_role(name, known) for name in chosen)


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


def tape_dir(state_dir: Path, decider: str) -> Path:
    """Where one decider writes its tapes: the only place where it may write."""
    return state_dir / "tapes" / decider


def probes_path(run_dir: Path) -> Path:
    """Where the loader hands descriptors over to the BPF collector."""
    return run_dir / "collector-bpf" / PROBES
