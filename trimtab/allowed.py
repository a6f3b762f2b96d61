"""What each role may do, by the kernel's word, beside what its row says: proc_pid_status(5), read from outside.

A role cannot lie about it. Only what the kernel does not tell of others (Landlock, and where a network leads) is taken
from what the role itself has said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from bus.roles import GROUP, Role
from bus.sandbox import PARTS
from trimtab import privilege
from trimtab.privilege import Held


class Allowed(Struct, frozen=True):
    """What one process may do. more and less: than its row says."""

    user: int
    capabilities: list[str]
    no_new_privs: bool
    sandbox: list[str]
    """What it has given up, of bus.sandbox.PARTS."""
    more: list[str]
    less: list[str]


def by_row(role: Role) -> dict[str, Any]:
    """What a role's row says, for supervisor.json."""
    return {"uid": role.uid, "capabilities": role.capabilities, "sandbox": [] if role.network else PARTS}


def read(process: Path, row: Mapping[str, Any], said: object) -> Allowed | None:
    """process: its directory in /proc; row: as by_row(); said: the sandbox that it reports. None where it has ended, or
    is not the reader's to look at."""
    try:
        held = privilege.held(process / "status")
    except (OSError, KeyError):
        return None
    reported = [part for part in PARTS if part in said] if isinstance(said, list) else []
    sandbox = [part for part in reported if part != "seccomp" or held.filtered]
    wanted = privilege.mask(row["capabilities"])
    return Allowed(
        held.uids[1],
        list(privilege.names(held.permitted)),
        held.no_new_privs,
        sandbox,
        _more(held, row["uid"], wanted),
        [*privilege.names(wanted & ~held.effective), *(part for part in row["sandbox"] if part not in sandbox)],
    )


def _more(held: Held, uid: int, wanted: int) -> list[str]:
    more = [f"user {user}" for user in sorted({*held.uids, *held.gids} - {uid})]
    # systemd gives a user's own group once more: initgroups(3).
    more += [f"group {group}" for group in held.groups if group not in (GROUP, uid)]
    more += privilege.names((held.permitted | held.ambient | held.inheritable) & ~wanted)
    return more if held.no_new_privs else [*more, "new privileges"]
