"""The probes as the loader hands them over, to be put on and taken off at once, and what the kernel counts of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bpf import PROBES, ROAD_NAMES
from bpf.libbpf import Libbpf
from collectors import handoff, loader
from collectors.bpf import maker
from collectors.ring import Ring

RUN_TIME = 0
"""linux/bpf.h, enum bpf_stats_type. Counting ends when the descriptor is closed, unlike kernel.bpf_stats_enabled."""
TIMEOUT_MS = 60_000
_info = struct.Struct("=64x16s")
"""struct bpf_prog_info as far as its name."""
_lib = ctypes.CDLL("libbpf.so.1", use_errno=True)


class Ran(NamedTuple):
    """One program."""

    name: str
    """Of its function, 15 characters at most."""
    calls: int
    ns: int


class Program(NamedTuple):
    """One that hangs on a tracepoint or function."""

    fd: int
    target: str
    """As raw_tracepoint_open wants it: empty for one that was loaded for its target."""


class Probes:
    """All of them off at first; what they say meanwhile is read and made into events, as collector-bpf does it."""

    def __init__(self, root: Path | None = None) -> None:
        """root: of the tree whose probes they are; ours when none is named."""
        self._libbpf = Libbpf()
        handed = _handed(root)
        rows = [(probe, handed.rows[probe.name]) for probe in PROBES if handed.rows[probe.name].road]
        self._rings = [(Ring(row.ring, probe.ring_bytes, probe.record), maker(probe, row.names)) for probe, row in rows]
        self._programs: dict[int, Program] = {}
        for _, row in rows:
            fields = _fields(Path(f"/proc/self/fdinfo/{row.link}").read_text())
            if "tp_name" in fields or row.road == ROAD_NAMES["fentry"]:  # a cgroup's is not on any packet's way
                number, typed = int(fields["prog_id"]), row.road != ROAD_NAMES["raw_tracepoint"]
                if number not in self._programs:
                    fd = _checked(_lib.bpf_prog_get_fd_by_id(number))
                    self._programs[number] = Program(fd, "" if typed else fields["tp_name"])
        handed.close()
        self._links: list[int] = []
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._reader.join()
        self.off()
        for program in self._programs.values():
            os.close(program.fd)
        for ring, _ in self._rings:
            ring.close()

    def on(self) -> None:
        """Attach them; once, however often they are asked for."""
        for program in () if self._links else self._programs.values():
            self._links.append(self._libbpf.raw_tracepoint(program.target, program.fd))

    def off(self) -> None:
        """Detach them."""
        for link in self._links:
            os.close(link)
        self._links = []

    @contextlib.contextmanager
    def counting(self, found: list[Ran]) -> Iterator[None]:
        """Meanwhile the kernel counts; then what each has run stands in `found`."""
        counter = _checked(_lib.bpf_enable_stats(RUN_TIME))
        try:
            before = [_counts(program.fd) for program in self._programs.values()]
            yield
            after = [_counts(program.fd) for program in self._programs.values()]
        finally:
            os.close(counter)
        found += [Ran(name, calls - old[1], ns - old[2]) for (name, calls, ns), old in zip(after, before, strict=True)]

    def _read(self) -> None:
        while not self._stop.wait(0.02):
            for ring, make in self._rings:
                for row in ring.read():
                    make(*row)


def _handed(root: Path | None) -> handoff.Handed:
    """What the loader hands over. TimeoutError when it does not come."""
    script = (root / "collectors/loader.py") if root else Path(loader.__file__)
    with tempfile.TemporaryDirectory(prefix="tt-bench-", dir="/run") as folder:
        path = Path(folder, "probes.sock")
        with handoff.listen(path) as listener, subprocess.Popen(["/usr/bin/python3", "-I", script, path]) as running:
            try:
                _wait(listener.fileno())
                connection = handoff.accept(listener)
                assert connection
                with connection:
                    _wait(connection.fileno())
                    return handoff.receive(connection)
            finally:
                running.terminate()


def _wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(TIMEOUT_MS):
        raise TimeoutError("the loader does not come")


def _counts(fd: int) -> tuple[str, int, int]:
    fields = _fields(Path(f"/proc/self/fdinfo/{fd}").read_text())
    return _name(fd), int(fields["run_cnt"]), int(fields["run_time_ns"])


def _name(fd: int) -> str:
    raw = ctypes.create_string_buffer(_info.size)
    length = ctypes.c_uint32(_info.size)
    _checked(_lib.bpf_obj_get_info_by_fd(fd, raw, ctypes.byref(length)))
    return _info.unpack(raw.raw)[0].partition(b"\0")[0].decode()


def _fields(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
