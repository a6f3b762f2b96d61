"""The format of a tape, and what its reader makes of damage: a word, never a traceback, and on at the next segment."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
import tape_damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tape_world import HOST, record, replayed

from bus.config import Config
from bus.revision import revision
from bus.tape import (
    ASKED,
    BATCH,
    PACKED_MAX,
    RECORDS_MAX,
    SIZE_MAX,
    End,
    Head,
    Memory,
    Packed,
    TapeError,
    asked_at,
    encode,
    end,
    head,
    opening,
    pack,
    split,
)
from bus.tape import record as one
from bus.tape_reader import Block, Damage, Unended, find, heads, items, segments

HEAD = Head(
    schema=1, decider="tcp_buffer", module="deciders.tcp_buffer", code="1", session="s", number=0, t_ns=0, tai_ns=0,
    tai_offset_s=0, host=HOST, config=Config(), rows=[], memory=Memory(0, {}),
)  # fmt: skip
END = End(t_ns=1, events=0, why="stopped")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tape of three segments in one file."""
    folder = tmp_path_factory.mktemp("sound")
    parts = []
    for number in range(3):
        record(folder / str(number), 6)
        (path,) = find([folder / str(number)])
        parts.append(path.read_bytes().removeprefix(opening()))
    return opening() + b"".join(parts)


def drained(path: Path) -> list[Damage]:
    """All damage that reading all of it in every way tells of; "not a tape" as one, too."""
    found: list[Damage] = []
    try:
        found += (item for _, item in items(path) if isinstance(item, Damage))
        found += (item for item in heads(path) if isinstance(item, Damage))
        for segment in segments(path):
            found += (item for item in segment.blocks() if isinstance(item, Damage))
    except TapeError as error:
        found.append(Damage(str(path), str(error)))
    return found


@given(st.lists(st.tuples(st.sampled_from((BATCH, ASKED)), st.integers(0, 2**64 - 1), st.binary(min_size=1))))
def test_records_come_out_as_they_went_in(records: list[tuple[int, int, bytes]]) -> None:
    wanted = [(kind, at if kind == ASKED else 0, raw) for kind, at, raw in records]
    block = b"".join(one(kind, *((asked_at(at),) if kind == ASKED else ()), raw) for kind, at, raw in wanted)
    assert split(block) == wanted


@given(st.binary(max_size=300))
def test_bytes_that_are_no_records_no_head_and_no_end_are_a_tape_error(raw: bytes) -> None:
    for read in (split, head, end):
        with contextlib.suppress(TapeError):
            read(raw)


def test_a_block_of_too_many_records_is_damage() -> None:
    assert len(split(one(BATCH, b"x") * RECORDS_MAX)) == RECORDS_MAX
    with pytest.raises(TapeError, match="no record of ours"):
        split(one(BATCH, b"x") * (RECORDS_MAX + 1))


def test_what_is_larger_than_any_reader_takes_is_not_written() -> None:
    with pytest.raises(TapeError, match="more than fits a frame"):
        pack("head", bytes(SIZE_MAX + 1))
    with pytest.raises(TapeError, match="more than fits a frame"):
        pack("block", os.urandom(PACKED_MAX + 1))


def test_the_file_is_as_the_header_of_the_module_says(tmp_path: Path) -> None:
    record(tmp_path, 2)
    (path,) = find([tmp_path])
    magic, version, first, *rest = msgpack.Unpacker(io.BytesIO(path.read_bytes()), use_list=False)
    assert (magic, version) == ("trimtab-tape", 1)
    assert [frame[0] for frame in (first, *rest)] == ["head", *["block"] * (len(rest) - 1), "end"]
    for frame in (first, *rest):
        kind, source, size, _, payload = frame
        assert source == 0
        assert len(Packed(*frame).unpack()) == size
        assert payload[:4] == b"\x28\xb5\x2f\xfd"
        assert kind


