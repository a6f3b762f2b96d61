"""Which process has a socket, by the socket's inode: for the operator, who knows programs and not sockets.

Needs CAP_SYS_PTRACE for others' processes, as a process's descriptors are shown to its own user only, but what each of
them is, fdinfo tells by that capability (proc_fdinfo_permission in fs/proc/fd.c; the inode is in it since 5.14).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec import Struct

from collectors.words import word

DESCRIPTORS_MAX = 20_000
"""Looked at in one search, of all processes together: at 10 us each."""
NOBODY = 0


class Owner(Struct, frozen=True):
    """A process that has the socket, maybe one of several."""

    pid: int
    program: str
    """Its comm (proc_pid_comm(5))."""


def find(netns_ino: int, inodes: Collection[int], root: Path = Path("/proc")) -> dict[int, Owner]:
    """Socket's inode -> who has it, as far as it is found: processes in the namespace of this inode first, since a
    socket can be handed to others (systemd's are); those after them."""
    wanted, found, left = set(inodes), {}, DESCRIPTORS_MAX
    for pid in _processes(netns_ino, root):
        for inode in _sockets(root / pid):
            left -= 1
            if inode in wanted:
                wanted.discard(inode)
                found[inode] = Owner(int(pid), _comm(root / pid))
            if left <= 0 or not wanted:
                return found
    return found


def _processes(netns_ino: int, root: Path) -> list[str]:
    pids = [name for name in os.listdir(root) if name.isdigit()]
    link = f"net:[{netns_ino}]"
    return sorted(pids, key=lambda pid: (_link(root / pid / "ns/net") != link, -int(pid)))


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _sockets(process: Path) -> Iterator[int]:
    """The inodes of what a process has open; of other things than sockets, too: they are of another file system, and
    such a number can stand for both."""
    try:
        descriptors = sorted(os.listdir(process / "fdinfo"), key=int)
    except OSError:
        return
    for descriptor in descriptors:
        inode = _inode(process, descriptor)
        if inode:
            yield inode


def _inode(process: Path, descriptor: str) -> int:
    try:
        link = os.readlink(process / "fd" / descriptor)
    except PermissionError:
        return _told(process / "fdinfo" / descriptor)
    except OSError:
        return NOBODY
    return int(link[8:-1]) if link.startswith("socket:[") else NOBODY


def _told(info: Path) -> int:
    try:
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        return int(lines.get("ino", NOBODY))
    except (OSError, ValueError):
        return NOBODY


def _comm(process: Path) -> str:
    try:
        return word((process / "comm").read_bytes().rstrip(b"\n"))
    except OSError:
        return ""
