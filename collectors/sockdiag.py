"""The sockets of a namespace as the kernel lists them: sock_diag(7), read-only, no privilege needed."""

from __future__ import annotations

import socket
import struct

from msgspec import Struct

from collectors import rtnl

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
TCP_LISTEN = 10
ANY_STATE = 0xFFFFFFFF
INET_DIAG_SKMEMINFO = 7
DROPS = 8
"""SK_MEMINFO_DROPS: where in the attribute it stands (linux/sock_diag.h)."""

# linux/inet_diag.h: struct inet_diag_req_v2, and struct inet_diag_msg with the addresses left out.
_request = struct.Struct("=BBBBI48x")
_message = struct.Struct("=BBxx")
_ports = struct.Struct("!HH")
_rest = struct.Struct("=Q5I")
PORTS_AT, COOKIE_AT, ATTRIBUTES_AT = 4, 44, 72


class Listening(Struct, frozen=True):
    """A TCP socket that listens."""

    cookie: int
    family: int
    port: int
    queued: int
    """Connections that wait for accept(2)."""
    backlog: int
    """As listen(2) set it, at most somaxconn at that moment (inet_listen in net/ipv4/af_inet.c)."""
    inode: int
    dropped: int
    """Connections it could not take (tcp_listendrop in include/net/tcp.h); 0 where the kernel does not say (4.7)."""


def open_socket() -> socket.socket:
    """A socket in the calling thread's namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, rtnl.TIMEOUT)
    return sock


def listening(sock: socket.socket) -> list[Listening]:
    """Every TCP socket that listens in the socket's namespace. Raises OSError."""
    found: list[Listening] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _request.pack(family, socket.IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0, 1 << TCP_LISTEN)
        found += [_listening(body) for body in rtnl.dump(sock, SOCK_DIAG_BY_FAMILY, request)]
    return found


def bound_here() -> dict[int, int]:
    """Port -> inode of the UDP sockets in the calling thread's namespace; of several with one port, the last."""
    found: dict[int, int] = {}
    with open_socket() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _request.pack(family, socket.IPPROTO_UDP, 0, 0, ANY_STATE)
            for body in rtnl.dump(sock, SOCK_DIAG_BY_FAMILY, request):
                found[_ports.unpack_from(body, PORTS_AT)[0]] = _rest.unpack_from(body, COOKIE_AT)[5]
    return found


def _listening(body: bytes) -> Listening:
    family, _ = _message.unpack_from(body)
    port, _ = _ports.unpack_from(body, PORTS_AT)
    cookie, _, queued, backlog, _, inode = _rest.unpack_from(body, COOKIE_AT)
    memory = rtnl.attributes(body, ATTRIBUTES_AT).get(INET_DIAG_SKMEMINFO, b"")
    dropped = struct.unpack_from("=I", memory, 4 * DROPS)[0] if len(memory) > 4 * DROPS else 0
    return Listening(cookie, family, port, queued, backlog, inode, dropped)
