"""Rollouts that are ended in the middle, versions, and the way back of values, on six real hosts."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import rollout_world as on
from fleet_world import World, bundle, fleet

pytestmark = [pytest.mark.system, pytest.mark.fleet, pytest.mark.timeout(900)]

NUMBER = 6
FORMER = "[policy.no_ports]\nmost = 480\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fleet(1) as made:
        on.prepare(made, FORMER, NUMBER)
        on.strays(made.hosts["h3"])
        on.confirm(made.hosts["h3"])
        made.variables |= {"trimtab_waves": [1, 2, "100%"], "trimtab_checks": 1}
        yield made


@pytest.fixture
def before(world: World) -> dict[str, dict[str, Any]]:
    return states(world)


def states(world: World) -> dict[str, dict[str, Any]]:
    return {name: on.state(host) for name, host in world.hosts.items()}


def candidate(most: int) -> str:
    return f"[policy.no_ports]\nmost = {most}\n"


def test_a_policy_that_cannot_be_used_is_refused_by_the_preview(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    code, _, said = on.rolled(world, "[policy.tcp_buffer]\nneer = 1\n", check=False)
    assert code
    assert "neer" in said
    assert on.differing(before, states(world)) == {}


@pytest.mark.parametrize(
    ("task", "nth", "how"),
    [("Place the policy", 1, signal.SIGKILL), ("Have it run", 2, signal.SIGKILL), ("Wait", 2, signal.SIGINT)],
)
def test_a_rollout_that_was_ended_anywhere_is_run_again_to_the_same_end(
    world: World, before: dict[str, dict[str, Any]], task: str, nth: int, how: signal.Signals
) -> None:
    policy = candidate(200 + nth)
    on.killed(world, task, nth, policy, how)
    assert "trying" in {on.memo(host) for host in world.hosts.values()}
    _, document, _ = on.rolled(world, policy, trimtab_preview=False)
    assert set(on.outcomes(document).values()) <= {"done", "already"}
    for name, found in states(world).items():
        assert found == {**before[name], "policy": policy, "running": {"no_ports": {"most": 200 + nth}}}
    world.play("rollback.yml")
    assert on.differing(before, states(world)) == {}


def test_a_way_back_that_was_ended_is_gone_to_its_end(world: World, before: dict[str, dict[str, Any]]) -> None:
    on.rolled(world, candidate(300), trimtab_preview=False, trimtab_waves=["100%"])
    on.killed(world, "Go back to the former policy", 1, "", play="rollback.yml")
    world.play("rollback.yml")
    assert on.differing(before, states(world)) == {}
    assert world.play("rollback.yml").changed == 0


def test_a_version_goes_out_as_a_policy_does_and_back(world: World, before: dict[str, dict[str, Any]]) -> None:
    archive = world.folder / "trimtab-0.1.0-0123456789ab.tar"
    shutil.copy(bundle(), archive)
    other: dict[str, Any] = {"trimtab_bundle": str(archive), "trimtab_preview": False}
    # The tuner is not in it, so it cannot be used with the policy that is there: the host goes back.
    code, document, _ = on.rolled(world, FORMER, check=False, trimtab_hosts="h1,h3", **other)
    assert code
    assert on.outcomes(document) == {"h1": "returned", "h3": "untouched"}
    assert on.differing(before, states(world)) == {}
    policy = "[policy.tcp_buffer]\nnear = 0.5\n"
    _, document, _ = on.rolled(world, policy, trimtab_hosts="h3,h4", **other)
    assert on.outcomes(document) == {"h3": "done", "h4": "done"}
    found = on.state(world.hosts["h3"])
    assert found["release"].endswith("-0123456789ab")
    assert (found["policy"], found["values"]) == (policy, before["h3"]["values"])
    assert world.hosts["h3"].run("ls /var/tmp/trimtab-* 2>/dev/null || :") == ""
    world.play("rollback.yml", "--limit", "h3,h4")
    assert on.differing(before, states(world)) == {}


def test_a_rollback_of_values_puts_back_what_was_before_trimtab(world: World) -> None:
    values = {name: host.sysctls() for name, host in world.hosts.items()}
    world.play("rollback.yml", "--limit", "h3", trimtab_back="values")
    assert on.value(world.hosts["h3"]) == 60
    world.play("release.yml", "--limit", "h3", trimtab_key=on.KEY)
    changed = {name for name, host in world.hosts.items() if host.sysctls() != values[name]}
    assert changed == {"h3"}
