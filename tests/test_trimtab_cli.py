"""The commands as an operator and as a program meet them: words, exit codes, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actuators.journal import Journal
from actuators.records import Hold, Intent, Site, Spot
from bus.tunables import TUNABLES
from trimtab import announce, rundir, show, status, tables
from trimtab.__main__ import main
from trimtab.privilege import drop

ROOT = Path(__file__).resolve().parent.parent
RMEM = "net.ipv4.tcp_rmem[2]"
COOKIE = 4711


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Ran]:
    """Run a command on directories of the test's own."""

    def call(*arguments: str, dirs: bool = True) -> Ran:
        where = ["--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")] if dirs else []
        capfdbinary.readouterr()
        code = main([*arguments, *where])
        sys.stdout.flush()
        said = capfdbinary.readouterr()
        return Ran(code, said.out.decode(), said.err.decode())

    (tmp_path / "run").mkdir()
    return call


def test_namespaces_and_tuners_may_be_given_with_commas_or_again(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("trimtab.start.run", lambda run_dir, state_dir, settings: seen.append(settings) or 0)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert run("run", "--netns", "5,6", "--netns", "7", "--only", "neigh_table", "--only", "tcp_buffer").code == 0
    assert seen[0].netns == [5, 6, 7]
    assert {name for name, on in seen[0].deciders.items() if on} == {"guard", "neigh_table", "tcp_buffer"}


# --- usage


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("status", "--nonsense"),
        ("run", "--mode", "wild"),
        ("run", "--only", "tcp_buffer,"),
        ("run", "--only", "nobody"),
        ("run", "--netns", "host"),
        ("run", "--netns", "0"),
        ("run", "--netns", str(1 << 64)),
        ("run", "--netns", "9" * 5000),
        ("rollback",),
        ("rollback", "7", "--all"),
        ("rollback", "0"),
        ("rollback", str(1 << 63)),
        ("confirm", str(1 << 63)),
        ("revert", str(1 << 63)),
        ("hold", RMEM, "--netns", str(1 << 63)),
        ("hold", RMEM, "--for", f"{'9' * 5000}s"),
        ("rollback", "x"),
        ("hold",),
        ("mode", "wild"),
        ("explain",),
        ("history", "--last", "0"),
        ("config",),
        ("demo", "--seconds", "x"),
    ],
)
def test_usage_errors_exit_with_64_and_change_nothing(run: Callable[..., Ran], arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, dirs=False)
    assert ran.code == 64
    assert ran.out == ""
    assert "Usage: trimtab" in ran.err


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("run", "--help"), ("config", "check", "-h")])
def test_help_is_fine(run: Callable[..., Ran], arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, dirs=False)
    assert (ran.code, ran.err) == (0, "")
    assert "Usage: trimtab" in ran.out


def test_help_lists_every_command_and_its_exit_codes(run: Callable[..., Ran]) -> None:
    said = run("--help", dirs=False).out
    for verb in (
        *("run", "demo", "status", "tunables", "history", "explain"),
        *("rollback", "mode", "hold", "release", "doctor", "config"),
    ):
        assert f"\n  {verb} " in said
    # Every summary fits its line.
    assert not any(line.endswith("...") for line in said.splitlines()[1:])
    assert "3 degraded" in said


def test_help_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from trimtab.__main__ import main; main(['--help']); "
        "print(sorted({'zmq', 'rich', 'msgspec', 'pyroute2', 'sqlite3', 'bus', 'actuators'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "trimtab", "tunables", "--json"]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")


