"""Printing for people and for programs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.grid import grid, wrapped

MIB_KIB = 1024
AMOUNT = re.compile(r"-?\d+(\.\d+)?(%| [A-Za-z]+)?")
# ECMA-48, SGR
BOLD, NORMAL = "\033[1m", "\033[0m"


def as_json(*documents: Any) -> None:
    """Each document on a line of its own."""
    sys.stdout.flush()
    for document in documents:
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.buffer.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, amounts to the right; nothing for None. A row too wide for the terminal is folded."""
    cells = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    numeric = [any(column) and all(map(AMOUNT.fullmatch, filter(None, column))) for column in zip(*cells, strict=True)]
    first, *others = grid(head, cells, numeric or [False] * len(head), width())
    for line in first:
        print(f"{BOLD}{line}{NORMAL}" if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else line)
    for lines in others:
        print(*lines, sep="\n")


def say(text: str, hang: int = 0) -> None:
    """Sentences. On a terminal they break between words; what goes on is indented as its line is, and by `hang`."""
    print(*wrapped(text, width(), hang), sep="\n")


def width() -> int | None:
    """Of the terminal. None where there is none: what is cut or broken in a pipe is lost to grep."""
    if not sys.stdout.isatty():
        return None
    import shutil  # takes long: bz2, lzma

    return shutil.get_terminal_size().columns


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
