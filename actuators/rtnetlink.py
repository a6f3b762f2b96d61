"""rtnetlink(7), as far as routes go: asking, changing, hearing of changes. Messages are made here by hand, since a
route is to be copied with all that it has: pyroute2 0.9.7 drops in silence what it has no name for, and sets no lock.

A socket is of the namespace that its thread was in when it was made, and keeps that namespace alive.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator

RTM_NEWLINK = 16
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_GETRULE = 34
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
RTNLGRP = {"link": 1, "IPv4 address": 5, "IPv4 route": 7, "IPv4 rule": 8, "IPv6 address": 9, "IPv6 route": 11,
           "IPv6 rule": 19}  # fmt: skip
"""enum rtnetlink_groups: what can make a route come, go or mean something else. When a link goes down the kernel drops
its IPv4 routes without a word (fib_sync_down_dev, net/ipv4/fib_semantics.c); the link is told of."""
RECEIVE_BYTES = 32 << 10
"""The kernel fills at most this much at once (netlink_dump)."""
ANSWER_S = 1.0
DUMPS = 5
"""A table that changes while it is read is read anew, so often."""

_header = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_attribute = struct.Struct("=HH")  # struct nlattr: length, type

Attributes = tuple[tuple[int, bytes], ...]


class Socket:
    """Requests to the namespace of the calling thread. Methods raise OSError."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        # The kernel answers while it is asked; the limit is only there so that nothing can hang.
        self._socket.settimeout(ANSWER_S)
        try:
            # Kernels before 4.20 have it not, and dump all tables: what is not wanted is left out here as well.
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                self.close()
                raise

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies (behind nlmsghdr) of all that a request of this kind yields."""
        for _ in range(DUMPS):
            found, torn = self._dump(kind, body)
            if not torn:
                return found
        raise OSError(errno.EAGAIN, "changes faster than it can be read")

    def get(self, kind: int, body: bytes) -> bytes:
        """The one answer to a request."""
        self._send(kind, 0, body)
        return next(found for _, _, found in self._answers())

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Have something changed: OSError where the kernel refuses."""
        self._send(kind, NLM_F_ACK | flags, body)
        for _ in self._answers():
            return

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        """With whether anything has changed meanwhile."""
        self._send(kind, NLM_F_DUMP, body)
        found: list[bytes] = []
        torn = False
        for what, flags, one in self._answers():
            torn = torn or bool(flags & NLM_F_DUMP_INTR)
            if what == NLMSG_DONE:
                break
            found.append(one)
        return found, torn

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        head = _header.pack(_header.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(head + body)

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, body) of each message; an error is raised, and an acknowledgement one with an empty body."""
        while True:
            for what, flags, sequence, body in messages(self._socket.recv(RECEIVE_BYTES)):
                # An answer to an earlier request that came too late is not this one's.
                if sequence != self._sequence:
                    continue
                number = -struct.unpack_from("=i", body)[0] if what == NLMSG_ERROR else 0
                if number:
                    raise OSError(number, os.strerror(number))
                yield what, flags, body


def ear() -> socket.socket:
    """A socket that hears of all that may concern a route, and does not block."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        made.bind((0, sum(1 << group - 1 for group in RTNLGRP.values())))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def messages(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in what was received."""
    offset = 0
    while offset + _header.size <= len(raw):
        length, what, flags, sequence, _ = _header.unpack_from(raw, offset)
        yield what, flags, sequence, raw[offset + _header.size : offset + length]
        offset += max(_header.size, _aligned(length))


def attributes(body: bytes, offset: int = 0) -> Attributes:
    """The attributes in body from offset on, in their order."""
    found: list[tuple[int, bytes]] = []
    while offset + _attribute.size <= len(body):
        length, kind = _attribute.unpack_from(body, offset)
        found.append((kind & NLA_TYPE_MASK, body[offset + _attribute.size : offset + length]))
        offset += max(_attribute.size, _aligned(length))
    return tuple(found)


def packed(found: Iterable[tuple[int, bytes]]) -> bytes:
    """Attributes as the kernel takes them."""
    return b"".join(
        _attribute.pack(_attribute.size + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in found
    )


def _aligned(length: int) -> int:
    return (length + 3) & ~3
