"""The systemd units: made from the rows, clean, and at work where systemd runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleet_world import WISH, FleetError, Host, World, fleet

from bus import notify, roles
from trimtab import managed, units

PLACE = units.Place(Path("/run/trimtab"), Path("/var/lib/trimtab"))
ROWS = roles.roles(roles.BUILT_IN_DECIDERS)
FILES = units.render(ROWS, PLACE)
WORST = {"actuator": 3.0, "deadman": 3.0, "loader": 2.8, "collector": 2.4, "decider": 1.1}
"""systemd-analyze's exposure, 0 to 10, by kind; docs/fleet.md has them."""
TRIMTAB = f"{sys.prefix}/bin/trimtab"


def unit(role: roles.Role) -> dict[str, str]:
    """Directive -> value, of a role's unit."""
    lines = FILES[f"systemd/system/trimtab-{role.name}.service"].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize("role", ROWS, ids=lambda role: role.name)
def test_a_unit_gives_a_role_what_its_row_says_and_no_more(role: roles.Role) -> None:
    found = unit(role)
    assert found["CapabilityBoundingSet"].split() == list(role.capabilities)
    assert found.get("User", "root") == units.user(role)
    assert (found.get("PrivateNetwork") == "yes") == (not role.network)
    assert (found["ProtectKernelTunables"] == "no") == (role.kind in ("actuator", "deadman"))


def test_users_have_the_numbers_of_the_rows() -> None:
    users = dict(re.findall(r"^u (\S+) (\d+) ", FILES["sysusers.d/trimtab.conf"], re.MULTILINE))
    assert users == {units.user(role): str(role.uid) for role in ROWS if role.uid_offset}
    assert all(len(name) <= units.NAME_MAX for name in users)


def test_a_long_name_of_a_tuner_leaves_a_user_that_systemd_takes() -> None:
    role = msgspec.structs.replace(ROWS[-1], name="decider-a_tuner_with_quite_a_long_name")
    assert units.user(role) == f"trimtab-{role.uid_offset}"


def test_each_role_starts_after_those_it_stops_before() -> None:
    after = {role.name: unit(role)["After"].split() for role in ROWS}
    assert "trimtab-deadman.service" in after["actuator"]
    assert "trimtab-actuator.service" in after["collector-bpf"]
    assert "trimtab-collector-bpf.service" in after["decider-guard"]
    assert all(units.LAYOUT in names for names in after.values())


