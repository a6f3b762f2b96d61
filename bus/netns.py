"""Network namespaces: finding them, telling them apart, doing something inside one.

A namespace is named by its cookie (kernel 5.12, net->net_cookie): unlike the inode it is never reused. Nothing here
keeps a namespace open: a descriptor kept would keep it alive. setns(2) changes one thread, so whatever is done inside
is done in a thread of its own that ends there; the caller's thread, where the sockets live, never moves.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Namespace(Struct, frozen=True):
    """One namespace as found: where its handle is and what it is called."""

    cookie: int
    inode: int
    name: str
    handle: str
    """A path that opens it, such as /run/netns/x or /proc/812/ns/net."""


class NamespaceGoneError(OSError):
    """The namespace is not there (any more)."""


def cookie_here() -> int:
    """The cookie of the calling thread's namespace; its inode where the kernel is older than 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
        except OSError:
            return os.stat("/proc/thread-self/ns/net").st_ino


def inside(handle: str, do: Callable[[], T]) -> T:
    """The result of do() in the namespace that handle opens. NamespaceGoneError when it cannot be entered for good."""
    try:
        fd = os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NamespaceGoneError(error.errno, "namespace has gone", handle) from None

    def enter() -> T:
        if _libc.setns(fd, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), handle)
        return do()

    try:
        with ThreadPoolExecutor(1, "netns") as thread:
            return thread.submit(enter).result()
    finally:
        os.close(fd)


def handles(root: Path = Path("/")) -> Iterator[tuple[int, str, str]]:
    """(inode, name, handle) of every namespace that a name or a process shows, each inode once, ours first."""
    seen: set[int] = set()
    for name, handle in _candidates(root):
        try:
            inode = os.stat(handle).st_ino
        except OSError:
            continue
        if inode not in seen:
            seen.add(inode)
            yield inode, name, handle


def _candidates(root: Path) -> Iterator[tuple[str, str]]:
    yield "host", str(root / "proc/self/ns/net")
    for folder in ("run/netns", "run/docker/netns"):
        try:
            names = sorted(os.listdir(root / folder))
        except OSError:
            continue
        yield from ((name, str(root / folder / name)) for name in names)
    for pid in os.listdir(root / "proc"):
        if pid.isdigit():
            yield "", str(root / f"proc/{pid}/ns/net")


def identify(inode: int, name: str, handle: str) -> Namespace | None:
    """The namespace behind a handle, or None when it has gone or is not ours to enter."""
    try:
        cookie = cookie_here() if name == "host" else inside(handle, cookie_here)
    except OSError:
        return None
    return Namespace(cookie, inode, name, handle)


def find(cookie: int, inode: int) -> Namespace:
    """The namespace with this cookie; inode says which handles to try first. Raises NamespaceGoneError."""
    here = sorted(handles(), key=lambda handle: handle[0] != inode)
    for candidate in here:
        namespace = identify(*candidate)
        if namespace and namespace.cookie == cookie:
            return namespace
    raise NamespaceGoneError(2, f"no namespace with cookie {cookie}")
