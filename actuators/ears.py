"""Hearing of changes to routes, links, addresses and rules in the namespaces where routes of ours stand.

A socket keeps its namespace alive: whoever listens has to look whether it is still there otherwise
(actuators.route_watch)."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

from actuators.rtnetlink import RECEIVE_BYTES, ear, messages

READS_MAX = 64
"""What one namespace may say at a time; the rest waits for the next turn."""
Concerns = Callable[[int, int, bytes], bool]
"""Whether a message (namespace, type, body) is worth a look."""


class Ears:
    """One socket per namespace, all behind one descriptor."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._ears: dict[int, socket.socket] = {}

    @property
    def netns(self) -> list[int]:
        """Where is listened."""
        return list(self._ears)

    def fileno(self) -> int:
        """Readable when something was heard."""
        if self._epoll is None:
            self._epoll = select.epoll()
        return self._epoll.fileno()

    def listen(self, netns: int) -> None:
        """From now on. In a thread that is in this namespace. Raises OSError."""
        if netns not in self._ears:
            self.fileno()
            made = self._ears[netns] = ear()
            assert self._epoll
            self._epoll.register(made.fileno(), select.EPOLLIN)

    def forget(self, netns: int) -> None:
        """No more there."""
        made = self._ears.pop(netns, None)
        if made:
            # Closing takes it from the epoll as well.
            made.close()

    def heard(self, concerns: Concerns) -> list[int]:
        """The namespaces with news that concern somebody."""
        return [netns for netns, made in self._ears.items() if _heard(netns, made, concerns)]

    def close(self) -> None:
        """Give all descriptors back."""
        for netns in self.netns:
            self.forget(netns)
        if self._epoll:
            self._epoll.close()
            self._epoll = None


def _heard(netns: int, made: socket.socket, concerns: Concerns) -> bool:
    found = False
    for _ in range(READS_MAX):
        try:
            raw = made.recv(RECEIVE_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # More than the socket could hold: what was lost may have concerned us.
            found = True
            continue
        found = found or any(concerns(netns, what, body) for what, _, _, body in messages(raw))
    return found
