"""`trimtab explain`: a change's story from the tapes; without tapes, from the journal alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from actuators.journal import Journal
from actuators.records import Intent, Site, Spot
from bus import tunables
from bus.codec import encode
from bus.config import Config
from bus.recorder import BOOT_ID, Recorder, Session
from bus.roles import tape_dir
from bus.schema import AnyEvent, Batch, NeighEntries, NeighTable, Outcome, Tick, Trial, Value
from bus.tape import Head, Memory
from trimtab.__main__ import main

KEY = "net.ipv4.neigh.default.gc_thresh3"
SECOND = 10**9
MS = 10**6


def record(state_dir: Path, decider: str, events: Iterable[AnyEvent], **head: int) -> Path:
    """A tape as this decider would have made it of these events. head: what its head says otherwise. Returns its
    folder."""
    folder = tape_dir(state_dir, decider)
    folder.mkdir(parents=True, exist_ok=True)
    session = Session(decider, f"deciders.{decider}", "test", Config(), tunables.table().values())

    def begin(number: int) -> Head:
        return msgspec.structs.replace(session.head(number, Memory(0, {}), ()), **head)

    recorder = Recorder(folder, 1 << 30, 1 << 30, begin)
    recorder.turn(1, 0)
    for number, event in enumerate(events):
        recorder.batch(encode(Batch(1, "collector-netlink", 7, number, [event])))
    recorder.close(2, 0)
    assert recorder.disk.settle(10)
    return folder


@pytest.fixture
def at_ns() -> int:
    """When the change was made: after the tape was begun."""
    return time.monotonic_ns() + 200 * SECOND


@pytest.fixture
def state(tmp_path: Path, at_ns: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One change on trial in the journal, made at at_ns."""
    monkeypatch.setattr("actuators.records.time.monotonic_ns", lambda: at_ns)
    journal = Journal(tmp_path, BOOT_ID.read_text().strip())
    evidence: dict[str, int | str] = {"event": f"NeighEntries@{at_ns - 2 * MS}", "entries": 119}
    journal.intend(Intent(Spot(KEY, 0), Site(), "neigh_table", 256, 512, "ARP table: 119 of 256", evidence, 256))
    journal.settle(Spot(KEY, 0), [1], "trial", "", 512)
    journal.close()
    return tmp_path


def entries(t_ns: int, number: int) -> NeighEntries:
    return NeighEntries(t_ns, 2, number, number, 64, 128, 256, 14255, 4026532177, 2, 0)


def value(t_ns: int, high: int) -> Value:
    return Value(t_ns, KEY, 0, 0, 256, 256, 16, high, False)


def explain(state: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["explain", "1", "--state-dir", str(state), "--run-dir", str(state / "none"), *more]) == 0
    return capsys.readouterr().out


def test_the_tape_adds_the_event_the_rule_and_the_bounds_then_in_force(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Outcome(at_ns + MS, "neigh_table", KEY, 0, 256, 512, "written", "", 512, 1)
    tipped = entries(at_ns - 2 * MS, 119)
    record(
        state,
        "neigh_table",
        [value(at_ns - 9 * MS, 4000), entries(at_ns - 3 * MS, 118), tipped, written, value(at_ns + 9 * MS, 9000)],
    )
    said = explain(state, capsys)
    assert "seen      NeighEntries, 2.0 ms before the change: family 2, entries 119, total_entries 119," in said
    assert "rule      neigh_table with full 0.75, filling 0.4," in said
    assert "gate      granted within 16 to 4000 entries; a step of 100%, at most 100%" in said
    (change,) = json.loads(explain(state, capsys, "--json"))["changes"]
    assert change["story"]["fields"]["ifindex"] == 2
    (answer,) = change["story"]["answers"]
    assert answer[2:4] == ["neigh_table", KEY]


def test_a_change_on_trial_is_shown_with_what_the_guard_sees_of_it(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def second(number: int) -> list[AnyEvent]:
        t_ns = at_ns + number * SECOND
        fulls = 5 * max(0, number)
        table = NeighTable(t_ns - MS, 2, 100, 64, 128, 256, fulls, 0, 0, 0)
        trial = Trial(t_ns - MS, 1, "neigh_table", KEY, 0, 0, 256, 512, at_ns, ("neigh_table_fulls",))
        return [table, *([trial] if number > 0 else []), Tick(t_ns, number + 200)]

    record(state, "guard", [event for number in range(-100, 30) for event in second(number)])
    (words,) = [line for line in explain(state, capsys).splitlines() if line.startswith("  guard  ")]
    assert words == "  guard     neigh_table_fulls 5/s (before: 0/s)"


def test_without_a_tape_the_journal_alone_speaks(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = explain(state, capsys)
    assert "why       ARP table: 119 of 256" in said
    assert "undo      trimtab rollback 1" in said
    assert "seen" not in said


def test_a_tape_of_another_boot_is_not_its_tape(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr("bus.recorder.BOOT_ID", other)
    record(state, "neigh_table", [entries(at_ns - 2 * MS, 119)])
    assert "seen" not in explain(state, capsys)


def test_a_clock_that_was_set_back_changes_no_order(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    record(state, "neigh_table", [entries(at_ns - 90 * SECOND, 100)], t_ns=at_ns - 100 * SECOND, tai_ns=9000 * SECOND)
    record(state, "neigh_table", [entries(at_ns - 2 * MS, 119)], t_ns=at_ns - 50 * SECOND, tai_ns=4000 * SECOND)
    assert "seen      NeighEntries, 2.0 ms before the change" in explain(state, capsys)


def test_a_damaged_tape_leaves_the_story_shorter_and_no_more(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = record(state, "neigh_table", [entries(at_ns - 2 * MS, 119)]).iterdir()
    os.truncate(path, path.stat().st_size // 2)
    assert "undo      trimtab rollback 1" in explain(state, capsys)


def test_what_a_tape_says_cannot_steer_the_terminal(
    state: Path, at_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = Outcome(at_ns - 2 * MS, "neigh_table", KEY, 0, 1, 2, "written", "\x1b[2Jgone", 2, 9)
    journal = Journal(state, BOOT_ID.read_text().strip())
    cause: dict[str, int | str] = {"event": f"Outcome@{at_ns - 2 * MS}"}
    journal.intend(Intent(Spot(KEY, 0), Site(), "neigh_table", 512, 600, "follows", cause, 256))
    journal.close()
    record(state, "neigh_table", [evil])
    assert main(["explain", "2", "--state-dir", str(state), "--run-dir", str(state / "none")]) == 0
    out = capsys.readouterr().out
    assert "reason '\\x1b[2Jgone'" in out
    assert "\x1b" not in out
