"""A recorded segment as events again, and its decider as it was when the segment began."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from bus.config import Config
from bus.schema import AnyEvent
from bus.tape import ASKED, End, Head, TapeError
from bus.tape_reader import Block, Damage, Segment, events, lanes
from deciders.__main__ import load
from deciders.engine import Decider


class Playback:
    """One segment, played once: iterate over `events()` or `blocks()`, then look at what else was found."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.head = segment.head
        self.asked: list[tuple[int, bytes]] = []
        """The recorded wishes as far as events() has come: (events folded by then since the process began, message)."""
        self.damage: list[Damage] = []
        self.end: End | None = None
        self.folded = self.head.memory.events
        """Events since the process began, as far as events() has come."""
        self.last: AnyEvent | None = None
        """The last of them."""
        self.lanes = lanes(self.head)
        """How far each publisher has been heard."""

    def events(self) -> Iterator[AnyEvent]:
        """The events in the order in which the process folded them, Gaps included. Damage ends them."""
        return chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[Iterator[AnyEvent]]:
        """As events(), a block at a time, each to be used up before the next: then all wishes are there that its events
        brought about."""
        for item in self.segment.blocks():
            if isinstance(item, Damage):
                self.damage.append(item)
            elif isinstance(item, End):
                self.end = item
            else:
                yield chain.from_iterable(self._batches(item))
            if self.damage:
                return

    def _batches(self, block: Block) -> Iterator[list[AnyEvent]]:
        for kind, at, raw in block.records:
            if kind == ASKED:
                self.asked.append((at, raw))
                continue
            try:
                found = events(self.lanes, raw)
            except TapeError as error:
                self.damage.append(Damage(str(self.segment.path), f"{error}; skipped to the next segment"))
                return
            if found:
                self.folded += len(found)
                self.last = found[-1]
            yield found


def begins(head: Head) -> bool:
    """Whether a segment can be played from its head alone: its decider's memory is known, or empty."""
    return bool(head.memory.state) or not head.memory.events


def decider(head: Head, config: Config | None = None, name: str = "") -> Decider:
    """The decider of a head as it was then; with another configuration or of another name: as that one begins.

    Raises ConfigError for a policy that is none, TapeError for a memory that is none of this decider's.
    """
    found = load(name or head.decider, config or head.config)
    if head.memory.state and not config and name in ("", head.decider):
        try:
            found.recall(head.memory.state, head.memory.sent)
        except (ValueError, RecursionError) as error:
            # msgspec's errors and those of bad UTF-8 are ValueErrors.
            raise TapeError(f"the memory of {head.decider} is none that this trimtab understands: {error}") from None
    return found
