"""A decider's tape as it is written: segments, the cap, and what a disk, a directory or a stranger may do to it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tape_world import Live, batches, record, replayed

from bus import segment_file
from bus.config import Config, Tape
from bus.recorder import FLUSH_NS, RETRY_NS, SEGMENT_NS
from bus.tape import End, Memory, TapeError
from bus.tape_reader import Block, Unended, being_written, find, heads, segments

MIB = 1 << 20


def whole(folder: Path) -> list[tuple[int, int]]:
    """(number, events) of each segment, all of which replay exactly."""
    found = replayed(folder)
    assert all(asked == played.asked and not played.damage for _, _, asked, played in found)
    return [(segment.head.number, events) for segment, events, _, _ in found]


def test_what_was_recorded_is_decided_again_to_the_byte(tmp_path: Path) -> None:
    live = record(tmp_path, 20, lose=(9,))
    ((segment, events, asked, played),) = replayed(tmp_path)
    assert asked == played.asked == live.wishes
    assert live.wishes
    assert events == live.folded
    assert played.end == End(t_ns=live.now_ns, events=live.folded, why="stopped")
    assert segment.head.config == live.config
    assert segment.head.memory.events == 0


def test_a_segment_that_is_full_or_old_is_closed_and_the_next_goes_on(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.recorder._segment_bytes = 1
    found = batches(8)
    for start in range(0, len(found), 20):
        live.feed(found[start : start + 20])
        live.now_ns += FLUSH_NS
    live.close()
    numbers = whole(tmp_path)
    assert [number for number, _ in numbers] == list(range(len(numbers)))
    assert len(numbers) > 3
    assert sum(events for _, events in numbers) == live.folded
    assert {each.end.why for *_, each in replayed(tmp_path)[:-1] if each.end} == {"full"}

    live = Live(tmp_path / "old")
    live.feed(batches(2))
    live.turn(SEGMENT_NS)
    live.close()
    assert [each.end.why for *_, each in replayed(tmp_path / "old") if each.end] == ["old", "stopped"]


def test_the_oldest_segments_make_room_for_the_newest(tmp_path: Path) -> None:
    live = Live(tmp_path, config=Config(tape=Tape(max_mib=1, segment_mib=4)))
    for number in range(9):
        (tmp_path / f"2020010{number}T000000.000Z-0000.tape").write_bytes(bytes(100_000))
    (tmp_path / "20200101T000000.000Z.note").write_bytes(bytes(MIB))
    (tmp_path / "20190101T000000.000Z-0000.tape").mkdir()
    live.feed(batches(2))
    live.close()
    assert live.recorder.trouble == ""
    left = sorted(path.name for path in tmp_path.glob("2020*"))
    assert left[-2:] == ["20200107T000000.000Z-0000.tape", "20200108T000000.000Z-0000.tape"]
    assert "20200100T000000.000Z-0000.tape" not in left
    assert "20200101T000000.000Z.note" in left
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tape") if path.is_file()) <= MIB
    assert live.recorder._segment_bytes == MIB // 2


def test_with_the_clock_set_back_the_segments_of_this_run_are_the_last_to_go(tmp_path: Path) -> None:
    live = Live(tmp_path, config=Config(tape=Tape(max_mib=1)))
    live.recorder._name = "19700101T000007.000Z"
    live.recorder._number = 9999
    for number in range(3):
        (tmp_path / f"2020010{number}T000000.000Z-0000.tape").write_bytes(bytes(100_000))
    for _ in range(30):
        live.turn()
        live.recorder.batch(os.urandom(100_000))
        live.now_ns += FLUSH_NS
    live.close()
    left = sorted((path.name for path in tmp_path.iterdir()), key=lambda name: int(name[21:].removesuffix(".tape")))
    last = live.recorder._number - 1
    assert last > 10001
    assert left == [f"19700101T000007.000Z-{number}.tape" for number in range(last - len(left) + 1, last + 1)]


def test_a_segment_larger_than_the_cap_is_cut_to_half_of_it(tmp_path: Path) -> None:
    live = Live(tmp_path, config=Config(tape=Tape(max_mib=1, segment_mib=4)))
    noise = os.urandom(200_000)
    for _ in range(30):
        live.turn()
        live.recorder.batch(noise)
        live.now_ns += FLUSH_NS
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert size <= MIB
    assert not live.recorder.trouble
    live.close()


def test_a_block_that_goes_over_a_segments_end_has_room_within_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "20200101T000000.000Z-0000.tape").write_bytes(bytes(500_000))
    live = Live(tmp_path, config=Config(tape=Tape(max_mib=1)))
    sizes = []
    make_room = segment_file._make_room

    def looked_at(path: Path, allowed_bytes: int) -> None:
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        make_room(path, allowed_bytes)

    monkeypatch.setattr(segment_file, "_make_room", looked_at)
    for _ in range(8):
        live.turn()
        live.recorder.batch(os.urandom(255_000))
        live.now_ns += FLUSH_NS
    live.close()
    assert len(sizes) == 3
    assert max(sizes) <= MIB


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may be longer than 64 KiB; what would pass it fails as on a full disk (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("full_disk")
def test_a_write_that_fails_stops_the_tape_and_not_the_decider_and_it_goes_on_later(tmp_path: Path) -> None:
    live = Live(tmp_path)
    found = batches(40)
    live.feed(found[:40])
    live.recorder.batch(os.urandom(100_000))
    live.turn(FLUSH_NS)
    assert live.recorder.trouble.endswith(": No space left on device")
    live.feed(found[40:120])
    assert len(list(tmp_path.iterdir())) == 1
    live.now_ns += RETRY_NS
    live.feed(found[120:])
    assert live.recorder.trouble == ""
    live.close()
    first, second = replayed(tmp_path)
    assert [type(damage) for damage in first[3].damage] == [Unended]
    assert first[2] == first[3].asked
    assert second[2] == second[3].asked
    assert second[0].head.memory.events > first[1]
    assert second[0].head.memory.events + second[1] == live.folded


@pytest.mark.system
def test_a_full_filesystem_leaves_no_litter_and_is_tried_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "trimtab-test", disk], check=True)
    try:
        live = Live(disk / "tcp_buffer")
        found = batches(40)
        live.feed(found[:40])
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        live.now_ns += FLUSH_NS
        live.feed(found[40:80], turn=40)
        live.recorder.batch(os.urandom(9000))
        live.turn(FLUSH_NS)
        assert "No space left" in live.recorder.trouble
        for _ in range(5):
            live.now_ns += RETRY_NS
            live.feed(found[80:81])
        assert "No space left" in live.recorder.trouble
        assert len(list((disk / "tcp_buffer").iterdir())) == 1
        filler.unlink()
        live.now_ns += RETRY_NS
        live.feed(found[81:])
        live.close()
        first, second = replayed(disk)
        assert first[2] == first[3].asked
        assert second[2] == second[3].asked
        assert second[0].head.number == 1
        assert second[0].head.memory.events + second[1] == live.folded
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_directory_that_is_not_there_is_said_and_tried_again(tmp_path: Path) -> None:
    live = Live(tmp_path / "tape")
    (tmp_path / "tape").rmdir()
    live.feed(batches(2))
    assert live.recorder.trouble.endswith(".tape: No such file or directory")
    assert live.wishes
    (tmp_path / "tape").mkdir()
    live.now_ns += RETRY_NS
    live.feed(batches(4)[20:])
    live.close()
    assert live.recorder.trouble == ""
    assert [events for _, events in whole(tmp_path)] == [live.folded - replayed(tmp_path)[0][0].head.memory.events]


def test_a_segment_that_is_removed_is_said_and_another_begun(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.feed(batches(2))
    next(tmp_path.iterdir()).unlink()
    live.feed(batches(4)[20:])
    live.turn(FLUSH_NS)
    assert live.recorder.trouble.endswith("-0000.tape: has been removed")
    live.turn(RETRY_NS)
    live.feed(batches(6)[40:])
    live.close()
    assert live.recorder.trouble == ""
    ((number, events),) = whole(tmp_path)
    assert number == 1
    assert live.recorder.lost(live.folded) + events <= live.folded


@pytest.mark.parametrize("what", ["file", "link", "directory", "pipe"])
def test_what_is_there_already_is_not_touched_and_another_name_is_taken(tmp_path: Path, what: str) -> None:
    folder, victim = tmp_path / "tape", tmp_path / "victim"
    victim.write_text("kept")
    live = Live(folder)
    hostile = folder / f"{live.recorder._name}-0000.tape"
    match what:
        case "file":
            hostile.write_text("kept")
        case "link":
            hostile.symlink_to(victim)
        case "directory":
            hostile.mkdir()
        case _:
            os.mkfifo(hostile)
    live.feed(batches(2))
    assert live.recorder.trouble.endswith(": File exists")
    assert victim.read_text() == "kept"
    time.sleep(0.002)
    live.now_ns += RETRY_NS
    live.feed(batches(4)[20:])
    live.close()
    assert live.recorder.trouble == ""
    assert hostile.is_symlink() or hostile.exists()
    assert victim.read_text() == "kept"
    (mine,) = (path for path in folder.iterdir() if path != hostile)
    assert whole(mine)
    assert mine.stat().st_mode & 0o777 == 0o600


def test_a_killed_process_leaves_all_that_was_written_a_second_before(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from tape_world import Live, batches\n"
        "live = Live(Path(sys.argv[1])); live.feed(batches(9)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parent.parent)))
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": path})
    assert ran.returncode == -signal.SIGKILL
    ((_, events, asked, played),) = replayed(tmp_path)
    assert asked == played.asked
    assert asked
    assert events > 150
    assert [type(damage) for damage in played.damage] == [Unended]


def test_a_tape_that_is_being_written_is_not_called_torn(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.feed(batches(9))
    (path,) = find([tmp_path])
    (segment,) = segments(path)
    assert being_written(path)
    blocks = list(segment.blocks())
    assert blocks
    assert all(isinstance(block, Block) for block in blocks)
    # Read while a frame is under way.
    os.truncate(path, path.stat().st_size - 9)
    assert all(isinstance(block, Block) for block in segment.blocks())
    # Closed while it is read.
    reading = segment.blocks()
    next(reading)
    assert live.recorder._file
    live.recorder._file.let_go()
    assert all(isinstance(block, Block) for block in reading)
    assert not being_written(path)
    assert not isinstance(list(segment.blocks())[-1], Block)


def test_a_state_that_is_too_large_stops_the_tape_and_not_the_decider(tmp_path: Path) -> None:
    live = Live(tmp_path)
    large = Memory(0, {}, bytes(40 * MIB))
    live.recorder._begin = lambda number: msgspec.structs.replace(live.head(number), memory=large)
    live.feed(batches(2))
    assert "is more than fits a frame" in live.recorder.trouble
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "state",
    [object(), {"far": 2**70}, {"half": "\ud800"}, {"pair": (1, 2)}, {1: {"x"}}, [[]]],
    ids=["no message", "too far", "half a character", "a pair", "a set", "a cycle"],
)
def test_a_state_that_does_not_come_back_as_it_was_is_not_kept(tmp_path: Path, state: Any) -> None:
    if state == [[]]:
        state[0].append(state)
    live = Live(tmp_path)
    live.decider.state = state
    assert live.decider.remember() == (b"", b"")
    live.recorder.turn(live.now_ns, 0)
    live.close()
    assert live.recorder.trouble == ""
    (segment,) = segments(next(iter(find([tmp_path]))))
    assert segment.head.memory.state == b""


@pytest.mark.parametrize("state", [{"a": [1, 2.5, "x", None, float("nan")]}, [1], (1, [2]), 5])
def test_a_plain_state_is_kept(tmp_path: Path, state: Any) -> None:
    live = Live(tmp_path)
    live.decider.state = state
    kept, sent = live.decider.remember()
    live.decider.recall(kept, sent)
    assert repr(live.decider.state) == repr(state)
    assert kept


def test_nothing_is_gathered_where_nothing_can_be_written(tmp_path: Path) -> None:
    live = Live(tmp_path / "tape")
    (tmp_path / "tape").rmdir()
    live.feed(batches(20))
    assert live.recorder._size < 10_000


def test_a_newer_tape_is_told_from_what_is_none(tmp_path: Path) -> None:
    record(tmp_path, 2)
    (path,) = find([tmp_path])
    raw = path.read_bytes()
    path.write_bytes(raw[:13] + b"\x02" + raw[14:])
    with pytest.raises(TapeError, match=r"format 2, and this trimtab reads format 1; use a newer one$"):
        list(heads(path))