# --- not root


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(
    "arguments", [["run"], ["demo"], ["rollback", "--all"], ["hold", RMEM], ["release", RMEM], ["mode", "advise"]]
)
def test_what_only_root_may_do_exits_with_77_and_one_line(arguments: list[str]) -> None:
    ran = as_nobody(*arguments)
    assert (ran.returncode, ran.stdout) == (77, "")
    assert ran.stderr == f"trimtab: trimtab {arguments[0]} needs root; try sudo\n"


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_journal_that_is_anothers_exits_with_77_and_one_line(state: Path) -> None:
    for place in (state.parent, state.parent.parent):
        place.chmod(0o755)
    ran = as_nobody("history", "--state-dir", str(state))
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (77, "", 1)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_who_may_not_look_into_a_directory_is_told_so_and_sees_what_he_may() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        Journal(place / "state", "a-boot").close()
        assert (place / "state").stat().st_mode & 0o777 == 0o711
        tapes = place / "state/tapes"
        tapes.mkdir(0o711)
        for verb in (("replay",), ("tape", "info"), ("report", "-o", "/tmp/none.html")):
            ran = as_nobody(*verb, str(tapes))
            assert (ran.returncode, ran.stderr) == (77, f"trimtab: {tapes}: Permission denied\n")
        for verb in ("history", "explain"):
            ran = as_nobody(verb, RMEM, "--state-dir", str(place / "state"))
            assert (ran.returncode, ran.stdout) == (77, "")
            assert ran.stderr == f"trimtab: {place}/state/journal.db: Permission denied\n"
        ran = as_nobody("status", "--run-dir", str(place / "run"), "--state-dir", str(place / "state"))
        assert (ran.returncode, ran.stdout) == (3, f"trimtab: not running ({place / 'run'})\n")


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab", *arguments],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=lambda: drop(65534, (), ()),
    )  # fmt: skip


