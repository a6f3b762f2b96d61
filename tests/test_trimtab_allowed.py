"""What a role may do beside what its row says: real processes, and what /proc says of made-up ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.roles import FIXED, GROUP, Role, decider_roles
from bus.sandbox import PARTS
from trimtab import allowed, announce, rundir, status
from trimtab.privilege import mask

ROOT = Path(__file__).resolve().parent.parent
(DECIDER,) = decider_roles(["guard"])
ACTUATOR = next(role for role in FIXED if role.kind == "actuator")
BECOME = """
import json, signal, sys
from pathlib import Path
from bus import sandbox
from trimtab.privilege import drop
uid, capabilities, groups = json.loads(sys.argv[1])
drop(uid, groups, capabilities)
print(json.dumps(sandbox.enter([]).holds), flush=True)
signal.pause()
"""


def process(tmp_path: Path, role: Role, **changes: object) -> Path:
    """A directory as in /proc: a process that may do just what the row says, but for the changes."""
    bits = f"{mask(role.capabilities):016x}"
    lines: dict[str, object] = {
        "Name": "x",
        "Uid": "\t".join([str(role.uid)] * 4),
        "Gid": "\t".join([str(role.uid)] * 4),
        "Groups": GROUP,
        "CapInh": "0",
        "CapPrm": bits,
        "CapEff": bits,
        "CapBnd": bits,
        "CapAmb": "0",
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }
    (tmp_path / "status").write_text("".join(f"{key}:\t{value}\n" for key, value in (lines | changes).items()))
    return tmp_path


def look(folder: Path, role: Role, said: object = PARTS) -> allowed.Allowed:
    row = json.loads(json.dumps(allowed.by_row(role)))
    found = allowed.read(folder, row, list(said) if isinstance(said, tuple) else said)
    assert found
    return found


@pytest.mark.parametrize("role", [DECIDER, ACTUATOR], ids=["decider", "actuator"])
def test_one_that_is_as_its_row_says_has_neither_more_nor_less(tmp_path: Path, role: Role) -> None:
    found = look(process(tmp_path, role), role)
    assert (found.user, found.more, found.less) == (role.uid, [], [])
    assert sorted(found.capabilities) == sorted(role.capabilities)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"CapPrm": f"{1 << 12:x}"}, ["CAP_NET_ADMIN"]),
        ({"CapAmb": f"{1 << 12:x}"}, ["CAP_NET_ADMIN"]),
        ({"CapInh": f"{1 << 39:x}"}, ["CAP_BPF"]),
        ({"Uid": "0 0 0 0"}, ["user 0"]),
        ({"Uid": f"{DECIDER.uid} {DECIDER.uid} 0 {DECIDER.uid}"}, ["user 0"]),
        ({"Gid": f"{DECIDER.uid} {DECIDER.uid + 1} 0 0"}, ["user 0", f"user {DECIDER.uid + 1}"]),
        ({"Groups": f"{GROUP} 27"}, ["group 27"]),
        ({"NoNewPrivs": 0}, ["new privileges"]),
    ],
)
def test_what_goes_beyond_the_row_is_named(tmp_path: Path, changes: dict[str, object], more: list[str]) -> None:
    assert look(process(tmp_path, DECIDER, **changes), DECIDER).more == more


def test_what_the_row_says_and_is_not_there_is_named_too(tmp_path: Path) -> None:
    found = look(process(tmp_path, ACTUATOR, CapEff=f"{1 << 12:x}", CapPrm=f"{1 << 12:x}"), ACTUATOR)
    assert (found.capabilities, found.more) == (["CAP_NET_ADMIN"], [])
    assert sorted(found.less) == ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]


@pytest.mark.parametrize("said", [None, "seccomp", {"landlock": 1}, [["landlock"]], ["everything"]])
def test_a_sandbox_of_which_the_role_says_nothing_sensible_is_none(tmp_path: Path, said: object) -> None:
    found = look(process(tmp_path, DECIDER), DECIDER, said)
    assert (found.sandbox, found.less) == ([], list(PARTS))


def test_a_filter_that_the_kernel_does_not_know_of_is_a_lie(tmp_path: Path) -> None:
    found = look(process(tmp_path, DECIDER, Seccomp=0), DECIDER)
    assert (found.sandbox, found.less) == (["empty network", "landlock"], ["seccomp"])


@pytest.mark.parametrize("content", [None, "Name:\tx\n"])
def test_a_process_that_cannot_be_seen_is_none(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "status").write_text(content)
    assert allowed.read(tmp_path, allowed.by_row(DECIDER), []) is None


# --- in the status


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[str]]]:
    """A process with this user, these capabilities, these groups: its pid, and the sandbox that it says it has."""
    argv = [sys.executable, "-c", BECOME, json.dumps(request.param)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout
        yield child.pid, json.loads(child.stdout.readline())
        child.send_signal(signal.SIGKILL)


def supervised(tmp_path: Path, pid: int, holds: list[str], role: Role) -> tuple[Path, Path]:
    row: dict[str, Any] = {"name": role.name, "pid": pid, "state": "running", "restarts": 0, "since_ns": 1}
    document = {
        "schema": announce.SCHEMA,
        "pid": os.getpid(),
        "start_ticks": announce.start_ticks(Path("/proc/self/stat")),
        "t_ns": time.monotonic_ns(),
        "ready": True,
        "mode": "observe",
        "roles": [row | {"status": {"sandbox": holds}, "allowed": allowed.by_row(role)}],
        "watched": [],
        "missing": [],
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / rundir.STATUS).write_text(json.dumps(document))
    return tmp_path / "run", tmp_path / "state"


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become others")
class TestStatus:
    @pytest.mark.parametrize("other", [(DECIDER.uid, ["CAP_NET_ADMIN"], [GROUP])], indirect=True)
    def test_a_role_that_may_do_more_than_its_row_allows_makes_the_whole_degraded(
        self, tmp_path: Path, other: tuple[int, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = supervised(tmp_path, *other, DECIDER)
        assert status.show_status(*places, as_json=False) == 3
        said = capsys.readouterr().out
        assert "trimtab is not ready: more than its row allows: decider-guard (CAP_NET_ADMIN)" in said
        assert "decider-guard may do more than its row allows: net_admin" in said

    @pytest.mark.parametrize("other", [(DECIDER.uid, [], [GROUP])], indirect=True)
    def test_one_that_may_do_less_is_named_and_all_is_well(
        self, tmp_path: Path, other: tuple[int, list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        pid, holds = other
        places = supervised(tmp_path, pid, [part for part in holds if part != "landlock"], DECIDER)
        assert status.show_status(*places, as_json=False) == 0
        said = capsys.readouterr().out
        assert f"decider-guard  {DECIDER.uid}  none          " in said
        assert "decider-guard does without " in said
        assert "landlock" in said.partition("does without ")[2]
        assert "more than" not in said
