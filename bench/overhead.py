"""What the probes cost a network at full speed, with and without them, in turn, in one run; and what each takes of it.

    sudo .venv/bin/python bench/overhead.py [--pairs 40] [--seconds 0.6] [--only KIND] [--root TREE]

Four kinds of traffic: bulk TCP and 64-byte UDP (iperf3) and many short connections through a veth pair, and datagrams
to a socket that is full, each of which is dropped. It goes on all the time, each end on a processor of its own where
there are two. The probes are put on and taken off under it, and after a moment what is done is counted for so many
seconds: once without and once with, whichever is first in turn. What they tell is read and decoded meanwhile, as
collector-bpf does; the rest of trimtab does not run (bench/idle.py says what it costs).

Two ratios of with to without, the medians of the pairs, each with the interval in which it lies in 95 of 100 such runs
(order statistics: nothing is assumed of the noise):
  - what is done in a second: 0.99 at least;
  - the processor time of both ends and of ksoftirqd for each unit that is done, from the scheduler's own clock: 1.01 at
    most. What other programs take of the machine is not in it.
"so close that it cannot be told" means that the budget lies within the interval: more pairs, or a quieter machine.

Then the same once more while the kernel counts (bpf_stats, which itself adds some 70 ns to a call): of each program
that was called how often, for how long on average, and what share of one core that is.

--root: the probes of another tree, whose table names the same.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from programs import Probes, Ran
from running import need_root

from trimtab.lab import Lab, Link, NetNs

BATCH = 512
"""Datagrams handed over in one call, so that the sender's own cost is small beside the drop's."""
REQUEST = b"x" * 100
PORT = 5201
SETTLE_S = 0.1
"""After the probes were put on or taken off: the kernel lets go of a tracepoint's programs a little later."""
WARM_S = 2.0
MOST_WINDOWS = 20
"""So many times as long, where a machine has other things to do, before the traffic is given up."""
FOREVER_S = 86_400
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class End(NamedTuple):
    """One side of a kind of traffic."""

    process: subprocess.Popen[bytes]
    count: Callable[[], int]
    """How much it has done."""


class Traffic(NamedTuple):
    """A kind, which goes on by itself."""

    unit: str
    ends: tuple[End, ...]
    """The last one's count is what is done."""


class Window(NamedTuple):
    """What was seen of some time."""

    rate: float
    """Units a second."""
    cpu_ns: float
    """Processor time a unit, of all ends."""


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    with Probes(options.root) as probes:
        for name in [options.only] if options.only else KINDS:
            with Lab() as lab:
                a, b = lab.netns("a"), lab.netns("b")
                traffic = KINDS[name](a, b, lab.veth(a, b))
                time.sleep(WARM_S)
                compare(name, traffic, probes, options)
                programs(traffic, probes, 2.0)


def compare(kind: str, traffic: Traffic, probes: Probes, options: argparse.Namespace) -> None:
    """Print the two ratios of one kind of traffic."""
    without, with_ = [], []
    for number in range(options.pairs):
        for on in (number % 2 == 1, number % 2 == 0):
            (probes.on if on else probes.off)()
            time.sleep(SETTLE_S)
            (with_ if on else without).append(window(traffic, options.seconds))
    probes.off()
    pairs = list(zip(with_, without, strict=True))
    usual = statistics.median(one.rate for one in without)
    spread = statistics.quantiles([one.rate for one in without], n=4)
    print(f"{kind}: {usual:,.0f} {traffic.unit}/s without (middle half within {(spread[2] - spread[0]) / usual:.1%})")
    print("    done a second: " + verdict([one.rate / other.rate for one, other in pairs], 0.99))
    print("    processor time: " + verdict([one.cpu_ns / other.cpu_ns for one, other in pairs], 1.01), flush=True)


def verdict(ratios: list[float], budget: float) -> str:
    """The median, its interval, and how it stands to the budget, which is an upper bound if it is above 1."""
    low, high = interval(ratios)
    text = f"with / without {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f}, {len(ratios)} pairs), "
    if low < budget < high:
        return text + f"so close to {budget} that it cannot be told"
    return text + (f"within {budget}" if (low >= budget) == (budget < 1) else f"NOT within {budget}")


def interval(values: list[float]) -> tuple[float, float]:
    """Where the median of what the values are drawn from lies with 95 %; all of them where they are fewer than six.

    As many of the n values lie below it as n throws of a coin show heads. So it lies between the k-th lowest and the
    k-th highest, but for the 5 % in which fewer than k are heads, or tails.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return ordered[max(0, k - 1)], ordered[min(n - 1, n - k)]


def window(traffic: Traffic, seconds: float) -> Window:
    """Look on for so long, or until each end has done something."""
    began_ns, before = time.monotonic_ns(), looks(traffic)
    for _ in range(MOST_WINDOWS):
        time.sleep(seconds)
        took_s, after = (time.monotonic_ns() - began_ns) / 1e9, looks(traffic)
        done = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
        if all(count for count, _ in done):
            return Window(done[-1][0] / took_s, sum(cpu_ns / count for count, cpu_ns in done))
    sys.exit("the traffic has stopped")


def looks(traffic: Traffic) -> list[tuple[int, int]]:
    """Of each end what it has done, and the processor time it took; the first has ksoftirqd's, too."""
    found = [(end.count(), cpu_ns(end.process.pid)) for end in traffic.ends]
    return [(found[0][0], found[0][1] + sum(map(cpu_ns, SOFTIRQS))), *found[1:]]


