"""What trimtab costs a network at full speed, with and without, in turn, in one run; and what each probe takes of it.

    sudo .venv/bin/python bench/overhead.py [--pairs 7] [--seconds 4] [--only KIND]

Four kinds of traffic: bulk TCP and 64-byte UDP (iperf3) and many short connections through a veth pair, and datagrams
to a socket that is full, each of which is dropped. The budget is a ratio of 0.99 of what is done, the median of the
pairs. The machine's own noise is printed beside it: the spread of the runs without.

Then the same once more while the kernel counts (bpf_stats, which itself costs some 20 ns a call): of each program that
was called how often, for how long on average, and what share of one core that is.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from programs import Ran, counting
from running import need_root, running

from trimtab.lab import Lab, Link, NetNs

BATCH = 512
"""Datagrams handed over in one call, so that the sender's own cost is small beside the drop's."""
REQUEST = b"x" * 100
Traffic = Callable[[float], float]
"""Makes traffic for so many seconds; returns how much a second."""
Running = Callable[[], AbstractContextManager[Path]]


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", choices=("bulk", "connections", "udp", "dropped"))
    options = parser.parse_args()
    with Lab() as lab:
        a, b = lab.netns("a"), lab.netns("b")
        for name, (unit, traffic) in kinds(a, b, lab.veth(a, b)).items():
            if options.only in (None, name):
                # All that passes is seen; tuned is only what is the bench's own.
                trimtab = partial(running, "--mode", "enforce", "--netns", f"{a.cookie},{b.cookie}")
                compare(name, unit, traffic, trimtab, options)
                programs(traffic, trimtab, options.seconds)


def kinds(a: NetNs, b: NetNs, link: Link) -> dict[str, tuple[str, Traffic]]:
    """Of each kind what is counted, and what makes it."""
    return {
        "bulk": ("bit/s", partial(iperf3, a, b, link.b_address, [])),
        "connections": ("connections/s", partial(connections, a, b, link.b_address)),
        "udp": ("bit/s", partial(iperf3, a, b, link.b_address, ["-u", "-l", "64", "-b", "0"])),
        "dropped": ("datagrams/s", lambda seconds: a.run(dropped, seconds)),
    }


def compare(kind: str, unit: str, traffic: Traffic, trimtab: Running, options: argparse.Namespace) -> None:
    """Print the figures of one kind of traffic."""
    seconds, pairs = options.seconds, options.pairs
    traffic(1)  # warm
    ratios, without = [], []
    for _ in range(pairs):
        without.append(traffic(seconds))
        with trimtab():
            ratios.append(traffic(seconds) / without[-1])
    ratio, usual = statistics.median(ratios), statistics.median(without)
    print(
        f"{kind}: with / without {ratio:.3f} (median of {pairs} pairs, {min(ratios):.3f} to {max(ratios):.3f}); "
        f"without: {usual:,.0f} {unit}, spread {(max(without) - min(without)) / usual:.1%}",
        flush=True,
    )


def programs(traffic: Traffic, trimtab: Running, seconds: float) -> None:
    """Print what each program took of one more run."""
    ran: list[Ran] = []
    with trimtab() as folder, counting(folder / "run", ran):
        began_s = time.monotonic()
        traffic(seconds)
        took_s = time.monotonic() - began_s
    for one in sorted(ran, key=lambda one: -one.ns):
        if one.calls:
            each, share = one.ns / one.calls, one.ns / took_s / 1e9
            print(f"    {one.name:16} {one.calls / took_s:12,.0f} calls/s {each:7.0f} ns each {share:8.3%} of a core")


def iperf3(a: NetNs, b: NetNs, address: str, more: list[str], seconds: float) -> float:
    """Bits per second that arrived."""
    server = b.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    argv = ["iperf3", "-J", "-c", address, "-t", str(max(1, round(seconds))), *more]
    result = json.loads(a.command(argv, timeout_s=60))
    with contextlib.suppress(subprocess.TimeoutExpired):  # what it had to say, it said to the client
        server.wait(10)
    server.kill()
    if "error" in result:
        sys.exit(f"iperf3: {result['error']}")
    end = result["end"]
    return float((end["sum_received"] if "sum_received" in end else end["sum"])["bits_per_second"])


def connections(a: NetNs, b: NetNs, address: str, seconds: float) -> float:
    """Connections per second: one after the other, each with a request and its answer, in a process a side."""
    argv = [sys.executable, __file__]
    server = b.popen([*argv, "--serve"], stdout=subprocess.PIPE)
    assert server.stdout
    port = int(server.stdout.readline())
    done = float(a.command([*argv, "--connect", address, str(port), str(seconds)], timeout_s=60))
    server.kill()
    server.wait()
    server.stdout.close()
    return done / seconds


def serve() -> None:
    """Answer for ever."""
    with socket.create_server(("", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            with listener.accept()[0] as one:
                one.sendall(one.recv(200))


def connect(address: str, port: int, seconds: float) -> None:
    """Ask again and again. Prints how often."""
    done, until_s = 0, time.monotonic() + seconds
    while time.monotonic() < until_s:
        # The end without TIME_WAIT, or the ports would run out.
        with socket.create_connection((address, port)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.sendall(REQUEST)
            one.recv(200)
        done += 1
    print(done)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr (sendmmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p * 2),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def dropped(seconds: float) -> float:
    """Datagrams per second to a socket on the loopback that is full."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = _Vector(REQUEST, 64)
    messages = (_Message * BATCH)(*(_Message(vectors=ctypes.pointer(vector), count=1) for _ in range(BATCH)))
    with socket.socket(type=socket.SOCK_DGRAM) as full, socket.socket(type=socket.SOCK_DGRAM) as sender:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        full.bind(("127.0.0.1", 0))
        sender.connect(full.getsockname())
        done, began_s = 0, time.monotonic()
        while time.monotonic() < began_s + seconds:
            done += libc.sendmmsg(sender.fileno(), messages, BATCH, 0)
        return done / (time.monotonic() - began_s)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    elif sys.argv[1:2] == ["--connect"]:
        connect(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
