"""`trimtab replay`: every wish comes out equal, wherever and however often; else the first difference is shown."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tape_damage
import tape_world
from tape_world import BEGIN_NS, SEC, Live, batches, record

from bus import recorder
from bus.config import Config
from bus.numbering import Numbering
from bus.recorder import FLUSH_NS, RETRY_NS
from bus.schema import Batch, Tick, Wish
from bus.tape import Head, Memory, Packed, encode, opening, pack
from bus.tape import head as tape_head
from deciders import tcp_buffer
from trimtab.__main__ import main
from trimtab.tape import jobs, replay

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 60
Run = Callable[..., "Ran"]


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def only(self) -> dict[str, Any]:
        (line,) = self.document["deciders"]
        return dict(line)


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*tapes: Path, options: tuple[str, ...] = ("--json", "-j1")) -> Ran:
        capfdbinary.readouterr()
        code = main(["replay", *map(str, tapes), *options])
        sys.stdout.flush()
        said = capfdbinary.readouterr()
        assert b"Traceback" not in said.err
        return Ran(code, said.out.decode(), said.err.decode())

    return call


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of five seconds."""
    monkeypatch.setattr(recorder, "SEGMENT_NS", 5 * SEC)


def joined(frames: list[tape_damage.Frame]) -> bytes:
    return tape_damage.join(frames)[len(opening()) :]


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.tape")
    return path


# --- equal


@pytest.mark.usefixtures("short")
def test_every_segment_replays_on_its_own_and_equal(tmp_path: Path, run: Run) -> None:
    live = record(tmp_path, 20)
    count = len(list(tmp_path.glob("*.tape")))
    assert count >= 4
    assert len(live.wishes) > 5
    ran = run(tmp_path)
    assert (ran.code, ran.err) == (0, "")
    line = ran.only
    assert (line["segments"], line["events"], line["wishes"]) == (count, live.folded, len(live.wishes))
    assert (line["different"], line["damaged"], line["skipped"], line["first_difference"]) == (0, 0, 0, None)
    assert 18 <= line["seconds"] <= 20
    assert ran.document["equal"] is True
    min(tmp_path.glob("*.tape")).unlink()
    rest = run(tmp_path)
    assert (rest.code, rest.only["segments"], rest.only["different"]) == (0, count - 1, 0)


def test_a_person_reads_a_line_per_decider_and_a_sum(tmp_path: Path, run: Run) -> None:
    live = record(tmp_path)
    ran = run(tmp_path, options=())
    head, line, *_, last = ran.out.splitlines()
    assert head.split() == ["host", "decider", "segments", "events", "wishes", "from", "seconds"]
    assert line.split()[:5] == ["shop-db-7", "tcp_buffer", "1", str(live.folded), str(len(live.wishes))]
    assert line.endswith("equal")
    assert last.startswith(f"{live.folded} events in ")


@pytest.mark.usefixtures("short")
def test_processes_find_what_one_finds(tmp_path: Path, run: Run) -> None:
    record(tmp_path, 20)
    one, three = (run(tmp_path, options=("--json", "-j", count)).document for count in ("1", "3"))
    for document in (one, three):
        del document["seconds"], document["events_per_s_and_core"]
    assert one == three


def test_loss_and_a_publisher_that_begins_anew_replay_as_they_were_heard(tmp_path: Path, run: Run) -> None:
    live = Live(tmp_path)
    live.feed(batches(10, lose=(3, 4, 17)))
    again = [msgspec.structs.replace(batch, epoch_ns=batch.epoch_ns + SEC) for batch in batches(10)]
    live.feed(again)
    live.close()
    assert sum(lane.lost for lane in live.lanes.values()) > 10
    assert run(tmp_path).code == 0


def test_events_out_of_the_order_of_time_replay(tmp_path: Path, run: Run) -> None:
    live = Live(tmp_path)
    # Each batch's events backwards, and a time far ahead in between.
    shaken = [msgspec.structs.replace(batch, events=batch.events[::-1]) for batch in batches(10)]
    live.feed([*shaken, Batch(1, "elsewhere", 1, 0, [Tick(10**18, 1)]), *batches(3)])
    live.close()
    ran = run(tmp_path)
    assert (ran.code, ran.only["events"]) == (0, live.folded)


