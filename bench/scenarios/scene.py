"""What a scenario is: a network of its own, what is tuned there and in the host, traffic, and a figure of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from trimtab.lab import Lab, NetNs

Settings = Mapping[str, object]
"""Sysctl -> what is written there; several numbers with spaces between."""


class Scene:
    """One tuner's traffic. More is better in every figure. The attributes say what stands at first and what a person
    who knows the traffic would set."""

    name = ""
    decider = ""
    unit = "%"
    start: ClassVar[Settings] = {}
    """What is set at first; all else as the kernel has it."""
    best: ClassVar[Settings] = {}
    host = False
    """These are the whole host's."""
    warm_s = 0.0
    """So long there is traffic before anything is measured, also where nothing can be learnt."""
    measure_s = 8.0

    def __init__(self, lab: Lab) -> None:
        self.a, self.b = lab.netns("a"), lab.netns("b")

    @property
    def places(self) -> Sequence[NetNs | None]:
        """The namespaces where the settings are; None: the host."""
        return (None,) if self.host else (self.a, self.b)

    def round(self) -> float:
        """One round of traffic, of a second or a few: its figure."""
        raise NotImplementedError

    def run(self, seconds: float) -> float:
        """Traffic for so long, a round at least: the mean of the rounds."""
        figures, until_s = [], time.monotonic() + seconds
        while not figures or time.monotonic() < until_s:
            figures.append(self.round())
        return sum(figures) / len(figures)

    def close(self) -> None:
        """Nothing but the lab's is open."""


@contextlib.contextmanager
def standing(places: Sequence[NetNs | None], settings: Settings) -> Iterator[None]:
    """These stand there meanwhile, and what stood before afterwards, whatever happens."""
    with contextlib.ExitStack() as stack:
        for place in places:
            before = {key: sysctl(place, key) for key in settings}
            # Thresholds must be in order at each moment: the largest first on the way up.
            stack.callback(write_all, place, before)
            write_all(place, settings)
        yield


def write_all(place: NetNs | None, settings: Settings) -> None:
    """Twice, for one may be refused until another is written (ipfrag_high_thresh is never below ipfrag_low_thresh)."""
    for key, value in reversed(settings.items()):
        with contextlib.suppress(OSError):
            sysctl(place, key, value)
    for key, value in settings.items():
        sysctl(place, key, value)


def sysctl(place: NetNs | None, key: str, value: object = None) -> str:
    """Of a namespace, or of the host."""
    if place:
        return place.sysctl(key, value)
    path = Path("/proc/sys", key.replace(".", "/"))
    if value is not None:
        path.write_text(f"{value}\n")
    return path.read_text().strip()


def total(path: str, column: int) -> int:
    """The sum of a column of hexadecimal numbers, such as net/softnet_stat has for each processor."""
    return sum(int(line.split()[column], 16) for line in Path("/proc", path).read_text().splitlines())
