"""Fleet: how long the plays take on so many hosts, and what each host more costs.

    sudo .venv/bin/python bench/fleet.py [2 20 ...]

Real hosts over ssh (tests/fleet_world.py), which share this machine's cores with the controller and each other: so the
clock tells the worst; the controller's own processor time, of Ansible and ssh, is what carries over to a controller
whose hosts are elsewhere. Waves of the rollout: 1, 5 %, 25 %, all; its soaks (3 s each here) are counted out. No
budget; the cost of a host more must not rise with their number.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import rollout_world as on  # noqa: E402
from fleet_world import World, fleet  # noqa: E402

SOAK_S = 3.0
POLICY = "[policy.no_ports]\nmost = {}\n"


def measure(world: World, play: str, hosts: int, **variables: object) -> tuple[float, float]:
    """Seconds by the clock, and of the controller's processor time."""
    limit = ",".join(list(world.hosts)[:hosts])
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    said = world.play(play, "--limit", limit, **variables).said
    after, took_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began_s
    if play == "rollout.yml":
        took_s -= SOAK_S * said.count("TASK [Keep it]")
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [2, 20]
    with fleet(max(sizes)) as world:
        began_s = time.monotonic()
        on.prepare(world, POLICY.format(480))
        print(f"{max(sizes)} hosts prepared in {time.monotonic() - began_s:.0f} s", flush=True)
        measure(world, "status.yml", max(sizes))
        found: dict[str, list[tuple[float, float]]] = {}
        for number, hosts in enumerate(sizes):
            policy = on.file(world, POLICY.format(100 + number))
            rollout = {**on.QUICK, "trimtab_soak": SOAK_S, "trimtab_checks": 1, "trimtab_preview": False}
            plays: dict[str, dict[str, object]] = {
                "status.yml": {},
                "preview.yml": {"trimtab_policy_file": policy},
                "rollout.yml": {**rollout, "trimtab_policy_file": policy},
                "rollback.yml": {},
            }
            for play, variables in plays.items():
                took = measure(world, play, hosts, **variables)
                found.setdefault(play, []).append(took)
                print(f"{play:13} {hosts:4} hosts: {took[0]:6.1f} s, controller {took[1]:6.1f} s", flush=True)
    for play, rows in found.items():
        (low, high), (first, last) = (sizes[0], sizes[-1]), (rows[0], rows[-1])
        if high > low:
            each = [(last[kind] - first[kind]) / (high - low) for kind in (0, 1)]
            print(f"{play:13} a host more: {each[0]:.2f} s, controller {each[1]:.2f} s")


if __name__ == "__main__":
    main()
