"""Rollouts on twenty real hosts: the preview, waves, gates, the way back, what is lost or killed in the middle.

Every host has the same policy at first and values of its own, of which some are confirmed; after each rollout that is
stopped, every one of them is as it was.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import rollout_world as on
from fleet_world import World, bundle, fleet

pytestmark = [pytest.mark.system, pytest.mark.fleet, pytest.mark.timeout(900)]

NUMBER = 20
FORMER = "[policy.no_ports]\nmost = 480\n"
TRIED = ("h1", "h2", "h9")
"""Hosts whose recordings have something in them to decide."""
UNRECORDED = f"h{NUMBER}"
LOST = f"h{NUMBER - 2}"
WAVES = [1, 1, 5, "100%"]
"""What the default comes to of twenty."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fleet(NUMBER) as made:
        on.prepare(made, FORMER)
        for name in TRIED:
            on.strays(made.hosts[name])
            on.confirm(made.hosts[name])
        made.hosts[UNRECORDED].run("rm -r /var/lib/trimtab/tapes/*/*")
        made.variables["trimtab_waves"] = WAVES
        yield made


@pytest.fixture
def before(world: World) -> dict[str, dict[str, Any]]:
    return states(world)


def states(world: World) -> dict[str, dict[str, Any]]:
    return {name: on.state(host) for name, host in world.hosts.items() if not host.ended}


def candidate(most: int) -> str:
    return f"[policy.no_ports]\nmost = {most}\n"


