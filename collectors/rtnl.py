"""rtnetlink dumps, read-only: addresses of a namespace and the neighbour tables of the host. See rtnetlink(7).

Not pyroute2, which would do it: it takes 23 MiB and then 8 ms for each namespace, this takes 0.05 ms, and there may be
a thousand; and its class for the statistics of a neighbour table ends before table_fulls. The one who writes uses it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

RTM_GETADDR = 22
RTM_GETNEIGHTBL = 66
NLM_F_REQUEST = 0x1
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLA_TYPE_MASK = 0x3FFF
IFA_ADDRESS = 1
NDTA_THRESH1, NDTA_THRESH2, NDTA_THRESH3, NDTA_CONFIG, NDTA_STATS = 2, 3, 4, 5, 7
LOOPBACK_IFINDEX = 1
"""In every namespace (net/core/dev.h in the kernel)."""

# The kernel fills at most this much at once (NLMSG_GOODSIZE and what netlink_dump allocates for a large reader).
RECEIVE_BYTES = 32 << 10
TIMEOUT = struct.pack("ll", 1, 0)

_header = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_attribute = struct.Struct("=HH")  # struct nlattr: length, type
_ifaddrmsg = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ndtmsg = struct.Struct("=BBH")
_config = struct.Struct("=HHI")  # struct ndt_config begins: key length, entry size, entries
_stats = struct.Struct("=11Q")  # struct ndt_stats up to table_fulls (kernel 4.3)
_u32 = struct.Struct("=I")


class Prefix(Struct, frozen=True):
    """One network that an interface is attached to."""

    family: int
    interface: int
    bits: int
    """Length of the prefix."""
    network: bytes
    """The address with the host's part cleared."""


class Table(Struct, frozen=True):
    """One neighbour table of the host, with all of its entries, also those that no threshold concerns."""

    family: int
    entries: int
    thresholds: tuple[int, int, int]
    allocs: int
    destroys: int
    forced_gc_runs: int
    table_fulls: int


def open_socket() -> socket.socket:
    """A socket in the calling thread's namespace. No privilege is needed to read."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    # The kernel answers while it is asked; the limit is only there so that nothing can hang.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
    return sock


def prefixes(sock: socket.socket) -> set[Prefix]:
    """The networks attached to the socket's namespace, loopback aside. Raises OSError."""
    found: set[Prefix] = set()
    for body in dump(sock, RTM_GETADDR, bytes(_ifaddrmsg.size)):
        family, bits, _, _, interface = _ifaddrmsg.unpack_from(body)
        if interface == LOOPBACK_IFINDEX or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        # IFA_ADDRESS is the peer's on a point-to-point link: it is the peer's network that is reached there.
        address = attributes(body, _ifaddrmsg.size).get(IFA_ADDRESS)
        if address:
            found.add(Prefix(family, interface, bits, _network(address, bits)))
    return found


def _network(address: bytes, bits: int) -> bytes:
    free = len(address) * 8 - bits
    return (int.from_bytes(address) >> free << free).to_bytes(len(address))


def table(family: int) -> Table | None:
    """The neighbour table of this family; None when the kernel has none. Raises OSError.

    The table itself comes before the parameters of its devices, of which there may be thousands: those are not read.
    """
    with open_socket() as sock:
        for body in dump(sock, RTM_GETNEIGHTBL, _ndtmsg.pack(family, 0, 0)):
            found = attributes(body, _ndtmsg.size)
            if NDTA_CONFIG in found and NDTA_STATS in found:
                return _table(family, found)
    return None


def _table(family: int, found: dict[int, bytes]) -> Table:
    stats = _stats.unpack_from(found[NDTA_STATS].ljust(_stats.size, b"\0"))
    first, second, third = (_u32.unpack(found[which])[0] for which in (NDTA_THRESH1, NDTA_THRESH2, NDTA_THRESH3))
    return Table(
        family=family,
        entries=_config.unpack_from(found[NDTA_CONFIG])[2],
        thresholds=(first, second, third),
        allocs=stats[0],
        destroys=stats[1],
        forced_gc_runs=stats[9],
        table_fulls=stats[10],
    )


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies (behind nlmsghdr) of all messages that a dump request of this kind yields. Raises OSError."""
    sock.send(_header.pack(_header.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    while True:
        raw = sock.recv(RECEIVE_BYTES)
        offset = 0
        while offset < len(raw):
            length, what, flags, _, _ = _header.unpack_from(raw, offset)
            body = raw[offset + _header.size : offset + length]
            if flags & NLM_F_DUMP_INTR:
                raise OSError(errno.EAGAIN, "changed while it was read")
            if what == NLMSG_DONE:
                return
            if what == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, os.strerror(number))
            yield body
            offset += max(_header.size, _aligned(length))


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes in body from offset on, by type."""
    found: dict[int, bytes] = {}
    while offset + _attribute.size <= len(body):
        length, kind = _attribute.unpack_from(body, offset)
        found[kind & NLA_TYPE_MASK] = body[offset + _attribute.size : offset + length]
        offset += max(_attribute.size, _aligned(length))
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
