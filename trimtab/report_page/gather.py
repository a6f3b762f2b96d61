"""Streams tapes: a frame at a time, and in the memory of what is drawn. Several deciders of a host record the same
events: each event counts once, by its publisher's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
from msgspec import Struct

from bus import tape_reader
from bus.codec import CodecError, decode, decode_request
from bus.schema import VERSION, Batch, Beat, Gap
from bus.tape import ASKED, End, Head, TapeError
from bus.tape_reader import ALL, Block, Damage
from trimtab.report_page.host import Host

FAR_NS = 48 * 3_600_000_000_000
"""An event that is dated so far from its segment's beginning is in no order at all."""
PAUSE_NS = 12_000_000_000
"""Events come each second, and are on the tape within some more: where none are for so long, nothing was recorded."""


LEAD_BYTES = 192
"""What stands before a batch's events is shorter."""


class Lead(Struct, gc=False):
    """What stands before the events of a batch."""

    publisher: str
    epoch_ns: int
    number: int
    count: int
    """Of the events."""


def lead(raw: bytes) -> Lead:
    """Without a look at the events: most have been seen on another decider's tape. TapeError for no batch of ours."""
    unpacker = msgpack.Unpacker(max_str_len=LEAD_BYTES, max_buffer_size=LEAD_BYTES)
    unpacker.feed(raw[:LEAD_BYTES])
    try:
        fields = unpacker.read_array_header()
        version, publisher, epoch_ns, number = (unpacker.unpack() for _ in range(4))
        count = unpacker.read_array_header()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise TapeError(f"not a batch: {error}") from None
    # bool is an int, too.
    if fields != 5 or version != VERSION or type(publisher) is not str or {type(epoch_ns), type(number)} != {int}:
        raise TapeError(f"not a batch of version {VERSION}")
    return Lead(publisher, epoch_ns, number, count)


class Reel:
    """One segment of one decider, as far as it has been read."""

    def __init__(self, head: Head, host: Host) -> None:
        self.head = head
        self.host = host
        self.shift_ns = head.tai_ns - head.t_ns
        """From CLOCK_MONOTONIC to TAI."""
        self.lanes = tape_reader.lanes(head)
        self.last_ns = head.t_ns
        self.heard: dict[str, bytes] = {}
        """The last batch of each publisher, as it came."""

    def play(self, block: Block) -> None:
        """Hand what is in it to the host. TapeError for what is none of ours."""
        for kind, _, raw in block.records:
            if kind == ASKED:
                self._asked(raw)
            else:
                self._batch(raw)
        self.host.recorded.add(self.head.tai_ns, self.last_ns + self.shift_ns)

    def _asked(self, raw: bytes) -> None:
        try:
            request = decode_request(raw)
        except CodecError as error:
            raise TapeError(str(error)) from None
        if not isinstance(request, Beat):
            self.host.ledger.asked(request.t_ns + self.shift_ns, self.head.decider, request)

    def _batch(self, raw: bytes) -> None:
        batch = lead(raw)
        if not batch.count:
            return
        known = self.host.known(self.head.host.boot_id, batch.publisher, batch.epoch_ns)
        again = known.holds(batch.number)
        heard, self.heard[batch.publisher] = self.heard.get(batch.publisher), raw
        if again and self._steady(batch):
            return
        for event in tape_reader.events(self.lanes, raw):
            if abs(event.t_ns - self.head.t_ns) > FAR_NS:
                self.host.astray += 1
            elif isinstance(event, Gap):
                self._gap(event, heard)
            elif not again:
                self.host.take(event, event.t_ns + self.shift_ns)
                self.last_ns = max(self.last_ns, event.t_ns)
        known.add(batch.number, batch.number + batch.count)

    def _steady(self, batch: Lead) -> bool:
        """Whether the batch goes on where this lane was; then it is counted unseen."""
        lane = self.lanes.get(batch.publisher)
        if lane is None or (lane.epoch_ns, lane.next) != (batch.epoch_ns, batch.number):
            return False
        lane.next += batch.count
        return True

    def _gap(self, event: Gap, heard: bytes | None) -> None:
        """heard: the batch before, of the same publisher."""
        before_ns = decode(Batch, heard).events[-1].t_ns if heard else event.t_ns
        from_ns = min(before_ns, event.t_ns) + self.shift_ns
        self.host.gap(from_ns, event.t_ns + self.shift_ns, self.head.decider, event)


class Gathered(Struct):
    """What the tapes hold."""

    hosts: list[Host]
    damage: list[Damage]


def gather(files: Iterable[Path], on_head: Callable[[], None] = lambda: None) -> Gathered:
    """Read them all. on_head: called for each segment, for a progress bar. TapeError: a file is no tape."""
    hosts: dict[tuple[str, ...], Host] = {}
    damage: list[Damage] = []
    for path in files:
        reels: dict[int, Reel] = {}
        for source, item in tape_reader.items(path):
            if isinstance(item, Head):
                on_head()
                host = hosts.setdefault(_key(item), Host(item.host))
                host.begin(item)
                reels[source] = Reel(item, host)
            elif isinstance(item, Damage):
                damage.append(item)
                for reel in [reels.pop(key) for key in list(reels) if source in (key, ALL)]:
                    reel.host.broken += 1
            elif source in reels:
                _play(reels, source, item, path, damage)
    for host in hosts.values():
        host.finish(PAUSE_NS)
    return Gathered(list(hosts.values()), damage)


def _play(reels: dict[int, Reel], source: int, item: Block | End, path: Path, damage: list[Damage]) -> None:
    reel = reels[source]
    if isinstance(item, End):
        reel.host.recorded.add(reel.head.tai_ns, max(item.t_ns, reel.last_ns) + reel.shift_ns)
        del reels[source]
        return
    try:
        reel.play(item)
    except TapeError as error:
        damage.append(Damage(str(path), f"{error}; skipped to the next segment"))
        del reels[source]


def _key(head: Head) -> tuple[str, ...]:
    """A host, over its reboots: what stays the same of it."""
    machine = head.host
    return (machine.name, machine.machine, str(machine.mem_bytes))
