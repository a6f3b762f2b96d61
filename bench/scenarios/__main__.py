"""What each tuner is worth: its traffic with the settings at first, with those of a person who knows the traffic, and
with trimtab from the settings at first after 30 s.

    sudo .venv/bin/python bench/scenarios [NAME ...] [--learn 30] [--tapes DIR]

Each column in a network of its own. The score is trimtab / hand-tuned; the goal 0.95 in each. bpftune has a column of
its own: where its binary is on PATH and loads, it runs in trimtab's place, else the column says why not. What is the
whole host's is lowered for a while where the scenario says so, and put back whatever happens: one run at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from packets import Backlog, Budget, IpFrag, UdpBuffer  # noqa: E402
from running import end_in_order, need_root, running  # noqa: E402
from scene import Scene, Settings, standing  # noqa: E402
from streams import Congestion, ListenQueue, Ports, TcpBuffer, TcpMemory  # noqa: E402
from tables import Conntrack, Neighbours  # noqa: E402

from actuators.history import history  # noqa: E402
from trimtab.lab import Lab  # noqa: E402

SCENES: tuple[type[Scene], ...] = (
    TcpBuffer, TcpMemory, ListenQueue, Ports, Congestion, Neighbours, Backlog, Budget, UdpBuffer, IpFrag, Conntrack,
)  # fmt: skip
GOAL = 0.95
LOCKS = "/run/lock/trimtab-bench.lock"


def column(
    kind: type[Scene], tuner: contextlib.AbstractContextManager[object], learn_s: float, set_: Settings
) -> float:
    """The figure of one column: learn_s of traffic, and then what is measured."""
    with (
        Lab() as lab,
        contextlib.closing(kind(lab)) as scene,
        standing(scene.places, {**kind.start, **set_}),
        tuner(scene),
    ):
        if warm_s := max(learn_s, kind.warm_s):
            scene.run(warm_s)
        return scene.run(kind.measure_s)


def nobody(scene: Scene) -> contextlib.AbstractContextManager[object]:
    """No tuner."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def trimtab(scene: Scene, tapes: Path | None, told: list[str]) -> Iterator[None]:
    """trimtab with this tuner alone, for these namespaces alone; what it changed, in the end, is told."""
    fence = [word for place in scene.places if place for word in ("--netns", str(place.cookie))]
    with running("--mode", "enforce", "--only", scene.decider, *fence) as folder:
        yield
        if tapes:
            shutil.copytree(folder / "state/tapes", tapes / scene.name.replace(": ", "-"), dirs_exist_ok=True)
        changes = history(folder / "state")
        last = {change.tunable: change.new for change in changes}
        told.append(f"{len(changes)} changes: " + ", ".join(f"{key} {value}" for key, value in sorted(last.items())))
        # Another tuner on this host, perhaps: the figure is none of trimtab's then.
        if lost := sum(change.state not in ("trial", "confirmed") for change in changes):
            told.append(f"({lost} of them no longer trimtab's)")


@contextlib.contextmanager
def bpftune(scene: Scene) -> Iterator[None]:
    """bpftune, for as long as it takes to begin and then some."""
    with subprocess.Popen(["bpftune"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(5.0)
        try:
            if process.poll() is not None:
                raise RuntimeError(f"ends with {process.returncode}")
            yield
        finally:
            process.terminate()


def peer(kind: type[Scene], learn_s: float) -> str:
    """bpftune's column."""
    if not shutil.which("bpftune"):
        return "not on PATH"
    try:
        return f"{column(kind, bpftune, learn_s, {}):.1f}"
    except RuntimeError as error:
        return str(error)


def row(kind: type[Scene], learn_s: float, tapes: Path | None) -> float:
    """Measure and print one scenario: its score."""
    told: list[str] = []
    first = column(kind, nobody, 0.0, {})
    best = column(kind, nobody, 0.0, kind.best)
    ours = column(kind, lambda scene: trimtab(scene, tapes, told), learn_s, {})
    score = ours / best if best else 0.0
    print(
        f"{kind.name:22} {kind.unit:7} {first:9.1f} {best:11.1f} {ours:9.1f} {score:6.2f}"
        f"  {peer(kind, learn_s):12} {' '.join(told)}",
        flush=True,
    )
    return score


def main() -> int:
    """All that are asked for. 0 when each meets the goal."""
    need_root()
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of scenarios' names; default: all")
    parser.add_argument("--learn", type=float, default=30.0, help="seconds of traffic before trimtab is measured")
    parser.add_argument("--tapes", type=Path, help="keep the recordings there")
    options = parser.parse_args()
    chosen = [kind for kind in SCENES if not options.names or any(name in kind.name for name in options.names)]
    print(f"{'scenario':22} {'unit':7} {'at first':>9} {'hand-tuned':>11} {'trimtab':>9} {'score':>6}  bpftune")
    with Path(LOCKS).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scores = [row(kind, options.learn, options.tapes) for kind in chosen]
    print(f"{sum(score >= GOAL for score in scores)} of {len(scores)} reach {GOAL:.0%} of hand-tuned")
    return 0 if min(scores, default=0.0) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
