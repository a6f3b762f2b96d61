"""Several sources in one process and on one lane, where they need the same privileges."""

from __future__ import annotations

from collections.abc import Sequence

from bus.schema import AnyEvent
from collectors.source import Source, Status


class Several:
    """See collectors.source.Source."""

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    @property
    def ready(self) -> bool:
        """All are."""
        return all(source.ready for source in self._sources)

    @property
    def due_ns(self) -> int:
        """The earliest."""
        return min(source.due_ns for source in self._sources)

    def descriptors(self) -> Sequence[int]:
        """All of them."""
        return [fd for source in self._sources for fd in source.descriptors()]

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        """Of each, in their order."""
        return [event for source in self._sources for event in source.collect(t_ns, readable)]

    def status(self) -> Status:
        """All of it."""
        parts = [source.status() for source in self._sources]
        counts: dict[str, int] = {}
        for part in parts:
            counts |= part.counters
        return Status(
            [one for part in parts for one in part.watched], [one for part in parts for one in part.missing], counts
        )

    def close(self) -> None:
        """All of them."""
        for source in self._sources:
            source.close()
