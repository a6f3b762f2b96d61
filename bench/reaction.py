"""From a condition in the kernel to the value written and journaled.

    sudo .venv/bin/python bench/reaction.py [--rounds 8]

Lowers the ARP thresholds to 32/64/128 (and puts them back), adds 2,000 neighbours at 1,000/s in a namespace, and takes
for each step of gc_thresh3 the time between the entry that tipped it (the event's time stamp, taken in BPF) and the
end of the change (read back, journaled, published as Outcome).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from running import need_root, percentile, running

from actuators.history import history
from bus import link, roles
from bus.schema import Outcome
from trimtab.lab import Lab

THRESHOLDS = [Path(f"/proc/sys/net/ipv4/neigh/default/gc_thresh{level}") for level in (1, 2, 3)]
THRESHOLD = 30
NUD_STALE = 4
ENTRIES = 2000
PER_S = 1000


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    delays_ms: list[float] = []
    with lowered():
        for _ in range(rounds):
            delays_ms += one_round()
    print(
        f"condition -> written and journaled, {len(delays_ms)} changes: p50 {statistics.median(delays_ms):.2f} ms, "
        f"p99 {percentile(delays_ms, 0.99):.2f} ms, worst {max(delays_ms):.2f} ms"
    )


def one_round() -> list[float]:
    """Milliseconds for each step of gc_thresh3."""
    wait_empty()
    with running("--mode", "enforce", "--only", "neigh_table") as folder, Lab() as lab:
        outcomes = link.Subscriber(roles.events_path(folder / "run", "actuator"), "actuator")
        time.sleep(1.0)
        a, b = lab.netns("a"), lab.netns("b")
        a.run(fill, lab.veth(a, b).a_device)
        time.sleep(0.5)
        done = {
            event.change: event.t_ns
            for event in outcomes.receive(10_000)
            if isinstance(event, Outcome) and event.verdict == "written"
        }
        outcomes.close()
        tipped = {
            change.id: int(str(change.evidence["event"]).partition("@")[2])
            for change in history(folder / "state")
            if change.tunable.endswith("gc_thresh3") and str(change.evidence["event"]).startswith("NeighEntries@")
        }
    return [(done[number] - t_ns) / 1e6 for number, t_ns in tipped.items() if number in done]


def wait_empty() -> None:
    """The last round's namespace ends in its own time, and its entries count until then."""
    while entries() > THRESHOLD:
        time.sleep(0.05)


def entries() -> int:
    """Entries in the host's ARP table: the first column, in hex, of every CPU's line."""
    return int(Path("/proc/net/stat/arp_cache").read_text().splitlines()[1].split()[0], 16)


def fill(device: str) -> None:
    """Add neighbours at an even pace."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=device)[0]
        began_s = time.monotonic()
        for number in range(ENTRIES):
            address = f"10.77.{number // 250}.{number % 250 + 3}"
            route.neigh("add", dst=address, lladdr="02:00:00:00:00:01", ifindex=index, state=NUD_STALE)
            time.sleep(max(0.0, began_s + number / PER_S - time.monotonic()))


@contextmanager
def lowered() -> Iterator[None]:
    """The host's ARP thresholds at 32/64/128, for a while."""
    before = [path.read_text() for path in THRESHOLDS]
    try:
        for path, value in zip(THRESHOLDS, (32, 64, 128), strict=True):
            path.write_text(str(value))
        yield
    finally:
        for path, value in zip(reversed(THRESHOLDS), reversed(before), strict=True):
            path.write_text(value)


if __name__ == "__main__":
    main()
