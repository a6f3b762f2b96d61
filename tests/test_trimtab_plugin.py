"""The fixtures for users' tests (trimtab.testing.plugin), in pytests of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bus.config import Config, ConfigError, Narrow
from bus.tape import TapeError
from trimtab.testing import made_tape
from trimtab.testing.fixtures import Golden, Opener, Replayer, Tape
from trimtab.testing.loop import Loop
from trimtab.testing.waves import constant, step
from trimtab.testing.worlds import CounterFile, TcpFlow
from trimtab.testing.worlds import Path as Wire

RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
TREE = Path(__file__).parent.parent
MIB = 1 << 20


@pytest.fixture(scope="module")
def loop() -> Loop:
    return Loop(["tcp_buffer"], [TcpFlow(Wire(constant(50e6)))]).run(30)


@pytest.fixture
def place(tmp_path: Path, loop: Loop) -> Path:
    """A user's directory: a tape and a candidate."""
    made_tape.write(tmp_path / "web-7.tape", loop.events)
    (tmp_path / "candidate.toml").write_text(f'[tunables."{RMEM}"]\nhigh = {MIB}\n')
    return tmp_path


def run(place: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (place / "test_policy.py").write_text(test)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "trimtab.testing.plugin", "-p", "no:cacheprovider", *options]
    return subprocess.run([*argv, str(place)], capture_output=True, text=True, cwd=place, timeout=60)


# --- for a user ----------------------------------------------------------------------------------------------------

USERS = """
def test_the_candidate_does_not_go_above_one_mebibyte(tape, replay):
    result = replay(tape("web-7.tape"), policy="candidate.toml")
    assert result.peak("net.ipv4.tcp_rmem[2]") <= 1 << 20

def test_below_that_it_fails(tape, replay):
    result = replay(tape("web-7.tape"), policy="candidate.toml")
    assert result.peak("net.ipv4.tcp_rmem[2]") <= 1048575

def test_a_wrong_policy(tape, replay):
    replay(tape("web-7.tape"), policy="wrong.toml")

def test_no_tape(tape):
    tape("none.tape")

def test_wishes(tape, golden):
    golden(tape("web-7.tape"))
"""


def test_a_users_tests_hold_a_policy_to_a_bound_and_say_in_a_line_what_is_wrong(place: Path) -> None:
    (place / "wrong.toml").write_text("[policy.tcp_buffer]\nfacter = 1\n")
    done = run(place, USERS)
    assert "4 failed, 1 passed" in done.stdout
    assert "assert 1048576 <= 1048575" in done.stdout
    assert "unknown field `facter`" in done.stdout
    assert f"TapeError: {place}/none.tape: no such file" in done.stdout
    assert "web-7.wishes is not there: run pytest with --update-golden" in done.stdout


def test_golden_wishes_are_written_when_asked_for_and_compared_else(place: Path) -> None:
    assert run(place, USERS, "--update-golden", "-k", "wishes").returncode == 0
    text, recorded = place / "web-7.wishes", Tape(place / "web-7.tape")
    lines = text.read_text().splitlines()
    assert len(lines) > 10
    assert f"tcp_buffer: {RMEM} of netns 22 (22) 262144 -> 393216: receive window of port 5201 full at" in lines[0]
    Golden(update=False)(recorded)
    text.write_text(text.read_text().replace("393216", "393217"))
    with pytest.raises(
        AssertionError, match=r"(?s)--update-golden takes them.*-\+.*262144 -> 393217.*\n\+\+.* -> 393216"
    ):
        Golden(update=False)(recorded)
    Golden(update=True)(recorded)
    assert text.read_text().splitlines() == lines


def test_whoever_installs_trimtab_has_the_fixtures_and_who_does_not_use_them_pays_nothing() -> None:
    declared = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"trimtab.testing.plugin": "trimtab.testing.plugin"}
    assert {point.name for point in entry_points(group="pytest11")} >= {"xdist"}
    code = "import sys, trimtab.testing.plugin; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TREE)
    assert not {"bus", "deciders", "actuators", "collectors", "msgspec", "zmq", "click"} & set(done.stdout.split())


# --- what is told --------------------------------------------------------------------------------------------------