# --- configuration


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("speed = 9", "unknown field `speed`"),
        ("mode = 'wild'", "mode"),
        ("[deciders]\nnobody = true", "deciders.nobody: no such decider; there are"),
        ("[policy.nobody]\nx = 1", "policy.nobody: no such decider"),
        ("[policy.tcp_buffer]\nnonsense = 1", "policy.tcp_buffer"),
        (f"[tunables.'{RMEM}']\nhigh = 99999999999", "would widen"),
        ("[tunables.'net.none']\nhigh = 9", "no such tunable"),
        ("mode = ", "Invalid value"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_one_line_that_names_it(
    run: Callable[..., Ran], tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text(text)
    ran = run("config", "check", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert complaint in ran.err
    assert ran.err.count("\n") == 1


def test_a_directory_for_a_configuration_is_named_as_such(run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run("config", "check", str(tmp_path))
    assert (ran.code, ran.out, ran.err) == (1, "", f"trimtab: {tmp_path}: Is a directory\n")


def test_a_good_configuration_is_said_to_be_fine(run: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text(f"mode = 'advise'\n[deciders]\ntcp_buffer = false\n[tunables.'{RMEM}']\nhigh = 1048576\n")
    ran = run("config", "check", str(file))
    assert (ran.code, ran.out) == (0, "the configuration is fine\n")


# --- tunables


def test_tunables_json_has_every_row_with_the_fields_that_programs_rely_on(run: Callable[..., Ran]) -> None:
    ran = run("tunables", "--json")
    assert ran.code == 0
    assert [row["name"] for row in ran.documents] == [row.name for row in TUNABLES]
    for row in ran.documents:
        assert row.keys() >= {
            *("schema", "name", "low", "high", "step", "cooldown_s"),
            *("unit", "scope", "risk", "decider", "value", "dead_band", "twin"),
        }
        assert row["schema"] == "trimtab.tunable/v1"
        assert row["low"] <= row["high"]
        assert row["value"] is None or isinstance(row["value"], int)


def test_tunables_shows_the_bounds_of_the_instance_that_runs(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "run/config.json").write_text(json.dumps({"tunables": {RMEM: {"high": 1 << 20}}}))
    assert {row["name"]: row["high"] for row in run("tunables", "--json").documents}[RMEM] == 1 << 20
    head, *lines = run("tunables").out.splitlines()
    assert head.split()[:5] == ["tunable", "value", "low", "high", "unit"]
    assert len(lines) == len(TUNABLES)
    assert any(line.startswith(RMEM) and "1048576" in line for line in lines)


def test_a_tunable_that_the_kernel_lacks_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1048576 kB\n")
    (tmp_path / "proc/sys/net/ipv4/tcp_rmem").write_text("4096\t131072\t6291456\n")
    (tmp_path / "proc/sys/net/ipv4/tcp_wmem").write_text("4096\n")
    values = {row.name: row.value for row in tables.rows(tmp_path, tmp_path)}
    assert values.pop(RMEM) == 6291456
    assert values.pop("net.ipv4.tcp_rmem[1]") == 131072
    assert set(values.values()) == {None}
    assert next(row.high for row in tables.rows(tmp_path, tmp_path) if row.name == RMEM) == (1 << 30) // 64


# --- history and explain


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a journal of one change that stands, one that was undone, one of the host's, a hold."""
    folder = tmp_path / "state"
    journal = Journal(folder, "a-boot")
    spot, site = Spot(RMEM, COOKIE), Site(4026532000, "web")
    for old, new in ((262144, 393216), (393216, 589824)):
        why = f"window full at {old} bytes"
        journal.intend(Intent(spot, site, "tcp_buffer", old, new, why, {"socket": 7, "event": "TcpRcvBuf@9"}, 262144))
    journal.settle(spot, [1], "trial", "", 393216)
    journal.settle(spot, [2], "reverted", "trimtab stops", 393216)
    arp = Spot("net.ipv4.neigh.default.gc_thresh3", 0)
    journal.intend(Intent(arp, Site(), "neigh_table", 128, 256, "61 of 128 entries", {"entries": 61}, 128))
    journal.settle(arp, [3], "trial", "", 256)
    journal.hold(Hold(Spot("net.ipv4.tcp_wmem[2]", 0), "held by me", time.time_ns(), True))
    journal.close()
    return folder


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_shell_has_closed_is_no_fault(state: Path, closed: str) -> None:
    argv = f"{sys.executable} -m trimtab history --state-dir {state} {closed}"
    ran = subprocess.run(argv, shell=True, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ("tcp_buffer" in ran.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert list(state.glob("*.corrupt*")) == []


def test_what_the_terminal_cannot_show_is_shown_escaped(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, "a-boot")) as journal:
        journal.intend(Intent(Spot(RMEM, COOKIE), Site(5, "bücher"), "tcp_buffer", 1, 2, "→ 7", {}, 1))
    argv = [sys.executable, "-m", "trimtab", "history", "--state-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "b\\xfccher" in ran.stdout


@pytest.mark.usefixtures("state")
class TestJournal:
    def test_history_json_has_one_object_a_line_with_the_fields_that_programs_rely_on(
        self, run: Callable[..., Ran]
    ) -> None:
        first, second, third = run("history", "--json").documents
        for change in (first, second, third):
            assert change.keys() >= {
                *("schema", "id", "t_tai_ns", "tunable", "scope", "netns", "netns_inode", "netns_name"),
                *("decider", "old", "new", "why", "state", "evidence", "twin", "twin_value"),
            }
        assert (first["id"], first["tunable"], first["scope"]) == (1, RMEM, "netns")
        assert (first["netns"], first["netns_inode"], first["netns_name"]) == (COOKIE, 4026532000, "web")
        assert (first["old"], first["new"], first["state"]) == (262144, 393216, "trial")
        assert first["evidence"] == {"socket": 7, "event": "TcpRcvBuf@9"}
        assert abs(first["t_tai_ns"] - time.clock_gettime_ns(time.CLOCK_TAI)) < 60 * 10**9
        assert (second["state"], second["detail"]) == ("reverted", "trimtab stops")
        assert (third["scope"], third["netns"]) == ("host", 0)

    def test_history_is_a_table_with_the_way_to_undo_below(self, run: Callable[..., Ran]) -> None:
        head, *lines = run("history").out.splitlines()
        assert head.split() == ["id", "when", "tunable", "where", "old", "new", "state", "decider", "why"]
        assert "web" in lines[0]
        assert "window full at 262144 bytes" in lines[0]
        assert lines[2].split()[4:7] == ["host", "128", "256"]
        assert lines[-1] == "undo one: trimtab rollback ID    undo all: trimtab rollback --all"

    @pytest.mark.parametrize("key", [RMEM, "net.ipv4.tcp_rmem", "net/ipv4/tcp_rmem"])
    def test_history_of_one_key_as_it_may_be_written(self, run: Callable[..., Ran], key: str) -> None:
        assert [change["id"] for change in run("history", key, "--json").documents] == [1, 2]

    def test_the_newest_alone(self, run: Callable[..., Ran]) -> None:
        assert [change["id"] for change in run("history", "--json", "-n", "1").documents] == [3]

    def test_explain_a_key_says_bounds_and_every_change_with_evidence_and_undo(self, run: Callable[..., Ran]) -> None:
        said = run("explain", "net.ipv4.tcp_rmem").out
        for words in (
            f"{RMEM}: largest receive buffer",
            "bounds      65536 to ",
            "by tcp_buffer alone",
            "262144 -> 393216 bytes (web)",
            "window full at 393216 bytes",
            "socket 7, event TcpRcvBuf@9",
            "state     reverted: trimtab stops",
            "undo      trimtab rollback 1",
        ):
            assert words in said
        assert "rollback 2" not in said

    def test_a_sysctl_of_several_numbers_is_told_of_with_all_of_them(
        self, run: Callable[..., Ran], state: Path
    ) -> None:
        ports = Spot("net.ipv4.ip_local_port_range[1]", COOKIE)
        with contextlib.closing(Journal(state, "a-boot")) as journal:
            journal.intend(Intent(ports, Site(), "ports", 30063, 30127, "no port", {"exhausted": 1}, 30063))
        for key in ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range", "net.ipv4.ip_local_port_range[1]"):
            assert [change["id"] for change in run("history", key, "--json").documents] == [4]
            assert [change["id"] for change in run("explain", key, "--json").documents[0]["changes"]] == [4]
        assert run("history", "net.ipv4.ip_local_port_range[0]", "--json").documents == []
        said = run("explain", "net.ipv4.ip_local_port_range").out
        assert said.count("\n  stands at ") == 2
        assert "change 4 of net.ipv4.ip_local_port_range[1], " in said
        [told] = run("explain", "net.ipv4.ip_local_port_range", "--json").documents
        assert [row["name"][-3:] for row in told["tunables"]] == ["[0]", "[1]"]

    def test_explain_says_of_which_namespace_the_value_is(self, run: Callable[..., Ran]) -> None:
        assert " bytes in this network namespace\n" in run("explain", "net.ipv4.tcp_rmem").out
        assert " entries\n" in run("explain", "net.ipv4.neigh.default.gc_thresh3").out

    def test_explain_a_change_by_its_id(self, run: Callable[..., Ran]) -> None:
        ran = run("explain", "3", "--json")
        (document,) = ran.documents
        assert document["schema"] == "trimtab.explanation/v1"
        assert document["tunable"]["name"] == "net.ipv4.neigh.default.gc_thresh3"
        assert [change["id"] for change in document["changes"]] == [3]

    def test_explain_says_when_hands_are_off(self, run: Callable[..., Ran]) -> None:
        said = run("explain", "net.ipv4.tcp_wmem").out
        assert "hands off   everywhere: held by me; trimtab release net.ipv4.tcp_wmem[2]" in said
        assert "never changed" in said

    @pytest.mark.parametrize("what", ["99", "net.none", "\x1b[31m"])
    def test_explain_what_is_not_there_is_one_line(self, run: Callable[..., Ran], what: str) -> None:
        ran = run("explain", what)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)

    def test_the_status_of_a_stopped_instance_still_counts_changes(self, run: Callable[..., Ran]) -> None:
        ran = run("status", "--json")
        assert ran.code == 3
        assert ran.documents[0]["changes"] == {"trial": 2, "reverted": 1}


def test_without_a_journal_there_is_no_history_and_that_is_fine(run: Callable[..., Ran]) -> None:
    assert (run("history").code, run("history", "--json").out) == (0, "")


@pytest.mark.parametrize("verb", ["history", "explain"])
@pytest.mark.parametrize("key", ["net.none", "9" * 19, "9" * 5000])
def test_a_key_that_nobody_knows_is_an_error_and_no_empty_history(run: Callable[..., Ran], verb: str, key: str) -> None:
    ran = run(verb, key)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"trimtab: no tunable {key!r}; `trimtab tunables` lists them\n"


def test_a_journal_that_is_no_database_is_one_line(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(0o700)
    (tmp_path / "state/journal.db").write_bytes(b"garbage" * 1000)
    ran = run("history")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


# --- status


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """What a supervisor writes; this process stands for it and for its roles."""

    def row(name: str, state: str = "running", **status: Any) -> dict[str, Any]:
        pid = os.getpid() if state == "running" else None
        return {"name": name, "pid": pid, "state": state, "restarts": 2, "since_ns": time.time_ns(), "status": status}

    return {
        "schema": announce.SCHEMA,
        "pid": os.getpid(),
        "start_ticks": announce.start_ticks(Path("/proc/self/stat")),
        "t_ns": time.monotonic_ns(),
        "ready": True,
        "mode": "advise",
        "roles": [
            row("actuator", published=3, changes={"advised": 4}),
            row("collector-bpf", published=70, ring_drops=5),
            row("loader", "done"),
            row("decider-a", gaps={"collector-bpf": 2, "actuator": 0}),
            row("decider-b", gaps={"collector-bpf": 1}, published="lies", changes=[]),
        ],
        "watched": ["tcp_rcvbuf (raw tracepoint)"],
        "missing": ["sysctl_write: why not"],
    }


def write(tmp_path: Path, document: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / rundir.STATUS).write_text(json.dumps(document))


def test_status_json_has_the_fields_that_programs_rely_on(
    run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any]
) -> None:
    write(tmp_path, document)
    ran = run("status", "--json")
    (found,) = ran.documents
    assert ran.code == 0
    assert (found["schema"], found["ready"], found["mode"]) == ("trimtab.status/v1", True, "advise")
    for role in found["roles"]:
        assert role.keys() >= {"name", "pid", "state", "restarts", "rss_kib", "pss_kib"}
        assert (role["pid"] is None) == (role["rss_kib"] is None) == (role["pss_kib"] is None)
    assert found["events"] == {
        "actuator": {"published": 3, "gaps": 0, "ring_drops": 0},
        "collector-bpf": {"published": 70, "gaps": 3, "ring_drops": 5},
    }
    assert found["changes"] == {"advised": 4}


def test_status_for_people_shows_roles_lanes_changes_and_what_is_missing(
    run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any]
) -> None:
    write(tmp_path, document)
    said = run("status").out
    assert said.startswith("trimtab is ready, mode advise\n")
    for words in ("decider-a", "MiB", "changes: 4 advised", "without sysctl_write: why not"):
        assert words in said


def test_what_deciders_would_have_people_do_is_shown_whatever_else_is_said(
    run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any]
) -> None:
    document["roles"][-1]["status"]["advice"] = ["port 80 (ngi\x1bnx, pid 4): more", 7]
    document["roles"][0]["status"]["advice"] = "lies"
    write(tmp_path, document)
    assert run("status", "--json").documents[0]["advice"] == ["port 80 (ngi nx, pid 4): more"]
    assert "advice: port 80 (ngi nx, pid 4): more\n" in run("status").out


def test_verdicts_that_did_not_count_are_told_where_there_are_any(
    run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any]
) -> None:
    write(tmp_path, document)
    assert run("status", "--json").documents[0]["late_verdicts"] == 0
    assert "verdicts" not in run("status").out
    [actuator] = [row for row in document["roles"] if row["name"] == "actuator"]
    actuator["status"]["late_verdicts"] = 3
    write(tmp_path, document)
    assert run("status", "--json").documents[0]["late_verdicts"] == 3
    assert "verdicts that did not count: 3\n" in run("status").out


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"start_ticks": 1}, "not running"),
        ({"pid": 2**22 + 1}, "not running"),
        ({"t_ns": 0}, "has said nothing for"),
        ({"ready": False}, ""),
    ],
)
def test_an_instance_that_is_gone_silent_or_not_ready_is_degraded(
    run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    write(tmp_path, document | changes)
    ran = run("status", "--json")
    assert (ran.code, ran.documents[0]["ready"]) == (3, False)
    assert problem in ran.documents[0]["problem"]
    assert run("status").code == 3


def test_a_role_that_is_down_is_named(run: Callable[..., Ran], tmp_path: Path, document: dict[str, Any]) -> None:
    document["roles"][2]["state"] = "failed"
    document["roles"][3]["state"] = "waiting"
    write(tmp_path, document)
    ran = run("status")
    assert ran.code == 3
    assert "trimtab is not ready: not running: loader, decider-a" in ran.out


def test_without_an_instance_the_status_says_where_it_looked(run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run("status")
    assert (ran.code, ran.out) == (3, f"trimtab: not running ({tmp_path / 'run'})\n")
    (found,) = run("status", "--json").documents
    assert (found["ready"], found["mode"], found["roles"], found["events"]) == (False, None, [], {})


@pytest.mark.parametrize("raw", [b"", b"{\xff", b"[]", b'{"pid": 1}', b'{"schema": "trimtab.supervisor/v2"}'])
def test_a_status_file_that_is_not_ours_is_said_to_be(run: Callable[..., Ran], tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "run" / rundir.STATUS).write_bytes(raw)
    ran = run("status")
    assert ran.code == 3
    assert "not what this version of trimtab writes" in ran.out


def test_memory_that_may_not_be_read_is_none(tmp_path: Path, document: dict[str, Any]) -> None:
    write(tmp_path, document)
    proc = tmp_path / "proc" / str(os.getpid())
    proc.mkdir(parents=True)
    (proc / "stat").write_text(Path("/proc/self/stat").read_text())
    found = status.read(tmp_path / "run", tmp_path / "state", tmp_path / "proc")
    assert {(role.rss_kib, role.pss_kib) for role in found.roles} == {(None, None)}
    assert found.ready


# --- orders without an actuator


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestOrders:
    def test_a_hold_without_a_daemon_is_kept_in_the_journal(self, run: Callable[..., Ran]) -> None:
        held = run("hold", "net/ipv4/tcp_rmem", "--netns", str(COOKIE))
        assert held.code == 0
        # What is tied to it is held with it.
        assert f"hands off {RMEM}, until `trimtab release {RMEM}`" in held.out.splitlines()
        assert f"hands off   in netns {COOKIE}: held by " in run("explain", RMEM).out
        assert run("release", RMEM, "--json").documents[0]["ok"] is True
        assert run("release", RMEM).code == 4

    def test_what_the_actuator_would_refuse_exits_with_4(self, run: Callable[..., Ran]) -> None:
        assert run("hold", "net.none").code == 4
        assert run("rollback", "5").code == 4

    def test_nothing_to_roll_back_is_fine(self, run: Callable[..., Ran]) -> None:
        ran = run("rollback", "--all")
        assert (ran.code, ran.out) == (0, "nothing of trimtab's stands\n")

    def test_the_mode_needs_a_daemon(self, run: Callable[..., Ran]) -> None:
        ran = run("mode", "advise")
        assert (ran.code, ran.out, ran.err) == (1, "", "trimtab: no actuator runs, and `mode` needs one\n")


# --- printing


def test_tai_is_utc_where_nobody_has_set_its_offset() -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_TAI)
    assert show.tai_to_utc_ns(now_ns, known=False) == now_ns
    assert abs(show.tai_to_utc_ns(now_ns, known=True) - time.time_ns()) < 10**9
