"""What is on tapes, one by one in its order: by time over all that were given. And what is wrong with them."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bus.codec import CodecError, decode_request
from bus.numbering import Numbering
from bus.schema import AnyEvent, Batch, Beat, Verdict, Wish
from bus.tape import ASKED, BATCH, End, Head, TapeError
from bus.tape_reader import Block, Damage, Segment, Unended, find, heads, lanes, taken
from trimtab import exits

SEC = 1_000_000_000
Asked = Wish | Verdict | Beat


class Trouble:
    """What is wrong with the tapes of one command: told on stderr as it is found, once each."""

    def __init__(self) -> None:
        self.code = exits.FINE
        self.told: dict[str, str] = {}
        """Where -> what."""
        self.unended: set[str] = set()
        """Those of them that are files with a segment that was not closed."""

    def damage(self, damage: Damage) -> None:
        """A place that cannot be read: the rest is, and the exit code says so. A segment without an end is no fault."""
        self._tell(damage.where, str(damage))
        if isinstance(damage, Unended):
            self.unended.add(damage.where)
        else:
            self.code = self.code or exits.DEGRADED

    def error(self, path: Path, error: TapeError) -> None:
        """A file that cannot be read."""
        self._tell(str(path), str(error))
        self.code = exits.ERROR

    def word(self, word: str) -> None:
        """What the user should know; no fault."""
        self._tell(word, word)

    def _tell(self, key: str, word: str) -> None:
        if key not in self.told:
            self.told[key] = word
            print(f"trimtab: {word}", file=sys.stderr)


class Item(Struct, frozen=True):
    """An event or what was asked for, where it stands in its process's order."""

    segment: Segment
    at: int
    """Events folded since the process began, this one included; of a wish: when it was made."""
    publisher: str
    """Who said it; of a Gap, who was not heard; empty: the decider itself."""
    message: AnyEvent | Asked


class Batched(Struct, frozen=True):
    """A recorded batch and what it brought."""

    raw: bytes
    batch: Batch
    events: list[AnyEvent]
    first: int
    """Events folded before the first of them."""
    heard: tuple[int, int]
    """When its publisher began and its next number, as they were known before it; (0, 0): not heard before."""

    @property
    def gap(self) -> bool:
        """Whether the first event is none of the batch's, but says that some before it are missing."""
        count = len(self.events)
        return count > len(self.batch.events) or (count > 0 and self.events[0] is not self.batch.events[-count])


def strands(paths: Iterable[Path], trouble: Trouble) -> list[list[Segment]]:
    """The segments of each decider of each host in order of time, the hosts and deciders by name. Files that are no
    tapes are told of, and left out. TapeError: there is no file at all."""
    found: dict[tuple[str, str, str], list[tuple[int, int, int, Segment]]] = {}
    for number, path in enumerate(find(paths)):
        try:
            for segment in heads(path):
                if isinstance(segment, Damage):
                    trouble.damage(segment)
                    continue
                head = segment.head
                strand = found.setdefault((head.host.name, head.decider, head.host.boot_id), [])
                # Of one boot: a wall clock that was set has no say in what came first.
                strand.append((head.t_ns, number, segment.offset, segment))
        except TapeError as error:
            trouble.error(path, error)
    return [[segment for *_, segment in sorted(strand, key=lambda row: row[:3])] for _, strand in sorted(found.items())]


def utc_ns(head: Head, t_ns: int) -> int:
    """CLOCK_REALTIME of a moment of CLOCK_MONOTONIC on the host of a head, leap seconds as they were then."""
    return tai_ns(head, t_ns) - head.tai_offset_s * SEC


def tai_ns(head: Head, t_ns: int) -> int:
    """CLOCK_TAI of it; CLOCK_REALTIME where the host did not know better."""
    return head.tai_ns + t_ns - head.t_ns


def last_ns(strand: Sequence[Segment], trouble: Trouble) -> int:
    """CLOCK_REALTIME of the end of the last segment."""
    segment = strand[-1]
    head = segment.head
    latest = head.t_ns
    for item in segment.blocks():
        if isinstance(item, Damage):
            trouble.damage(item)
        elif isinstance(item, End):
            latest = item.t_ns
        else:
            raws = [raw for kind, _, raw in item.records if kind == BATCH]
            try:
                events = taken({}, raws[-1])[1] if raws else []
            except TapeError as error:
                trouble.error(segment.path, TapeError(f"{segment.path}: {error}"))
                break
            latest = events[-1].t_ns if events else latest
    return utc_ns(head, latest)


def batches(block: Block, numbering: dict[str, Numbering], folded: int) -> Iterator[Batched]:
    """The batches of a block in their order. folded: events before it. TapeError for what no version of ours sent."""
    for kind, _, raw in block.records:
        if kind == BATCH:
            before = {name: (lane.epoch_ns, lane.next) for name, lane in numbering.items()}
            batch, events = taken(numbering, raw)
            yield Batched(raw, batch, events, folded, before.get(batch.publisher, (0, 0)))
            folded += len(events)


def items(segment: Segment, trouble: Trouble) -> Iterator[Item]:
    """All of a segment. Each wish comes behind the event that brought it about."""
    numbering = lanes(segment.head)
    folded = segment.head.memory.events
    for item in segment.blocks():
        if isinstance(item, Damage):
            trouble.damage(item)
        elif isinstance(item, End):
            if item.events != folded:
                why = f"holds events up to number {folded} where its end counts {item.events}: some were taken out"
                trouble.damage(Damage(f"{segment.path}, the segment at byte {segment.offset}", why))
        else:
            try:
                found = list(_block(segment, item, numbering, folded))
            except (TapeError, CodecError) as error:
                trouble.damage(Damage(f"{segment.path}, the segment at byte {segment.offset}", f"{error}; skipped"))
                return
            before, folded = folded, folded + sum(not isinstance(each.message, Asked) for each in found)
            if any(not before < at <= folded for kind, at, _ in item.records if kind == ASKED):
                why = "wishes that belong to other events: blocks are missing, or there twice"
                trouble.damage(Damage(f"{segment.path}, the segment at byte {segment.offset}", why))
            yield from found


def _block(segment: Segment, block: Block, numbering: dict[str, Numbering], folded: int) -> Iterator[Item]:
    asked = [(at, decode_request(raw)) for kind, at, raw in block.records if kind == ASKED]
    asked.reverse()
    for batched in batches(block, numbering, folded):
        for at, event in enumerate(batched.events, batched.first + 1):
            while asked and asked[-1][0] < at:
                yield Item(segment, asked[-1][0], "", asked.pop()[1])
            yield Item(segment, at, batched.batch.publisher, event)
    while asked:
        yield Item(segment, asked[-1][0], "", asked.pop()[1])


def in_order(paths: Iterable[Path], trouble: Trouble) -> Iterator[tuple[int, Item]]:
    """Everything on the tapes with its CLOCK_TAI, merged by it."""

    def timed(strand: list[Segment]) -> Iterator[tuple[int, Item]]:
        for segment in strand:
            head = segment.head
            for item in items(segment, trouble):
                yield tai_ns(head, item.message.t_ns), item

    return heapq.merge(*(timed(strand) for strand in strands(paths, trouble)), key=lambda each: each[0])
