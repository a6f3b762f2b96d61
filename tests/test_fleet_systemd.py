"""Rollouts where systemd keeps the roles: the check mode, what a host's own signals stop, and one that is accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import rollout_world as on
from fleet_world import Host, World, bundle, fleet

pytestmark = [pytest.mark.system, pytest.mark.fleet, pytest.mark.timeout(900)]

POLICY = "[policy.tcp_buffer]\nnear = {}\n"
# More than anybody takes: to a socket that nobody reads, with the least buffer.
FLOOD = """
import socket, time
deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
deaf.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(600):
    for _ in range(20):
        sender.sendto(b"?", deaf.getsockname())
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fleet(2, booted=2) as made:
        made.variables = {"trimtab_bundle": str(bundle()), "trimtab_patience": 180}
        made.play("site.yml", trimtab_policy_file=on.file(made, POLICY.format(0.9)))
        made.variables = {"trimtab_patience": 180, "trimtab_waves": [1, 1], "trimtab_checks": 1}
        yield made


@pytest.fixture
def before(world: World) -> dict[str, dict[str, Any]]:
    return states(world)


def states(world: World) -> dict[str, dict[str, Any]]:
    return {name: state(host) for name, host in world.hosts.items()}


def state(host: Host) -> dict[str, Any]:
    facts = json.loads(host.run("/etc/ansible/facts.d/trimtab.fact"))
    return {
        "policy": host.path(on.POLICY).read_text(),
        "running": json.loads(host.path("/run/trimtab/config.json").read_text())["policy"],
        "release": os.readlink(host.path("/opt/trimtab/current")),
        "values": host.sysctls(),
        **{name: facts[name] for name in ("ready", "mode", "standing", "held")},
    }


def test_check_mode_says_what_a_rollout_would_do_and_does_nothing(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    policy = on.file(world, POLICY.format(0.4))
    said = world.play("rollout.yml", "--check", "--diff", trimtab_policy_file=policy, **on.QUICK).said
    assert said.count("+near = 0.4") == 2
    assert {on.memo(host) for host in world.hosts.values()} == {""}
    assert on.differing(before, states(world)) == {}


def test_stalls_of_a_canary_beyond_what_is_allowed_stop_a_rollout(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    # Stalls are the whole machine's here, whatever a test does; so any at all are more than is allowed.
    least: dict[str, Any] = {"trimtab_max_ratio": 0, "trimtab_max_pressure": -1}
    code, document, _ = on.rolled(world, POLICY.format(0.5), check=False, trimtab_preview=False, **least)
    assert code
    assert "time stalled on " in document["stopped"]
    assert on.outcomes(document) == {"h1": "returned", "h2": "untouched"}
    assert on.differing(before, states(world)) == {}


def test_a_host_of_the_second_wave_that_drops_datagrams_stops_a_rollout(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    world.hosts["h2"].path("/var/tmp/flood.py").write_text(FLOOD)
    with on.under(world.hosts["h2"], '"near":0.6', flood):
        more: dict[str, Any] = {"trimtab_preview": False, "trimtab_return": "all", "trimtab_soak": 10}
        code, document, _ = on.rolled(world, POLICY.format(0.6), check=False, **more)
    assert code
    assert "h2: datagrams dropped" in document["stopped"]
    assert on.outcomes(document) == {"h1": "returned", "h2": "returned"}
    assert on.differing(before, states(world)) == {}


def flood(host: Host) -> None:
    host.run("setsid python3 /var/tmp/flood.py >/dev/null 2>&1 </dev/null &")


def test_a_policy_is_accepted_and_taken_back(world: World, before: dict[str, dict[str, Any]]) -> None:
    policy = POLICY.format(0.7)
    _, document, _ = on.rolled(world, policy)
    assert on.outcomes(document) == {"h1": "done", "h2": "done"}
    now: dict[str, Any] = {"policy": policy, "running": {"tcp_buffer": {"near": 0.7}}}
    assert on.differing({name: {**found, **now} for name, found in before.items()}, states(world)) == {}
    world.play("rollback.yml")
    assert on.differing(before, states(world)) == {}
