"""The loader: compiles and attaches the probes, hands their descriptors to the BPF collector, exits.

    /usr/bin/python3 -I collectors/loader.py SOCKET [--wait SECONDS] [--root DIR] [--debug]

Runs as a file under the distribution's python, where bcc lives; imports the standard library, bcc and trimtab's bpf/.
A short-lived process, since bcc costs 130 MiB, needs capabilities that nobody else here has, and can abort (a clang
assertion takes the whole process along). It connects first, so that its death is seen as the end of the connection.

What is sent is one packet (collectors.handoff has the format). Exit code: 0 handed over, also when nothing attaches;
1 nobody listens; 64 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

if not __package__:  # -I leaves our folder out; last, so that nothing of the distribution's is overlaid
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from bpf import PROBES, ROAD_NAMES, Probe, Road
from bpf.compiler import CompileError, Compiler, Module
from bpf.libbpf import BPF_F_MMAPABLE, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF, Btf, Libbpf, UnavailableError
from bpf.places import constants, places
from bpf.roads import Roads

EX_USAGE = 64
CLOCK_MONOTONIC_COARSE = 6
"""linux/time.h; its resolution is the kernel's tick, 1 / CONFIG_HZ."""
VERSION = 1
RETRY_S = 0.01


class Ready(NamedTuple):
    """A probe that the kernel has everything for, with its -D flags."""

    probe: Probe
    roads: tuple[Road, ...]
    """Those that are left to try."""
    flags: list[str]
    reasons: list[str]
    """Why the others are not taken."""
    missing: list[str]
    """Optional members that this kernel lacks."""
    offsets: dict[str, int]
    """Where the others are."""

    @property
    def part(self) -> bool:
        """It is to be run by a function that runs others' parts, too."""
        return bool(self.roads and self.roads[0].source)


class Taken(NamedTuple):
    """What became of a probe: the road and the link that holds it, or neither, and why."""

    road: str
    reason: str
    link: int = -1
    offsets: dict[str, int] | None = None


class Loader:
    """One run. Results go into `taken`, descriptors into `rings` and `drops`; the order is that of bpf.PROBES."""

    def __init__(self, root: Path, debug: bool) -> None:
        self._root = root
        self._debug = debug
        self._libbpf = Libbpf()
        self.taken: dict[str, Taken] = {}
        self.rings: dict[str, int] = {}
        self.drops = -1
        self.names: dict[str, dict[int, str]] = {}
        """Of each probe whose row wants them."""

    def run(self) -> None:
        """Try every probe. What fails is told in `taken`, never raised."""
        try:
            btf = self._libbpf.btf(self._root / "sys/kernel/btf/vmlinux")
            self.drops = self._libbpf.map_create(BPF_MAP_TYPE_ARRAY, "drops", 8, len(PROBES), BPF_F_MMAPABLE)
        except (UnavailableError, OSError) as error:
            self._all_off(self.explain(error))
            return
        roads = Roads(self._libbpf, btf, self._root)
        ready = [made for probe in PROBES if (made := self._prepare(probe, btf, roads))]
        try:
            if ready:
                self._load(ready, Compiler(self._debug), roads)
        except UnavailableError as error:
            self._all_off(str(error))
        roads.close()
        btf.close()

    def _all_off(self, reason: str) -> None:
        for probe in PROBES:
            self.taken.setdefault(probe.name, Taken("", reason))

    def _prepare(self, probe: Probe, btf: Btf, roads: Roads) -> Ready | None:
        try:
            flags, missing, offsets = places(probe, btf)
            if probe.names:
                found = btf.names(probe.names.enumeration)
                self.names[probe.name] = {
                    number: name.removeprefix(probe.names.prefix) for number, name in found.items()
                }
                flags += constants(probe.names, self.names[probe.name])
            ring = self._libbpf.map_create(BPF_MAP_TYPE_RINGBUF, probe.name[:15], 0, probe.ring_bytes)
        except (UnavailableError, OSError) as error:
            self.taken[probe.name] = Taken("", self.explain(error))
            return None
        self.rings[probe.name] = ring
        row = [f"-DRING_{probe.name}={ring}", f"-DROW_{probe.name}={PROBES.index(probe)}"]
        row.append(f"-DRECORD_{probe.name}={probe.record.size}")
        return self._barred(Ready(probe, probe.roads, flags + row, [], missing, offsets), roads)

    def _barred(self, one: Ready, roads: Roads) -> Ready:
        """Without the roads at its front that no program may take."""
        for number, road in enumerate(one.roads):
            try:
                roads.look(road)
            except (UnavailableError, OSError) as error:
                one.reasons.append(self._reason(road, error))
            else:
                return one._replace(roads=one.roads[number:])
        return one._replace(roads=())

    def _load(self, ready: list[Ready], compiler: Compiler, roads: Roads) -> None:
        """One module for all, which is fastest; or one each, when one does not compile. Those whose parts are run by
        one function have a module each when none of these functions is taken as it is: then one part spoils it."""
        try:
            module = compiler.compile(*self._text(ready))
        except CompileError:
            alone = ready
        else:
            alone = self._unfit([one for one in ready if one.part], module, roads)
            for one in ready:
                if one not in alone:
                    self._attach(one, module, compiler, roads)
        for one in alone:
            self._load_alone(one, compiler, roads)

    def _unfit(self, parts: list[Ready], module: Module, roads: Roads) -> list[Ready]:
        found: list[Ready] = []
        for source in dict.fromkeys(one.roads[0].source for one in parts):
            group = [one for one in parts if one.roads[0].source == source]
            found += [] if self._fit(group, module, roads) else group
        return found

    def _fit(self, parts: list[Ready], module: Module, roads: Roads) -> bool:
        """Also where none of the roads is there at all: then they are not by themselves, either."""
        if len(parts) < 2:
            return True
        refused = False
        for road in dict.fromkeys(road for one in parts for road in one.roads if road.source):
            try:
                os.close(roads.take(road, module)[0])
            except UnavailableError:
                continue
            except OSError:
                refused = True
            else:
                return True
        return not refused

    def _load_alone(self, one: Ready, compiler: Compiler, roads: Roads) -> None:
        try:
            module = compiler.compile(*self._text([one]))
        except CompileError as error:
            self.taken[one.probe.name] = Taken("", f"does not compile: {error}")
        else:
            self._attach(one, module, compiler, roads)

    def _text(self, ready: list[Ready]) -> tuple[list[str], list[str]]:
        """The sources and flags of these probes, each once; a flag that several share has the same value in all."""
        tick_ns = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)
        common = [f"-DDROPS={self.drops}", f"-DSALT={secrets.randbits(64) | 1:#x}ull", f"-DTICK_NS={tick_ns}ull"]
        common += [f"-DPART_{one.probe.name}" for one in ready if one.part]
        sources = [source for one in ready for source in one.probe.sources]
        sources += [one.roads[0].source for one in ready if one.part]
        return [*dict.fromkeys(sources)], [*dict.fromkeys(flag for one in ready for flag in one.flags), *common]

    def _attach(self, one: Ready, module: Module, compiler: Compiler, roads: Roads) -> None:
        for number, road in enumerate(one.roads):
            if road.source and not one.part:
                # The road ahead of it was open, but not to this program, whose part nobody runs so far.
                self._load_alone(one._replace(roads=one.roads[number:]), compiler, roads)
                return
            try:
                link, caveat = roads.take(road, module)
            except (UnavailableError, OSError) as error:
                one.reasons.append(self._reason(road, error))
                continue
            told = "; ".join(one.reasons + one.missing + caveat)
            self.taken[one.probe.name] = Taken(ROAD_NAMES[road.kind], told, link, one.offsets)
            return
        self.taken[one.probe.name] = Taken("", "; ".join(one.reasons))

    def _reason(self, road: Road, error: Exception) -> str:
        return f"{ROAD_NAMES[road.kind]}: {self.explain(error)}"

    def explain(self, error: Exception) -> str:
        """One short line for the operator."""
        if not isinstance(error, OSError):
            return str(error)
        if error.errno not in (errno.EPERM, errno.EACCES) or error.strerror != os.strerror(error.errno):
            return error.strerror or str(error)
        return f"not permitted{lockdown(self._root)}"


