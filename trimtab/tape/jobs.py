"""The same work on many things, over all cores, with a progress bar where somebody looks and it takes a while."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_S = 2.0
T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], things: Sequence[T], jobs: int | None, what: str) -> Iterator[R]:
    """work(thing) of each thing, in the order in which they are done. jobs: processes; None: one per core. what: the
    word beside the bar. OSError when a process was killed."""
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(things))
    found = map(work, things) if jobs <= 1 else _spread(work, things, jobs)
    with contextlib.closing(Bar(what, len(things))) as bar:
        for result in found:
            yield result
            bar.step()


def _spread(work: Callable[[T], R], things: Sequence[T], jobs: int) -> Iterator[R]:
    # Forked, so that they have all that is imported here.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(work, thing) for thing in things]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise OSError("one of its processes was killed, perhaps for want of memory; try fewer --jobs") from None
        finally:
            pool.shutdown(cancel_futures=True)


class Bar:
    """A progress bar on stderr, where that is a terminal, after QUIET_S."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began_s = time.monotonic()
        self._shown: Progress | None = None

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._shown:
            self._shown.update(self._shown.task_ids[0], completed=self._done)
        elif sys.stderr.isatty() and time.monotonic() - self._began_s > QUIET_S and self._done < self._total:
            from rich.console import Console
            from rich.progress import Progress

            self._shown = Progress(console=Console(stderr=True), transient=True)
            self._shown.add_task(self._what, total=self._total, completed=self._done)
            self._shown.start()

    def close(self) -> None:
        """Take it away."""
        if self._shown:
            self._shown.stop()
