"""From the end of a lease to the value put back, with every process but the dead-man dead.

    sudo .venv/bin/python bench/lease_end.py [--runs 5]

Starts so many trimtabs one after the other, each in directories and a namespace of its own, puts one change on trial in
each, stops and kills everything of theirs but the dead-man, and looks at the values every millisecond. Late is how long
after the end that the lease file names (CLOCK_BOOTTIME) the original stands again. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

from running import lane_as, need_root, running

from actuators import leases
from bus.schema import VERSION, Wish
from trimtab.lab import Lab, NetNs

KEY = "net.ipv4.tcp_rmem[2]"
ORIGINAL, WANT = 262144, 300000
LOOK_S = 0.001
KEPT_S = 1.5
"""The lease file is written once a second."""
PATIENCE_S = 40.0


class Run:
    """One trimtab of which only the dead-man is left."""

    def __init__(self, lab: Lab, number: int, stack: contextlib.ExitStack) -> None:
        netns = lab.netns(f"n{number}")
        netns.sysctl("net.ipv4.tcp_rmem", f"4096 131072 {ORIGINAL}")
        # Opened in the namespace, a file stays its: no entering for each look.
        self.fd: int = netns.run(os.open, "/proc/sys/net/ipv4/tcp_rmem", os.O_RDONLY)
        self.folder = stack.enter_context(
            running("--mode", "enforce", "--only", "tcp_buffer", "--netns", str(netns.cookie))
        )
        self._change(netns)
        time.sleep(KEPT_S)
        self.deadman = self._kill()
        self.end_ns = max(leases.read(self.folder / "state").values())
        self.back_ns = 0

    def value(self) -> int:
        """What stands there."""
        return int(os.pread(self.fd, 100, 0).split()[2])

    def _change(self, netns: NetNs) -> None:
        lane = lane_as("tcp_buffer", self.folder / "run")
        about = (KEY, netns.cookie, netns.inode, ORIGINAL, WANT, "the bench asks for more", {})
        lane.send(Wish(VERSION, time.monotonic_ns(), 10**9, *about))
        until_s = time.monotonic() + 5.0
        while self.value() != WANT:
            if time.monotonic() > until_s:
                sys.exit("the wish was not granted")
            time.sleep(LOOK_S)
        lane.close()

    def _kill(self) -> int:
        """Kill all but the dead-man, whose pid this returns."""
        status = json.loads((self.folder / "run/supervisor.json").read_bytes())
        pids = {role["name"]: role["pid"] for role in status["roles"] if role["pid"] and role["name"] != "loader"}
        deadman: int = pids.pop("deadman")
        victims = [*pids.values(), status["pid"]]
        # Stopped first: else the actuator would put things back in order when the supervisor dies.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                os.kill(pid, number)
        return deadman


def wait(runs: list[Run]) -> None:
    """Until every value is back."""
    until_ns = max(run.end_ns for run in runs) + int(PATIENCE_S * 1e9)
    while any(not run.back_ns for run in runs):
        for run in runs:
            if not run.back_ns and run.value() == ORIGINAL:
                run.back_ns = leases.now_ns()
        if leases.now_ns() > until_ns:
            sys.exit(f"a value still stands {PATIENCE_S:.0f} s after its lease")
        time.sleep(LOOK_S)
    while any(Path(f"/proc/{run.deadman}/cwd").exists() for run in runs):
        time.sleep(0.05)


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    count = parser.parse_args().runs
    with Lab() as lab, contextlib.ExitStack() as stack:
        runs = [Run(lab, number, stack) for number in range(count)]
        wait(runs)
        late_s = [(run.back_ns - run.end_ns) / 1e9 for run in runs]
        for run in runs:
            os.close(run.fd)
    print(
        f"lease end -> put back, all else dead, {count} runs: p50 {statistics.median(late_s):.2f} s, "
        f"worst {max(late_s):.2f} s"
    )


if __name__ == "__main__":
    main()