@pytest.mark.usefixtures("short")
def test_another_hash_seed_decides_the_same(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "tests")]
    make = "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import tape_world; "
    make += "live = tape_world.record(pathlib.Path(sys.argv[1]), 10); print(len(live.wishes))"
    wishes = seeded("1", "-c", make, str(tmp_path), *paths)
    for seed in ("2", "77"):
        found = json.loads(seeded(seed, "-m", "trimtab", "replay", str(tmp_path), "--json"))
        assert found["equal"]
        assert [line["wishes"] for line in found["deciders"]] == [int(wishes)]


def seeded(seed: str, *argv: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run(
        [sys.executable, *argv], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_several_sources_in_one_file_are_each_replayed(tmp_path: Path, run: Run) -> None:
    for name, seconds in (("one", 10), ("two", 15)):
        record(tmp_path / name, seconds, host=msgspec.structs.replace(tape_world.HOST, name=name, boot_id=name))
    frames = [
        [(kind, source, *rest) for kind, _, *rest in tape_damage.frames(only(tmp_path / name).read_bytes())]
        for source, name in enumerate(("one", "two"))
    ]
    both = tmp_path / "both.tape"
    # In turns: the frames of one stand between those of the other.
    turns = [frame for pair in zip_longest(*frames) for frame in pair if frame]
    assert [frame[1] for frame in turns[:4]] == [0, 1, 0, 1]
    both.write_bytes(tape_damage.join(turns))
    ran = run(both)
    assert ran.code == 0
    assert [(line["host"]["name"], line["segments"]) for line in ran.document["deciders"]] == [("one", 1), ("two", 1)]
    (kind,) = ran.document["classes"]
    assert (kind["hosts"], kind["cpus"], kind["memory_gib"]) == (2, 4, 8)
    assert "hosts" in run(both, options=("-j1",)).out


class WithoutMemory(Live):
    """As a decider whose state msgspec cannot keep."""

    def head(self, number: int) -> Head:
        head = super().head(number)
        memory = head.memory
        return msgspec.structs.replace(head, memory=Memory(memory.events, memory.lanes))


@pytest.mark.usefixtures("short")
def test_segments_without_memory_go_on_from_the_one_before(tmp_path: Path, run: Run) -> None:
    live = WithoutMemory(tmp_path)
    live.feed(batches(20))
    live.close()
    count = len(list(tmp_path.glob("*.tape")))
    ran = run(tmp_path)
    assert (ran.code, ran.only["segments"], ran.only["wishes"]) == (0, count, len(live.wishes))
    sorted(tmp_path.glob("*.tape"))[1].unlink()
    ran = run(tmp_path)
    assert (ran.code, ran.only["segments"]) == (3, 1)
    assert ran.err.count("the segment before it is not here; skipped") == count - 2


def test_a_segment_without_memory_does_not_go_on_over_what_is_on_no_tape(tmp_path: Path, run: Run) -> None:
    live = WithoutMemory(tmp_path)
    found = batches(40)
    live.feed(found[:60])
    live.turn(FLUSH_NS)
    assert live.recorder._file
    live.recorder._file.trouble = "No space left on device"
    live.feed(found[60:150])
    live.now_ns += RETRY_NS
    live.feed(found[150:])
    live.close()
    ran = run(tmp_path)
    assert (ran.code, ran.only["skipped"], ran.only["different"]) == (3, 1, 0)
    assert " events, of which " in ran.err


# --- different


def wrong(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Wish], list[Wish]]) -> None:
    """The recorder writes something else than was wished for."""
    asked = recorder.Recorder.asked

    def other(self: recorder.Recorder, events: int, request: Wish) -> None:
        for wish in change(events, request):
            asked(self, events, wish)

    monkeypatch.setattr(recorder.Recorder, "asked", other)


