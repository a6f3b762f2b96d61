"""Files that this process gives up for good: read everywhere as before, write only below some directories.

landlock(7): three system calls without a wrapper in the C library, the same numbers on every architecture (but Alpha).
The kernel says by a version which rights it knows; what it does not know is left out, and what it cannot do at all is
an error. Sockets with a path can still be connected to: Landlock asks for no right for that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

# linux/landlock.h, asm-generic/unistd.h, linux/prctl.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38
READ_FILE, READ_DIR = 1 << 2, 1 << 3
EXECUTE, WRITE_FILE, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 0, 1 << 1, 1 << 5, 1 << 8, 1 << 14
ACCESS_FS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""Version -> the rights on files that came with it: to execute, write, read, list, remove, make; to link or rename to
another directory; to truncate; ioctl(2) on devices."""
ACCESS_NET = {4: 0b11}
"""To bind and connect TCP."""
SCOPES = {6: 1 << 1}
"""Signals to processes outside. (Sockets without a path are another network namespace's affair: an abstract
$NOTIFY_SOCKET must stay within reach.)"""
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
"""Within its own directory a process makes, writes, renames and removes plain files."""

_libc = ctypes.CDLL(None, use_errno=True)


class LandlockError(OSError):
    """A kernel that does not restrict: says why."""


def version() -> int:
    """Landlock's version in this kernel. LandlockError when there is none."""
    return _call("version", CREATE_RULESET, None, 0, VERSION_FLAG)


def restrict(writable: Iterable[Path]) -> int:
    """Give up all other rights on files, here and in threads begun from now on; Landlock's version. A directory that is
    not there is none to write to. Needs no privilege (it sets no_new_privs). LandlockError."""
    has = version()
    files, *others = rights(has)
    rules = struct.pack("QQQ", files, *others)
    # A kernel takes a shorter ruleset than its own, and a longer one whose end is 0.
    ruleset = _call("ruleset", CREATE_RULESET, rules, len(rules), 0)
    try:
        _allow(ruleset, Path("/"), files & READ)
        for folder in writable:
            _allow(ruleset, folder, files & WRITE)
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0))):
            raise LandlockError(ctypes.get_errno(), "no_new_privs")
        _call("restrict", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return has


def rights(has: int) -> tuple[int, ...]:
    """All rights that a version knows: on files, on the network, on what is outside."""
    tables = (ACCESS_FS, ACCESS_NET, SCOPES)
    return tuple(sum(bits for since, bits in table.items() if since <= has) for table in tables)


def _allow(ruleset: int, folder: Path, rights: int) -> None:
    try:
        parent = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # struct landlock_path_beneath_attr is packed.
        _call(str(folder), ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, parent), 0)
    finally:
        os.close(parent)


def _call(what: str, number: int, *arguments: bytes | int | None) -> int:
    # syscall(2) takes longs; an int's upper half would be anything.
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        # ENOSYS: not built in; EOPNOTSUPP: built in, and not enabled at boot (lsm=).
        reason = "not in this kernel" if code in (errno.ENOSYS, errno.EOPNOTSUPP) else f"{what}: {os.strerror(code)}"
        raise LandlockError(code, reason)
    return result
