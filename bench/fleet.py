"""Fleet: how long the plays take on so many hosts, and what each host more costs.

    sudo .venv/bin/python bench/fleet.py [2 20 100 ...]

Real hosts over ssh (tests/fleet_world.py), which share this machine's cores with the controller and each other: so the
clock tells the worst; the controller's own processor time, of Ansible and ssh, is what carries over to a controller
whose hosts are elsewhere. trimtab runs on the first 20; those beyond have it installed and stopped, and are asked by
status.yml alone. Waves of the rollout: 1, 5 %, 25 %, all; its soaks (3 s each here) are counted out. No budget; the
cost of a host more must not rise with their number.
"""

from __future__ import annotations

import resource
import sys
import time
from itertools import pairwise
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import rollout_world as on  # noqa: E402
from fleet_world import World, fleet  # noqa: E402

SOAK_S = 3.0
RUNNING = 20
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


def plays(world: World, number: int) -> dict[str, dict[str, object]]:
    """Which plays, with what, for the size of this number: each with a policy of its own."""
    policy = on.file(world, POLICY.format(100 + number))
    rollout = {**on.QUICK, "trimtab_soak": SOAK_S, "trimtab_checks": 1, "trimtab_preview": False}
    return {
        "status.yml": {"trimtab_must_be_fine": False},
        "preview.yml": {"trimtab_policy_file": policy},
        "rollout.yml": {**rollout, "trimtab_policy_file": policy},
        "rollback.yml": {},
    }


def grow(world: World, hosts: int) -> None:
    """Have so many hosts, and an ssh connection to each."""
    began_s = time.monotonic()
    if len(world.hosts) == 1:
        on.prepare(world, POLICY.format(480), min(hosts, RUNNING))
    elif len(world.hosts) < min(hosts, RUNNING):
        on.start(world.add(min(hosts, RUNNING) - len(world.hosts), like=world.hosts["h1"]))
    world.add(max(0, hosts - len(world.hosts)), like=world.hosts["h1"])
    print(f"{hosts} hosts prepared in {time.monotonic() - began_s:.0f} s", flush=True)
    measure(world, "status.yml", hosts, trimtab_must_be_fine=False)


def main() -> None:
    found: dict[str, dict[int, tuple[float, float]]] = {}
    with fleet(1) as world:
        for number, hosts in enumerate(sorted(int(word) for word in sys.argv[1:] or ("2", "20", "100"))):
            grow(world, hosts)
            for play, variables in plays(world, number).items():
                if hosts <= RUNNING or play == "status.yml":
                    found.setdefault(play, {})[hosts] = took = measure(world, play, hosts, **variables)
                    print(f"{play:13} {hosts:4} hosts: {took[0]:6.1f} s, controller {took[1]:6.1f} s", flush=True)
    for play, rows in found.items():
        for (low, first), (high, last) in pairwise(rows.items()):
            each = [(last[kind] - first[kind]) / (high - low) for kind in (0, 1)]
            print(f"{play:13} from {low} to {high}, a host more: {each[0]:.2f} s, controller {each[1]:.2f} s")


if __name__ == "__main__":
    main()