def test_the_first_difference_is_shown_with_its_fields_and_events(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def third(events: int, wish: Wish) -> list[Wish]:
        seen.append(events)
        return [msgspec.structs.replace(wish, want=wish.want + 1) if len(seen) in (3, 5) else wish]

    wrong(monkeypatch, third)
    live = record(tmp_path)
    ran = run(tmp_path)
    assert ran.code == 2
    found = ran.only["first_difference"]
    assert found["event"] == seen[2]
    changed = [field for field in found["fields"] if field["recorded"] != field["replayed"]]
    (want,) = changed
    assert (want["name"], want["recorded"] - want["replayed"]) == ("want", 1)
    tunable = next(field["recorded"] for field in found["fields"] if field["name"] == "tunable")
    topic = "TcpRcvBuf" if "rmem" in tunable else "TcpSndBuf"
    kinds = [event[0] for event in found["before"]]
    assert len(kinds) == 6
    assert kinds[-1] == topic
    assert set(kinds) <= {topic, "Value", "Outcome"}
    assert ran.only["events"] == live.folded
    shown = run(tmp_path, options=("-j1",)).out
    assert f"first difference of tcp_buffer on shop-db-7\n{only(tmp_path)}, event {seen[2]}" in shown
    assert f"recorded: {want['recorded']}\n" in shown
    assert "DIFFERENT" in shown


@pytest.mark.parametrize(("more", "what"), [(False, "asked for more"), (True, "did not ask again")])
def test_a_wish_too_many_or_too_few_is_a_difference(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, more: bool, what: str
) -> None:
    seen: list[int] = []

    def fourth(events: int, wish: Wish) -> list[Wish]:
        seen.append(events)
        return [wish] * (1 if len(seen) != 4 else 2 if more else 0)

    wrong(monkeypatch, fourth)
    record(tmp_path)
    ran = run(tmp_path)
    assert ran.code == 2
    found = ran.only["first_difference"]
    assert (found["event"], found["what"]) == (seen[3], what)
    missing = "replayed" if more else "recorded"
    assert all(field[missing] is None for field in found["fields"])


def test_a_wish_at_another_event_is_a_difference(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recorder.Recorder.asked
    monkeypatch.setattr(recorder.Recorder, "asked", lambda self, events, request: asked(self, events + 1, request))
    record(tmp_path)
    assert run(tmp_path).code == 2


def test_other_code_is_said_to_lead_to_differences(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, code="0.0.1+abc")
    ran = run(tmp_path, options=("-j1",))
    assert ran.code == 0
    assert "note: tcp_buffer decided by 0.0.1+abc, and the code here is another\n" in ran.out
    assert run(tmp_path).only["other_code"] == "0.0.1+abc"
    wrong(monkeypatch, lambda _, wish: [])
    record(tmp_path / "more", code="0.0.1+abc")
    ran = run(tmp_path, options=("-j1",))
    assert ran.code == 2
    assert "and the code here is another: that may be why\n" in ran.out


# --- damaged


def test_a_process_that_was_killed_leaves_a_tape_that_replays_equal(tmp_path: Path, run: Run) -> None:
    record(tmp_path)
    path = only(tmp_path)
    path.write_bytes(tape_damage.join(tape_damage.frames(path.read_bytes())[:-1]))
    ran = run(tmp_path)
    assert (ran.code, ran.only["unended"]) == (0, 1)
    assert ran.err.count("\n") == 1
    assert "the segment has no end" in ran.err


@pytest.mark.usefixtures("short")
def test_what_is_damaged_is_skipped_with_a_word_and_the_rest_replayed(tmp_path: Path, run: Run) -> None:
    record(tmp_path, 20)
    whole = run(tmp_path).only["events"]
    path = sorted(tmp_path.glob("*.tape"))[1]
    raw = bytearray(path.read_bytes())
    raw[-200] ^= 1
    path.write_bytes(bytes(raw))
    ran = run(tmp_path)
    assert (ran.code, ran.only["damaged"], ran.only["different"]) == (3, 1, 0)
    assert 0 < ran.only["events"] < whole
    assert str(path) in ran.err


def test_a_head_that_cannot_be_read_is_told_of(tmp_path: Path, run: Run) -> None:
    record(tmp_path / "a")
    record(tmp_path / "b")
    path = only(tmp_path / "a")
    (kind, source, size, _, payload), *rest = tape_damage.frames(path.read_bytes())
    path.write_bytes(tape_damage.join([(kind, source, size, 7, payload), *rest]))
    ran = run(tmp_path)
    assert (ran.code, ran.only["segments"]) == (3, 1)
    assert ran.err.count("\n") == 1
    assert f"{path}, byte " in ran.err


def test_a_block_that_is_not_there_is_damage_and_no_difference(tmp_path: Path, run: Run) -> None:
    live = Live(tmp_path)
    for begin in range(0, len(batches(30)), 40):
        live.feed(batches(30)[begin : begin + 40])
        live.now_ns += 11 * SEC
    live.close()
    path = only(tmp_path)
    frames = tape_damage.frames(path.read_bytes())
    assert len(frames) > 5
    del frames[2]
    path.write_bytes(tape_damage.join(frames))
    ran = run(tmp_path)
    assert (ran.code, ran.only["different"], ran.only["damaged"]) == (3, 0, 1)
    assert "blocks are missing" in ran.err


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ({"decider": "nobody", "module": "nobody.decider"}, "no decider 'nobody'"),
        ({"config": msgspec.convert({"policy": {"tcp_buffer": {"speed": 1}}}, type=Config)}, "speed"),
        ({"memory": Memory(7, {}, b"\xc1", b"\x80")}, "the memory of tcp_buffer is none that this trimtab understands"),
    ],
)
def test_what_cannot_be_played_here_is_a_line_and_degraded(
    tmp_path: Path, run: Run, head: dict[str, Any], word: str
) -> None:
    record(tmp_path / "good")
    record(tmp_path / "bad")
    path = only(tmp_path / "bad")
    first, *rest = tape_damage.frames(path.read_bytes())
    was = tape_head(Packed(*first).unpack())
    path.write_bytes(opening() + pack("head", encode(msgspec.structs.replace(was, **head))) + joined(rest))
    ran = run(tmp_path)
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert word in ran.err
    assert sum(line["skipped"] for line in ran.document["deciders"]) == 1
    assert sum(line["different"] for line in ran.document["deciders"]) == 0


