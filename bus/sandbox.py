"""A role that shuts itself in before it runs what it does not trust. None of it needs a privilege and all of it is for
good. What a host cannot give is named, and the rest holds without it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from bus import landlock, seccomp

PARTS = ("empty network", "landlock", "seccomp")
"""What a role without a network (bus.roles) has, all being well."""


class Sandbox(Struct, frozen=True):
    """What holds, of PARTS, and what does not ("part: why")."""

    holds: list[str]
    missing: list[str]


def enter(writable: Iterable[Path], net: Path = Path("/proc/self/net")) -> Sandbox:
    """Give up writing but below these directories, and what bus.seccomp names; look whether there is a network."""
    why = dict.fromkeys(PARTS, "")
    if reachable(net):
        why["empty network"] = "the host's is within reach"
    try:
        landlock.restrict(writable)
    except landlock.LandlockError as error:
        why["landlock"] = str(error.strerror)
    try:
        seccomp.refuse()
    except seccomp.SeccompError as error:
        why["seccomp"] = str(error.strerror or error)
    return Sandbox(
        [part for part, reason in why.items() if not reason],
        [f"{part}: {reason}" for part, reason in why.items() if reason],
    )


def reachable(net: Path) -> bool:
    """The network namespace leads somewhere: some route is not the loopback's. (Interfaces tell less: some tunnels' are
    in every namespace.) proc_pid_net(5)."""
    ipv4, ipv6 = (_lines(net / name) for name in ("route", "ipv6_route"))
    return any(line.split()[0] != "lo" for line in ipv4[1:]) or any(line.split()[-1] != "lo" for line in ipv6)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # a kernel without this protocol
        return []
