"""Rollouts over real hosts, six or as many as TRIMTAB_FLEET_HOSTS says: the preview, waves, gates, the way back, a
host that is lost, and the end.

Every host has the same policy at first and some have values of their own that are confirmed; after each rollout that is
stopped, every one of them is as it was, and after the removal as it was before trimtab came. What takes long and can as
well be tried by hand has the marker `fleet`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import rollout_world as on
from fleet_world import Host, World, fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

NUMBER = int(os.environ.get("TRIMTAB_FLEET_HOSTS", "6"))
FORMER = "[policy.no_ports]\nmost = 480\n"
TRIED = ("h1", "h2", "h5")
"""Hosts whose recordings have something in them to decide."""
UNRECORDED = f"h{NUMBER}"
WAVES = [1, 3 if NUMBER < 10 else 6, "100%"]
SECOND = [f"h{number}" for number in range(2, 2 + int(WAVES[1]))]
SICK, STRAY = "h3", "h4"
"""In the second wave."""
LAST = ("h1", "h3", "h4", "h5")
"""Those that a rollout comes to its end on; enough of them."""
LOST = "h4"


@pytest.fixture(scope="module")
def new() -> Iterator[World]:
    with fleet(1) as made:
        yield made


@pytest.fixture(scope="module")
def bare(new: World) -> dict[str, str]:
    """Each value, before anything was done to a host. All have the same: they are namespaces of one kernel."""
    return new.hosts["h1"].sysctls()


@pytest.fixture(scope="module")
def world(new: World, bare: dict[str, str]) -> World:
    on.prepare(new, FORMER, NUMBER)
    for name in TRIED:
        on.strays(new.hosts[name])
        on.confirm(new.hosts[name])
    new.hosts[UNRECORDED].run("rm -r /var/lib/trimtab/tapes/*/*")
    new.variables |= {"trimtab_waves": WAVES, "trimtab_checks": 1}
    return new


@pytest.fixture
def before(world: World) -> dict[str, dict[str, Any]]:
    return states(world)


def states(world: World) -> dict[str, dict[str, Any]]:
    return {name: on.state(host) for name, host in world.hosts.items() if not host.ended}


def candidate(most: int) -> str:
    return f"[policy.no_ports]\nmost = {most}\n"


@pytest.mark.long
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
    assert on.differing(before, states(world)) == {}


@pytest.mark.fleet
def test_a_preview_beyond_a_limit_is_the_gate_of_a_rollout_and_nothing_is_touched(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    limit = {"trimtab_highest": {on.KEY: 90}, "trimtab_max_hosts": "10%"}
    code, document, said = on.rolled(world, candidate(100), check=False, trimtab_hosts="h2,h3,h5", **limit)
    assert (code, document) == (2, {})
    assert f"2 hosts would differ; the limit is 10%; {on.KEY} would be above 90 on h2, h5" in said
    assert {on.memo(host) for host in world.hosts.values()} == {""}
    assert on.differing(before, states(world)) == {}


@pytest.mark.long
def test_a_sick_canary_stops_the_rollout_and_is_returned(world: World, before: dict[str, dict[str, Any]]) -> None:
    on.sicken(world.hosts["h1"], '"most":101')
    code, document, _ = on.rolled(world, candidate(101), check=False, trimtab_preview=False, trimtab_soak=6)
    on.heal(world.hosts["h1"])
    assert code
    assert on.outcomes(document) == {name: "returned" if name == "h1" else "untouched" for name in world.hosts}
    assert "decider-no_ports" in document["stopped"]
    assert {name: on.memo(host) for name, host in world.hosts.items() if on.memo(host)} == {"h1": "returned"}
    assert on.differing(before, states(world)) == {}


@pytest.mark.long
def test_a_host_sick_in_the_second_wave_stops_it_and_all_that_were_touched_return(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    on.sicken(world.hosts[SICK], '"most":102')
    # Values that the candidate itself has brought about, one of them confirmed: they go, too.
    more: dict[str, Any] = {"trimtab_preview": False, "trimtab_return": "all", "trimtab_soak": 15}
    with on.under(world.hosts[STRAY], '"most":102', _stray):
        code, document, said = on.rolled(world, candidate(102), check=False, **more)
    on.heal(world.hosts[SICK])
    assert code
    touched = {"h1", *SECOND}
    assert on.outcomes(document) == {name: "returned" if name in touched else "untouched" for name in world.hosts}
    assert SICK in document["stopped"]
    history = [json.loads(line) for line in world.hosts[STRAY].run(on.HISTORY).splitlines()]
    assert [row["new"] for row in history if row["state"] == "rolled_back"] == [102], said
    assert on.differing(before, states(world)) == {}


@pytest.mark.fleet
def test_recordings_come_home_anonymous_with_a_page_that_draws_them(world: World) -> None:
    folder = world.folder / "collected"
    # A restart may have begun others since.
    world.hosts[UNRECORDED].run("rm -rf /var/lib/trimtab/tapes/*/*")
    said = world.play("collect.yml", "--limit", f"h1,h2,{UNRECORDED}", trimtab_folder=str(folder)).said
    assert f"{UNRECORDED}: no recordings of these hours" in said
    assert sorted(path.name for path in folder.iterdir()) == ["fleet.html", "h1.tape", "h2.tape"]
    assert on.KEY in (folder / "fleet.html").read_text()
    assert "trimtab-collected" not in world.hosts["h1"].run("ls /var/tmp")


@pytest.mark.fleet
def test_a_host_that_goes_away_in_the_middle_is_named_and_spoils_no_other(
    world: World, before: dict[str, dict[str, Any]]
) -> None:
    """It does not come back."""
    with on.under(world.hosts[LOST], '"most":400', Host.cut):
        more: dict[str, Any] = {"trimtab_preview": False, "trimtab_tolerated": 1, "trimtab_hosts": ",".join(LAST)}
        code, document, _ = on.rolled(world, candidate(400), check=False, **more)
    assert code
    assert on.outcomes(document) == {name: "sick" if name == LOST else "done" for name in LAST}
    assert "unreachable" in document["hosts"][LOST]["reason"]
    now: dict[str, Any] = {"policy": candidate(400), "running": {"no_ports": {"most": 400}}}
    wanted = {name: {**found, **(now if name in LAST else {})} for name, found in before.items() if name != LOST}
    assert on.differing(wanted, states(world)) == {}


@pytest.mark.long
def test_the_end_leaves_every_value_as_it_was_before_trimtab(world: World, bare: dict[str, str]) -> None:
    standing = {name: host for name, host in world.hosts.items() if not host.ended}
    assert [name for name, host in standing.items() if host.sysctls() != bare] == sorted(TRIED)
    world.play("remove.yml", "--limit", ",".join(standing))
    assert {name: host.sysctls() for name, host in standing.items()} == dict.fromkeys(standing, bare)
    assert {host.run("ls -d /opt/trimtab /etc/trimtab /var/lib/trimtab || :") for host in standing.values()} == {""}


def _stray(host: Host) -> None:
    on.strays(host)
    on.confirm(host)