def test_damage_of_every_kind_is_words_and_a_code(tmp_path: Path, run: Run) -> None:
    for number in range(3):
        record(tmp_path / str(number), 4)
    raw = opening() + b"".join(
        joined(tape_damage.frames(only(tmp_path / str(number)).read_bytes())) for number in range(3)
    )
    path, policy = tmp_path / "wild.tape", tmp_path / "candidate.toml"
    policy.touch()
    codes: Counter[int] = Counter()
    for seed in range(SEEDS):
        path.write_bytes(tape_damage.wild(random.Random(seed), raw))
        ran = run(path)
        codes[ran.code] += 1
        assert ran.code in (0, 1, 2, 3), seed
        if ran.code in (1, 3):
            assert ran.err, seed
        if seed % 4 == 0:
            assert run(path, options=("--policy", str(policy), "--json", "-j1")).code in (0, 1, 3), seed
    assert codes[3] > SEEDS / 4


def test_nothing_that_a_tape_names_is_imported_or_obeyed(tmp_path: Path, run: Run) -> None:
    record(tmp_path, module="antigravity.x", host=msgspec.structs.replace(tape_world.HOST, name="\x1b[2Jweb"))
    ran = run(tmp_path, options=("-j1",))
    assert ran.code == 0
    assert "antigravity" not in sys.modules
    assert "\x1b" not in ran.out
    assert "?[2Jweb" in ran.out


def test_a_decider_that_fails_is_told_of(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path)

    def fail(state: object, event: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(tcp_buffer, "step", fail)
    ran = run(tmp_path)
    assert ran.code == 3
    assert "the decider fails at event 1 of it (ZeroDivisionError: by zero)" in ran.err


def test_a_decider_that_cannot_even_be_imported_is_told_of(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path)

    def fail(*_: object) -> None:
        raise SyntaxError("of another Python")

    monkeypatch.setattr(replay, "decider", fail)
    ran = run(tmp_path)
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "SyntaxError: of another Python; skipped" in ran.err


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "not a tape of trimtab's"),
        (b"PK\x03\x04 and so on", "not a tape of trimtab's"),
        (opening()[:-1] + b"\x02", "format 2, and this trimtab reads format 1"),
    ],
)
def test_no_tape_and_a_newer_one_are_one_line_and_an_error(tmp_path: Path, run: Run, raw: bytes, word: str) -> None:
    path = tmp_path / "x.tape"
    path.write_bytes(raw)
    ran = run(path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert word in ran.err


def test_an_empty_directory_is_an_error(tmp_path: Path, run: Run) -> None:
    ran = run(tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


def test_a_process_that_is_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="was killed"):
        list(jobs.each(lambda_kill, [1, 2, 3], 2, "x"))


def lambda_kill(_: int) -> None:
    os.kill(os.getpid(), 9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("screen", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, shown: bool) -> None:
    monkeypatch.setattr(jobs, "QUIET_S", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    assert sorted(jobs.each(abs, [-1, -2, -3], 1, "counting")) == [1, 2, 3]
    assert ("counting" in screen.getvalue()) == shown


def test_numbers_of_a_lane_are_those_of_the_head(tmp_path: Path) -> None:
    # What the heads above rest on: a lane goes on where the segment before has left it.
    lane = Numbering("x", 1, 5)
    assert [event.t_ns for event in lane.take(Batch(1, "x", 1, 5, [Tick(BEGIN_NS, 1)]))] == [BEGIN_NS]