def lockdown(root: Path) -> str:
    """ ", kernel lockdown: integrity" where the kernel says that it is locked down, else nothing."""
    with contextlib.suppress(OSError):
        state = (root / "sys/kernel/security/lockdown").read_text()
        chosen = state.partition("[")[2].partition("]")[0]
        if chosen not in ("", "none"):
            return f", kernel lockdown: {chosen}"
    return ""


def message(loader: Loader | None, reason: str = "") -> tuple[bytes, list[int]]:
    """The packet: JSON, and the descriptors it counts from 0. Without a loader, every probe is off for this reason."""
    descriptors: list[int] = []
    rows: list[dict[str, Any]] = []
    for probe in PROBES:
        taken = loader.taken[probe.name] if loader else Taken("", reason)
        row: dict[str, Any] = {"name": probe.name, "road": taken.road, "reason": taken.reason[:400]}
        if loader and taken.road:
            row |= {"ring": len(descriptors), "link": len(descriptors) + 1}
            descriptors += [loader.rings[probe.name], taken.link]
            row |= {"names": loader.names[probe.name]} if probe.names else {}
            row["offsets"] = taken.offsets
        rows.append(row)
    head: dict[str, Any] = {"version": VERSION, "probes": rows}
    if descriptors and loader:
        head["drops"] = len(descriptors)
        descriptors.append(loader.drops)
    return json.dumps(head).encode(), descriptors


class _Parser(argparse.ArgumentParser):
    def error(self, text: str) -> NoReturn:
        print(f"loader: {text}", file=sys.stderr)
        raise SystemExit(EX_USAGE)


def main(argv: list[str] | None = None) -> int:
    """Load, attach, hand over."""
    parser = _Parser(prog="loader", description="Compiles and attaches trimtab's BPF probes.")
    parser.add_argument("socket", type=Path, help="where the BPF collector listens")
    parser.add_argument("--wait", type=float, default=0.0, help="how long for somebody to listen there")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where to look for /sys and /proc")
    parser.add_argument("--debug", action="store_true", help="let the compiler talk")
    options = parser.parse_args(argv)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        try:
            _connect(connection, options.socket, time.monotonic() + options.wait)
            packet, descriptors = _load(options.root, options.debug)
            socket.send_fds(connection, [packet], descriptors)
        except OSError as error:
            print(f"loader: {options.socket}: {error.strerror or error}", file=sys.stderr)
            return 1
    return 0


def _connect(connection: socket.socket, path: Path, until_s: float) -> None:
    """Raises OSError where nobody listens by then."""
    while True:
        try:
            return connection.connect(bytes(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() >= until_s:
                raise
        time.sleep(RETRY_S)


def _load(root: Path, debug: bool) -> tuple[bytes, list[int]]:
    try:
        loader = Loader(root, debug)
    except UnavailableError as error:
        return message(None, str(error))
    loader.run()
    return message(loader)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Straight out: LLVM's own tear-down takes longer than all the rest of the exit, and has nothing left to do.
    os._exit(code)
