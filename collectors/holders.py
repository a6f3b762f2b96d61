"""Whose the sockets are of which BPF tells: it sees the socket, and not the program, which reads later.

UDP sockets that drop go by their port; TCP sockets whose program has set the size of a buffer by their cookie, as those
of one service share its port.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bus import netns
from bus.netns import HOST, Handle
from bus.schema import Owner, TcpRcvBuf, TcpSndBuf, UdpDrop
from collectors import owners, sockdiag

SECOND_NS = 1_000_000_000
AGAIN_NS = 60 * SECOND_NS
"""So often one is looked for again: another program may have the port by then."""
RETRY_NS = 5 * SECOND_NS
"""And one that was not found: it may have gone, and another come."""
PAUSE_NS = SECOND_NS
"""Between two searches, which may go through all processes."""
SOCKETS_MAX = 256


class Key(NamedTuple):
    """A socket."""

    netns: int
    protocol: int
    port: int
    cookie: int
    """0: UDP's, which goes by its port."""


class Holders:
    """Sockets to find the programs of."""

    def __init__(self) -> None:
        self._told: dict[Key, int] = {}
        """When it was last looked for; 0: it is to be."""
        self._next_ns = 0

    def wanted(self, event: UdpDrop | TcpRcvBuf | TcpSndBuf, t_ns: int) -> None:
        """A socket has dropped something, or has a buffer of its program's choice."""
        if isinstance(event, UdpDrop):
            key = Key(event.netns, socket.IPPROTO_UDP, event.port, 0)
        else:
            key = Key(event.netns, socket.IPPROTO_TCP, event.sport, event.socket)
        if t_ns - self._told.get(key, -AGAIN_NS) >= AGAIN_NS:
            self._told.pop(key, None)
            self._told[key] = 0
            if len(self._told) > SOCKETS_MAX:
                del self._told[next(iter(self._told))]

    def find(self, handles: Mapping[int, Handle], t_ns: int) -> list[Owner]:
        """Those that are found of those that are wanted. handles: by the namespaces' cookies."""
        wanted = [key for key, looked_ns in self._told.items() if not looked_ns]
        if not wanted or t_ns < self._next_ns:
            return []
        self._next_ns = t_ns + PAUSE_NS
        # One namespace and protocol at a time: a search may go through all processes.
        place = wanted[0][:2]
        keys = [key for key in wanted if key[:2] == place]
        handle = handles.get(place[0])
        found = _owners(handle, keys, t_ns) if handle else {}
        for key in keys:
            self._told[key] = t_ns if key in found else t_ns - AGAIN_NS + RETRY_NS
        return list(found.values())


def _owners(handle: Handle, keys: Sequence[Key], t_ns: int) -> dict[Key, Owner]:
    """All of one namespace and protocol."""
    look: dict[int, Callable[[], dict[int, int]]] = {
        socket.IPPROTO_UDP: sockdiag.bound_here,
        socket.IPPROTO_TCP: sockdiag.connected_here,
    }
    sockets = {key.cookie or key.port: key for key in keys}
    do = look[keys[0].protocol]
    try:
        there = do() if handle.name == HOST else netns.inside(handle.path, do)
    except OSError:
        # Gone, or not to be entered, of which the source's status tells.
        return {}
    inodes = {there[name]: key for name, key in sockets.items() if there.get(name)}
    return {
        inodes[inode]: _owner(inodes[inode], found, t_ns) for inode, found in owners.find(handle.inode, inodes).items()
    }


def _owner(key: Key, found: owners.Owner, t_ns: int) -> Owner:
    return Owner(t_ns, key.netns, key.port, found.pid, found.program, key.protocol, key.cookie)
