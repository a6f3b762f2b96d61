"""From `trimtab run` to ready, with the probes attached.

sudo .venv/bin/python bench/start.py [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from running import need_root, running


def main() -> None:
    need_root()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    seconds = []
    for _ in range(runs):
        began_s = time.monotonic()
        with running("--mode", "advise") as folder:
            seconds.append(time.monotonic() - began_s)
            missing = json.loads((folder / "run/supervisor.json").read_bytes()).get("missing", [])
    median, worst = statistics.median(seconds), max(seconds)
    print(
        f"start to ready, {runs} runs: median {median:.2f} s, worst {worst:.2f} s; not watched: {missing or 'nothing'}"
    )


if __name__ == "__main__":
    main()
