"""`trimtab doctor`: what this host offers, by which road each probe sees, who else tunes here. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from actuators.others import Conflict, conflicts
from bpf import PROBES
from collectors import handoff, loader
from collectors.handoff import HandOffError
from trimtab import exits, show, tables
from trimtab.child import PYTHON
from trimtab.features import SECONDS, Feature, features

SCHEMA = "trimtab.doctor/v1"


class Road(Struct, frozen=True):
    """By which road a probe sees; an empty road: it does not, and `lost` says what that costs."""

    name: str
    road: str
    reason: str
    lost: str


class Missing(Struct, frozen=True):
    """A tunable that this kernel does not have."""

    name: str
    reason: str


class Report(Struct, frozen=True):
    """All that the doctor finds."""

    schema: str
    kernel: str
    features: list[Feature]
    probes: list[Road]
    conflicts: list[Conflict]
    missing_tunables: list[Missing]

    @property
    def fine(self) -> bool:
        """Nothing is wanting that trimtab needs, and nobody else sets keys of ours."""
        return (
            all(feature.found for feature in self.features if feature.needed)
            and all(probe.road for probe in self.probes)
            and not any(conflict.keys for conflict in self.conflicts)
            and not self.missing_tunables
        )


def examine(root: Path = Path("/")) -> Report:
    """Look everywhere below root. Loads the probes for a moment, to see which roads they take."""
    rows = tables.known()
    # The compiler takes longest: the rest is looked at meanwhile.
    with loading(root) as roads:
        found = features(root)
        others = conflicts(root, rows)
        missing = [
            Missing(name, f"/proc/sys/{row.path} is not there")
            for name, row in rows.items()
            if not row.instances and tables.value(row, root) is None
        ]
        return Report(SCHEMA, os.uname().release, found, roads(), others, missing)


@contextlib.contextmanager
def loading(root: Path) -> Iterator[Callable[[], list[Road]]]:
    """Run the loader as the supervisor does. What is yielded waits for it, takes what it hands over, lets go of it."""
    with tempfile.TemporaryDirectory(prefix="trimtab-doctor-") as folder:
        path = Path(folder) / "probes.sock"
        command = [PYTHON, "-I", loader.__file__, str(path), "--root", str(root)]
        with (
            handoff.listen(path) as listener,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running,
        ):
            yield lambda: _roads(running, listener)


def _roads(running: subprocess.Popen[str], listener: socket.socket) -> list[Road]:
    lost = {probe.name: probe.without for probe in PROBES}
    try:
        handed = _taken(running, listener)
    except HandOffError as error:
        return [Road(name, "", str(error), without) for name, without in lost.items()]
    handed.close()
    return [Road(row.name, row.road, row.reason, "" if row.road else lost[row.name]) for row in handed.rows.values()]


def _taken(running: subprocess.Popen[str], listener: socket.socket) -> handoff.Handed:
    try:
        _, stderr = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        running.kill()
        raise HandOffError(f"the loader took more than {SECONDS} s") from None
    caller = handoff.accept(listener)
    if not caller:
        said = stderr.strip().splitlines()
        raise HandOffError(f"the loader failed: {said[-1] if said else f'exit code {running.returncode}'}")
    with caller:
        return handoff.receive(caller)


def show_report(as_json: bool) -> int:
    """Print it. 0 when all is fine, else 3."""
    with _busy():
        report = examine()
    if as_json:
        show.as_json(report)
    else:
        _print(report)
    return exits.FINE if report.fine else exits.DEGRADED


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A bar where somebody looks: a busy host's compiler takes many seconds."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # takes long
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task("compiling the probes, as every start does", total=None)
        yield


def _print(report: Report) -> None:
    print(f"kernel {report.kernel}\n")
    show.table(
        ["feature", "found", ""],
        [
            [feature.name, _found(feature), feature.reason]
            for feature in report.features
        ],
    )  # fmt: skip
    print()
    show.table(["probe", "road", ""], [[probe.name, probe.road or "none", _cost(probe)] for probe in report.probes])
    print()
    for missing in report.missing_tunables:
        show.say(f"not tuned: {missing.name}: {missing.reason}", hang=2)
    for conflict in report.conflicts:
        show.say(f"{conflict.what}: {conflict.detail}", hang=2)
    if not report.conflicts:
        print("nobody else is seen to tune this host")


def _found(feature: Feature) -> str:
    if feature.found:
        return "yes"
    return "NO" if feature.needed else "no (not needed)"


def _cost(probe: Road) -> str:
    return "; ".join(part for part in (probe.reason, probe.lost) if part)
