"""The ring reader against rings laid out by hand (the kernel's own rings: test_bpf_probes.py)."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import PROBES
from collectors.ring import BUSY, DISCARD, Drops, Ring

RECORD = struct.Struct("=QI")  # 12 bytes, so that a slot is 8 + 12 + 4
SLOT = 24
PAGE = mmap.PAGESIZE


class Written:
    """A ring in a file, as the kernel would have written it."""

    def __init__(self, data_bytes: int = PAGE) -> None:
        self.fd = os.memfd_create("ring")
        self.bytes = data_bytes
        os.ftruncate(self.fd, 2 * PAGE + 2 * data_bytes)
        self.produced = 0
        self.ring = Ring(self.fd, data_bytes, RECORD)

    def close(self) -> None:
        self.ring.close()
        os.close(self.fd)

    def at(self, position: int) -> None:
        """Begin there, as after much traffic."""
        self.produced = position
        for page in (0, PAGE):
            os.pwrite(self.fd, struct.pack("Q", position), page)

    def put(self, payload: bytes, flags: int = 0) -> int:
        """One record; returns its position."""
        position = self.produced
        raw = struct.pack("II", len(payload) | flags, 7) + payload
        self.produced += -(-len(raw) // 8) * 8
        for number, byte in enumerate(raw):
            place = (position + number) % self.bytes
            for copy in (place, place + self.bytes):
                os.pwrite(self.fd, bytes((byte,)), 2 * PAGE + copy)
        os.pwrite(self.fd, struct.pack("Q", self.produced), PAGE)
        return position

    def flag(self, position: int, length: int, flags: int) -> None:
        place = position % self.bytes
        for copy in (place, place + self.bytes):
            os.pwrite(self.fd, struct.pack("I", length | flags), 2 * PAGE + copy)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    made.close()


def row(number: int) -> bytes:
    return RECORD.pack(number, number % 1000)


def test_an_empty_ring_has_nothing_and_is_left_alone(written: Written) -> None:
    assert written.ring.read() == []
    assert written.consumed == 0


def test_records_come_in_order_and_their_room_is_given_back(written: Written) -> None:
    for number in range(5):
        written.put(row(number))
    assert written.ring.read() == [(number, number) for number in range(5)]
    assert written.consumed == 5 * SLOT
    assert written.ring.read() == []


def test_a_record_that_wraps_is_read_whole(written: Written) -> None:
    written.at(10 * PAGE - 16)
    written.put(row(1))
    written.put(row(2))
    assert written.ring.read() == [(1, 1), (2, 2)]


def test_reading_stops_at_a_record_still_being_written_and_goes_on_when_it_is_done(written: Written) -> None:
    written.put(row(1))
    busy = written.put(row(2), BUSY)
    written.put(row(3))
    assert written.ring.read() == [(1, 1)]
    assert written.consumed == busy
    assert written.ring.read() == []
    written.flag(busy, RECORD.size, 0)
    assert written.ring.read() == [(2, 2), (3, 3)]


def test_a_discarded_record_is_passed_over_and_not_counted(written: Written) -> None:
    written.put(row(1), DISCARD)
    written.put(row(2))
    written.put(row(3), DISCARD)
    assert written.ring.read() == [(2, 2)]
    assert written.consumed == 3 * SLOT
    assert written.ring.malformed == 0


def test_a_record_that_is_done_while_it_is_looked_at_is_not_taken_for_another_kind(written: Written) -> None:
    busy = written.put(row(1), BUSY)
    words = written.ring._words

    class Meanwhile:
        """The headers as they were, and then the record is done."""

        def __getitem__(self, place: slice) -> memoryview:
            found = words[place]
            copy = memoryview(bytes(found)).cast("I") if isinstance(place, slice) else found
            written.flag(busy, RECORD.size, 0)
            return copy

    written.ring._words = Meanwhile()  # type: ignore[assignment]
    assert written.ring.read() == []
    written.ring._words = words
    assert written.ring.read() == [(1, 1)]
    assert written.ring.malformed == 0


@pytest.mark.parametrize("size", [0, 4, 8, 11, 13, 40])
def test_a_record_of_another_length_is_passed_over_and_counted(written: Written, size: int) -> None:
    written.put(row(1))
    written.put(b"x" * size)
    written.put(row(2))
    assert written.ring.read() == [(1, 1), (2, 2)]
    assert written.ring.malformed == 1


def test_no_more_than_asked_for_is_taken_and_the_rest_stays(written: Written) -> None:
    for number in range(10):
        written.put(row(number))
    assert written.ring.read(most=4) == [(number, number) for number in range(4)]
    assert written.consumed == 4 * SLOT
    assert len(written.ring.read()) == 6


def test_no_more_than_asked_for_is_taken_where_discarded_records_lie_between(written: Written) -> None:
    for number in range(6):
        written.put(row(number), DISCARD if number == 1 else 0)
    assert written.ring.read(most=2) == [(0, 0), (2, 2)]
    assert written.ring.read(most=2) == [(3, 3), (4, 4)]


def test_a_full_ring_is_read_whole(written: Written) -> None:
    whole = PAGE // SLOT
    written.at(3 * PAGE + 1000)
    for number in range(whole):
        written.put(row(number))
    assert [found[0] for found in written.ring.read()] == list(range(whole))


@given(
    start=st.integers(0, 1000).map(lambda number: 8 * number),
    kinds=st.lists(st.sampled_from(["ours", "discarded", "odd"]), max_size=60),
    most=st.integers(1, 5) | st.just(70),
)
def test_whatever_the_mix_every_record_of_ours_comes_once_and_in_order(start: int, kinds: list[str], most: int) -> None:
    written = Written()
    try:
        written.at(start)
        for number, kind in enumerate(kinds):
            written.put(row(number) if kind != "odd" else b"odd", DISCARD if kind == "discarded" else 0)
        reads = [written.ring.read(most) for _ in range(len(kinds) + 1)]
        assert max(map(len, reads)) <= most
        found = [taken[0] for rows in reads for taken in rows]
        assert found == [number for number, kind in enumerate(kinds) if kind == "ours"]
        assert written.ring.malformed == kinds.count("odd")
        assert written.consumed == written.produced
    finally:
        written.close()


def test_what_is_no_ring_of_that_size_is_refused_and_nothing_stays_mapped() -> None:
    fd = os.eventfd(0)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such device"):
        Ring(fd, PAGE, RECORD)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_drops_are_read_as_they_are_counted() -> None:
    fd = os.memfd_create("drops")
    os.ftruncate(fd, PAGE)
    drops = Drops(fd, len(PROBES))
    assert drops.read() == [0] * len(PROBES)
    os.pwrite(fd, struct.pack("Q", 2**63), 8)
    assert drops.read()[:2] == [0, 2**63]
    drops.close()
    os.close(fd)
