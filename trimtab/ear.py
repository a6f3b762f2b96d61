"""What the supervisor listens to: sd_notify(3) messages, as the kernel attests who sent them, and its own signals."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from bus.roles import GROUP

MESSAGE_BYTES = 16384
CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
ROOM = 10
"""As the kernel begins."""
NOBODY = 0


class Ear:
    """A datagram socket at `path` to which root and the roles may write. close() removes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(path))
        os.chown(path, 0, GROUP)
        path.chmod(0o660)
        self.room = _room()
        """So many messages wait at most; what comes then is lost."""

    def hear(self) -> tuple[int, bytes] | None:
        """(pid of the sender, message), from NOBODY when it is too long to be one; None when nothing waits."""
        try:
            # No room for SCM_RIGHTS: descriptors that somebody sends along are closed by the kernel.
            message, controls, flags, _ = self.socket.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(CREDENTIALS.size))
        except BlockingIOError:
            return None
        for level, kind, data in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and not flags & socket.MSG_TRUNC:
                return int(CREDENTIALS.unpack(data)[0]), message
        return NOBODY, b""

    def close(self) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)


def _room() -> int:
    try:
        return int(QUEUE.read_text())
    except OSError:
        # A container's root of its own is not shown it (unix_sysctl_register in net/unix/sysctl_net_unix.c).
        return ROOM


class Signals:
    """Signals as something to select(2) on. close() gives them back to whoever handled them before."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.socket, self._end = socket.socketpair()
        self.socket.setblocking(False)
        self._end.setblocking(False)
        signal.set_wakeup_fd(self._end.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def next(self) -> signal.Signals:
        """The signal that made the socket readable."""
        return signal.Signals(self.socket.recv(1)[0])

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.socket.close()
        self._end.close()
