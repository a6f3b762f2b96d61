"""A decider's memory at any moment of a tape: made by deciding again from the segment's beginning up to then."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from bus.codec import encode
from bus.config import ConfigError
from bus.numbering import Numbering
from bus.schema import Probe
from bus.tape import ASKED, Head, Memory, TapeError
from bus.tape_reader import Block, Segment, lanes
from deciders.engine import Decider, decide
from trimtab.tape.items import Batched, Trouble, batches, utc_ns
from trimtab.tape.playback import decider


class Moment(Struct, frozen=True):
    """Where a piece begins: its head, and how many events were folded before."""

    head: Head
    folded: int


class _OtherwiseError(Exception):
    """The decider that is here decides otherwise than the recorded one."""


def moment(segment: Segment, since_ns: int, trouble: Trouble) -> Moment | None:
    """The first event at or after since_ns (CLOCK_REALTIME); None where the segment ends before.

    Where the decider's memory of that moment cannot be known (its code is not here, or not the one that was recorded;
    or it has a state that cannot be kept), the segment's beginning, with a word.
    """
    head = segment.head
    try:
        return _Fold(segment, decider(head), since_ns).run()
    except (ConfigError, TapeError, _OtherwiseError) as error:
        why = str(error)
    trouble.word(f"{segment.path}: {head.decider} cannot be cut then, and is from its segment's beginning: {why}")
    return Moment(head, head.memory.events)


class _Fold:
    def __init__(self, segment: Segment, decider: Decider, since_ns: int) -> None:
        self._segment = segment
        self._decider = decider
        self._since_ns = since_ns
        self._numbering = lanes(segment.head)
        self._folded = segment.head.memory.events
        self._probes = {probe.name: probe for probe in segment.head.probes}

    def run(self) -> Moment | None:
        for block in self._segment.blocks():
            # An end, or damage, which is told of when the segment is copied.
            if not isinstance(block, Block):
                return None
            if self._block(block):
                return self._here()
        return None

    def _block(self, block: Block) -> bool:
        """Decide on it; whether the moment is in it."""
        asked: list[tuple[int, bytes]] = []
        here = False
        for batched in batches(block, self._numbering, self._folded):
            before = self._before(batched)
            asked += self._decide(batched, before)
            if before < len(batched.events):
                here = True
                self._rewind(batched, before)
                break
        recorded = [(at, raw) for kind, at, raw in block.records if kind == ASKED and at <= self._folded]
        if asked != recorded:
            raise _OtherwiseError(f"the {self._decider.name} here decides otherwise than the recorded one")
        return here

    def _before(self, batched: Batched) -> int:
        head = self._segment.head
        moments = (utc_ns(head, event.t_ns) for event in batched.events)
        return next((at for at, moment in enumerate(moments) if moment >= self._since_ns), len(batched.events))

    def _decide(self, batched: Batched, before: int) -> list[tuple[int, bytes]]:
        asked: list[tuple[int, bytes]] = []
        for event, wishes in decide(batched.events[:before], [self._decider]):
            self._folded += 1
            asked += ((self._folded, encode(wish)) for wish in wishes)
            if isinstance(event, Probe):
                self._probes[event.name] = event
        return asked

    def _rewind(self, batched: Batched, before: int) -> None:
        """The lane as it was when only so many events of a batch had been taken from it."""
        batch = batched.batch
        epoch_ns, number = batched.heard
        if before:
            epoch_ns, number = batch.epoch_ns, batch.number + len(batch.events) - (len(batched.events) - before)
        if epoch_ns:
            self._numbering[batch.publisher] = Numbering(batch.publisher, epoch_ns, number)
        else:
            del self._numbering[batch.publisher]

    def _here(self) -> Moment:
        head = self._segment.head
        state, sent = self._decider.remember()
        if not state and self._folded:
            raise _OtherwiseError("its state cannot be kept")
        heard = {name: (lane.epoch_ns, lane.next) for name, lane in self._numbering.items()}
        passed_ns = self._since_ns - utc_ns(head, head.t_ns)
        return Moment(
            msgspec.structs.replace(
                head,
                t_ns=head.t_ns + passed_ns,
                tai_ns=head.tai_ns + passed_ns,
                probes=list(self._probes.values()),
                memory=Memory(self._folded, heard, state, sent),
            ),
            self._folded,
        )
