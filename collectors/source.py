"""What every source of events is to the one loop that runs it (collectors.loop)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from bus.schema import AnyEvent
from collectors.drops import DropRow

SECOND_NS = 1_000_000_000


def later(t_ns: int, by_ns: int) -> int:
    """by_ns after t_ns, or a little earlier: at a whole second (a whole by_ns, where that is less). What all roles do
    then shares its wake-ups, also in those who hear of it."""
    grid_ns = min(by_ns, SECOND_NS)
    return (t_ns + by_ns) // grid_ns * grid_ns


class Status(Struct, frozen=True):
    """How a source stands, for the operator."""

    watched: list[str]
    """What is watched, in short."""
    missing: list[str]
    """What is not, as "what: why"."""
    counters: dict[str, int] = {}
    """More numbers for the role's STATUS, such as ring_drops."""
    drops: list[DropRow] = []
    """What drops packets most (collectors.drops)."""


class Source(Protocol):
    """One kind of news from the kernel. A part of it that fails goes into status().missing and is tried again later."""

    @property
    def ready(self) -> bool:
        """It works, or has degraded and knows why."""
        ...

    @property
    def due_ns(self) -> int:
        """CLOCK_MONOTONIC at which to call collect() next although no descriptor is readable."""
        ...

    def descriptors(self) -> Sequence[int]:
        """What to wait for. Asked again before each wait, so that it may change."""
        ...

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """The news at t_ns (CLOCK_MONOTONIC, now). May be empty; may be called early. Never waits."""
        ...

    def status(self) -> Status:
        """Asked once a second."""
        ...

    def close(self) -> None: ...
