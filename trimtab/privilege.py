"""Dropping, in the process itself and for good, to one role's user, groups and capabilities.

The order is capabilities(7)'s: the bounding set while CAP_SETPCAP is there, then the ids (keeping the permitted set
over setresuid), then the sets themselves, then no_new_privs. What the kernel made of it is read back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from msgspec import Struct

# A capability's number is its place here (linux/capability.h).
ORDER = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NUMBERS = {f"CAP_{name}": number for number, name in enumerate(ORDER.split())}

# linux/prctl.h, linux/securebits.h, linux/capability.h
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECBIT_NOROOT_AND_LOCKED = 0b11
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(OSError):
    """Privileges that are not what was asked for: says which."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Held(Struct, frozen=True):
    """What a process is allowed, as /proc/PID/status tells it. Sets of capabilities are bit masks."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    filtered: bool
    """It has a seccomp filter."""


def mask(capabilities: Iterable[str]) -> int:
    """The bit mask of capabilities by name. KeyError for a name that the kernel does not have."""
    return sum(1 << NUMBERS[name] for name in set(capabilities))


def names(bits: int) -> tuple[str, ...]:
    """The names in a bit mask, in the kernel's order."""
    return tuple(name for name, number in NUMBERS.items() if bits >> number & 1)


def held(status: Path = Path("/proc/self/status")) -> Held:
    """Read proc_pid_status(5)."""
    lines = (line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    fields = {key: value.split() for key, value in lines}
    uids, gids, groups = (tuple(int(word) for word in fields[key]) for key in ("Uid", "Gid", "Groups"))
    inheritable, permitted, effective, bounding, ambient = (
        int(fields[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    )
    no_new_privs = fields["NoNewPrivs"] == ["1"]
    filtered = fields.get("Seccomp") == ["2"]
    return Held(uids, gids, groups, inheritable, permitted, effective, bounding, ambient, no_new_privs, filtered)


def drop(uid: int, groups: Collection[int], capabilities: Collection[str], keep_over_exec: bool = False) -> None:
    """Become uid (and the group of that number) with these groups, and with those of `capabilities` that this process
    has. keep_over_exec: a program that this process becomes keeps them, too. Raises PrivilegeError."""
    has = held()
    wanted = mask(capabilities) & has.permitted & has.bounding
    numbers = [number for number in NUMBERS.values() if wanted >> number & 1]
    # Being uid 0 brings no capability any more, now or over execve.
    _prctl("PR_SET_SECUREBITS", PR_SET_SECUREBITS, SECBIT_NOROOT_AND_LOCKED)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in set(range(last + 1)).difference(numbers):
        _prctl("PR_CAPBSET_DROP", PR_CAPBSET_DROP, number)
    _prctl("PR_SET_KEEPCAPS", PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups(sorted(groups))
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        # EINVAL: a user namespace (an unprivileged container) that does not map this id.
        raise PrivilegeError(error.errno, f"cannot become user {uid}: {error.strerror}") from None
    _capset(wanted, wanted if keep_over_exec else 0)
    _prctl("PR_CAP_AMBIENT", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in numbers if keep_over_exec else ():
        _prctl("PR_CAP_AMBIENT", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
    _prctl("PR_SET_KEEPCAPS", PR_SET_KEEPCAPS, 0)
    _prctl("PR_SET_NO_NEW_PRIVS", PR_SET_NO_NEW_PRIVS, 1)
    _verify(uid, groups, wanted, keep_over_exec)


def _verify(uid: int, groups: Collection[int], wanted: int, keep_over_exec: bool) -> None:
    kept = wanted if keep_over_exec else 0
    now = held()
    users = (uid,) * 4
    asked = Held(users, users, tuple(sorted(groups)), kept, wanted, wanted, wanted, kept, True, now.filtered)
    if now != asked:
        raise PrivilegeError(f"the kernel did not drop privileges as asked: {now}, asked for {asked}")


def _prctl(what: str, option: int, *arguments: int) -> None:
    # prctl(2) reads all five arguments as unsigned long and wants the unused ones 0.
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(ctypes.c_int(option), *words):
        number = ctypes.get_errno()
        raise PrivilegeError(number, f"{what}{arguments}: {os.strerror(number)}")


def _capset(wanted: int, inheritable: int) -> None:
    words = (_Word * 2)(
        *(_Word(*((bits >> shift) & 0xFFFFFFFF for bits in (wanted, wanted, inheritable))) for shift in (0, 32))
    )
    if _libc.capset(ctypes.byref(_Header(CAPABILITY_VERSION_3, 0)), words):
        number = ctypes.get_errno()
        raise PrivilegeError(number, f"capset: {os.strerror(number)}")