def test_a_tape_under_its_own_policy_comes_to_what_the_loop_came_to(loop: Loop, tape: Opener, replay: Replayer) -> None:
    result = replay(tape(loop.events))
    for tunable in (RMEM, WMEM):
        assert result.start(tunable) == 262144
        assert result.peak(tunable) == result.final(tunable) == loop.final(tunable)
        assert result.reversals(tunable) == 0
    assert [(change.tunable, change.old, change.new) for change in result.changes()] == [
        (change.spot.tunable, change.old, change.new) for change in loop.changes
    ]
    assert len(result.wishes) == len(result.changes())
    assert (result.refused(), result.reverted()) == ({}, 0)
    assert (result.tunables, result.namespaces) == ([RMEM, WMEM], [11, 22])
    assert all("full at" in change.why for change in result.changes())


def test_one_namespace_or_all_and_what_is_not_known_is_said(loop: Loop, tape: Opener, replay: Replayer) -> None:
    result = replay(tape(loop.events))
    assert result.peak(RMEM, netns=22) == result.peak(RMEM)
    assert result.changes(RMEM, netns=11) == []
    assert {change.netns for change in result.changes(RMEM)} == {22}
    with pytest.raises(LookupError, match=r"nothing of net.ipv4.tcp_rmem\[2\] in netns 11"):
        result.peak(RMEM, netns=11)
    with pytest.raises(LookupError, match=r"nothing of vm\.swappiness"):
        result.peak("vm.swappiness")


def test_a_namespace_that_the_policy_left_alone_does_not_count_beside_those_where_it_wrote(
    loop: Loop, tape: Opener, replay: Replayer
) -> None:
    other = TcpFlow(Wire(constant(1e6)), socket=7, sender=33, receiver=44, limits=(64 << 20, 64 << 20))
    events = Loop(["tcp_buffer"], [TcpFlow(Wire(constant(50e6))), other]).run(30).events
    result = replay(tape(events))
    assert result.changes(RMEM, netns=44) == []
    assert result.peak(RMEM, netns=44) == 64 << 20
    assert result.peak(RMEM) == loop.peak(RMEM)


def test_a_policy_may_be_a_configuration_and_may_switch_the_decider_off(
    loop: Loop, tape: Opener, replay: Replayer
) -> None:
    recorded = tape(loop.events)
    assert replay(recorded, policy=Config(tunables={RMEM: Narrow(high=MIB)})).peak(RMEM) == MIB
    off = replay(recorded, policy=Config(deciders={"tcp_buffer": False}))
    assert (off.changes(), off.wishes, off.peak(RMEM)) == ([], [], 262144)
    with pytest.raises(ConfigError, match="would widen"):
        replay(recorded, policy=Config(tunables={RMEM: Narrow(high=1 << 40)}))


def test_the_guard_watches_and_any_tape_runs_through_any_decider(tape: Opener, replay: Replayer) -> None:
    flow = TcpFlow(Wire(constant(50e6), loss=step(40, 0.1)))
    snmp = CounterFile("net/snmp", {"Tcp.OutSegs": constant(3e4), "Tcp.RetransSegs": step(40, 3000)}, netns=11)
    events = Loop(["tcp_buffer", "guard"], [flow, snmp]).run(120).events
    result = replay(tape(events, decider="guard"))
    assert result.reverted(WMEM) > 0
    assert result.final(WMEM) < result.peak(WMEM)
    assert replay(tape(events, decider="guard"), decider="neigh_table").changes() == []


def test_a_damaged_tape_is_no_evidence(place: Path) -> None:
    path = place / "web-7.tape"
    raw = bytearray(path.read_bytes())
    raw[-200] ^= 1
    path.write_bytes(raw)
    with pytest.raises(TapeError, match=r"web-7.tape, byte \d+"):
        list(Tape(path).events())
    path.write_bytes(b"no tape")
    with pytest.raises(TapeError, match="not a tape"):
        Tape(path)


def test_a_directory_of_tapes_is_one(place: Path, loop: Loop) -> None:
    made_tape.write(place / "guard.tape", loop.events, "guard")
    both = Tape(place)
    assert both.deciders == ["guard", "tcp_buffer"]
    assert list(both.events("tcp_buffer")) == list(both.events()) == loop.events
