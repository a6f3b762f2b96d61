"""`trimtab tape cut` and `tape merge`: tapes made of others, which replay as exactly as those do."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from bus.codec import CodecError, decode, encode
from bus.schema import Batch
from bus.tape import BATCH, End, Head, TapeError
from bus.tape_reader import Block, Damage, Record, Segment, lanes
from trimtab.tape import write as tape_write
from trimtab.tape.fold import Moment, moment
from trimtab.tape.items import Batched, Trouble, batches, strands, tai_ns, utc_ns
from trimtab.tape.jobs import Bar
from trimtab.tape.playback import begins
from trimtab.tape.times import Span, Window, window


def cut(paths: Iterable[Path], span: Span, output: Path) -> int:
    """Keep what lies between two times, per decider. Returns the exit code. TapeError: nothing does."""
    trouble = Trouble()
    found = strands(paths, trouble)
    limits = window(span, found, trouble)
    source = 0
    with tape_write.new_file(output) as file:
        for strand in found:
            before = file.tell()
            file.writelines(_cut_strand(strand, limits, source, trouble))
            source += file.tell() > before
        if not source:
            raise TapeError("nothing on these tapes is from that time")
    return trouble.code


def _cut_strand(strand: Sequence[Segment], limits: Window, source: int, trouble: Trouble) -> Iterator[bytes]:
    since_ns = limits.since_ns
    rest = _from(strand, since_ns, trouble)
    for number, segment in enumerate(rest):
        head = segment.head
        if limits.until_ns is not None and _begin_ns(segment) > limits.until_ns:
            return
        start: Moment | None = None
        if number == 0 and since_ns is not None and _begin_ns(segment) < since_ns:
            start = moment(segment, since_ns, trouble)
            if start is None:
                continue
        ended = yield from _piece(segment, start or Moment(head, head.memory.events), limits.until_ns, source, trouble)
        if ended:
            return


def _from(strand: Sequence[Segment], since_ns: int | None, trouble: Trouble) -> Sequence[Segment]:
    """The segments from the last one on that begins before then, with its decider's memory."""
    known = [number for number, segment in enumerate(strand) if begins(segment.head)]
    if not known:
        head = strand[0].head
        trouble.damage(Damage(str(strand[0].path), f"the memory of {head.decider} is nowhere known: it cannot be cut"))
        return ()
    before = [number for number in known if since_ns is not None and _begin_ns(strand[number]) < since_ns]
    return strand[before[-1] if before else known[0] :]


def _begin_ns(segment: Segment) -> int:
    return utc_ns(segment.head, segment.head.t_ns)


def _piece(
    segment: Segment, start: Moment, until_ns: int | None, source: int, trouble: Trouble
) -> Generator[bytes, None, bool]:
    """The frames of a segment from a moment on. Returns whether until_ns was passed."""
    numbering = lanes(segment.head)
    folded = segment.head.memory.events
    begun = False
    for item in segment.blocks():
        if isinstance(item, Damage):
            trouble.damage(item)
            return False
        if isinstance(item, End):
            if begun:
                yield tape_write.end(item, source)
            return False
        try:
            found = list(batches(item, numbering, folded))
        except TapeError as error:
            trouble.damage(
                Damage(f"{segment.path}, the segment at byte {segment.offset}", f"{error}; the rest is left")
            )
            return False
        folded = found[-1].first + len(found[-1].events) if found else folded
        last = _last(segment.head, found, start.folded, until_ns)
        records = list(_records(item, found, start.folded, folded if last is None else last))
        if records:
            if not begun:
                yield tape_write.head(start.head, source)
            begun = True
            yield tape_write.block(records, source)
        if last is not None:
            if begun:
                t_ns = segment.head.t_ns + (until_ns or 0) - _begin_ns(segment)
                yield tape_write.end(End(t_ns=max(0, t_ns), events=last, why="cut"), source)
            return True
    return False


def _last(head: Head, found: Sequence[Batched], first: int, until_ns: int | None) -> int | None:
    """How many events are folded when the piece ends here; None: it does not."""
    if until_ns is None:
        return None
    for batched in found:
        for at, event in enumerate(batched.events, batched.first):
            # A Gap is made of the batch behind it, and has the time of its first event: both are kept, or none.
            if at >= first and utc_ns(head, event.t_ns) > until_ns:
                return at
    return None


