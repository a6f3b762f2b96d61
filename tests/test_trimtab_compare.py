"""What another policy would have written: the model of the host, and `trimtab replay --policy` and `--code`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import made_events
import msgspec
import pytest
import tape_world
from hypothesis import given, settings
from test_trimtab_replay import Ran

from actuators.records import Spot
from bus.config import Config
from bus.schema import TOPICS, AnyEvent, NeighTable, Netns, Outcome, TcpRcvBuf, Tick, Trial, Value, Verdict, Wish
from bus.tunables import TUNABLES, table
from trimtab.__main__ import main
from trimtab.tape import shown
from trimtab.tape.model import Model
from trimtab.tape.rerun import Rerun
from trimtab.testing import made_tape
from trimtab.testing.loop import Loop
from trimtab.testing.waves import constant, step
from trimtab.testing.worlds import Neighbours, TcpFlow, World
from trimtab.testing.worlds import Path as Way
from trimtab.testing.worlds_frag import Fragments
from trimtab.testing.worlds_listen import Server
from trimtab.testing.worlds_room import LocalPorts

ROOT = Path(__file__).resolve().parent.parent
RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
THRESH = "net.ipv4.neigh.default.gc_thresh"
SEC = 1_000_000_000
MEM = 32 << 30
Run = Callable[..., Ran]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*arguments: object) -> Ran:
        capfdbinary.readouterr()
        code = main(["replay", *map(str, arguments)])
        sys.stdout.flush()
        said = capfdbinary.readouterr()
        assert b"Traceback" not in said.err
        return Ran(code, said.out.decode(), said.err.decode())

    return call


@pytest.fixture(scope="module")
def loop() -> Loop:
    """A minute in which limits of TCP grow, and a table of neighbours."""
    flow = TcpFlow(Way(bandwidth=step(5, 50e6)))
    return Loop(["tcp_buffer"], [flow, Neighbours(constant(300))]).run(60)


@pytest.fixture(scope="module")
def tapes(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tapes")
    for name in ("tcp_buffer", "guard"):
        made_tape.write(folder / f"{name}.tape", loop.events, name)
    return folder


def policy(folder: Path, text: str) -> Path:
    path = folder / "candidate.toml"
    path.write_text(text)
    return path


def row(ran: Ran, tunable: str) -> dict[str, Any]:
    found = [row for host in ran.document["hosts"] for row in host["rows"] if row["tunable"] == tunable]
    (only,) = found
    return dict(only)


# --- both policies in the model


def test_the_recorded_policy_writes_in_the_model_what_it_wrote_on_the_host(
    tapes: Path, loop: Loop, tmp_path: Path, run: Run
) -> None:
    ran = run(tapes, "--policy", policy(tmp_path, ""), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert loop.of(RMEM)
    for tunable in (RMEM, WMEM):
        found = row(ran, tunable)
        assert found["recorded"] == found["candidate"]
        changes = loop.of(tunable)
        assert found["recorded"]["changes"] == len(changes)
        assert found["recorded"]["start"] == changes[0].old
        assert found["recorded"]["final"] == changes[-1].new
        assert found["recorded"]["peak"] == max(change.new for change in changes)
        assert found["recorded"]["reversals"] == 0


@pytest.mark.parametrize(
    ("decider", "world"),
    [
        ("ports", LocalPorts(step(5, 1000), limits=(30000, 30063, 0, 65536))),
        ("listen_queue", Server(step(5, 1000))),
        ("ip_frag", Fragments(step(5, 600_000), limit=65_536)),
    ],
)
def test_so_it_does_of_tunables_that_other_events_show(decider: str, world: World, tmp_path: Path, run: Run) -> None:
    loop = Loop([decider], [world]).run(60)
    made_tape.write(tmp_path / "a.tape", loop.events, decider)
    ran = run(tmp_path / "a.tape", "--policy", policy(tmp_path, ""), "--json")
    found = {row["tunable"]: row["recorded"] for host in ran.document["hosts"] for row in host["rows"]}
    assert max(len(loop.of(tunable)) for tunable in found) > 1
    for tunable, tally in found.items():
        assert (tally["changes"], tally["refused"]) == (len(loop.of(tunable)), {}), tunable
        assert tally["final"] == loop.of(tunable)[-1].new


def test_a_candidate_is_shown_what_it_has_made_of_a_tunable_itself(tmp_path: Path, run: Run) -> None:
    loop = Loop(["ports"], [LocalPorts(step(5, 1000), limits=(30000, 30063, 0, 65536))]).run(60)
    made_tape.write(tmp_path / "a.tape", loop.events, "ports")
    ran = run(tmp_path / "a.tape", "--policy", policy(tmp_path, "[policy.ports]\nfactor = 1.5\n"), "--json")
    found = row(ran, "net.ipv4.ip_local_port_range[1]")
    assert (found["recorded"]["refused"], found["candidate"]["refused"]) == ({}, {})
    # Its steps are smaller, and as long as the recorded host lacked ports there is one for each event.
    assert found["candidate"]["changes"] == found["recorded"]["changes"] > 2
    assert found["candidate"]["final"] < found["recorded"]["final"]


def test_one_bound_makes_the_difference_that_it_must(tapes: Path, loop: Loop, tmp_path: Path, run: Run) -> None:
    high = 1 << 20
    file = policy(tmp_path, f'[tunables."{RMEM}"]\nhigh = {high}\n')
    ran = run(tapes, "--policy", file, "--json")
    assert ran.code == 2
    found = row(ran, RMEM)
    # Steps as recorded, as far as they stay below the bound, and then one up to it.
    below = [change for change in loop.of(RMEM) if change.new < high]
    assert (found["candidate"]["changes"], found["candidate"]["final"]) == (len(below) + 1, high)
    assert (found["differs"], row(ran, WMEM)["differs"]) == (True, False)
    summary = ran.document["summary"]
    assert summary["candidate"]["peaks"][RMEM] == high
    assert summary["recorded"]["peaks"][RMEM] == loop.peak(RMEM)
    assert (summary["hosts"], summary["candidate"]["hosts_changed"]) == (1, 1)
    shown = run(tapes, "--policy", file).out.splitlines()
    (line,) = [line for line in shown if line.startswith("!")]
    assert f"{len(loop.of(RMEM))} -> {len(below) + 1}" in line
    assert f"{loop.peak(RMEM)} -> {high}" in line
    assert shown[-1].endswith(f"highest {RMEM} {high} bytes (was {loop.peak(RMEM)})")


def test_a_decider_that_is_off_writes_nothing(tapes: Path, tmp_path: Path, run: Run) -> None:
    ran = run(tapes, "--policy", policy(tmp_path, "[deciders]\ntcp_buffer = false\n"), "--json")
    assert ran.code == 2
    candidate = row(ran, RMEM)["candidate"]
    assert (candidate["changes"], candidate["refused"], candidate["final"]) == (0, {}, candidate["start"])


def test_a_decider_that_is_turned_on_runs_on_any_tape_of_that_host(tmp_path: Path, run: Run) -> None:
    made = Loop(["tcp_buffer"], [Neighbours(constant(900))]).run(20)
    recorded = Config(deciders={"neigh_table": False, "tcp_buffer": True, "guard": True})
    made_tape.write(tmp_path / "a.tape", made.events, "tcp_buffer", recorded)
    ran = run(tmp_path, "--policy", policy(tmp_path, ""), "--json")
    assert ran.code == 2
    found = row(ran, THRESH + "3")
    assert found["decider"] == "neigh_table"
    assert found["recorded"]["changes"] == 0
    assert (found["candidate"]["changes"], found["candidate"]["start"], found["candidate"]["final"]) == (1, 1024, 2048)


def test_a_decider_that_was_on_and_has_no_tape_here_is_left_out(tmp_path: Path, run: Run) -> None:
    made = Loop(["tcp_buffer"], [Neighbours(constant(900))]).run(20)
    made_tape.write(tmp_path / "a.tape", made.events, "tcp_buffer")
    assert run(tmp_path, "--policy", policy(tmp_path, ""), "--json").document["hosts"][0]["rows"] == []


def test_the_fence_stays_as_recorded_where_the_candidate_has_none(loop: Loop, tmp_path: Path, run: Run) -> None:
    made_tape.write(tmp_path / "a.tape", loop.events, "tcp_buffer", Config(netns=[4711]))
    ran = run(tmp_path, "--policy", policy(tmp_path, ""), "--json")
    assert ran.code == 0
    assert row(ran, RMEM)["candidate"]["refused"]["fence"] > 0
    ran = run(tmp_path, "--policy", policy(tmp_path, "netns = [11, 22]\n"), "--json")
    assert ran.code == 2
    assert row(ran, RMEM)["candidate"]["refused"] == {}


def test_processes_that_began_anew_begin_anew_in_the_model(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    restart, stop = Rerun.restart, Rerun.stop
    monkeypatch.setattr(Rerun, "restart", lambda self: (calls.append("restart"), restart(self))[1])
    monkeypatch.setattr(Rerun, "stop", lambda self, t_ns: (calls.append("stop"), stop(self, t_ns))[1])
    batches = tape_world.batches(10)
    for name, later_ns in (("one", 0), ("two", 0), ("three", SEC)):
        # The actuator of the third is another one.
        live = tape_world.Live(tmp_path / name)
        live.feed([msgspec.structs.replace(batch, epoch_ns=batch.epoch_ns + later_ns) for batch in batches])
        live.close()
    assert run(tmp_path, "--policy", policy(tmp_path, "")).code == 0
    assert calls.count("stop") == 2
    # When it is made, and at the beginning of each session; of two policies.
    assert calls.count("restart") == 2 * (1 + 3)


def test_a_guards_tape_alone_shows_every_tuner(tapes: Path, tmp_path: Path, run: Run) -> None:
    ran = run(tapes / "guard.tape", "--policy", policy(tmp_path, "[deciders]\ntcp_buffer = false\n"), "--json")
    assert ran.code == 2
    assert row(ran, RMEM)["recorded"]["changes"] > 0


def test_a_policys_setting_counts(tapes: Path, tmp_path: Path, run: Run) -> None:
    ran = run(tapes, "--policy", policy(tmp_path, "[policy.tcp_buffer]\nfactor = 1.2\n"), "--json")
    found = row(ran, RMEM)
    first = round(found["recorded"]["start"] * 1.2)
    assert found["candidate"]["changes"] > 0
    assert found["candidate"]["final"] < found["recorded"]["final"]
    assert found["candidate"]["peak"] > first


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[tunables", "candidate.toml"),
        (f'[tunables."{RMEM}"]\nhigh = {1 << 40}\n', "would widen"),
        ("[policy.tcp_buffer]\nfactor = 9.0\n", "policy.tcp_buffer"),
        ("[policy.nobody]\nx = 1\n", "no such decider"),
    ],
)
def test_a_policy_with_an_error_is_one_line_before_anything_is_read(
    tmp_path: Path, run: Run, text: str, word: str
) -> None:
    no_tape = tmp_path / "x.tape"
    no_tape.write_text("no tape at all")
    ran = run(no_tape, "--policy", policy(tmp_path, text))
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert word in ran.err
    assert run(no_tape, "--policy", policy(tmp_path, "")).code == 1


def test_what_is_damaged_is_told_and_the_rest_compared(tapes: Path, tmp_path: Path, run: Run) -> None:
    raw = (tapes / "tcp_buffer.tape").read_bytes()
    (tmp_path / "torn.tape").write_bytes(raw[: len(raw) * 2 // 3])
    ran = run(tmp_path, "--policy", policy(tmp_path, ""), "--json")
    assert ran.code == 3
    assert "torn.tape" in ran.err
    assert ran.document["words"] == [line.removeprefix("trimtab: ") for line in ran.err.splitlines()]


def test_a_tuner_that_is_not_installed_here_is_told_of(tapes: Path, tmp_path: Path, run: Run) -> None:
    tape_world.record(tmp_path, decider="nobody", module="nobody.decider")
    ran = run(tmp_path, tapes, "--policy", policy(tmp_path, ""), "--json")
    assert ran.code == 3
    assert "no decider 'nobody'" in ran.err
    assert row(ran, RMEM)


def test_segments_and_copies_of_them_are_one_recording(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bus import recorder

    tape_world.record(tmp_path / "one")
    monkeypatch.setattr(recorder, "SEGMENT_NS", 5 * SEC)
    tape_world.record(tmp_path / "parts")
    shutil.copytree(tmp_path / "parts", tmp_path / "parts/copy")
    file = policy(tmp_path, "")
    one, parts = (run(tmp_path / name, "--policy", file, "--json").document for name in ("one", "parts"))
    assert one["hosts"][0]["rows"] == parts["hosts"][0]["rows"]
    assert one["hosts"][0]["events"] == parts["hosts"][0]["events"]


# --- another checkout


def checkout(folder: Path, change: tuple[str, str, str]) -> Path:
    for name in ("actuators", "bpf", "bus", "collectors", "deciders", "trimtab"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    name, old, new = change
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return folder


def test_another_checkouts_code_decides_as_it_does_there(tapes: Path, tmp_path: Path, run: Run) -> None:
    other = checkout(tmp_path / "tree", ("deciders/tcp_growth.py", "want = min(int(", "want = min(-1 + int("))
    ran = run(tapes, "--code", other, "--json")
    assert ran.code == 2
    found = row(ran, RMEM)
    assert found["candidate"]["peak"] < found["recorded"]["peak"]
    assert found["candidate"]["changes"] > 0
    assert not list(other.rglob("__pycache__"))
    both = run(tapes, "--code", other, "--policy", policy(tmp_path, f'[tunables."{RMEM}"]\nhigh = 1000000\n'), "--json")
    assert row(both, RMEM)["candidate"]["peak"] == 1000000
    assert row(both, WMEM)["candidate"] == row(ran, WMEM)["candidate"]


def test_the_same_code_there_decides_by_the_recorded_policy(loop: Loop, tmp_path: Path, run: Run) -> None:
    recorded = Config(policy={"tcp_buffer": {"factor": 1.2}})
    made_tape.write(tmp_path / "a.tape", loop.events, "tcp_buffer", recorded)
    ran = run(tmp_path / "a.tape", "--code", ROOT, "--json")
    assert (ran.code, ran.document["different"], ran.document["code"]) == (0, False, str(ROOT))
    assert row(ran, RMEM)["candidate"]["changes"] > 0


def test_what_is_no_checkout_is_one_line(tapes: Path, tmp_path: Path, run: Run) -> None:
    ran = run(tapes, "--code", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"trimtab: {tmp_path}: no checkout of trimtab\n"
    for package in ("trimtab", "deciders"):
        (tmp_path / package).mkdir()
        # Without this one, Python would take ours.
        assert run(tapes, "--code", tmp_path).code == 1
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "trimtab/__main__.py").write_text("raise SystemExit('of another age')")
    ran = run(tapes, "--code", tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "cannot compare these tapes: of another age" in ran.err


# --- the model


def model() -> Model:
    found = Model("tcp_buffer", table(), MEM, ())
    found.begin(Spot(RMEM, 7), 1000000, 1000000, 99)
    return found


def wish(want: int, believed: int = 1000000, t_ns: int = SEC) -> Wish:
    return Wish(1, t_ns, SEC, RMEM, 7, 99, believed, want, "why", {})


def kinds(events: Iterable[AnyEvent]) -> list[str]:
    return [event.verdict if isinstance(event, Outcome) else type(event).__name__ for event in events]


def test_the_gate_grants_and_refuses_in_the_model() -> None:
    found = model()
    written, value = found.ask(wish(1500000), SEC)
    assert isinstance(written, Outcome)
    assert isinstance(value, Value)
    assert (written.verdict, written.value, value.value, value.original) == ("written", 1500000, 1500000, 1000000)
    assert kinds(found.ask(wish(1500000), 2 * SEC)) == ["refused"]
    assert kinds(found.ask(wish(9000000, 1500000, 2 * SEC), 2 * SEC)) == ["refused"]
    assert kinds(found.ask(wish(1600000, 1500000, SEC + 1), SEC + 1)) == ["refused"]
    tally = found.tallies[Spot(RMEM, 7)]
    assert (tally.changes, tally.refused) == (1, {"believed": 1, "step": 1, "cool-down": 1})
    assert (tally.start, tally.peak, tally.final) == (1000000, 1500000, 1500000)


def test_the_guards_revert_puts_back_and_parks() -> None:
    found = model()
    written, _ = found.ask(wish(1500000), SEC)
    assert isinstance(written, Outcome)
    found.ask(wish(2000000, 1500000, 2 * SEC), 2 * SEC)
    told = found.judge(Verdict(1, 3 * SEC, SEC, written.change, False, "worse", {}), 3 * SEC)
    assert kinds(told) == ["reverted", "Value"]
    tally = found.tallies[Spot(RMEM, 7)]
    assert (tally.reverted, tally.final, tally.peak, tally.reversals) == (2, 1000000, 2000000, 1)
    assert kinds(found.ask(wish(1500000, t_ns=4 * SEC), 4 * SEC)) == ["refused"]
    assert tally.refused == {"held": 1}
    assert found.judge(Verdict(1, 3 * SEC, SEC, written.change, False, "worse", {}), 3 * SEC) == []


def test_a_revert_takes_what_was_changed_since_and_stands_in_its_way_along() -> None:
    found = Model("neigh_table", table(), MEM, ())
    for level, stands in ((1, 128), (2, 512), (3, 1024)):
        found.begin(Spot(f"{THRESH}{level}", 0), stands, stands, 0)
    numbers = []
    for t_ns, (level, believed, want) in enumerate(
        ((3, 1024, 2048), (2, 512, 1024), (2, 1024, 2000), (1, 128, 200)), 1
    ):
        about = (1, t_ns * SEC, SEC, f"{THRESH}{level}", 0, 0, believed, want, "why", {})
        written, _ = found.ask(Wish(*about), t_ns * SEC)
        assert isinstance(written, Outcome)
        numbers.append(written.change)
    found.judge(Verdict(1, 9 * SEC, SEC, numbers[0], False, "worse", {}), 9 * SEC)
    stands = {spot.tunable[-1]: (key.value, key.tally.reverted) for spot, key in found.keys.items()}
    # All of what came after at gc_thresh2 goes, since 2000 is above 1024; gc_thresh1 is in nobody's way.
    assert stands == {"1": (200, 0), "2": (512, 2), "3": (1024, 1)}


def test_what_is_confirmed_stays_when_trials_are_put_back() -> None:
    found = model()
    written, _ = found.ask(wish(1500000), SEC)
    assert isinstance(written, Outcome)
    assert kinds(found.judge(Verdict(1, 2 * SEC, SEC, written.change, True, "fine", {}), 2 * SEC)) == [
        "confirmed", "Value",
    ]  # fmt: skip
    assert kinds(found.level(2 * SEC + 1)) == []
    found.ask(wish(2000000, 1500000, 3 * SEC), 3 * SEC)
    assert kinds(found.stop("trimtab stops", 4 * SEC)) == ["reverted", "Value"]
    assert found.keys[Spot(RMEM, 7)].value == 1500000
    # What stood when it stopped is what the policy has come to.
    assert found.tallies[Spot(RMEM, 7)].final == 2000000
    assert found.tallies[Spot(RMEM, 7)].reversals == 0


def test_what_stands_when_trimtab_has_come_back_is_what_it_then_put_back() -> None:
    found = model()
    found.ask(wish(1500000), SEC)
    found.stop("trimtab stops", 2 * SEC)
    assert found.tallies[Spot(RMEM, 7)].final == 1500000
    found.stop("left by a run that did not stop in order", 3 * SEC)
    assert found.tallies[Spot(RMEM, 7)].final == 1000000


def test_two_turns_within_the_hour_park_a_key() -> None:
    found = model()
    values = [1000000, 1400000, 1000000, 1400000, 1000000]
    told = [
        kinds(found.ask(wish(want, believed, t_ns * SEC), t_ns * SEC))[0]
        for t_ns, (believed, want) in enumerate(pairwise(values), 1)
    ]
    assert told == ["written", "written", "written", "refused"]
    assert found.keys[Spot(RMEM, 7)].held.startswith("parked: ")


def test_what_is_on_trial_is_told_again_and_again() -> None:
    found = model()
    found.ask(wish(1500000), SEC)
    (trial,) = found.level(2 * SEC)
    assert isinstance(trial, Trial)
    assert (trial.old, trial.new, trial.since_ns, trial.netns_ino) == (1000000, 1500000, SEC, 99)
    assert kinds(found.level(7 * SEC)) == ["Value", "Trial"]


# --- recorded events with the model's values in them


class Deaf(Rerun):
    """Keeps what the deciders would hear."""

    def __init__(self) -> None:
        super().__init__("tcp_buffer", Config(deciders={"tcp_buffer": False}), table(), MEM)

    def hear(self, *events: AnyEvent) -> list[AnyEvent]:
        return list(self._stream(events))


def receiver(limit: int, t_ns: int = SEC) -> TcpRcvBuf:
    about = (7, 99, 11, 2, 5201, 40001, 262144, limit, False, 171264, 174080, 7)
    return TcpRcvBuf(t_ns, *about, 90_000, 20_100, 20_100, 1)


def value(stands: int, original: int, t_ns: int, held: bool = False) -> Value:
    return Value(t_ns, RMEM, 7, 99, stands, original, 65536, 64 << 20, held)


def outcome(verdict: Any, stands: int, reason: str, t_ns: int) -> Outcome:
    return Outcome(t_ns, "tcp_buffer", RMEM, 7, 1000000, 1500000, verdict, reason, stands, 3)


def test_limits_are_shown_as_the_model_has_them() -> None:
    deaf = Deaf()
    assert deaf.hear(receiver(1000000)) == [receiver(1000000)]
    # The recorded policy raises it; this one, which is off, has not.
    assert deaf.hear(outcome("written", 1500000, "why", 2 * SEC), receiver(1500000, 3 * SEC)) == [
        receiver(1000000, 3 * SEC)
    ]
    (seen,) = deaf.hear(value(1500000, 1000000, 4 * SEC))
    assert isinstance(seen, Value)
    assert (seen.value, seen.original) == (1000000, 1000000)


def test_an_event_that_shows_the_recorded_value_too_early_is_put_right() -> None:
    deaf = Deaf()
    deaf.hear(receiver(1000000), receiver(1500000, 2 * SEC), outcome("written", 1500000, "why", 2 * SEC + 1))
    assert deaf.hear(receiver(1500000, 3 * SEC)) == [receiver(1000000, 3 * SEC)]
    assert deaf.model.tallies[Spot(RMEM, 7)].peak == 1000000


def test_somebody_elses_writes_stay_as_recorded() -> None:
    deaf = Deaf()
    deaf.hear(receiver(1000000))
    assert deaf.hear(receiver(800000, 2 * SEC)) == [receiver(800000, 2 * SEC)]
    told = deaf.hear(outcome("ceded", 700000, "vi wrote 700000", 3 * SEC), value(700000, 700000, 3 * SEC, held=True))
    assert kinds(told) == ["ceded", "Value", "Value"]
    assert deaf.model.keys[Spot(RMEM, 7)].held == "vi wrote 700000"
    assert deaf.hear(receiver(700000, 4 * SEC)) == [receiver(700000, 4 * SEC)]


def test_a_write_over_a_change_that_only_the_model_made_is_somebody_elses() -> None:
    deaf = Deaf()
    deaf.hear(value(1000000, 1000000, SEC))
    deaf.model.ask(wish(1500000), SEC)
    assert deaf.hear(receiver(1000000, 2 * SEC)) == [receiver(1500000, 2 * SEC)]
    deaf.hear(value(400000, 400000, 3 * SEC))
    key = deaf.model.keys[Spot(RMEM, 7)]
    assert (key.value, key.held) == (400000, "somebody else wrote 400000")


def test_a_hold_that_the_recorded_policy_brought_about_is_not_the_hosts() -> None:
    deaf = Deaf()
    deaf.hear(value(1000000, 1000000, SEC), outcome("reverted", 1000000, "guard: worse", 2 * SEC))
    (seen,) = deaf.hear(value(1000000, 1000000, 3 * SEC, held=True))
    assert isinstance(seen, Value)
    assert not seen.held
    deaf = Deaf()
    (seen,) = deaf.hear(value(1000000, 1000000, 3 * SEC, held=True))
    assert isinstance(seen, Value)
    assert seen.held
    (seen,) = deaf.hear(value(1000000, 1000000, 4 * SEC))
    assert isinstance(seen, Value)
    assert not seen.held


def test_an_operators_rollback_holds_in_the_model_too() -> None:
    deaf = Deaf()
    deaf.hear(value(1000000, 1000000, SEC))
    deaf.model.ask(wish(1500000), SEC)
    told = deaf.hear(outcome("reverted", 1000000, "rolled back by root", 2 * SEC))
    assert kinds(told) == ["Value"]
    key = deaf.model.keys[Spot(RMEM, 7)]
    assert (key.value, key.held) == (1000000, "rolled back by root")


def test_what_the_recorded_policy_had_on_trial_is_not_heard_of() -> None:
    about = (SEC, 3, "tcp_buffer", RMEM, 7, 99, 1000000, 1500000, SEC)
    assert Deaf().hear(Trial(*about), Trial(*about[:2], "other", "vm.swappiness", *about[4:])) == [
        Trial(*about[:2], "other", "vm.swappiness", *about[4:])
    ]


def test_other_deciders_outcomes_pass() -> None:
    other = Outcome(SEC, "neigh_table", THRESH + "3", 0, 1, 2, "written", "why", 2, 4)
    assert Deaf().hear(other, Tick(SEC, 1), Netns(SEC, 9, 8, "web", False)) == [
        other, Tick(SEC, 1), Netns(SEC, 9, 8, "web", False),
    ]  # fmt: skip


def test_a_tables_thresholds_are_shown_by_family() -> None:
    rerun = Rerun("neigh_table", Config(deciders={"neigh_table": False}), table(), MEM)
    for family in (2, 10):
        rerun.model.begin(Spot(f"net.{'ipv4' if family == 2 else 'ipv6'}.neigh.default.gc_thresh3", 0), 9000, 9000, 0)
        rerun.model.keys[Spot(f"net.{'ipv4' if family == 2 else 'ipv6'}.neigh.default.gc_thresh3", 0)].touched = True
    (seen,) = rerun._stream([NeighTable(SEC, 2, 5, 128, 512, 1024, 0, 0, 0, 0)])
    assert isinstance(seen, NeighTable)
    assert (seen.gc_thresh1, seen.gc_thresh2, seen.gc_thresh3) == (128, 512, 9000)


@settings(max_examples=60, deadline=None)
@given(events=made_events.stream(tuple(TOPICS.values()), 80))
def test_no_order_of_events_breaks_a_rerun(events: list[AnyEvent]) -> None:
    for decider in ("tcp_buffer", "neigh_table"):
        rerun = Rerun(decider, Config(), table(), MEM)
        rerun.feed(events[:40])
        rerun.restart()
        rerun.stop(SEC)
        rerun.feed(events[40:])
        for spot, tally in rerun.model.tallies.items():
            assert tally.peak >= tally.final or tally.idle, spot


# --- the table of fields


def test_every_field_that_shows_a_tunable_has_its_row() -> None:
    rows = {(row.topic, row.field) for row in shown.ROWS}
    like = re.compile(
        r"(\w+_)?(limit|initial)_bytes|gc_thresh\d|low|high|high_bytes|\w*somaxconn|max_\w+|tw_(max|reuse)"
    )
    fields = {
        (topic, name)
        for topic in TOPICS.values()
        if topic is not Value
        for name in topic.__struct_fields__
        if like.fullmatch(name)
    }
    assert rows == fields
    scopes = {tunable.name: tunable.scope for tunable in TUNABLES}
    assert all(row.host == (scopes[row.tunable] == "host") for row in shown.ROWS)


def test_json_is_one_document_with_its_schema(tapes: Path, tmp_path: Path, run: Run) -> None:
    file = policy(tmp_path, "")
    document = json.loads(run(tapes, "--policy", file, "--json").out)
    assert document["schema"] == "trimtab.tape.compare/v1"
    assert (document["policy"], document["code"], document["different"]) == (str(file), None, False)
    tally = document["hosts"][0]["rows"][0]["recorded"]
    assert set(tally) == {
        "start", "final", "peak", "changes", "refused", "reverted", "confirmed", "reversals",
    }  # fmt: skip
    assert msgspec.convert(document["hosts"][0]["host"], made_tape.Machine) == made_tape.MACHINE
