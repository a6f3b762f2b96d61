"""From a foreign write to hands off: the write(2) has returned -> the key is ceded and held, journaled and told.

    sudo .venv/bin/python bench/hands_off.py [--rounds 100]

In a namespace of its own, with the real probes: trimtab changes tcp_rmem[2] or tcp_wmem[2], another process writes the
very value that stands there (which only BPF can see), and the actuator's word that it has ceded the key, which comes
after the journal has it, ends the round. Then the key is released, and the next round asks for a little more.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from running import lane_as, need_root, percentile, running

from bus import link, roles
from bus.schema import VERSION, Ask, Outcome, Wish
from trimtab.lab import Lab, NetNs

KEYS = ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]")
FIRST = 262144
SHARE = 32
"""Each wish is for a 32nd more: above the dead band, and never the other way (a key may turn twice an hour)."""
PACE_S = 0.12
"""A little above the rows' cool-down."""
ANSWER_S = 5.0
WRITER = """
import sys, time
for line in sys.stdin:
    name, value = line.split()
    with open(f"/proc/sys/net/ipv4/{name}", "w", buffering=1) as file:
        file.write(f"4096 16384 {value}\\n")
        print(time.monotonic_ns(), flush=True)
"""


class Bench:
    """One running trimtab, our ways to it, and the other writer."""

    def __init__(self, netns: NetNs, run_dir: Path) -> None:
        self.netns = netns
        self.control = roles.control_path(run_dir)
        self.outcomes = link.Subscriber(roles.events_path(run_dir, "actuator"), "actuator")
        self.poller = link.Poller()
        self.poller.add(self.outcomes)
        self.lane = lane_as("tcp_buffer", run_dir)
        self.admin = netns.popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        time.sleep(1.0)

    def close(self) -> None:
        """Close our ends."""
        self.lane.close()
        self.outcomes.close()

    def round(self, key: str, stands: int) -> tuple[float, int]:
        """Milliseconds of one round, and what stands there after it."""
        want = stands + stands // SHARE
        now_ns = time.monotonic_ns()
        about = (key, self.netns.cookie, self.netns.inode, stands, want, "the bench asks for a 32nd more", {})
        self.lane.send(Wish(VERSION, now_ns, 10**9, *about))
        self.wait("written", key)
        written_ns = self.write(key, want)
        self.wait("ceded", key)
        late_ms = (time.monotonic_ns() - written_ns) / 1e6
        link.ask(self.control, Ask("release", tunable=key, netns=self.netns.cookie), ANSWER_S)
        return late_ms, want

    def write(self, key: str, value: int) -> int:
        """The administrator writes. Returns when its write(2) had returned, CLOCK_MONOTONIC."""
        assert self.admin.stdin
        assert self.admin.stdout
        self.admin.stdin.write(f"{key.rsplit('.', maxsplit=1)[-1].partition('[')[0]} {value}\n")
        self.admin.stdin.flush()
        return int(self.admin.stdout.readline())

    def wait(self, verdict: str, key: str) -> None:
        """Until the actuator says so of the key."""
        until_s = time.monotonic() + ANSWER_S
        while time.monotonic() < until_s:
            self.poller.wait(ANSWER_S)
            for event in self.outcomes.receive():
                if isinstance(event, Outcome) and event.tunable == key:
                    if event.verdict == verdict:
                        return
                    sys.exit(f"{verdict} was expected, this came: {event}")
        sys.exit(f"no word that {key} is {verdict} within {ANSWER_S:.0f} s")


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="of each of two keys; at most 120 an hour")
    rounds = parser.parse_args().rounds
    late_ms = []
    with Lab() as lab:
        netns = lab.netns("a")
        for name in ("tcp_rmem", "tcp_wmem"):
            netns.sysctl(f"net.ipv4.{name}", f"4096 16384 {FIRST}")
        with running("--mode", "enforce", "--only", "tcp_buffer", "--netns", str(netns.cookie)) as folder:
            bench = Bench(netns, folder / "run")
            stands = dict.fromkeys(KEYS, FIRST)
            for _ in range(rounds):
                for key in KEYS:
                    each_ms, stands[key] = bench.round(key, stands[key])
                    late_ms.append(each_ms)
                time.sleep(PACE_S)
            bench.close()
    print(
        f"foreign write -> hands off, journaled, {len(late_ms)} writes: p50 {statistics.median(late_ms):.2f} ms, "
        f"p99 {percentile(late_ms, 0.99):.2f} ms, worst {max(late_ms):.2f} ms"
    )


if __name__ == "__main__":
    main()