def _records(block: Block, found: Sequence[Batched], first: int, last: int) -> Iterator[Record]:
    """Those of a block that concern the events behind number `first`, up to number `last`."""
    batched = iter(found)
    for kind, at, raw in block.records:
        if kind == BATCH:
            kept = _part(next(batched), first, last)
            if kept:
                yield kind, at, kept
        elif first < at <= last:
            yield kind, at, raw


def _part(batched: Batched, first: int, last: int) -> bytes:
    """A batch with the events behind number `first` up to number `last` alone; empty where there are none."""
    count = len(batched.events)
    begin, end = max(0, first - batched.first), min(count, last - batched.first)
    if begin == 0 and end == count:
        return batched.raw
    gap = int(batched.gap)
    kept = batched.events[max(begin, gap) : max(0, end)]
    if not kept:
        return b""
    batch = batched.batch
    number = batch.number + len(batch.events) - (count - gap) + max(0, begin - gap)
    return encode(Batch(batch.version, batch.publisher, batch.epoch_ns, number, kept))


class Change(Protocol):
    """What is done to each part of a tape that is written anew."""

    def head(self, head: Head) -> Head: ...

    def records(self, head: Head, records: Iterable[Record]) -> Iterable[Record]: ...

    def end(self, end: End) -> End: ...


class _Nothing:
    def head(self, head: Head) -> Head:
        return head

    def records(self, head: Head, records: Iterable[Record]) -> Iterable[Record]:
        return records

    def end(self, end: End) -> End:
        return end


def merge(paths: Iterable[Path], output: Path) -> int:
    """Put tapes into one, in order of atomic time. Returns the exit code. TapeError: there is nothing to put."""
    trouble = Trouble()
    found = strands(paths, trouble)
    _clocks(found, trouble)
    write(found, output, trouble, _Nothing())
    return trouble.code


def write(found: Sequence[Sequence[Segment]], output: Path, trouble: Trouble, change: Change) -> None:
    """The strands as the sources of one tape, in order of atomic time. TapeError: there are none."""
    if not found:
        raise TapeError("no tape to write")
    bar = Bar("writing", sum(map(len, found)))
    with tape_write.new_file(output) as file, contextlib.closing(bar):
        frames = (_stepped(bar, strand, source, trouble, change) for source, strand in enumerate(found))
        for _, _, frame in heapq.merge(*frames, key=lambda frame: frame[:2]):
            file.write(frame)


def _clocks(found: Sequence[Sequence[Segment]], trouble: Trouble) -> None:
    heads = [strand[0].head for strand in found]
    hosts = {head.host.name: head.tai_offset_s for head in heads}
    unset = sorted(name for name, offset_s in hosts.items() if not offset_s)
    if unset and len(hosts) > 1:
        trouble.word(f"nobody has set the TAI offset of {', '.join(unset)}: placed by the wall clock there")


def _stepped(
    bar: Bar, strand: Sequence[Segment], source: int, trouble: Trouble, change: Change
) -> Iterator[tuple[int, int, bytes]]:
    """(CLOCK_TAI, source, frame), in order."""
    for segment in strand:
        try:
            yield from _frames(segment, source, trouble, change)
        except TapeError as error:
            trouble.damage(Damage(f"{segment.path}, the segment at byte {segment.offset}", f"{error}; cut there"))
        bar.step()


def _frames(segment: Segment, source: int, trouble: Trouble, change: Change) -> Iterator[tuple[int, int, bytes]]:
    head = segment.head
    latest = head.tai_ns
    yield latest, source, tape_write.head(change.head(head), source)
    for item in segment.blocks():
        if isinstance(item, Damage):
            trouble.damage(item)
        elif isinstance(item, End):
            yield max(latest, tai_ns(head, item.t_ns)), source, tape_write.end(change.end(item), source)
        else:
            latest = max(latest, _moment(head, item, latest))
            yield latest, source, tape_write.block(change.records(head, item.records), source)


def _moment(head: Head, block: Block, otherwise: int) -> int:
    for kind, _, raw in block.records:
        if kind == BATCH:
            try:
                batch = decode(Batch, raw)
            except CodecError:
                # Put in as it is: whoever reads it is told.
                return otherwise
            if batch.events:
                return tai_ns(head, batch.events[0].t_ns)
    return otherwise
