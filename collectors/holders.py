"""Whose the UDP sockets are of which drops are told: BPF sees the socket, and not the program, which reads later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bus import netns
from bus.netns import HOST, Handle
from bus.schema import Owner, UdpDrop
from collectors import owners, sockdiag

SECOND_NS = 1_000_000_000
AGAIN_NS = 60 * SECOND_NS
"""So often one is looked for again: another program may have the port by then."""
RETRY_NS = 5 * SECOND_NS
"""And one that was not found: it may have gone, and another come."""
PAUSE_NS = SECOND_NS
"""Between two searches, which may go through all processes."""
SOCKETS_MAX = 256


class Holders:
    """Sockets to find the programs of."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], int] = {}
        """Namespace and port -> when it was last looked for; 0: it is to be."""
        self._next_ns = 0

    def wanted(self, event: UdpDrop, t_ns: int) -> None:
        """A socket has dropped something."""
        key = (event.netns, event.port)
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
        # One namespace at a time: a search may go through all processes.
        cookie = wanted[0][0]
        ports = [port for other, port in wanted if other == cookie]
        handle = handles.get(cookie)
        found = _owners(cookie, handle, ports, t_ns) if handle else []
        there = {owner.port for owner in found}
        for port in ports:
            self._told[cookie, port] = t_ns if port in there else t_ns - AGAIN_NS + RETRY_NS
        return found


def _owners(cookie: int, handle: Handle, ports: Iterable[int], t_ns: int) -> list[Owner]:
    try:
        home = handle.name == HOST
        bound = sockdiag.bound_here() if home else netns.inside(handle.path, sockdiag.bound_here)
    except OSError:
        # Gone, or not to be entered, of which the source's status tells.
        return []
    inodes = {port: bound[port] for port in ports if bound.get(port)}
    found = owners.find(handle.inode, set(inodes.values()))
    return [
        Owner(t_ns, cookie, port, found[inode].pid, found[inode].program)
        for port, inode in inodes.items()
        if inode in found
    ]
