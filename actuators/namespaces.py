"""Getting into a network namespace by its cookie, and remembering the way. Identity is checked inside, every time."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from actuators.records import Site
from bus.netns import HOST, Namespace, NamespaceGoneError, cookie_here, find, handles, inside

SCAN_S = 1.0
"""At most so often are all namespaces entered in search of one that the hint does not find."""
T = TypeVar("T")


class Namespaces:
    """The ways into the namespaces that were asked for."""

    def __init__(self) -> None:
        self.own = cookie_here()
        """The cookie of the namespace that we run in, which is the host's initial one but in a container."""
        self._known: dict[int, Namespace] = {}
        self._scanned_s = float("-inf")

    def enter(self, cookie: int, inode: int, do: Callable[[], T]) -> T:
        """The result of do() in that namespace, run in a thread of its own unless it is ours or the host (0).
        Raises NamespaceGoneError, or what do() or setns(2) raise."""
        if cookie in (0, self.own):
            return do()

        def checked() -> T:
            # A name or a pid can have passed to another namespace since it was looked up.
            if cookie_here() != cookie:
                raise NamespaceGoneError(errno.ENOENT, f"no namespace with cookie {cookie}")
            return do()

        for way in self._ways(cookie, inode):
            self._known.pop(cookie, None)
            try:
                result = inside(way.handle, checked)
            except NamespaceGoneError:
                continue
            self._known[cookie] = way
            return result
        raise NamespaceGoneError(errno.ENOENT, f"no namespace with cookie {cookie}")

    def site(self, cookie: int) -> Site:
        """Inode and name of a namespace that has been entered; an empty one for the host."""
        if cookie == self.own:
            return Site(next(handles()).inode, HOST)
        known = self._known.get(cookie)
        return Site(known.inode, _printable(known.name)) if known else Site()

    def alive(self, cookie: int) -> bool:
        """Whether a name or a process has this namespace: a socket of ours keeps one alive that nobody has any more."""
        if cookie in (0, self.own):
            return True
        known = self._known.get(cookie)
        with contextlib.suppress(OSError):
            if known and os.stat(known.handle).st_ino == known.inode:
                return True
        try:
            self._known[cookie] = find(cookie, 0)
        except NamespaceGoneError:
            self._known.pop(cookie, None)
            return False
        return True

    def _ways(self, cookie: int, inode: int) -> Iterator[Namespace]:
        """Where it may be found, most likely and cheapest first."""
        if cookie in self._known:
            yield self._known[cookie]
        hint = next((handle for handle in handles() if handle.inode == inode), None)
        if hint:
            yield Namespace(cookie, inode, hint.name, hint.path)
        # Whoever makes cookies up must not keep us busy looking for them.
        now_s = time.monotonic()
        if now_s - self._scanned_s >= SCAN_S:
            self._scanned_s = now_s
            yield find(cookie, 0)


def _printable(name: str) -> str:
    """A directory may hold any name; the journal and the terminal may not."""
    return "".join(char if char.isprintable() else "?" for char in name)
