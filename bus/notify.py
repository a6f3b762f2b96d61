"""The service manager's protocol, sd_notify(3): the same for systemd and for `trimtab run`."""

from __future__ import annotations

import os
import socket

READY = "READY=1"
READY_WAIT_S = 1.0


def notify(*lines: str) -> None:
    """Send lines such as READY=1 to $NOTIFY_SOCKET. Without that variable, or when nobody listens: nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # The kernel queues ten datagrams (net.unix.max_dgram_qlen). READY is said once, so it waits for room.
        sock.settimeout(READY_WAIT_S if READY in lines else 0)
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError):
            # A supervisor that is gone or swamped must not stop a role; it sees the silence.
            return
