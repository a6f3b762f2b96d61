"""From a condition in the kernel to the value written and journaled, for each tuner.

    sudo .venv/bin/python bench/reaction.py [NAME ...] [--rounds 3]

The traffic is that of bench/scenarios, with limits that begin small, so that there are many steps. Taken for each
change: from the time stamp of the event that it came of (for BPF's that of the kernel's function, for a file under
/proc or netlink's that of the reading, before it) to the end of the change: the original and the intent on disk, the
value written and read back, the outcome in the journal. Its publishing is not counted. Changes that came of what the
actuator told, such as the second step of one growth, are left out. What is read each second has stood there for up to
a second: that is told by the kind of event.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import ClassVar

from running import end_in_order, need_root, percentile, running

sys.path.insert(0, str(Path(__file__).resolve().parent / "scenarios"))

from packets import Backlog, Budget, IpFrag, UdpBuffer
from scene import Scene, Settings, standing
from streams import ListenQueue, Ports, TcpBuffer, TcpMemory
from tables import NEIGH, Conntrack, Neighbours

from actuators.history import history
from bus import link, roles
from bus.schema import Outcome
from trimtab.lab import Lab

THRESHOLD = 30
TOLD = ("Value", "Outcome")
"""Events of the actuator's own."""


class SmallBuffer(TcpBuffer):
    start: ClassVar[Settings] = {
        "net.ipv4.tcp_rmem": "4096 131072 262144",
        "net.ipv4.tcp_wmem": "4096 16384 262144",
    }


class SmallMemory(TcpMemory):
    start: ClassVar[Settings] = {"net.ipv4.tcp_mem": "150 200 300"}


class SmallQueue(ListenQueue):
    start: ClassVar[Settings] = {"net.core.somaxconn": 32}


class FewPorts(Ports):
    start: ClassVar[Settings] = {"net.ipv4.ip_local_port_range": "32768 32799"}


class SmallTable(Neighbours):
    start: ClassVar[Settings] = {f"{NEIGH}1": 32, f"{NEIGH}2": 64, f"{NEIGH}3": 128}


class SmallBacklog(Backlog):
    start: ClassVar[Settings] = {"net.core.netdev_max_backlog": 64}


class SmallBudget(Budget):
    start: ClassVar[Settings] = {"net.core.netdev_max_backlog": 16384, "net.core.netdev_budget": 64}


class SmallUdp(UdpBuffer):
    start: ClassVar[Settings] = {"net.core.rmem_default": 8192, "net.core.rmem_max": 8192}


class SmallFragments(IpFrag):
    start: ClassVar[Settings] = {"net.ipv4.ipfrag_high_thresh": 131072, "net.ipv4.ipfrag_low_thresh": 0}


class FewTracked(Conntrack):
    start: ClassVar[Settings] = {"net.netfilter.nf_conntrack_max": 1024}


SECONDS: dict[type[Scene], float] = {
    SmallBuffer: 1, SmallMemory: 1, SmallQueue: 6, FewPorts: 6, SmallTable: 4, SmallBacklog: 10, SmallBudget: 25,
    SmallUdp: 6, SmallFragments: 4, FewTracked: 8,
}  # fmt: skip
"""Scenario -> so long it has traffic."""


def one_round(kind: type[Scene], seconds: float) -> list[tuple[str, float]]:
    """The kind of event, and the milliseconds, of each change."""
    if kind is SmallTable:
        wait_empty()
    with Lab() as lab, contextlib.closing(kind(lab)) as scene, standing(scene.places, kind.start):
        fence = [word for place in scene.places if place for word in ("--netns", str(place.cookie))]
        with running("--mode", "enforce", "--only", kind.decider, *fence) as folder:
            outcomes = link.Subscriber(roles.events_path(folder / "run", "actuator"), "actuator")
            time.sleep(1.0)
            scene.run(seconds)
            time.sleep(0.5)
            done = {
                event.change: event.t_ns
                for event in outcomes.receive(100_000)
                if isinstance(event, Outcome) and event.verdict == "written"
            }
            outcomes.close()
            causes = {change.id: str(change.evidence["event"]).partition("@") for change in history(folder / "state")}
    return [
        (event, (done[number] - int(t_ns)) / 1e6)
        for number, (event, _, t_ns) in causes.items()
        if number in done and event not in TOLD
    ]


def wait_empty() -> None:
    """The last round's namespace ends in its own time, and its neighbours count until then."""
    until_s = time.monotonic() + 60
    while entries() > THRESHOLD and time.monotonic() < until_s:
        time.sleep(0.05)


def entries() -> int:
    """Entries in the host's ARP table: the first column, in hex, of every CPU's line."""
    return int(Path("/proc/net/stat/arp_cache").read_text().splitlines()[1].split()[0], 16)


def report(kind: type[Scene], found: list[tuple[str, float]]) -> None:
    """One line for each kind of event."""
    for event in sorted({event for event, _ in found}) or ["nothing"]:
        each_ms = [ms for name, ms in found if name == event]
        figures = (
            f"p50 {statistics.median(each_ms):8.2f} ms  p99 {percentile(each_ms, 0.99):8.2f} ms"
            f"  worst {max(each_ms):8.2f} ms"
            if each_ms
            else "nothing was changed"
        )
        print(f"{kind.name:22} {event:13} {len(each_ms):4} changes  {figures}", flush=True)


def main() -> None:
    need_root()
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of tuners' names; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("condition -> written and journaled")
    for kind, seconds in SECONDS.items():
        if not options.names or any(name in kind.name for name in options.names):
            report(kind, [one for _ in range(options.rounds) for one in one_round(kind, seconds)])


if __name__ == "__main__":
    main()
