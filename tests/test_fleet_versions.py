"""Releases of other code, on a host where systemd keeps the roles and one where trimtab does: there, back, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import rollout_world as on
from fleet_world import TREE, Host, World, bundle, fleet

from actuators import store

pytestmark = [pytest.mark.system, pytest.mark.fleet, pytest.mark.timeout(900)]

KEPT = "net.ipv4.tcp_wmem[2]"
TRIED = "net.ipv4.tcp_rmem[2]"
NEWER = "0.2.0"
MADE_OF = ("actuators", "bpf", "bus", "collectors", "deciders", "trimtab", "docs/trimtab.1")
# What the other code does otherwise: a word more in its facts, and an actuator that a file keeps from starting.
OTHERWISE = {
    "pyproject.toml": ('\nversion = "0.1.0"', f'\nversion = "{NEWER}"'),
    "trimtab/facts.py": ('"schema": SCHEMA,', '"schema": SCHEMA, "newer": True,'),
    "actuators/__main__.py": ("def _run(options: argparse.Namespace, settings: Config) -> bool:\n", "{}{}"),
}
BROKEN = "/var/lib/trimtab/broken"
BREAKS = f"""\
    from pathlib import Path
    if Path("{BROKEN}").exists():
        raise OSError("broken in {NEWER}")
"""
# Of one that writes another form of journal.
MIGRATES = "\nMIGRATIONS += ('CREATE TABLE more (a INTEGER) STRICT;',)\n"
PLAY: dict[str, Any] = {"trimtab_waves": [1, 1], "trimtab_checks": 1, "trimtab_preview": False}


@pytest.fixture(scope="module")
def older() -> str:
    """The archive of this tree."""
    return str(bundle())


@pytest.fixture(scope="module")
def world(older: str) -> Iterator[World]:
    with fleet(2, booted=1) as made:
        made.variables = {"trimtab_patience": 180}
        made.play("site.yml", trimtab_mode="enforce", trimtab_bundle=older)
        for host in made.hosts.values():
            wished(host, KEPT)
            host.run("/usr/local/bin/trimtab confirm 1")
        made.variables |= {**on.QUICK, **PLAY}
        yield made


@pytest.fixture
def before(world: World) -> dict[str, dict[str, Any]]:
    """With something on trial on each: a restart puts it back."""
    found = states(world)
    for host in world.hosts.values():
        wished(host, TRIED)
    assert [len(facts(host)["standing"]) for host in world.hosts.values()] == [2, 2]
    return found


@pytest.fixture(scope="module")
def newer(world: World) -> str:
    """The archive of other code."""
    clone = world.folder / "newer"
    clone.mkdir()
    for name in ("pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(TREE / name, clone)
    for name in MADE_OF:
        (clone / name).parent.mkdir(exist_ok=True)
        place = TREE / name
        shutil.copytree(place, clone / name) if place.is_dir() else shutil.copy(place, clone / name)
    for name, (old, new) in OTHERWISE.items():
        text = (clone / name).read_text()
        assert text.count(old) == 1, name
        (clone / name).write_text(text.replace(old, new.format(old, BREAKS)))
    return str(bundle(clone))


def wished(host: Host, key: str) -> None:
    file, _, _ = key.removeprefix("net.").partition("[")
    host.wish(key, int(host.sysctls()[file.replace(".", "/", 1)].split()[-1]) + 1_000_000)


def facts(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run("/etc/ansible/facts.d/trimtab.fact"))
    return found


def states(world: World) -> dict[str, dict[str, Any]]:
    names = ("version", "ready", "mode", "standing", "held")
    rows = {name: (host, facts(host)) for name, host in world.hosts.items()}
    return {
        name: {"newer": "newer" in found, "values": host.sysctls(), **{each: found[each] for each in names}}
        for name, (host, found) in rows.items()
    }


def rolled(world: World, check: bool = True, **variables: Any) -> tuple[dict[str, Any], str]:
    """rollout.yml: its document, and what it said."""
    document = world.folder / "rollout.json"
    document.unlink(missing_ok=True)
    played = world.play("rollout.yml", check=check, trimtab_json=str(document), **variables)
    assert check or played.code
    return json.loads(document.read_text()), played.said


def other(before: dict[str, dict[str, Any]], version: str) -> dict[str, dict[str, Any]]:
    """The same, but for the code."""
    return {name: {**found, "version": version, "newer": version == NEWER} for name, found in before.items()}


def test_a_version_that_does_not_start_on_a_host_of_the_second_wave_is_taken_back(
    world: World, before: dict[str, dict[str, Any]], newer: str
) -> None:
    world.hosts["h2"].run(f"touch {BROKEN}")
    more: dict[str, Any] = {"trimtab_return": "all", "trimtab_patience": 45}
    document, _ = rolled(world, check=False, trimtab_bundle=newer, **more)
    world.hosts["h2"].run(f"rm {BROKEN}")
    assert on.outcomes(document) == {"h1": "returned", "h2": "returned"}
    assert f"broken in {NEWER}" in document["hosts"]["h2"]["reason"]
    assert on.differing(before, states(world)) == {}


def test_an_upgrade_holds_what_is_confirmed_and_ends_what_is_on_trial(
    world: World, before: dict[str, dict[str, Any]], newer: str
) -> None:
    document, _ = rolled(world, trimtab_bundle=newer)
    assert on.outcomes(document) == {"h1": "done", "h2": "done"}
    assert on.differing(other(before, NEWER), states(world)) == {}
    assert [len(facts(host)["standing"]) for host in world.hosts.values()] == [1, 1]


def test_a_downgrade_does_so_as_well(world: World, before: dict[str, dict[str, Any]], older: str) -> None:
    document, _ = rolled(world, trimtab_bundle=older)
    assert on.outcomes(document) == {"h1": "done", "h2": "done"}
    assert on.differing(other(before, "0.1.0"), states(world)) == {}


def test_a_version_that_cannot_read_the_journal_is_refused_and_what_runs_goes_on(world: World, older: str) -> None:
    for host in world.hosts.values():
        (module,) = host.path("/opt/trimtab/releases").glob(f"{NEWER}-*/lib/python3*/site-packages/actuators/store.py")
        module.write_text(module.read_text() + MIGRATES)
    world.play("rollback.yml")
    found = states(world)
    assert {row["version"] for row in found.values()} == {NEWER}
    document, _ = rolled(world, check=False, trimtab_bundle=older)
    assert on.outcomes(document) == {"h1": "returned", "h2": "untouched"}
    assert f"was written by a newer one (version {len(store.MIGRATIONS) + 1}; 0.1.0-" in document["stopped"]
    assert on.differing(found, states(world)) == {}
