"""Connections to a socket that listens, in the calling thread's namespace, on the real kernel: clients that come all at
once, and SYNs of nobody. Everything on loopback; the namespace needs lo to be up."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator

PORT = 8080
HERE = "127.0.0.1"
SYN, ACK = 2, 16


@contextlib.contextmanager
def server(backlog: int, port: int = PORT) -> Iterator[socket.socket]:
    """A socket that listens, and of which nobody accepts."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HERE, port))
        sock.listen(backlog)
        yield sock


@contextlib.contextmanager
def clients(count: int, port: int = PORT) -> Iterator[list[socket.socket]]:
    """So many that connect at the same moment; those that could at once are connected."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            made.append(sock)
            # No FIN that waits: the next ones are to find room.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.setblocking(False)
            sock.connect_ex((HERE, port))
        yield made
    finally:
        for sock in made:
            sock.close()


def connected(socks: list[socket.socket], seconds: float = 0.0) -> int:
    """How many of them are within so long."""
    poll, waiting = select.poll(), {sock.fileno(): sock for sock in socks}
    for fd in waiting:
        poll.register(fd, select.POLLOUT)
    done, until_s = 0, time.monotonic() + seconds
    while waiting:
        ready = poll.poll(max(0.0, until_s - time.monotonic()) * 1000)
        for fd, _ in ready:
            poll.unregister(fd)
            done += waiting.pop(fd).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        if not ready and time.monotonic() >= until_s:
            break
    return done


def accept_all(sock: socket.socket) -> int:
    """Take what waits, and close it."""
    sock.setblocking(False)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted, _ = sock.accept()
            accepted.close()
            taken += 1
    return taken


def syns(count: int, port: int = PORT, first: int = 0) -> None:
    """SYNs from addresses at which nobody is: what they are answered goes nowhere. Needs root, and such addresses to be
    routed to a device other than lo (`nowhere`)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(first, first + count):
            source = f"198.18.{number >> 8 & 255}.{number & 255}"
            raw.sendto(_syn(source, 1024 + number % 60000, port), (HERE_AWAY, 0))


HERE_AWAY = "10.9.0.1"


def _syn(source: str, sport: int, dport: int) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, 1000, 0, 5 << 4, SYN, 64240, 0, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(HERE_AWAY)
    checksum = _checksum(addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head)) + head)
    head = head[:16] + struct.pack("!H", checksum) + head[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(head), 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses + head


def _checksum(raw: bytes) -> int:
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
