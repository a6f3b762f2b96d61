"""Whether this kernel takes metrics of routes as trimtab sets them: tried in a network namespace of its own, with a
route that leads nowhere. Needs root."""

from __future__ import annotations

import ctypes
import os
import struct
from concurrent.futures import ThreadPoolExecutor

from actuators import route, route_table
from actuators.records import Spot
from actuators.routes import Routes
from actuators.rtnetlink import NLM_F_CREATE, RTM_NEWLINK, RTM_NEWROUTE, Socket
from bus.netns import CLONE_NEWNET
from bus.prefix import network
from bus.tunables import ALGORITHMS

LOOPBACK = 1
IFF_UP = 1
TO = "198.18.7.0/24"
"""Of the network for benchmarks (RFC 2544)."""


def tried() -> str:
    """The congestion control that may be chosen from. OSError where routes cannot be set."""
    with ThreadPoolExecutor(1, "netns") as thread:
        return thread.submit(_tried).result()


def _tried() -> str:
    # Only this thread is in it, and it ends with the thread.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    there = route_table.algorithms()
    name = next(name for name in ALGORITHMS if name in there)
    value = ALGORITHMS.index(name)
    _lead()
    routes, spot = Routes(lambda netns, inode, do: do()), Spot(f"route.congctl@{TO}", 1)
    try:
        swap = routes.swap(spot, 0, 0, value)
        if swap.stands != value or routes.swap(spot, 0, value, 0).stands:
            raise OSError(0, swap.error or f"{name} was set, and {swap.stands} stands there")
    finally:
        routes.close()
    return f"congestion control: {', '.join(there)}"


def _lead() -> None:
    """A route to copy."""
    wide = network("198.18.0.0/15")
    hop = ((1, wide.network_address.packed), (route.RTA_OIF, struct.pack("=I", LOOPBACK)),
           (route.RTA_GATEWAY, bytes((192, 0, 2, 1))))  # fmt: skip
    lead = route.Route(wide, 0, 0, route.RT_TABLE_MAIN, 4, 0, route.RTN_UNICAST, route.RTNH_F_ONLINK, hop)
    with Socket() as sock:
        sock.change(RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, LOOPBACK, IFF_UP, IFF_UP))
        sock.change(RTM_NEWROUTE, NLM_F_CREATE, route.message(lead))
