"""Work on files that nobody may wait for: done in its order by a thread of its own, as much as there is room for.

write(2), open(2) and unlink(2) are quick until they are not: who makes pages dirty is put to sleep when there are too
many of them (balance_dirty_pages(), mm/page-writeback.c), making or removing a file waits for the file system's journal
to commit (jbd2), and a disk that hangs, or is frozen (fsfreeze(8)), does not answer at all, nor can who waits for it be
killed. All of that comes just when a host is in trouble.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

ROOM_BYTES = 4 << 20
SLOW_NS = 5_000_000_000

Work = Callable[[], None]


class Disk:
    """Takes work, and does it when it can."""

    def __init__(self, room_bytes: int = ROOM_BYTES) -> None:
        """room_bytes: so much may wait, and one piece of work always."""
        self._room_bytes = room_bytes
        self._queue: queue.SimpleQueue[tuple[Work, int]] = queue.SimpleQueue()
        self._given = self._given_bytes = 0
        # Written by the thread alone, and each by itself: reading them needs no lock.
        self._done = self._done_bytes = self._began_ns = 0
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """All that was given is done."""
        return self._given == self._done

    @property
    def waiting_bytes(self) -> int:
        """So much was given and is not done."""
        return self._given_bytes - self._done_bytes

    @property
    def silent(self) -> bool:
        """What is being done now takes far too long."""
        began_ns = self._began_ns
        return bool(began_ns) and time.monotonic_ns() - began_ns > SLOW_NS

    def give(self, work: Work, size: int = 0) -> bool:
        """Have it done, after all that was given before; whether there was room for its bytes (for none there always
        is). It must not raise."""
        if self.waiting_bytes and self.waiting_bytes + size > self._room_bytes and size:
            return False
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process from ending, as far as that is in its hands.
            self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._thread.start()
        self._given += 1
        self._given_bytes += size
        self._queue.put((work, size))
        return True

    def settle(self, within_s: float) -> bool:
        """Wait until all that was given is done; whether it is."""
        done = threading.Event()
        self.give(done.set)
        return done.wait(within_s)

    def _run(self) -> None:
        while True:
            work, size = self._queue.get()
            self._began_ns = time.monotonic_ns()
            work()
            self._began_ns = 0
            self._done_bytes += size
            self._done += 1
