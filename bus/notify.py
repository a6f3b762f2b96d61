"""The service manager's protocol, sd_notify(3): the same for systemd and for `trimtab run`."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec

READY = "READY=1"
READY_WAIT_S = 1.0
STATUS = "STATUS="
SYSTEMD_BYTES = 4096
"""systemd takes no longer message (NOTIFY_BUFFER_MAX in src/core/manager.c), and would miss the watchdog in it."""


def notify(*lines: str) -> None:
    """Send lines such as READY=1 to $NOTIFY_SOCKET. Without that variable, or when nobody listens: nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(lines)
    # Set by systemd alone, for what it starts: systemd.exec(5).
    if len(message) > SYSTEMD_BYTES and "INVOCATION_ID" in os.environ:
        message = "\n".join(_shortened(line) if line.startswith(STATUS) else line for line in lines)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # The kernel queues ten datagrams (net.unix.max_dgram_qlen). READY is said once, so it waits for room.
        sock.settimeout(READY_WAIT_S if READY in lines else 0)
        try:
            sock.sendto(message.encode(), address)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError):
            # A supervisor that is gone or swamped must not stop a role; it sees the silence.
            return


def _shortened(line: str) -> str:
    """A STATUS of JSON without its longest members, which it names: so that the numbers stay."""
    status: dict[str, Any] = msgspec.json.decode(line.removeprefix(STATUS))
    left_out: list[str] = []
    while len(line) > SYSTEMD_BYTES * 3 // 4 and status:
        longest = max(status, key=lambda key: len(msgspec.json.encode(status[key])))
        del status[longest]
        left_out.append(longest)
        line = STATUS + msgspec.json.encode(status | {"left_out": left_out}).decode()
    return line
