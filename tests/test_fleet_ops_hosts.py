"""Operators in each other's way on real hosts, and the tables at the end of what takes trimtab away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from fleet_world import World, bundle, fleet

pytestmark = [pytest.mark.system, pytest.mark.fleet, pytest.mark.timeout(600)]

LOCK = "/var/lib/trimtab.lock"
BY_ALICE = {"who": "alice at ctl1", "what": "rollout.yml", "controller": "ctl1", "pid": 1, "run": "ctl1/1/2"}
POLICY = "[tunables.'net.ipv4.tcp_wmem[2]']\nhigh = 8388608\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fleet(2) as made:
        made.variables = {"trimtab_bundle": str(bundle()), "trimtab_patience": 180, "trimtab_preview": False}
        made.play("site.yml")
        yield made


def lines(said: str) -> list[list[str]]:
    """The table of a play: the first words of each host's line."""
    return [
        line.split('"')[1].split()[:2]
        for line in said.splitlines()
        if line.strip().startswith('"h') and "host " not in line
    ]


def test_a_rollout_leaves_hosts_alone_on_which_another_controller_works(world: World) -> None:
    policy = world.folder / "policy.toml"
    policy.write_text(POLICY)
    now_s = time.time()
    lock = json.dumps({**BY_ALICE, "since_s": now_s, "until_s": now_s + 600})
    world.hosts["h2"].path(LOCK).write_text(lock)
    played = world.play("rollout.yml", check=False, trimtab_policy_file=str(policy), trimtab_bundle="")
    assert played.code
    assert "nothing was changed: h2 is locked by alice at ctl1 for rollout.yml since" in played.said
    assert [host.path("/etc/trimtab/conf.d/50-policy.toml").exists() for host in world.hosts.values()] == [False] * 2
    assert [host.path(LOCK).exists() for host in world.hosts.values()] == [False, True]
    assert world.hosts["h2"].path(LOCK).read_text() == lock


def test_off_waits_for_no_lock_and_its_table_says_so(world: World) -> None:
    played = world.play("off.yml", trimtab_who="bob")
    assert lines(played.said) == [["h1", "off"], ["h2", "off"]]
    assert "by bob at" in played.said
    assert not world.hosts["h2"].path(LOCK).exists()


def test_a_removal_ends_with_its_table_and_leaves_no_lock(world: World) -> None:
    world.hosts["h1"].path(LOCK).write_text(json.dumps({**BY_ALICE, "since_s": 0, "until_s": time.time() + 600}))
    played = world.play("remove.yml", check=False)
    assert (played.code, lines(played.said)) == (2, [["h1", "failed"], ["h2", "removed"]])
    assert [played.recap[name]["failed"] for name in ("h1", "h2")] == [1, 0]
    played = world.play("remove.yml", trimtab_force_lock=True)
    assert lines(played.said) == [["h1", "removed"], ["h2", "removed"]]
    assert not [path for host in world.hosts.values() for path in ("/opt/trimtab", LOCK) if host.path(path).exists()]
