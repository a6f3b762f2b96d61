"""The roads into the kernel: whether one is open at all, and how a compiled function is put on it. For the loader."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from bpf import Road
from bpf.compiler import Module
from bpf.libbpf import Btf, Libbpf, UnavailableError

NOTHING = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""A program: r0 = 0, exit."""


class Roads:
    """Every method raises UnavailableError or OSError when it cannot."""

    def __init__(self, libbpf: Libbpf, btf: Btf, root: Path) -> None:
        self._libbpf = libbpf
        self._btf = btf
        self._root = root
        self._shared: dict[tuple[Module, Road], int | Exception] = {}

    def look(self, road: Road) -> None:
        """Whether a road that kernels often bar is open to any program: before it is known, nothing can be compiled
        that depends on it. The others show when they are taken."""
        if road.kind == "fentry":
            os.close(self._load(road, NOTHING))

    def take(self, road: Road, module: Module) -> tuple[int, list[str]]:
        """Attach the road's function: a descriptor of the link, closing which detaches, and what to say of it.

        One that several probes share is attached once, each has a descriptor of its own, and the last closed detaches.
        """
        if not road.source:
            return self._attach(road, module)
        key = module, road
        if key not in self._shared:
            try:
                self._shared[key] = self._attach(road, module)[0]
            except (UnavailableError, OSError) as error:
                self._shared[key] = error
        found = self._shared[key]
        if isinstance(found, Exception):
            raise found
        return os.dup(found), []

    def close(self) -> None:
        """What was taken stays taken by the descriptors given out."""
        for link in self._shared.values():
            if not isinstance(link, Exception):
                os.close(link)

    def _attach(self, road: Road, module: Module) -> tuple[int, list[str]]:
        self._refuse(road, module)
        program = self._load(road, module.code(road.function))
        try:
            if road.kind == "cgroup_sysctl":
                return self._attach_cgroup(program)
            # The typed roads name their target when the program is loaded, the plain one when it is attached.
            return self._libbpf.raw_tracepoint(road.target if road.kind == "raw_tracepoint" else "", program), []
        except FileNotFoundError:
            raise UnavailableError(f"no tracepoint {road.target}") from None
        finally:
            os.close(program)  # the link keeps it

    def _load(self, road: Road, code: bytes) -> int:
        targets = {"tp_btf": self._btf.tracepoint, "fentry": self._btf.function}
        target = targets[road.kind](road.target) if road.kind in targets else 0
        return self._libbpf.program_load(road.kind, road.function, code, target)

    def _refuse(self, road: Road, module: Module) -> None:
        if not road.refused:
            return
        try:
            os.close(self._load(road, module.code(road.refused)))
        except OSError:
            return
        raise UnavailableError(f"the verifier lets {road.refused} pass")

    def _attach_cgroup(self, program: int) -> tuple[int, list[str]]:
        folder = cgroup2_root(self._root)
        # A true root has no cgroup.type (Documentation/admin-guide/cgroup-v2.rst); a container's root has one.
        caveat = ["sees this container's cgroup only"] if (folder / "cgroup.type").exists() else []
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._libbpf.cgroup_link(program, descriptor), caveat
        finally:
            os.close(descriptor)


def cgroup2_root(root: Path) -> Path:
    """Where the whole cgroup2 hierarchy is mounted (proc_pid_mountinfo(5))."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and before.split()[3] == "/":
            return root / before.split()[4].lstrip("/")
    raise UnavailableError("cgroup2 is not mounted")
