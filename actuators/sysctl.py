"""Sysctls: one integer of a file under /proc/sys, of the host or of any network namespace.

A file that was opened inside a namespace stays bound to that namespace's table, whichever thread reads it, keeps no
namespace alive, and fails with ENOENT once the namespace has gone (proc_sys_call_handler, fs/proc/proc_sysctl.c). So a
namespace is entered once per file, and the descriptor is also the surest name for it. Descriptors are kept for reading
only; for a write the same file is opened again through /proc/self/fd, for as long as the write takes.
"""

from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from actuators.records import Spot, Swap
from bus.netns import NamespaceGoneError

# As in bus.tunables.Tunable.name: no part is empty or holds a dot or slash, so the path cannot leave /proc/sys.
_name = re.compile(r"([a-z0-9_]+(?:\.[a-zA-Z0-9_\-]+)+)(?:\[([0-3])\])?")
BYTES_MAX = 4096


class Enter(Protocol):
    """Namespaces.enter, or what stands for it."""

    def __call__(self, cookie: int, inode: int, do: Callable[[], Any]) -> Any: ...


class Sysctl:
    """Reads and writes sysctls below root. All methods raise NamespaceGoneError or another OSError."""

    def __init__(self, enter: Enter, root: Path = Path("/proc/sys"), keep: int = 256) -> None:
        self._enter = enter
        self._root = root
        self._keep = keep
        self._open: OrderedDict[tuple[str, int], int] = OrderedDict()

    def read(self, spot: Spot, inode: int) -> int:
        """The value at a spot; inode: where to look for its namespace first."""
        path, index = _place(spot.tunable)
        return _pick(self._read(path, spot.netns, inode), index, path)

    def swap(self, spot: Spot, inode: int, old: int, new: int) -> Swap:
        """Write new if old stands there; the sysctl's other integers stay as they are at that moment."""
        path, index = _place(spot.tunable)
        values = self._read(path, spot.netns, inode)
        found = _pick(values, index, path)
        if found != old:
            return Swap(found, found, "")
        values[index] = new
        error = self._write(self._open[path, spot.netns], values)
        return Swap(found, _pick(self._read(path, spot.netns, inode), index, path), error)

    def put(self, spot: Spot, inode: int, values: list[int]) -> str:
        """Write all of a sysctl's integers, as somebody else wrote them. Returns the kernel's error, or nothing."""
        path, _ = _place(spot.tunable)
        self._read(path, spot.netns, inode)
        return self._write(self._open[path, spot.netns], values)

    def close(self) -> None:
        """Give all descriptors back."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, path: str, netns: int, inode: int) -> list[int]:
        kept = self._open.get((path, netns))
        if kept is not None:
            self._open.move_to_end((path, netns))
            try:
                return _numbers(kept, path)
            except FileNotFoundError:
                os.close(self._open.pop((path, netns)))
        fd = self._enter(netns, inode, lambda: os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC))
        self._open[path, netns] = fd
        while len(self._open) > self._keep:
            os.close(self._open.popitem(last=False)[1])
        try:
            return _numbers(fd, path)
        except FileNotFoundError as error:
            raise NamespaceGoneError(error.errno, "the namespace has gone") from None

    def _write(self, fd: int, values: list[int]) -> str:
        """The kernel's error in words, or empty. A namespace that has just gone is a NamespaceGoneError."""
        text = " ".join(str(value) for value in values) + "\n"
        try:
            writing = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NamespaceGoneError(error.errno, "the namespace has gone") from None
        except OSError as error:
            return f"cannot be opened for writing: {error.strerror}"
        try:
            os.write(writing, text.encode())
        except FileNotFoundError as error:
            raise NamespaceGoneError(error.errno, "the namespace has gone") from None
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(writing)
        return ""


def _place(name: str) -> tuple[str, int]:
    found = _name.fullmatch(name)
    if not found:
        raise OSError(errno.EINVAL, f"{name!r} names no sysctl")
    return found[1].replace(".", "/"), int(found[2] or 0)


def _numbers(fd: int, path: str) -> list[int]:
    text = os.pread(fd, BYTES_MAX, 0)
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise OSError(errno.EINVAL, f"{path} holds {text[:40]!r}, which is not all integers") from None


def _pick(values: list[int], index: int, path: str) -> int:
    if index >= len(values):
        raise OSError(errno.EINVAL, f"{path} holds {len(values)} integers, none at [{index}]")
    return values[index]
