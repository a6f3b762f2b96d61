"""A disk that hangs or does not keep up while a decider is recorded: it goes on, and what is lost is counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tape_world import Live, batches, replayed

from bus import disk, recordings, segment_file
from bus.config import Tape
from bus.disk import Disk
from bus.recorder import FLUSH_NS, RETRY_NS
from bus.recordings import Recordings


class Hang:
    """A file system whose writes, when it hangs, are not done before it does no longer."""

    def __init__(self) -> None:
        self._well = threading.Event()
        self._well.set()
        self.waits = threading.Event()

    def write(self, fd: int, raw: bytes) -> int:
        if not self._well.is_set():
            self.waits.set()
            assert self._well.wait(30)
        return os.write(fd, raw)

    def begin(self) -> None:
        self.waits.clear()
        self._well.clear()

    def end(self) -> None:
        self._well.set()


class Os:
    """What segment_file knows as os, but for write()."""

    def __init__(self, hang: Hang) -> None:
        self.write = hang.write

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    made = Hang()
    monkeypatch.setattr(segment_file, "os", Os(made))
    yield made
    made.end()


def noise(live: Live) -> None:
    """So much in each turn that does not pack, until the recorder gives up."""
    for _ in range(100):
        live.recorder.batch(os.urandom(200_000))
        live.turn(FLUSH_NS)
        if live.recorder.trouble:
            return


def test_a_disk_that_hangs_stops_the_tape_and_not_the_decider_and_it_goes_on_later(tmp_path: Path, hang: Hang) -> None:
    live = Live(tmp_path)
    found = batches(60)
    live.feed(found[:40])
    live.turn(FLUSH_NS)
    on_tape = live.folded
    live.waits = False
    hang.begin()
    noise(live)
    assert hang.waits.wait(10)
    assert live.recorder.trouble.endswith(" KiB wait to be written")
    assert disk.ROOM_BYTES - 250_000 < live.recorder.disk.waiting_bytes <= disk.ROOM_BYTES
    # Nothing more is given to it, however long it takes.
    live.turn(RETRY_NS)
    live.feed(found[40:80])
    live.turn(RETRY_NS)
    assert live.recorder.disk.waiting_bytes <= disk.ROOM_BYTES
    assert live.recorder.lost(live.folded) == live.folded - on_tape > 30
    hang.end()
    live.waits = True
    live.turn()
    live.feed(found[80:])
    live.close()
    assert live.recorder.trouble == ""
    segment, events, asked, played = replayed(tmp_path)[-1]
    assert asked == played.asked != []
    assert not played.damage
    assert segment.head.memory.events > on_tape
    assert on_tape + live.recorder.lost(live.folded) + events == live.folded


def test_what_was_asked_for_while_the_disk_hung_is_on_the_tape_later(tmp_path: Path, hang: Hang) -> None:
    live = Live(tmp_path)
    found = batches(60)
    live.feed(found[:40])
    live.waits = False
    hang.begin()
    live.feed(found[40:])
    assert hang.waits.wait(10)
    assert live.recorder.trouble == ""
    hang.end()
    live.close()
    ((_, events, asked, played),) = replayed(tmp_path)
    assert asked == played.asked == live.wishes
    assert events == live.folded
    assert live.recorder.lost(live.folded) == 0


def test_a_disk_that_does_not_answer_is_told_of_before_there_is_no_room_left(
    tmp_path: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(disk, "SLOW_NS", 10_000_000)
    folded = Live(tmp_path / "other")
    tapes = Recordings(said.append)
    tapes.add("tcp_buffer", tmp_path, Tape(), folded.head)
    hang.begin()
    tapes.turn(RETRY_NS, 0)
    assert hang.waits.wait(10)
    time.sleep(0.02)
    for _ in range(3):
        status = tapes.status(5)
        assert status["missing"] == [f"the recording of tcp_buffer: {tmp_path}: the disk does not answer"]
        assert status["tape"] == f"{tmp_path}: the disk does not answer"
    hang.end()
    tapes.turn(2 * RETRY_NS, 5)
    tapes.close(2 * RETRY_NS, 5)
    assert tapes.status(5)["missing"] == []
    assert said == [
        f"not recorded: tcp_buffer: {tmp_path}: the disk does not answer",
        "recorded again: tcp_buffer; 0 events are on no tape",
    ]


def test_several_deciders_are_recorded_from_their_first_event_on(tmp_path: Path, hang: Hang) -> None:
    live = Live(tmp_path / "other")
    tapes = Recordings(lambda line: None)
    for name in ("tcp_buffer", "tcp_memory", "ports"):
        (tmp_path / name).mkdir()
        tapes.add(name, tmp_path / name, Tape(), live.head)
    hang.begin()
    tapes.turn(RETRY_NS, 0)
    hang.end()
    tapes.close(RETRY_NS, 0)
    assert all(len(list((tmp_path / name).iterdir())) == 1 for name in ("tcp_buffer", "tcp_memory", "ports"))
    assert tapes.status(0)["tape_lost"] == 0


def test_a_process_ends_though_its_disk_hangs(tmp_path: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "SETTLE_S", 0.01)
    tapes = Recordings(lambda line: None)
    tapes.add("tcp_buffer", tmp_path, Tape(), Live(tmp_path / "other").head)
    hang.begin()
    tapes.turn(RETRY_NS, 0)
    assert hang.waits.wait(10)
    tapes.close(RETRY_NS, 0)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "disk")


def test_one_piece_of_work_is_always_taken_however_large() -> None:
    made = Disk(room_bytes=10)
    well = threading.Event()
    assert made.give(lambda: None, 1000)
    assert made.settle(10)
    assert made.give(lambda: well.wait(10) and None, 1000)
    assert not made.give(lambda: None, 1)
    assert made.give(lambda: None)
    assert not made.idle
    well.set()
    assert made.settle(10)
    assert made.give(lambda: None, 1)