def test_other_directories_than_systemds_are_refused() -> None:
    with pytest.raises(units.UnitError, match="below /run"):
        units.render(ROWS, msgspec.structs.replace(PLACE, run_dir=Path("/tmp/x")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("etc")
    assert len(units.write(FILES, folder)) == len(FILES)
    assert not units.write(FILES, folder)
    return folder


def test_systemd_has_nothing_to_say_against_them(written: Path) -> None:
    argv = ["systemd-analyze", "verify", "--man=no", *map(str, (written / units.UNITS).iterdir())]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    argv = ["systemd-sysusers", "--dry-run", f"--root={written}", str(written / units.USERS)]
    assert subprocess.run(argv, capture_output=True).returncode == 0


@pytest.mark.parametrize("role", ROWS, ids=lambda role: role.name)
def test_systemd_finds_little_to_attack(written: Path, role: roles.Role) -> None:
    path = written / units.UNITS / units.name(role)
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    text = subprocess.run(argv, capture_output=True, text=True).stdout
    score = re.search(r"exposure level for \S+: ([\d.]+)", text)
    assert score
    assert float(score.group(1)) <= WORST[role.kind]


def test_a_status_too_long_for_systemd_keeps_its_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = {"published": 7, "watched": ["x" * 50] * 100, "missing": ["y" * 40] * 60}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("INVOCATION_ID", "x")
        notify.notify("WATCHDOG=1", f"STATUS={json.dumps(status)}")
        message = ear.recv(1 << 16).decode()
    assert len(message) <= notify.SYSTEMD_BYTES
    assert message.startswith("WATCHDOG=1\nSTATUS=")
    said = json.loads(message.partition("STATUS=")[2])
    assert (said["published"], said["left_out"]) == (7, ["watched"])


SHOW = """#!/bin/sh
cat <<END
Id=trimtab-layout.service
MainPID={pid}
ActiveState=active

Id=trimtab-actuator.service
MainPID={pid}
ActiveState=active
SubState=running
NRestarts=2
StateChangeTimestamp=@17
StatusText={{"mode":"enforce","missing":["x: why"]}}

Id=trimtab-loader.service
MainPID=0
ActiveState=inactive
SubState=dead
Result=success

Id=trimtab-collector-proc.service
MainPID=0
ActiveState=activating
SubState=auto-restart
StatusText=no json
END
"""


def test_status_is_what_systemd_says_of_the_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SHOW.format(pid=os.getpid()))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    chosen = [role for role in ROWS if role.name in ("actuator", "loader", "collector-proc")]
    (tmp_path / managed.MARK).write_bytes(managed.marked(chosen, "advise"))
    found = managed.document(tmp_path)
    assert found
    assert (found["mode"], found["ready"], found["missing"]) == ("enforce", False, ["x: why"])
    assert [(row["name"], row["state"], row["restarts"]) for row in found["roles"]] == [
        ("actuator", "running", 2),
        ("loader", "done", 0),
        ("collector-proc", "waiting", 0),
    ]


def test_where_no_units_run_nothing_is_asked(tmp_path: Path) -> None:
    assert managed.document(tmp_path) is None


@pytest.fixture(scope="module")
def booted() -> Iterator[World]:
    with fleet(1, booted=1) as world:
        host = world.hosts["h1"]
        host.run(f"{TRIMTAB} units --output /etc && systemd-sysusers trimtab.conf && systemctl daemon-reload")
        host.run("systemctl enable --now trimtab.target")
        yield world


def wait_for(look: Callable[[], object], wanted: bool = True) -> None:
    """As long as a machine takes that others keep busy."""
    deadline_s = time.monotonic() + 180
    while bool(look()) != wanted:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def status(host: Host) -> dict[str, Any]:
    """What trimtab says of itself; not ready where nothing can be asked, as in the middle of a boot."""
    with contextlib.suppress(FleetError, ValueError):
        found: dict[str, Any] = json.loads(host.run(f"{TRIMTAB} status --json", check=False))
        return found
    return {"ready": False, "roles": []}


def first_process(host: Host) -> int:
    """0 while there is none."""
    with contextlib.suppress(FleetError):
        return host.pid
    return 0


@pytest.mark.system
@pytest.mark.long
@pytest.mark.timeout(400)
class TestBooted:
    def test_the_units_run_as_their_rows_say_and_shut_themselves_in(self, booted: World) -> None:
        host = booted.hosts["h1"]
        wait_for(lambda: status(host)["ready"])
        found = status(host)
        assert found["problem"] == ""
        rows = {role["name"]: role["allowed"] for role in found["roles"]}
        for role in ROWS:
            if not role.oneshot_for:
                assert (rows[role.name]["user"], rows[role.name]["more"]) == (role.uid, [])
                assert rows[role.name]["less"] == []

    def test_a_change_is_made_for_the_decider_alone_and_a_stop_puts_it_back(self, booted: World) -> None:
        host = booted.hosts["h1"]
        before = host.sysctls()
        want = wmem(host) + 1_000_000
        stranger = WISH.replace("os.setgid(user)", "os.setgid(user + 1)")
        ask(host, want, stranger.replace("range(50)", "range(10)"), check=False)
        assert host.sysctls() == before
        ask(host, want)
        assert wmem(host) == want
        # The layout ends last, and systemctl waits for what it is told of.
        host.run("systemctl stop trimtab.target trimtab-layout.service")
        assert host.sysctls() == before
        host.run("systemctl start trimtab.target")

    def test_a_hung_role_is_replaced_and_one_that_died_gets_its_probes_again(self, booted: World) -> None:
        host = booted.hosts["h1"]
        wait_for(lambda: status(host)["ready"])
        host.run("systemctl kill -s STOP trimtab-collector-proc; systemctl kill -s KILL trimtab-collector-bpf")

        def found() -> dict[str, Any]:
            said = status(host)
            return {"ready": said["ready"], **{role["name"]: role for role in said["roles"]}}

        hit = ("collector-proc", "collector-bpf")
        wait_for(lambda: (now := found())["ready"] and all(now[name]["restarts"] for name in hit))
        wait_for(lambda: found()["loader"]["state"] == "done")
        assert "watchdog" in host.run("journalctl -u trimtab-collector-proc --no-pager")

    def test_a_boot_restores_what_was_confirmed_first_and_brings_all_of_it_up(self, booted: World) -> None:
        host = booted.hosts["h1"]
        before = host.sysctls()
        want = wmem(host) + 1_000_000
        ask(host, want)
        rows = [json.loads(line) for line in host.run(f"{TRIMTAB} history --json").splitlines()]
        (trial,) = [row["id"] for row in rows if row["state"] == "trial"]
        host.run(f"{TRIMTAB} confirm {trial}")
        first = host.pid
        host.run("systemctl reboot", check=False)
        wait_for(lambda: first_process(host) not in (0, first))
        wait_for(lambda: status(host)["ready"])
        assert {name for name, value in host.sysctls().items() if value != before[name]} == {"ipv4/tcp_wmem"}
        assert wmem(host) == want
        assert "1 confirmed values applied again" in host.run("journalctl -b -u trimtab-restore --no-pager -o cat")
        entered = [
            int(host.run(f"systemctl show -P ActiveEnterTimestampMonotonic trimtab-{name}"))
            for name in ("restore", "layout", "actuator")
        ]
        assert 0 < entered[0] < entered[1] < entered[2]

    def test_off_stops_all_of_it(self, booted: World) -> None:
        host = booted.hosts["h1"]
        host.run(f"{TRIMTAB} off")
        listed = "systemctl list-units 'trimtab-*' --plain --no-legend"
        wait_for(lambda: host.run(f"{listed} --state=active,activating,deactivating"), wanted=False)
        assert not host.run(f"{listed} --state=failed")


def wmem(host: Host) -> int:
    return int(host.sysctls()["ipv4/tcp_wmem"].split()[-1])


def ask(host: Host, want: int, how: str = WISH, check: bool = True) -> None:
    """For a value, as the decider does, or somebody else."""
    host.run(f"{sys.prefix}/bin/python -I -B -c '{how}' net.ipv4.tcp_wmem[2] {want}", check=check)
