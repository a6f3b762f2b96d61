"""The service manager's protocol, sd_notify(3): the same for systemd and for `trimtab run`."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send lines such as READY=1 to $NOTIFY_SOCKET. Without that variable, or when nobody listens: nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            # A supervisor that is gone or swamped must not stop a role; it sees the silence.
            return