def test_a_preview_tells_what_differs_where_it_was_recorded_and_changes_nothing(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    assert [on.value(world.hosts[name]) for name in TRIED] == [120] * len(TRIED)
    document = world.folder / "preview.json"
    policy = on.file(world, candidate(100))
    said = world.play("preview.yml", trimtab_policy_file=policy, trimtab_preview_json=str(document)).said
    found = json.loads(document.read_text())
    assert found["changed"] == sorted(TRIED)
    assert found["highest"] == {on.KEY: 100}
    assert found["highest_were"][on.KEY] >= 120
    assert found["without"] == [UNRECORDED]
    assert f"3 of {NUMBER} hosts would differ: " in said
    assert f"none above {on.KEY} 100" in said
    assert states(world) == before


def test_a_preview_beyond_a_limit_is_the_gate_of_a_rollout_and_nothing_is_touched(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    limits: dict[str, dict[str, Any]] = {
        "3 hosts would differ; the limit is 10%": {"trimtab_max_hosts": "10%"},
        f"{on.KEY} would be above 90 on h1, h2, h9": {"trimtab_highest": {on.KEY: 90}},
    }
    for words, limit in limits.items():
        code, document, said = on.rolled(world, candidate(100), check=False, **limit)
        assert (code, document) == (2, {})
        assert words in said
    assert {on.memo(host) for host in world.hosts.values()} == {""}
    assert states(world) == before


def test_a_policy_that_cannot_be_used_is_refused_by_the_preview(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    code, _, said = on.rolled(world, "[policy.tcp_buffer]\nneer = 1\n", check=False)
    assert code
    assert "neer" in said
    assert states(world) == before


def test_a_sick_canary_stops_the_rollout_and_is_returned(world: World, before: dict[str, dict[str, Any]]) -> None:
    on.sicken(world.hosts["h1"], '"most":101')
    code, document, _ = on.rolled(world, candidate(101), check=False, trimtab_preview=False)
    on.heal(world.hosts["h1"])
    assert code
    assert on.outcomes(document) == {name: "returned" if name == "h1" else "untouched" for name in world.hosts}
    assert "decider-no_ports" in document["stopped"]
    assert {name: on.memo(host) for name, host in world.hosts.items() if on.memo(host)} == {"h1": "returned"}
    assert states(world) == before


def test_a_host_sick_in_a_later_wave_takes_its_wave_back_and_by_choice_all_of_them(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    on.sicken(world.hosts["h5"], '"most":102')
    # Values that the candidate itself has brought about, one of them confirmed: they go, too.
    done = threading.Event()
    helper = threading.Thread(target=_stray_under, args=(world, "h4", 102, done))
    helper.start()
    code, document, said = on.rolled(
        world,
        candidate(102),
        check=False,
        trimtab_preview=False,
        trimtab_return="all",
        trimtab_soak=10,
        trimtab_checks=1,
    )
    done.set()
    helper.join()
    on.heal(world.hosts["h5"])
    assert code
    touched = {"h1", "h2", "h3", "h4", "h5", "h6", "h7"}
    assert on.outcomes(document) == {name: "returned" if name in touched else "untouched" for name in world.hosts}
    assert "h5" in document["stopped"]
    history = [json.loads(line) for line in world.hosts["h4"].run(on.HISTORY).splitlines()]
    assert [row["new"] for row in history if row["state"] == "rolled_back"] == [102], said
    assert states(world) == before


def _stray_under(world: World, name: str, most: int, done: threading.Event) -> None:
    """As soon as a host has this policy: give it a reason for a step, and confirm it."""
    host = world.hosts[name]
    while not done.wait(0.2):
        path = host.path("/run/trimtab/config.json")
        if path.exists() and f'"most":{most}' in path.read_text():
            on.strays(host)
            on.confirm(host)
            return


@pytest.mark.parametrize(
    ("task", "nth", "how"),
    [("Place the policy", 1, signal.SIGKILL), ("Have it run", 2, signal.SIGKILL), ("Wait", 4, signal.SIGINT)],
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
    assert states(world) == before


def test_a_way_back_that_was_ended_is_gone_to_its_end(world: World, before: dict[str, dict[str, Any]]) -> None:
    on.rolled(world, candidate(300), trimtab_preview=False, trimtab_waves=["100%"])
    on.killed(world, "Go back to the former policy", 1, "", play="rollback.yml")
    world.play("rollback.yml")
    assert states(world) == before
    assert world.play("rollback.yml").changed == 0


def test_a_version_goes_out_as_a_policy_does_and_back(world: World, before: dict[str, dict[str, Any]]) -> None:
    archive = world.folder / "trimtab-0.1.0-0123456789ab.tar"
    shutil.copy(bundle(), archive)
    other: dict[str, Any] = {"trimtab_bundle": str(archive), "trimtab_preview": False}
    # The tuner is not in it, so it cannot be used with the policy that is there: the host goes back.
    code, document, _ = on.rolled(world, FORMER, check=False, trimtab_hosts="h1,h3", **other)
    assert code
    assert on.outcomes(document) == {"h1": "returned", "h3": "untouched"}
    assert states(world) == before
    policy = "[policy.tcp_buffer]\nnear = 0.5\n"
    _, document, _ = on.rolled(world, policy, trimtab_hosts="h3,h4", **other)
    assert on.outcomes(document) == {"h3": "done", "h4": "done"}
    found = on.state(world.hosts["h3"])
    assert found["release"].endswith("-0123456789ab")
    assert (found["policy"], found["values"]) == (policy, before["h3"]["values"])
    assert world.hosts["h3"].run("ls /var/tmp/trimtab-* 2>/dev/null || :") == ""
    world.play("rollback.yml", "--limit", "h3,h4")
    assert states(world) == before


def test_a_rollback_of_values_puts_back_what_was_before_trimtab(world: World) -> None:
    values = {name: host.sysctls() for name, host in world.hosts.items()}
    world.play("rollback.yml", "--limit", "h9", trimtab_back="values")
    assert on.value(world.hosts["h9"]) == 60
    world.play("release.yml", "--limit", "h9", trimtab_key=on.KEY)
    changed = {name for name, host in world.hosts.items() if host.sysctls() != values[name]}
    assert changed == {"h9"}


def test_recordings_come_home_anonymous_with_a_page_that_draws_them(world: World) -> None:
    folder = world.folder / "collected"
    # A restart has begun others since.
    world.hosts[UNRECORDED].run("rm -r /var/lib/trimtab/tapes/*/*")
    said = world.play("collect.yml", "--limit", f"h1,h2,{UNRECORDED}", trimtab_folder=str(folder)).said
    assert f"{UNRECORDED}: no recordings of these hours" in said
    assert sorted(path.name for path in folder.iterdir()) == ["fleet.html", "h1.tape", "h2.tape"]
    assert on.KEY in (folder / "fleet.html").read_text()
    assert "trimtab-collected" not in world.hosts["h1"].run("ls /var/tmp")


def test_a_host_that_goes_away_in_the_middle_is_named_and_spoils_no_other(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    """The last: it does not come back."""
    done = threading.Event()
    helper = threading.Thread(target=_die_under, args=(world, LOST, 400, done))
    helper.start()
    code, document, _ = on.rolled(
        world, candidate(400), check=False, trimtab_preview=False, trimtab_tolerated=1, trimtab_soak=6
    )
    done.set()
    helper.join()
    assert code
    assert on.outcomes(document) == {name: "sick" if name == LOST else "done" for name in world.hosts}
    assert "unreachable" in document["hosts"][LOST]["reason"]
    world.play("rollback.yml", "--limit", f"!{LOST}")
    del before[LOST]
    assert states(world) == before


def _die_under(world: World, name: str, most: int, done: threading.Event) -> None:
    host = world.hosts[name]
    while not done.wait(0.1):
        path = host.path("/run/trimtab/config.json")
        if path.exists() and f'"most":{most}' in path.read_text():
            time.sleep(0.5)
            host.die()
            return