def test_segments_put_one_behind_the_other_each_replay(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "t.tape"
    path.write_bytes(sound)
    found = replayed(path)
    assert len(found) == 3
    assert all(asked == played.asked != [] for _, _, asked, played in found)


def test_two_sources_in_turn_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.tape"
    parts = [pack("head", encode(HEAD), source) for source in (0, 1)]
    parts += [pack("block", one(BATCH, b"%d" % number), number % 2) for number in range(6)]
    parts += [pack("end", encode(END), 1)]
    path.write_bytes(opening() + b"".join(parts))
    first, second = segments(path)
    assert [item.records for item in first.blocks() if isinstance(item, Block)] == [
        [(BATCH, 0, b"0")], [(BATCH, 0, b"2")], [(BATCH, 0, b"4")],
    ]  # fmt: skip
    assert isinstance(list(first.blocks())[-1], Unended)
    assert list(second.blocks())[-1] == END


@pytest.mark.parametrize(
    "what", [b"", b"\x7fELF" + bytes(99), b"hello\n", msgpack.packb("trimtab-tape"), msgpack.packb(("trimtab-tape", 1))]
)
def test_what_is_no_tape_is_said_to_be_none(tmp_path: Path, what: bytes) -> None:
    path = tmp_path / "t.tape"
    path.write_bytes(what)
    with pytest.raises(TapeError, match=r"not a tape of trimtab's$"):
        segments(path)


def test_a_directory_a_device_a_pipe_and_nothing_are_no_tapes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tape"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), Path("/dev/zero"), tmp_path):
        with pytest.raises(TapeError, match=r": not a file$"):
            segments(path)
    with pytest.raises(TapeError, match="No such file"):
        segments(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TapeError, match=r"no tape \(\.tape\) in it"):
        find([tmp_path / "empty"])


def test_after_damage_reading_goes_on_at_the_next_segment(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "t.tape"
    second = tape_damage.bounds(sound)[next(
        number for number, frame in enumerate(tape_damage.frames(sound)) if number and frame[0] == "head"
    )]  # fmt: skip
    for place in range(len(opening()), second, 97):
        for copy in (sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :], sound[:place] + sound[second:]):
            path.write_bytes(copy)
            found = list(heads(path))
            sources = [each for each in found if not isinstance(each, Damage)]
            assert len(sources) >= 2
            for segment in sources[-2:]:
                assert isinstance(list(segment.blocks())[-1], End)
            if len(copy) == len(sound):
                assert drained(path), place


def test_a_frame_that_has_taken_in_the_next_head_whole_does_not_keep_it(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "t.tape"
    found, places = tape_damage.frames(sound), tape_damage.bounds(sound)
    second = [number for number, frame in enumerate(found) if frame[0] == "head"][1]
    kind, source, size, crc, payload = found[1]
    longer = msgpack.packb((kind, source, size, crc, payload + sound[places[2] : places[second + 1]]))
    path.write_bytes(sound[: places[1]] + longer + sound[places[second + 1] :])
    assert len(segments(path)) == 3
    assert "checksum" in str(drained(path)[0])


def test_what_a_frame_announces_is_looked_at_before_it_is_unpacked() -> None:
    large = tape_damage.bomb(SIZE_MAX + 1)
    with pytest.raises(TapeError, match=r"claims to hold 33554433 bytes .*, at most 33554432"):
        Packed("block", 0, SIZE_MAX + 1, zlib.crc32(large), large).unpack()


def test_a_cut_anywhere_is_read_up_to_the_last_whole_block(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "t.tape"
    places = tape_damage.bounds(sound)
    for number, place in enumerate(places[1:5], 1):
        for more in (0, 1, 30):
            path.write_bytes(sound[: place + more])
            found = [item for _, item in items(path) if not isinstance(item, Damage)]
            assert len(found) == number


def test_a_file_that_shrinks_while_it_is_read_is_damage(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "t.tape"
    path.write_bytes(sound)
    last = segments(path)[-1]
    path.write_bytes(sound[:100])
    (damage,) = last.blocks()
    assert isinstance(damage, Damage)


def copies(sound: bytes, count: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        yield tape_damage.wild(chance, sound)


def fuzz(path: Path, sound: bytes, count: int, seed: int) -> None:
    for number, copy in enumerate(copies(sound, count, seed)):
        path.write_bytes(copy)
        try:
            words = [str(damage) for damage in drained(path)]
        except Exception:
            print(f"copy {number} of seed {seed}")
            raise
        assert all(len(word) < 500 and "\n" not in word for word in words)


def test_damage_of_any_kind_is_a_word(tmp_path: Path, sound: bytes) -> None:
    fuzz(tmp_path / "t.tape", sound, 150, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_damage_of_any_kind_is_a_word_thousands_of_times(tmp_path: Path, sound: bytes) -> None:
    fuzz(tmp_path / "t.tape", sound, 5000, 2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_read_to_their_end(tmp_path: Path, raw: bytes, begun: bool) -> None:
    path = tmp_path / "t.tape"
    path.write_bytes(opening() + pack("head", encode(HEAD)) + raw if begun else raw)
    assert drained(path)


def test_memory_is_bounded_whatever_a_frame_claims(tmp_path: Path, sound: bytes) -> None:
    """Each of the lies many times, with one GiB of addresses."""
    middle = tape_damage.bounds(sound)[2]
    for number, lie in enumerate(tape_damage.LIES):
        (tmp_path / f"{number:02d}.tape").write_bytes(sound[:middle] + lie() * 8 + sound[middle:])
    code = (
        "import sys, resource; from pathlib import Path; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from test_bus_tape import drained; print([len(drained(path)) for path in sorted(Path(sys.argv[1]).iterdir())])"
    )
    roots = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parent.parent)))
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": roots}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.split(",")) == len(tape_damage.LIES)


def test_thousands_of_heads_that_each_claim_32_mib_are_kept_packed(tmp_path: Path) -> None:
    path = tmp_path / "t.tape"
    large = msgspec.structs.replace(HEAD, memory=Memory(1, {}, bytes(SIZE_MAX - (1 << 20))))
    with path.open("wb") as file:
        file.write(opening())
        for number in range(60):
            file.write(pack("head", encode(msgspec.structs.replace(large, number=number))) + pack("end", encode(END)))
    code = (
        "import sys, resource; from pathlib import Path; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from bus.tape_reader import segments; found = segments(Path(sys.argv[1])); print(len(found))"
    )
    root = str(Path(__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", code, path], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert (ran.stdout, ran.stderr) == ("60\n", "")


def test_the_revision_tells_ours_from_a_third_partys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = revision("deciders.tcp_buffer")
    assert ours == revision("deciders.guard")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lonely_tuner.py").write_text("A = 1")
    (tmp_path / "other.py").write_text("B = 1")
    theirs = revision("lonely_tuner")
    assert theirs.startswith(f"{ours}+")
    (tmp_path / "other.py").write_text("B = 2")
    assert revision("lonely_tuner") == theirs
    (tmp_path / "lonely_tuner.py").write_text("A = 2")
    assert revision("lonely_tuner") != theirs
