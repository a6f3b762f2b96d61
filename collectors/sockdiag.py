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
INET_DIAG_INFO, INET_DIAG_CONG, INET_DIAG_SKMEMINFO = 2, 4, 7
CONNECTED = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: include/net/tcp_states.h."""
DROPS = 8
"""SK_MEMINFO_DROPS: where in the attribute it stands (linux/sock_diag.h)."""

# linux/inet_diag.h: struct inet_diag_req_v2, and struct inet_diag_msg with the addresses left out.
_request = struct.Struct("=BBBBI48x")
_message = struct.Struct("=BBxx")
_ports = struct.Struct("!HH")
_rest = struct.Struct("=Q5I")
PORTS_AT, PEER_AT, COOKIE_AT, ATTRIBUTES_AT = 4, 24, 44, 72

# linux/tcp.h, struct tcp_info: fields as they are at these places since 4.10; an older kernel's is shorter.
_info_rates = struct.Struct("=IIIQQQQ")
RTT_AT, RESENT_AT, ACKED_AT, RATES_AT = 68, 100, 120, 148


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


class Talking(Struct, frozen=True):
    """A TCP connection, as far as it is a sender."""

    cookie: int
    family: int
    peer: bytes
    algorithm: str
    acked_bytes: int
    busy_us: int
    limited_us: int
    segments: int
    resent: int
    srtt_us: int
    min_rtt_us: int


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


def talking(sock: socket.socket) -> list[Talking]:
    """Every TCP connection in the socket's namespace of which the kernel says enough (4.10). Raises OSError."""
    found: list[Talking] = []
    wanted = 1 << (INET_DIAG_INFO - 1) | 1 << (INET_DIAG_CONG - 1)
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _request.pack(family, socket.IPPROTO_TCP, wanted, 0, CONNECTED)
        bodies = rtnl.dump(sock, SOCK_DIAG_BY_FAMILY, request)
        found += [one for one in map(_talking, bodies) if one]
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


def connected_here() -> dict[int, int]:
    """Cookie -> inode of the TCP connections in the calling thread's namespace."""
    found: dict[int, int] = {}
    with open_socket() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _request.pack(family, socket.IPPROTO_TCP, 0, 0, CONNECTED)
            for body in rtnl.dump(sock, SOCK_DIAG_BY_FAMILY, request):
                rest = _rest.unpack_from(body, COOKIE_AT)
                found[rest[0]] = rest[5]
    return found


def _listening(body: bytes) -> Listening:
    family, _ = _message.unpack_from(body)
    port, _ = _ports.unpack_from(body, PORTS_AT)
    cookie, _, queued, backlog, _, inode = _rest.unpack_from(body, COOKIE_AT)
    memory = rtnl.attributes(body, ATTRIBUTES_AT).get(INET_DIAG_SKMEMINFO, b"")
    dropped = struct.unpack_from("=I", memory, 4 * DROPS)[0] if len(memory) > 4 * DROPS else 0
    return Listening(cookie, family, port, queued, backlog, inode, dropped)


def _talking(body: bytes) -> Talking | None:
    attributes = rtnl.attributes(body, ATTRIBUTES_AT)
    info, name = attributes.get(INET_DIAG_INFO, b""), attributes.get(INET_DIAG_CONG, b"")
    if len(info) < RATES_AT + _info_rates.size or not name:
        return None
    family, _ = _message.unpack_from(body)
    # 148: min_rtt, data_segs_in, data_segs_out, delivery_rate, busy_time, rwnd_limited, sndbuf_limited.
    min_rtt_us, _, segments, _, busy_us, by_peer_us, by_buffer_us = _info_rates.unpack_from(info, RATES_AT)
    return Talking(
        cookie=_rest.unpack_from(body, COOKIE_AT)[0],
        family=family,
        peer=body[PEER_AT : PEER_AT + (4 if family == socket.AF_INET else 16)],
        algorithm=name.partition(b"\0")[0].decode(errors="replace"),
        acked_bytes=struct.unpack_from("=Q", info, ACKED_AT)[0],
        busy_us=busy_us,
        limited_us=by_peer_us + by_buffer_us,
        segments=segments,
        resent=struct.unpack_from("=I", info, RESENT_AT)[0],
        srtt_us=struct.unpack_from("=I", info, RTT_AT)[0],
        min_rtt_us=min_rtt_us,
    )
