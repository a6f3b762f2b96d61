"""What a listener makes of one publisher's numbered batches: the events in them that are new, and a Gap where some are
missing. Pure, so that a replay makes the same of a recorded batch."""

from __future__ import annotations

from msgspec import Struct

from bus.schema import AnyEvent, Batch, Gap


class Numbering(Struct):
    """How far one publisher has been heard."""

    publisher: str
    epoch_ns: int = 0
    """When the publisher process began that was heard last; 0: none was."""
    next: int = 0
    """The number that its next event should have."""
    lost: int = 0
    repeated: int = 0
    """Events that came again, or came after they had been counted as lost: dropped."""

    def take(self, batch: Batch) -> list[AnyEvent]:
        """The events of the batch that were neither given out nor given up before; first a Gap, where one is."""
        if batch.number == self.next and batch.epoch_ns == self.epoch_ns:
            # As nearly always: all of it is new, and nothing is missing.
            self.next += len(batch.events)
            return batch.events
        fresh = self._fresh(batch)
        self.repeated += len(batch.events) - len(fresh)
        return [*self._gap(batch), *fresh] if fresh else []

    def _fresh(self, batch: Batch) -> list[AnyEvent]:
        if batch.epoch_ns != self.epoch_ns:
            return batch.events
        return batch.events[max(0, self.next - batch.number) :]

    def _gap(self, batch: Batch) -> list[AnyEvent]:
        first = self.epoch_ns == 0
        restarted = not first and batch.epoch_ns != self.epoch_ns
        # The first batch heard of a publisher that was there before us begins in the middle: no loss.
        lost = 0 if first else max(0, batch.number - (0 if restarted else self.next))
        self.epoch_ns, self.next = batch.epoch_ns, batch.number + len(batch.events)
        if not lost and not restarted:
            return []
        self.lost += lost
        return [Gap(batch.events[0].t_ns, self.publisher, lost, restarted)]
