"""What the BPF programs of a running trimtab have cost: the kernel counts calls and time while somebody asks for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from running import role_pids

RUN_TIME = 0
"""linux/bpf.h, enum bpf_stats_type. Counting ends when the descriptor is closed, unlike kernel.bpf_stats_enabled."""
_info = struct.Struct("=64x16s")
"""struct bpf_prog_info as far as its name."""


class Ran(NamedTuple):
    """One program."""

    name: str
    """Of its function, 15 characters at most."""
    calls: int
    ns: int


@contextlib.contextmanager
def counting(run_dir: Path, found: list[Ran]) -> Iterator[None]:
    """Meanwhile the kernel counts; then what each program of collector-bpf has run stands in `found`. Needs root."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    counter = _checked(lib.bpf_enable_stats(RUN_TIME))
    programs = [_checked(lib.bpf_prog_get_fd_by_id(number)) for number in program_ids(run_dir)]
    try:
        before = [_counts(fd) for fd in programs]
        yield
        after = [_counts(fd) for fd in programs]
    finally:
        for fd in (counter, *programs):
            os.close(fd)
    found += [Ran(name, calls - old[1], ns - old[2]) for (name, calls, ns), old in zip(after, before, strict=True)]


def program_ids(run_dir: Path) -> list[int]:
    """Of the links that collector-bpf holds; several may lead to one program."""
    found: dict[int, None] = {}
    for info in Path(f"/proc/{role_pids(run_dir)['collector-bpf']}/fdinfo").iterdir():
        fields = _fields(info.read_text())
        if "link_id" in fields:
            found[int(fields["prog_id"])] = None
    return list(found)


def _counts(fd: int) -> tuple[str, int, int]:
    fields = _fields(Path(f"/proc/self/fdinfo/{fd}").read_text())
    return _name(fd), int(fields["run_cnt"]), int(fields["run_time_ns"])


def _name(fd: int) -> str:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    raw = ctypes.create_string_buffer(_info.size)
    length = ctypes.c_uint32(_info.size)
    _checked(lib.bpf_obj_get_info_by_fd(fd, raw, ctypes.byref(length)))
    return _info.unpack(raw.raw)[0].partition(b"\0")[0].decode()


def _fields(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