def cpu_ns(pid: int) -> int:
    """The processor time of a process with all its threads (MAKE_PROCESS_CPUCLOCK in linux/posix-timers.h)."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def softirqs() -> Iterator[int]:
    """The kernel's threads for what packets leave to be done."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        if path.read_text().startswith("ksoftirqd/"):
            yield int(path.parent.name)


SOFTIRQS = list(softirqs())


def programs(traffic: Traffic, probes: Probes, seconds: float) -> None:
    """Print what each program took of one more run."""
    ran: list[Ran] = []
    probes.on()
    with probes.counting(ran):
        began_s = time.monotonic()
        window(traffic, seconds)
        took_s = time.monotonic() - began_s
    probes.off()
    for one in sorted(ran, key=lambda one: -one.ns):
        if one.calls:
            each, share = one.ns / one.calls, one.ns / took_s / 1e9
            print(f"    {one.name:16} {one.calls / took_s:12,.0f} calls/s {each:7.0f} ns each {share:8.3%} of a core")


def pinned(side: int, argv: list[str]) -> list[str]:
    """The command, on a processor of its own where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cpus[side]), *argv] if len(cpus) > 1 else argv


def counter(netns: NetNs, file: str, group: str, *names: str) -> Callable[[], int]:
    """Reads the sum of these counters of the namespace: /proc/net/snmp has each group's names above its numbers."""
    path = Path(f"/proc/{netns.pid}/net/{file}")

    def read() -> int:
        lines = [line.split() for line in path.read_text().splitlines() if line.startswith(f"{group}: ")]
        numbers = dict(zip(*lines[:2], strict=True))
        return sum(int(numbers[name]) for name in names)

    return read


def ends(a: NetNs, b: NetNs, server: list[str], client: list[str]) -> list[subprocess.Popen[bytes]]:
    """The client's process in a, and the server's in b."""
    listening = b.popen(pinned(1, server), **QUIET)
    time.sleep(0.5)
    return [a.popen(pinned(0, client), **QUIET), listening]


def iperf3(a: NetNs, b: NetNs, link: Link, more: list[str]) -> list[subprocess.Popen[bytes]]:
    """Both ends of one that goes on."""
    client = ["iperf3", "-c", link.b_address, "-p", str(PORT), "-i", "0", "-t", str(FOREVER_S), *more]
    return ends(a, b, ["iperf3", "-s", "-1", "-i", "0", "-p", str(PORT)], client)


def bulk(a: NetNs, b: NetNs, link: Link) -> Traffic:
    """One flow; bytes with their headers."""
    count = counter(b, "netstat", "IpExt", "InOctets")
    return Traffic("byte", tuple(End(process, count) for process in iperf3(a, b, link, [])))


def udp(a: NetNs, b: NetNs, link: Link) -> Traffic:
    """As many as there can be; those that find no room are the receiver's, too."""
    client, server = iperf3(a, b, link, ["-u", "-l", "64", "-b", "0"])
    sent, received = counter(a, "snmp", "Udp", "OutDatagrams"), counter(b, "snmp", "Udp", "InDatagrams")
    return Traffic("datagram", (End(client, sent), End(server, received)))


def connections(a: NetNs, b: NetNs, link: Link) -> Traffic:
    """One after the other, each with a request and its answer."""
    argv = [sys.executable, __file__]
    count = counter(b, "snmp", "Tcp", "PassiveOpens")
    processes = ends(a, b, [*argv, "--serve"], [*argv, "--connect", link.b_address])
    return Traffic("connection", tuple(End(process, count) for process in processes))


def dropped(a: NetNs, b: NetNs, link: Link) -> Traffic:
    """Datagrams to a socket on the loopback that is full."""
    process = a.popen(pinned(0, [sys.executable, __file__, "--flood"]))
    return Traffic("datagram", (End(process, counter(a, "snmp", "Udp", "RcvbufErrors")),))


KINDS = {"bulk": bulk, "connections": connections, "udp": udp, "dropped": dropped}


def serve() -> None:
    """Answer for ever."""
    with socket.create_server(("", PORT), backlog=1024) as listener:
        while True:
            with listener.accept()[0] as one:
                one.sendall(one.recv(200))


def connect(address: str) -> None:
    """Ask for ever."""
    while True:
        # The end without TIME_WAIT, or the ports would run out.
        with socket.create_connection((address, PORT)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.sendall(REQUEST)
            one.recv(200)


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


def flood() -> None:
    """Send to a socket that is full, for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = _Vector(REQUEST, 64)
    messages = (_Message * BATCH)(*(_Message(vectors=ctypes.pointer(vector), count=1) for _ in range(BATCH)))
    with socket.socket(type=socket.SOCK_DGRAM) as full, socket.socket(type=socket.SOCK_DGRAM) as sender:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        full.bind(("127.0.0.1", 0))
        sender.connect(full.getsockname())
        while True:
            libc.sendmmsg(sender.fileno(), messages, BATCH, 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    elif sys.argv[1:2] == ["--connect"]:
        connect(sys.argv[2])
    elif sys.argv[1:2] == ["--flood"]:
        flood()
    else:
        main()
