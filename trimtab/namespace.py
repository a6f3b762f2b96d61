"""Network namespaces of the lab's own: anonymous, so that nothing is left when the processes that hold them end.

Each is held by a descriptor here and by one small child inside (so that it shows under /proc like any container's),
which the kernel ends with us. Nothing has a name under /run/netns, nothing needs to be swept up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pyroute2 import IPRoute

from bus.netns import CLONE_NEWNET, cookie_here, inside
from trimtab.enter import checked, libc

P = ParamSpec("P")
T = TypeVar("T")
LOOPBACK = 1
"""Its interface index in every namespace."""


class Children:
    """The processes that the lab has started. Each has a process group of its own: Ctrl-C is for us, not for them."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, argv: Sequence[str], netns_fd: int | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start argv (in that namespace); options as for Popen. It is killed when the calling *thread* ends."""
        fds = [*options.pop("pass_fds", ())]
        if netns_fd is not None:
            argv = [sys.executable, "-I", "-m", "trimtab.enter", str(os.getpid()), str(netns_fd), *argv]
            fds.append(netns_fd)
        options.setdefault("stdin", subprocess.DEVNULL)
        child = subprocess.Popen(argv, pass_fds=fds, process_group=0, **options)
        self._running.append(child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """Kill a child, if it still runs, and close our ends of its pipes."""
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe:
                pipe.close()
        if child in self._running:
            self._running.remove(child)

    def close(self) -> None:
        """Kill what still runs, the last started first."""
        for child in reversed(self._running.copy()):
            self.end(child)


class NetNs:
    """One network namespace with its loopback up. Closing it (or our death) takes its devices along."""

    def __init__(self, name: str, children: Children) -> None:
        self.name = name
        self._children = children
        with ThreadPoolExecutor(1, name) as thread:
            self.fd, self.pid = thread.submit(_unshared, children).result()
        self.inode = os.fstat(self.fd).st_ino
        self.cookie = self.run(cookie_here)
        self.path = f"/proc/{self.pid}/ns/net"

    def run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of do(...) in this namespace, in a thread of its own. A socket made there stays there."""
        return inside(f"/proc/self/fd/{self.fd}", partial(do, *args, **kwargs))

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in this namespace; options as for Popen. It dies with the thread that calls this."""
        return self._children.start(argv, self.fd, **options)

    def command(self, argv: Sequence[str], timeout_s: float = 30.0) -> str:
        """What a program run in this namespace prints. CalledProcessError when it fails, TimeoutExpired when late."""
        child = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output = child.communicate(timeout=timeout_s)[0].decode()
        finally:
            self._children.end(child)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, list(argv), output)
        return output

    def sysctl(self, key: str, value: object = None) -> str:
        """A sysctl of this namespace such as net.ipv4.tcp_rmem, after setting it to value where one is given."""
        path = Path("/proc/sys", key.replace(".", "/"))

        def access() -> str:
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

        return self.run(access)

    def close(self) -> None:
        """Let go of it. It ends when nobody else is inside."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _unshared(children: Children) -> tuple[int, int]:
    """A new namespace around the calling thread: a descriptor that holds it, and the process that shows it."""
    checked(libc.unshare(CLONE_NEWNET), "unshare")
    with IPRoute() as route:
        route.link("set", index=LOOPBACK, state="up")
    # cat ends when our end of its stdin closes. The death signal would not do here: it comes with this thread's end.
    holder = children.start(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), holder.pid
