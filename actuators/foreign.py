"""Who else writes our keys: the BPF collector sees every write of a sysctl as it happens, in any namespace.

A key is ours from our first write until it is given back; before that, whatever stands there is the administrator's
and where we start from. While it is ours, a write by anybody else takes it from us at once and for good, even one of
the very value that stands (ABA). Writes by netlink, and all where BPF is not to be had, are found by comparing instead
(actuators.watch, and before each write).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from actuators.parts import Parts
from actuators.records import Spot
from bus.schema import SysctlWrite
from bus.tunables import Tunable

INITIAL_PID_NS = 0xEFFFFFFC
"""PROC_PID_INIT_INO, include/linux/proc_ns.h."""
REAPPLIES = "systemd-sysctl"
"""udev runs it for each new network device (50-udev-default.rules): it sets again what sysctl.d has set all along."""


class Foreign:
    """Cedes keys that others write."""

    def __init__(self, parts: Parts, proc: Path = Path("/proc")) -> None:
        self._keeper = parts.keeper
        self._kernel = parts.kernel
        self._undo = parts.undo
        self._proc = proc
        self._by_path: dict[str, list[tuple[Tunable, str]]] = {}
        """A row, and its own name or its twin's."""
        for row in parts.rows.values():
            if row.instances:
                continue
            self._by_path.setdefault(row.path, []).append((row, row.name))
            if row.twin:
                self._by_path.setdefault(row.twin.replace(".", "/"), []).append((row, row.twin))
        # BPF tells pids as the initial pid namespace counts them; elsewhere we could not tell ourselves from others.
        self._blind = os.stat(proc / "self/ns/pid").st_ino != INITIAL_PID_NS
        self._own = os.getpid()

    def written(self, event: SysctlWrite) -> None:
        """Somebody wrote a sysctl."""
        if event.pid == self._own or self._blind:
            return
        for row, name in self._by_path.get(event.name, ()):
            netns = 0 if row.scope == "host" else event.netns
            values = _values(event.new)
            value = values[row.index] if row.index < len(values) else None
            kept = self._keeper.standing.get(Spot(row.name, netns))
            written = Spot(name, netns)
            ours = None if value is None else self._kernel.overwritten(written, event.t_ns, value)
            met = ours not in (None, value) and self._give_back(written, event, values, ours)
            if not kept or (event.comm == REAPPLIES and written == kept.spot and value == kept.stands):
                continue
            if event.t_ns < kept.since_ns and not met:
                continue
            # A write that the kernel will refuse counts as well: somebody wants something else there.
            beside = value if name == row.twin else None
            found = kept.stands if value is None or beside is not None else value
            self._undo.cede(kept, found, who=self._who(event), beside=beside)

    def _give_back(self, spot: Spot, event: SysctlWrite, values: list[int], ours: int | None) -> bool:
        """Our write and theirs met. If ours came last, theirs is put back, since the administrator wins."""
        with contextlib.suppress(OSError):
            if self._kernel.read(spot, event.netns_ino) == ours:
                self._kernel.put(spot, event.netns_ino, values)
                return True
        return False

    def _who(self, event: SysctlWrite) -> str:
        unit = _unit(self._proc / str(event.pid) / "cgroup")
        return f"{event.comm} (pid {event.pid}, uid {event.uid}{f', {unit}' if unit else ''})"


def _unit(file: Path) -> str:
    """The systemd unit or container that a process belongs to, cgroups(7); empty where that cannot be told."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ""
    paths = [line.split(":", 2)[2] for line in lines if line.startswith(("0::", "1:name=systemd:"))]
    names = [name for path in paths for name in path.split("/") if name.endswith((".service", ".scope"))]
    return "".join(char if char.isprintable() else "?" for char in names[-1][:64]) if names else ""


def _values(text: str) -> list[int]:
    try:
        return [int(word, 0) for word in text.split()]
    except ValueError:
        return []
