"""The plays on real hosts, over ssh: one where systemd runs, two without. In the order of an operator's days."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_world import World, bundle, fleet

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(600)]

HOSTS = ["h1", "h2", "h3"]
KEY = "net.ipv4.tcp_wmem[2]"
FILE = "ipv4/tcp_wmem"
FIND = "find /etc /opt /usr/local /var/lib /run/systemd/system -xdev ! -path '*/dbus*' | sort"
"""Where the plays place something."""
POLICY = "[tunables.'net.ipv4.tcp_wmem[2]']\nhigh = 8388608\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with fleet(3, booted=1) as made:
        made.variables = {"trimtab_bundle": str(bundle())}
        yield made


@pytest.fixture(scope="module")
def before(world: World) -> dict[str, tuple[dict[str, str], str]]:
    """What each host was, before anything was done to it."""
    return {name: (host.sysctls(), host.run(FIND)) for name, host in world.hosts.items()}


@pytest.fixture(scope="module")
def installed(world: World, before: object) -> World:
    world.play("site.yml")
    return world


def values(world: World) -> dict[str, dict[str, str]]:
    return {name: host.sysctls() for name, host in world.hosts.items()}


def status(world: World, *words: str) -> dict[str, dict[str, object]]:
    """Host -> its row, by status.yml."""
    file = world.folder / "status.json"
    world.play("status.yml", *words, trimtab_json=str(file), trimtab_must_be_fine=False)
    found: dict[str, dict[str, object]] = json.loads(file.read_text())["hosts"]
    return found


def lines(said: str) -> dict[str, str]:
    """Host -> its state, by the table at the end of a play."""
    rows = [line.split('"')[1].split()[:2] for line in said.splitlines() if line.strip().startswith('"h')]
    return {name: state for name, state in rows if name in HOSTS}


def facts(world: World, name: str) -> dict[str, Any]:
    """What other plays see as ansible_local.trimtab."""
    found: dict[str, Any] = json.loads(world.hosts[name].run("/etc/ansible/facts.d/trimtab.fact"))
    return found


def test_check_and_diff_say_what_an_installation_would_change_and_change_nothing(
    world: World, before: dict[str, tuple[dict[str, str], str]]
) -> None:
    said = world.play("site.yml", "--check", "--diff")
    assert said.changed >= 3 * len(HOSTS)
    assert "+running" in said.said
    assert {name: (host.sysctls(), host.run(FIND)) for name, host in world.hosts.items()} == before


def test_an_installation_runs_in_advise_and_leaves_each_value(
    installed: World, before: dict[str, tuple[dict[str, str], str]]
) -> None:
    rows = status(installed)
    assert [(rows[name]["state"], rows[name]["mode"]) for name in HOSTS] == [("fine", "advise")] * 3
    assert values(installed) == {name: found for name, (found, _) in before.items()}
    assert installed.hosts["h1"].run("systemctl is-enabled trimtab.target").strip() == "enabled"
    assert ".TH TRIMTAB 1" in installed.hosts["h2"].run("cat /usr/local/share/man/man1/trimtab.1")


def test_a_second_run_changes_nothing(installed: World) -> None:
    assert installed.play("site.yml", "--diff").changed == 0


def test_what_an_interrupted_play_left_half_done_the_next_one_completes(installed: World) -> None:
    # Killed between a change of the configuration and the restart; and in the middle of an installation.
    installed.hosts["h1"].run("touch /etc/trimtab/trimtab.toml")
    installed.hosts["h2"].run("rm /opt/trimtab/releases/*/.complete")
    played = installed.play("site.yml")
    assert lines(played.said) == dict.fromkeys(HOSTS, "fine")
    assert [played.recap[name]["changed"] > 0 for name in HOSTS] == [True, True, False]


def test_a_policy_is_checked_with_the_rest_shown_placed_and_counts(installed: World) -> None:
    file = installed.folder / "policy.toml"
    file.write_text("[tunables.'net.ipv4.tcp_wmem[2]']\nhigh = 99999999999\n")
    played = installed.play("site.yml", "--limit", "h2", check=False, trimtab_policy_file=str(file))
    assert played.code
    assert "only narrowing is allowed" in played.said
    assert not installed.hosts["h2"].path("/etc/trimtab/conf.d/50-policy.toml").exists()
    file.write_text(POLICY)
    said = installed.play("site.yml", "--check", "--diff", "--limit", "h2", trimtab_policy_file=str(file)).said
    assert "+high = 8388608" in said
    installed.play("site.yml", trimtab_policy_file=str(file))
    assert "8388608" in installed.hosts["h3"].run("cat /run/trimtab/config.json")
    assert installed.play("site.yml", "--limit", "h2", trimtab_policy_file=str(file)).changed == 0


def test_holds_are_kept_once_and_released(installed: World) -> None:
    assert [installed.play("hold.yml", trimtab_key=KEY).changed for _ in range(2)] == [3, 0]
    # With what is tied to it.
    assert [KEY in [row["tunable"] for row in facts(installed, name)["held"]] for name in HOSTS] == [True] * 3
    assert installed.play("release.yml", "--check", trimtab_key=KEY).changed == 3
    assert [installed.play("release.yml", trimtab_key=KEY).changed for _ in range(2)] == [3, 0]


def test_in_enforce_a_host_acts_and_tells_other_plays_what_it_owns(installed: World) -> None:
    assert [installed.play("mode.yml", trimtab_mode="enforce").changed for _ in range(2)] == [3, 0]
    for name in ("h1", "h2"):
        host = installed.hosts[name]
        host.wish(KEY, int(host.sysctls()[FILE].split()[-1]) + 1_000_000)
    rows = status(installed)
    assert [rows[name]["trial"] for name in HOSTS] == [1, 1, 0]
    argv = installed.argv("ansible", "h1", "-m", "ansible.builtin.setup", "-a", "filter=ansible_local")
    said = installed.run(argv)
    assert json.loads(said.partition("=> ")[2])["ansible_facts"]["ansible_local"]["trimtab"]["owned"] == [KEY]
    # A run of site.yml is no reason for a restart, which would end the trials.
    assert installed.play("site.yml").changed == 0
    assert [row["state"] for row in facts(installed, "h1")["standing"]] == ["trial"]


def test_off_ends_trials_and_keeps_what_is_confirmed(
    installed: World, before: dict[str, tuple[dict[str, str], str]]
) -> None:
    installed.hosts["h2"].run("/usr/local/bin/trimtab confirm 1")
    assert installed.play("off.yml", "--check").changed == 3
    assert [installed.play("off.yml").changed for _ in range(2)] == [3, 0]
    assert {name: values(installed)[name] == before[name][0] for name in HOSTS} == {"h1": True, "h2": False, "h3": True}
    assert {row["state"] for row in status(installed).values()} == {"off"}


def test_who_cannot_be_reached_or_is_sick_is_named_and_stops_nobody(installed: World) -> None:
    installed.play("site.yml")
    installed.hosts["h1"].run("systemctl kill -s STOP trimtab-actuator; cp /etc/os-release /tmp/; rm /etc/os-release")
    installed.hosts["h1"].run("echo ID=plan9 > /etc/os-release")
    installed.hosts["h2"].run("mv /opt/trimtab/current/bin/python /opt/trimtab/current/bin/python.away")
    rows = status(installed)
    assert (rows["h2"]["state"], rows["h3"]["state"]) == ("sick", "fine")
    assert "trimtab does not work here" in str(rows["h2"]["reason"])
    played = installed.play("site.yml", check=False)
    assert played.code
    assert "this is plan9" in played.said
    assert [played.recap[name]["failed"] for name in ("h2", "h3")] == [0, 0]
    assert lines(played.said) == {"h1": "failed", "h2": "fine", "h3": "fine"}
    installed.hosts["h1"].run("rm /etc/os-release; cp -P /tmp/os-release /etc/os-release")
    installed.hosts["h1"].run("systemctl kill -s CONT trimtab-actuator", check=False)


def test_removal_leaves_files_and_values_as_they_were(
    installed: World, before: dict[str, tuple[dict[str, str], str]]
) -> None:
    installed.play("remove.yml", "--check", "--diff")
    installed.play("remove.yml")
    after = {name: (host.sysctls(), host.run(FIND)) for name, host in installed.hosts.items()}
    for name in HOSTS:
        assert after[name][0] == before[name][0]
        assert set(after[name][1].splitlines()) ^ set(before[name][1].splitlines()) == set()
    assert "trimtab" not in installed.hosts["h1"].run("cat /etc/passwd /etc/group")
    assert installed.play("remove.yml").changed == 0


def test_a_host_that_is_down_or_full_is_named_and_the_others_are_installed(world: World) -> None:
    world.hosts["h1"].die()
    full = world.hosts["h2"].run("df --output=avail -m / | tail -1")
    world.hosts["h2"].run(f"fallocate -l {int(full) - 100}M /var/tmp/full")
    played = world.play("site.yml", check=False)
    assert played.code
    rows = [line for line in played.said.splitlines() if '"h' in line]
    assert [row.split()[:2] for row in rows[1:]] == [['"h1', "unreachable"], ['"h2', "failed"], ['"h3', "fine"]]
    assert "unreachable" in rows[1]
    assert "MiB are free below /opt" in rows[2]
    played = world.play("hold.yml", check=False, trimtab_key=KEY)
    rows = [line for line in played.said.splitlines() if '"h' in line]
    assert [row.split()[:2] for row in rows[1:]] == [['"h1', "unreachable"], ['"h2', "absent"], ['"h3', "fine"]]
    assert [played.recap[name]["changed"] for name in HOSTS] == [0, 0, 1]
