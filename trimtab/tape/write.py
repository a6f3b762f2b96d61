"""Tapes that are made from others: a new file, and what one source puts into it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bus import tape
from bus.tape import ASKED, Head, asked_at, encode, opening, pack, record
from bus.tape_reader import Record

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A write that fails so names no file."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A tape without frames, which nobody else may read; gone again when it does not get done. OSError: it cannot be
    made, or something is there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    done = False
    try:
        with open(fd, "wb") as file:
            file.write(opening())
            yield file
        done = True
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise
    finally:
        if not done:
            path.unlink(missing_ok=True)


def head(what: Head, source: int) -> bytes:
    """A segment begins."""
    return pack("head", encode(what), source)


def block(records: Iterable[Record], source: int) -> bytes:
    """A run of its records."""
    parts = (record(kind, *((asked_at(at),) if kind == ASKED else ()), raw) for kind, at, raw in records)
    return pack("block", b"".join(parts), source)


def end(what: tape.End, source: int) -> bytes:
    """A segment was closed in order."""
    return pack("end", encode(what), source)
