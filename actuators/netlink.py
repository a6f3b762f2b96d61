"""The thresholds of the neighbour tables, written through RTM_SETNEIGHTBL (neightbl_set, net/core/neighbour.c).

The tables are the host's; only its initial namespace may set them (ENOENT elsewhere). The message also works where
/proc/sys is mounted read-only. What stands is read from the sysctl, which is the same variable (neigh_sysctl_register)
at a fiftieth of the cost of a dump, so that the read-back is by another road than the write.

pyroute2 encodes the message (its own request method fails in 0.9.7: KeyError 'nlm_generator'); importing it takes
0.15 s and 18 MiB, so only an actuator that may write such a row makes a NeighTables.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from actuators.records import Spot, Swap
from actuators.sysctl import Sysctl

RTM_SETNEIGHTBL = 67
NLM_F_REQUEST_ACK = 0x5
NLMSG_ERROR = 2
ERROR = struct.Struct("=IHHIIi")
"""struct nlmsghdr (length, type, flags, sequence, port) and the error number of struct nlmsgerr."""
ANSWER_S = 1.0
TABLES = {"ipv4": (socket.AF_INET, "arp_cache"), "ipv6": (socket.AF_INET6, "ndisc_cache")}


class NeighTables:
    """Writes gc_thresh1-3. Make it in the host's initial namespace: its socket stays there."""

    def __init__(self, sysctl: Sysctl) -> None:
        from pyroute2.netlink.rtnl.ndtmsg import ndtmsg

        self._message: Any = ndtmsg
        self._sysctl = sysctl
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(ANSWER_S)

    def swap(self, spot: Spot, old: int, new: int) -> Swap:
        """Write new if old stands there. Raises OSError when what stands there cannot be read."""
        found = self._sysctl.read(spot, 0)
        if found != old:
            return Swap(found, found, "")
        error = self._set(spot.tunable, new)
        return Swap(found, self._sysctl.read(spot, 0), error)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _set(self, tunable: str, value: int) -> str:
        """The kernel's error in words, or empty."""
        _, protocol, _, _, threshold = tunable.split(".")
        family, table = TABLES[protocol]
        self._sequence += 1
        message = self._message()
        message["family"] = family
        message["attrs"] = [("NDTA_NAME", table), (f"NDTA_THRESH{threshold[-1]}", value)]
        message["header"] = {
            "type": RTM_SETNEIGHTBL,
            "flags": NLM_F_REQUEST_ACK,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        try:
            self._socket.send(message.data)
            return self._answer()
        except OSError as error:
            return f"netlink: {error.strerror or error}"

    def _answer(self) -> str:
        while True:
            raw = self._socket.recv(4096)
            if len(raw) < ERROR.size:
                return f"netlink: an answer of {len(raw)} bytes"
            _, kind, _, sequence, _, number = ERROR.unpack_from(raw)
            # An answer to an earlier request that came too late is not this one's.
            if kind == NLMSG_ERROR and sequence == self._sequence:
                return os.strerror(-number) if number else ""
