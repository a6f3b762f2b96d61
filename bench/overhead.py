"""What trimtab costs a network at full speed: iperf3 through a veth pair, with and without, in turn, in one run.

    sudo .venv/bin/python bench/overhead.py [--pairs 7] [--seconds 4]

The budget is a ratio of 0.99. The machine's own noise is printed beside it: the spread of the runs without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time

from running import need_root, running

from trimtab.lab import Lab, NetNs


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    kinds = {"bulk TCP": [], "64-byte UDP": ["-u", "-l", "64", "-b", "0"]}
    with Lab() as lab:
        a, b = lab.netns("a"), lab.netns("b")
        address = lab.veth(a, b).b_address
        for kind, extra in kinds.items():
            compare(kind, a, b, [address, "-t", str(options.seconds), *extra], options.pairs)


def compare(kind: str, a: NetNs, b: NetNs, argv: list[str], pairs: int) -> None:
    """Print the figures of one kind of traffic."""
    iperf3(a, b, argv)  # warm
    ratios, without = [], []
    for _ in range(pairs):
        without.append(iperf3(a, b, argv))
        with running("--mode", "enforce"):
            ratios.append(iperf3(a, b, argv) / without[-1])
    ratio = statistics.median(ratios)
    spread = (max(without) - min(without)) / statistics.median(without)
    print(
        f"{kind}: with / without {ratio:.3f} (median of {pairs} pairs, {min(ratios):.3f} to {max(ratios):.3f}); "
        f"without: {statistics.median(without) / 1e6:.0f} Mbit/s, spread {spread:.1%}",
        flush=True,
    )


def iperf3(a: NetNs, b: NetNs, argv: list[str]) -> float:
    """Bits per second that arrived."""
    server = b.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    result = json.loads(a.command(["iperf3", "-J", "-c", *argv], timeout_s=60))
    server.wait(10)
    end = result["end"]
    summary = end["sum_received"] if "sum_received" in end else end["sum"]
    return float(summary["bits_per_second"])


if __name__ == "__main__":
    main()
