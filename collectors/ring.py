"""Reading a BPF ring buffer, mapped, without a system call or a library.

Layout (kernel/bpf/ringbuf.c): page 0 holds the consumer's position and is ours to write, page 1 the producer's,
then the data follow twice in a row, so that what wraps is contiguous all the same. A record is u32 length with two
flags, u32 of the kernel's own, then the payload; the next one starts at the next multiple of 8. A record still being
written has BUSY set and ends the reading; DISCARD marks one that was given up.

The producer publishes a record by clearing BUSY last (xchg). On machines with weakly ordered memory the payload should
be read behind a barrier, which Python does not have; between the two reads the interpreter runs some hundred
instructions, and none of the probes writes a record's bytes after the flag.
"""

from __future__ import annotations

import mmap
import struct

BUSY = 1 << 31
DISCARD = 1 << 30
HEADER_BYTES = 8
BATCH = 4096
"""Records taken at most in one read()."""

Row = tuple[int | bool | bytes, ...]


class Ring:
    """One ring whose records all have one form.

    fd: the map's descriptor, which the caller may close. data_bytes: the ring's size. record: the form of one record.
    Raises OSError when it cannot be mapped so, as when it is no ring or of another size.
    """

    def __init__(self, fd: int, data_bytes: int, record: struct.Struct) -> None:
        self._bytes = data_bytes
        self._length = record.size
        self._slot = HEADER_BYTES + -(-record.size // 8) * 8
        padding = self._slot - HEADER_BYTES - record.size
        self._form = struct.Struct(f"={HEADER_BYTES}x{record.format.lstrip('=')}{padding}x")
        self._consumer_map = mmap.mmap(fd, mmap.PAGESIZE)
        try:
            self._producer_map = mmap.mmap(
                fd, mmap.PAGESIZE + 2 * data_bytes, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
            )
        except OSError:
            self._consumer_map.close()
            raise
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = memoryview(self._producer_map)[:8].cast("Q")
        self._data = memoryview(self._producer_map)[mmap.PAGESIZE :]
        self._words = self._data.cast("I")
        self.malformed = 0
        """Records of a length that the probe does not write; passed over."""

    def read(self, most: int = BATCH) -> list[Row]:
        """The records that are there, oldest first, `most` at most. What was read is given back to the producer."""
        rows: list[Row] = []
        position, end = self._consumer[0], self._producer[0]
        while position < end and len(rows) < most:
            at = position % self._bytes
            run, header = self._run(
                at, min((end - position) // self._slot, self._bytes // self._slot, most - len(rows))
            )
            if run:
                rows.extend(self._form.iter_unpack(self._data[at : at + run * self._slot]))
                position += run * self._slot
            elif header & BUSY:
                break
            else:
                self.malformed += not header & DISCARD
                position += HEADER_BYTES + -(-(header & ~DISCARD) // 8) * 8
        self._consumer[0] = position
        return rows

    def _run(self, at: int, most: int) -> tuple[int, int]:
        """How many whole records of our length lie one after another from `at` on, and the first one's header.

        Each header is read once: a busy record may be done a moment later.
        """
        headers = self._words[at // 4 : (at + max(most, 1) * self._slot) // 4 : self._slot // 4].tolist()
        if headers.count(self._length) == most:
            return most, headers[0]
        run = next((number for number, header in enumerate(headers) if header != self._length), 0)
        return run, headers[0]

    def close(self) -> None:
        """Unmap it."""
        for view in (self._consumer, self._producer, self._words, self._data):
            view.release()
        self._consumer_map.close()
        self._producer_map.close()


class Drops:
    """How many records found no room, per probe, as the probes count them in a mapped array of u64.

    Raises OSError when fd cannot be mapped so.
    """

    def __init__(self, fd: int, rows: int) -> None:
        self._map = mmap.mmap(fd, -(-8 * rows // mmap.PAGESIZE) * mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._counts = memoryview(self._map)[: 8 * rows].cast("Q")

    def read(self) -> list[int]:
        """Counts since the probes were loaded, in the order of bpf.PROBES."""
        return self._counts.tolist()

    def close(self) -> None:
        """Unmap it."""
        self._counts.release()
        self._map.close()
