"""Printing for people and for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

MIB_KIB = 1024


def as_json(*documents: Any) -> None:
    """Each document on a line of its own."""
    sys.stdout.flush()
    for document in documents:
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.buffer.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, numbers to the right; nothing for None."""
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: what is cut there is lost to grep.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        numeric = bool(rows) and all(isinstance(row[number], int | None) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=not sys.stdout.isatty())
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    with console.capture() as printed:
        console.print(grid)
    for line in printed.get().splitlines():
        print(line.rstrip())


def plain(text: str) -> str:
    """Without what a terminal would obey: texts of a tape may be anybody's."""
    return "".join(char if char.isprintable() else "?" for char in text)


def mib(kib: int | None) -> str | None:
    """KiB in words; None stays None."""
    return None if kib is None else f"{kib / MIB_KIB:.1f} MiB"


def local_time(utc_ns: int) -> str:
    """A CLOCK_REALTIME in nanoseconds as the host's local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(utc_ns / 1e9))


def tai_to_utc_ns(tai_ns: int, known: bool) -> int:
    """A CLOCK_TAI reading as CLOCK_REALTIME, by the offset that the kernel has now; as it is where it had none."""
    if not known:
        return tai_ns
    offset_s = round((time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)) / 1e9)
    return tai_ns - offset_s * 10**9
