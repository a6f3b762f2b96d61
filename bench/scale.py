"""What a host with many network namespaces and sockets costs trimtab: start, processor time, memory; and how they grow.

    sudo .venv/bin/python bench/scale.py [--namespaces 0 100 300 1000] [--seconds 60] [--settle 20] [--roles]

Each namespace has a name, a loopback that is up, and ten sockets: two that listen, three pairs that are connected, two
for datagrams. trimtab runs in mode advise with all its deciders, so that nothing of the host changes. Judged by what a
namespace more costs, which must not rise with how many there are.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from idle import measure
from running import need_root, running

NAMES = Path("/run/netns")
PREFIX = f"ttscale{os.getpid()}-"
CLONE_NEWNET, MS_BIND, MNT_DETACH = 0x40000000, 4096, 2
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SOCKETS = 10


class Cost(NamedTuple):
    """Of one run."""

    namespaces: int
    start_s: float
    cpu: float
    """Percent of one core."""
    pss_mib: float
    roles: list[tuple[str, float, float, float]]
    """As idle.measure() has them."""


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", type=int, nargs="+", default=[0, 100, 300, 1000])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--settle", type=float, default=20, help="seconds from ready until it is measured")
    parser.add_argument("--roles", action="store_true", help="show each process")
    options = parser.parse_args()
    print(f"{'namespaces':>10}{'sockets':>9}{'start s':>9}{'CPU s/min':>11}{'PSS MiB':>9}   one more costs")
    before: Cost | None = None
    for count in sorted(options.namespaces):
        cost = run(count, options.settle, options.seconds)
        show(cost, before, options.roles)
        before = cost


def run(count: int, settle_s: float, seconds: float) -> Cost:
    """Measure with so many namespaces."""
    with namespaces(count):
        began_s = time.monotonic()
        with running("--mode", "advise") as folder:
            start_s = time.monotonic() - began_s
            time.sleep(settle_s)
            roles = measure(folder / "run", seconds)
    return Cost(count, start_s, sum(row[1] for row in roles), sum(row[3] for row in roles), roles)


def show(cost: Cost, before: Cost | None, each: bool) -> None:
    """Print a line, and with each one for every process."""
    growth = ""
    if before:
        more = cost.namespaces - before.namespaces
        cpu_ms, kib = (cost.cpu - before.cpu) * 600 / more, (cost.pss_mib - before.pss_mib) * 1024 / more
        growth = f"{cpu_ms:8.2f} ms/min {kib:7.2f} KiB"
    sockets = cost.namespaces * SOCKETS
    print(
        f"{cost.namespaces:10}{sockets:9}{cost.start_s:9.2f}{cost.cpu * 0.6:11.2f}{cost.pss_mib:9.1f}   {growth}",
        flush=True,
    )
    for name, cpu, wakeups, pss in cost.roles if each else ():
        print(f"    {name:24}{cpu * 0.6:8.3f} s/min{wakeups:8.1f} wake-ups/s{pss:8.1f} MiB", flush=True)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[None]:
    """So many, with their sockets, gone again at the end."""
    held: list[socket.socket] = []
    try:
        for number in range(count):
            held += _apart(lambda number=number: _make(NAMES / f"{PREFIX}{number}"))  # type: ignore[misc]
        yield
    finally:
        for sock in held:
            sock.close()
        for path in NAMES.glob(f"{PREFIX}*"):
            _checked(_libc.umount2(bytes(path), MNT_DETACH))
            path.unlink()


def _make(path: Path) -> list[socket.socket]:
    _checked(_libc.unshare(CLONE_NEWNET))
    path.parent.mkdir(exist_ok=True)
    path.touch(exist_ok=False)
    _checked(_libc.mount(b"/proc/thread-self/ns/net", bytes(path), None, MS_BIND, None))
    made = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
    fcntl.ioctl(made[0], SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    for sock in made:
        sock.bind(("127.0.0.1", 0))
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for _ in range(3):
        client = socket.create_connection(listeners[0].getsockname())
        made += [client, listeners[0].accept()[0]]
    return made + listeners


def _apart(do: Callable[[], list[socket.socket]]) -> list[socket.socket]:
    """In a thread of its own, which alone moves into the new namespace."""
    found: list[socket.socket] = []
    thread = threading.Thread(target=lambda: found.extend(do()))
    thread.start()
    thread.join()
    if not found:
        sys.exit("no namespace could be made")
    return found


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
