"""Network namespaces: finding them, telling them apart, doing something inside one.

A namespace is named by its cookie (kernel 5.12, net->net_cookie): unlike the inode it is never reused. Nothing here
keeps a namespace open: a descriptor kept would keep it alive. setns(2) changes one thread, so whatever is done inside
is done in a thread of its own that ends there; the caller's thread, where the sockets live, never moves.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from bus.roles import is_decider

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x40000000
HOST = "host"
FOLDERS = ("run/netns", "run/docker/netns")
"""Where names are mounted: ip-netns(8) and the container network interface; Docker."""

_libc = ctypes.CDLL(None, use_errno=True)
_link = re.compile(r"net:\[(\d+)\]")
T = TypeVar("T")


class Handle(Struct, frozen=True):
    """A path that opens a namespace, such as /run/netns/x or /proc/812/ns/net, and what it is called."""

    inode: int
    name: str
    """The name under /run/netns, "host" for the caller's own, else empty."""
    path: str
    changed_ns: int
    """st_ctime where the handle has a name: a name that was removed and made again can have the same inode. Else 0."""


class Namespace(Struct, frozen=True):
    """One namespace as found: where its handle is and what it is called."""

    cookie: int
    inode: int
    name: str
    handle: str


class NamespaceGoneError(OSError):
    """The namespace is not there (any more)."""


def cookie_here() -> int:
    """The cookie of the calling thread's namespace; its inode where the kernel is older than 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return cookie_of(sock)


def cookie_of(sock: socket.socket) -> int:
    """The cookie of the namespace that a socket of the calling thread is in, as cookie_here()."""
    try:
        return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
    except OSError:
        return os.stat("/proc/thread-self/ns/net").st_ino


def inside(handle: str, do: Callable[[], T]) -> T:
    """The result of do() in the namespace that handle opens. NamespaceGoneError when there is none (any more).

    PermissionError without CAP_SYS_ADMIN, or without CAP_SYS_PTRACE where the handle is another user's process.
    """
    with ThreadPoolExecutor(1, "netns") as thread:
        return thread.submit(_enter, handle, do).result()


def inside_each(handles: Sequence[str], do: Callable[[], T]) -> list[T | OSError]:
    """As inside(), one after the other in one thread (which costs more than the visits); failures are results."""

    def visit(handle: str) -> T | OSError:
        try:
            return _enter(handle, do)
        except OSError as error:
            return error

    with ThreadPoolExecutor(1, "netns") as thread:
        return thread.submit(lambda: [visit(handle) for handle in handles]).result()


def _enter(handle: str, do: Callable[[], T]) -> T:
    # Only ever in a thread that ends soon: it stays in the namespace, and keeps it alive, until it does.
    try:
        fd = os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NamespaceGoneError(error.errno, "namespace has gone", handle) from None
    try:
        if _libc.setns(fd, CLONE_NEWNET):
            raise _setns_error(ctypes.get_errno(), handle)
    finally:
        os.close(fd)
    return do()


def _setns_error(number: int, handle: str) -> OSError:
    if number == errno.EINVAL:  # setns(2): not a namespace. A name stays as an empty file when only its mount goes.
        return NamespaceGoneError(number, "no namespace is mounted here", handle)
    return OSError(number, os.strerror(number), handle)


def handles(root: Path = Path("/")) -> Iterator[Handle]:
    """A handle of every namespace that a name or a process shows, each once: ours, those with a name, the others.

    Those of other users' processes only with CAP_SYS_PTRACE; never the empty one of trimtab's own deciders.
    """
    seen: set[int] = set()
    for handle in _candidates(str(root).rstrip("/")):
        if handle.inode not in seen:
            seen.add(handle.inode)
            if not of_deciders(handle):
                yield handle


def of_deciders(handle: Handle) -> bool:
    """The namespace has no name, and a decider is in it: it is no container, but the lack of a network."""
    if handle.name:
        return False
    try:
        # The directory is the process's user's, also where what is in it is root's (proc_pid(5): dumpable).
        return is_decider(os.stat(handle.path.removesuffix("/ns/net")).st_uid)
    except OSError:
        return False


def _candidates(root: str) -> Iterator[Handle]:
    here = os.stat(f"{root}/proc/self/ns/net")
    yield Handle(here.st_ino, HOST, f"{root}/proc/self/ns/net", 0)
    for folder in FOLDERS:
        yield from _named(f"{root}/{folder}", here.st_dev)
    yield from of_processes(processes(root), root)


def processes(root: str = "") -> list[str]:
    """The pids under root/proc."""
    return [pid for pid in os.listdir(f"{root}/proc") if pid.isdigit()]


def of_processes(pids: Iterable[str], root: str = "") -> Iterator[Handle]:
    """A handle for each of these processes that is there and may be looked at."""
    for pid in pids:
        path = f"{root}/proc/{pid}/ns/net"
        if inode := _inode(path):
            yield Handle(inode, "", path, 0)


def _named(folder: str, device: int) -> Iterator[Handle]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        path = f"{folder}/{name}"
        try:
            status = os.stat(path)
        except OSError:
            continue
        # Another device: a name whose namespace is not mounted yet, or no longer.
        if status.st_dev == device:
            yield Handle(status.st_ino, name, path, status.st_ctime_ns)


def _inode(link: str) -> int:
    # readlink(2) says the inode at two thirds of what stat(2) costs.
    try:
        found = _link.fullmatch(os.readlink(link))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def identify(handle: Handle) -> Namespace | None:
    """The namespace behind a handle, or None when it has gone or is not ours to enter."""
    try:
        cookie = cookie_here() if handle.name == HOST else inside(handle.path, cookie_here)
    except OSError:
        return None
    return Namespace(cookie, handle.inode, handle.name, handle.path)


def find(cookie: int, inode: int) -> Namespace:
    """The namespace with this cookie; inode says which handle to try first. Raises NamespaceGoneError."""
    others: list[Handle] = []
    for handle in handles():
        if handle.inode != inode and handle.name != HOST:
            others.append(handle)
        elif (namespace := identify(handle)) and namespace.cookie == cookie:
            return namespace
    for handle, found in zip(others, inside_each([handle.path for handle in others], cookie_here), strict=True):
        if found == cookie:
            return Namespace(cookie, handle.inode, handle.name, handle.path)
    raise NamespaceGoneError(errno.ENOENT, f"no namespace with cookie {cookie}")
