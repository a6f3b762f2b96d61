"""Taking over what the loader made: one packet on a SOCK_SEQPACKET socket, JSON plus descriptors.

    {"version": 1, "drops": 4, "probes": [{"name": "tcp_rcvbuf", "road": "raw tracepoint, typed", "reason": "",
                                           "ring": 0, "link": 1}, ...]}

`ring`, `link` and `drops` are places among the descriptors sent along; a probe that is off has an empty road and
neither, with a reason. Each other one adds where it reads, as `"offsets": {"sock.sk_rcvbuf": 244}`; one whose records
hold a number of one of the kernel's enumerations its names, as `"names": {"6": "SOCKET_RCVBUFF"}`. Only root and our
own user are listened to. Whatever else arrives is one HandOffError, and no descriptor is left open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bpf import PROBES
from bus.schema import Count, Name, Text

PACKET_BYTES = 64 * 1024
DESCRIPTORS = 64


class HandOffError(Exception):
    """Nothing usable came; the text is one line for the operator."""


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one probe."""

    name: Name
    road: Name
    reason: Text
    ring: int = -1
    link: int = -1
    names: dict[int, Name] = {}
    """What the numbers of the row's enumeration are called in this kernel."""
    offsets: dict[Name, Count] = {}
    """Where the members are that the probe reads."""


class _Packet(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    probes: list[Row]
    drops: int = -1


class Handed(Struct, frozen=True):
    """A packet taken: rows by probe name, `ring`, `link` and `drops` being our descriptors now (-1: none)."""

    rows: dict[str, Row]
    drops: int

    def close(self) -> None:
        """Close every descriptor, which detaches the probes."""
        for fd in (self.drops, *(fd for row in self.rows.values() for fd in (row.ring, row.link))):
            if fd >= 0:
                os.close(fd)


_decoder = msgspec.json.Decoder(_Packet)


def listen(path: Path) -> socket.socket:
    """A listening socket that does not block. A socket that an earlier run left at path is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(bytes(path))
        # The loader is root without CAP_DAC_OVERRIDE, so the socket must be open to it; who it is, accept() checks.
        path.chmod(0o666)
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """The next caller that is root or our own user; None when there is none. HandOffError for anybody else."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        connection.close()
        raise HandOffError(f"user {uid} is not to hand over probes")
    connection.setblocking(False)
    return connection


def receive(connection: socket.socket) -> Handed:
    """What the caller sends, all in one packet. HandOffError when it is not what the loader sends, or it went away."""
    try:
        # recv_fds() ignores its own flags argument (CPython up to 3.13), so MSG_CMSG_CLOEXEC would be lost.
        raw, fds, flags, _ = socket.recv_fds(connection, PACKET_BYTES, DESCRIPTORS)
    except OSError as error:
        raise HandOffError(f"the loader went away: {error.strerror}") from None
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandOffError(f"the loader's packet is over {PACKET_BYTES} bytes or {DESCRIPTORS} descriptors")
        if not raw:
            raise HandOffError("the loader ended without a word")
        return _handed(raw, fds)
    except HandOffError:
        for fd in fds:
            os.close(fd)
        raise


def _handed(raw: bytes, fds: list[int]) -> Handed:
    try:
        packet = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandOffError(f"the loader's packet is malformed: {error}") from None
    _check(packet, fds)
    return Handed(
        {row.name: replace(row, ring=fds[row.ring], link=fds[row.link]) if row.road else row for row in packet.probes},
        fds[packet.drops] if fds else -1,
    )


def _check(packet: _Packet, fds: list[int]) -> None:
    if sorted(row.name for row in packet.probes) != sorted(probe.name for probe in PROBES):
        raise HandOffError("the loader's packet does not name each probe once")
    places = [place for row in packet.probes for place in ((row.ring, row.link) if row.road else ())]
    if places:
        places.append(packet.drops)
    named = [row.name for row in packet.probes if not row.road and (row.ring, row.link) != (-1, -1)]
    if named or sorted(places) != list(range(len(fds))):
        raise HandOffError("the loader's packet does not place each descriptor once")
    for fd in fds:
        # BPF maps and links are anonymous inodes, the only descriptors without a file type. A mapped file could be
        # cut short under us, which is a SIGBUS.
        if stat.S_IFMT(os.fstat(fd).st_mode):
            raise HandOffError("the loader's packet holds a descriptor that is no BPF object")
