"""Tapes for tests, recorded by the recorder itself from made events, in the events' own time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bus import tunables
from bus.codec import encode
from bus.config import Config
from bus.numbering import Numbering
from bus.recorder import Recorder, Session
from bus.revision import revision
from bus.schema import (
    AnyEvent,
    Batch,
    Counters,
    Netns,
    Outcome,
    Probe,
    SysctlWrite,
    TcpRcvBuf,
    TcpSndBuf,
    Tick,
    Value,
)
from bus.tape import Head, Machine, Memory
from bus.tape_reader import Segment, find, segments
from deciders.__main__ import load, place
from deciders.engine import decide
from trimtab.tape.playback import Playback, decider

SEC = 1_000_000_000
BEGIN_NS = 5_000 * SEC
TAI_NS = 1_790_000_000 * SEC
"""CLOCK_TAI at BEGIN_NS."""
TAI_OFFSET_S = 37
HOST = Machine("shop-db-7", "6.1.0-18-amd64", "x86_64", 4, 8 << 30, "5f2b0c1e-77aa-4f7e-9d3c-0123456789ab")
COUNTERS = {"TCPRcvQDrop": 1, "OutSegs": 1000, "RetransSegs": 3}
Batched = tuple[str, Batch]


def second(number: int) -> Iterator[tuple[str, AnyEvent]]:
    """What the publishers say in one second: two flows that wait for their buffers, and what goes with them."""
    t_ns = BEGIN_NS + number * SEC
    yield "collector-proc", Tick(t_ns, number)
    yield "collector-proc", Counters(t_ns, 7, "net/netstat", {name: count * number for name, count in COUNTERS.items()})
    for tunable in ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"):
        yield "actuator", Value(t_ns, tunable, 7, 4026532001, 262144, 262144, 65536, 64 << 20, False)
    if number % 5 == 1:
        yield "collector-netlink", Netns(t_ns, 7, 4026532001, "customer-blue", True)
        yield "collector-bpf", Probe(t_ns, "tcp_rcvbuf", "tracepoint", "/home/alice/trimtab: no BTF on 10.1.2.3")
        yield "collector-bpf", SysctlWrite(t_ns, 7, 4026532001, 812, 1001, "bobs-deploy", "net/ipv4/tcp_rmem", "1", "2")
        reason = "after bobs-deploy held by alice on shop-db-7 from fe80::1 00:16:3e:aa:bb:cc"
        yield "actuator", Outcome(t_ns, "tcp_buffer", "net.ipv4.tcp_wmem[2]", 7, 1, 2, "refused", reason, 262144, 0)
    for tenth in range(10):
        t_ns += SEC // 10
        total = (10 * number + tenth) * 400_000
        about = (7, 4026532001, 11, 2, 5201, 40001, 262144, 262144, False, 171264, 174080, 7)
        yield "collector-bpf", TcpRcvBuf(t_ns, *about, 90_000, 20_100, 20_100, total)
        about = (7, 4026532001, 12, 2, 40002, 5201, 262144, 262144, False, 20_500, 20_000, 300, 1448, 120)
        yield "collector-bpf", TcpSndBuf(t_ns + 1, *about, 262144, 190_000, total, 100, 20_500, 3, 0)


def batches(seconds: int, lose: Sequence[int] = ()) -> list[Batch]:
    """The lanes as a decider hears them, a few events a batch. lose: the numbers of batches that never come."""
    numbers: dict[str, int] = {}
    found: list[Batch] = []
    for number in range(seconds):
        waiting: list[AnyEvent] = []
        last = ""
        for publisher, event in [*second(number), ("", None)]:
            if waiting and (publisher != last or len(waiting) == 7):
                begun = numbers.get(last, 0)
                found.append(Batch(1, last, BEGIN_NS - SEC, begun, waiting))
                numbers[last] = begun + len(waiting)
                waiting = []
            last = publisher
            if event is not None:
                waiting.append(event)
    return [batch for number, batch in enumerate(found) if number not in lose]


class Live:
    """A decider that is fed by hand and records, as deciders.__main__.Live does."""

    def __init__(self, folder: Path, name: str = "tcp_buffer", config: Config | None = None, **head: Any) -> None:
        self.config = config or Config()
        self.decider = load(name, self.config)
        self.folded = 0
        self.lanes: dict[str, Numbering] = {}
        self.now_ns = BEGIN_NS
        self.probes: dict[str, Probe] = {}
        self.wishes: list[tuple[int, bytes]] = []
        self.waits = True
        """For the disk, after each turn: who records does not."""
        module = place(name)
        self._session = Session(name, module, revision(module), self.config, tunables.table().values())
        self._head = head
        folder.mkdir(parents=True, exist_ok=True)
        self.recorder = Recorder(folder, self.config.tape.max_mib << 20, self.config.tape.segment_mib << 20, self.head)

    def head(self, number: int) -> Head:
        heard = {name: (lane.epoch_ns, lane.next) for name, lane in self.lanes.items()}
        head = self._session.head(number, Memory(self.folded, heard, *self.decider.remember()), self.probes.values())
        session = f"{HOST.boot_id}.{head.session.partition('.')[2]}"
        changes = {
            "host": HOST,
            "session": session,
            "tai_offset_s": TAI_OFFSET_S,
            "tai_ns": TAI_NS + self.now_ns - BEGIN_NS,
            **self._head,
        }
        return msgspec.structs.replace(head, t_ns=self.now_ns, **changes)

    def feed(self, found: Sequence[Batch], turn: int = 4) -> None:
        """Decide on the batches, so many of them at each turn."""
        self.turn()
        for start in range(0, len(found), turn):
            events: list[AnyEvent] = []
            for batch in found[start : start + turn]:
                self.recorder.batch(encode(batch))
                events += self.lanes.setdefault(batch.publisher, Numbering(batch.publisher)).take(batch)
            for event, wishes in decide(events, [self.decider]):
                self.folded += 1
                self.now_ns = max(self.now_ns, event.t_ns)
                if isinstance(event, Probe):
                    self.probes[event.name] = event
                for wish in wishes:
                    self.recorder.asked(self.folded, wish)
                    self.wishes.append((self.folded, encode(wish)))
            self.turn()

    def turn(self, after_ns: int = 0) -> None:
        """All is folded, so much later, and what is then to be written is."""
        self.now_ns += after_ns
        self.recorder.turn(self.now_ns, self.folded)
        assert not self.waits or self.recorder.disk.settle(10)

    def close(self) -> None:
        self.recorder.close(self.now_ns, self.folded)
        assert self.recorder.disk.settle(10)


def record(folder: Path, seconds: int = 20, lose: Sequence[int] = (), **head: Any) -> Live:
    """A whole tape of one segment. head: what its head says otherwise."""
    live = Live(folder, **head)
    live.feed(batches(seconds, lose))
    live.close()
    return live


def replayed(*paths: Path) -> list[tuple[Segment, int, list[tuple[int, bytes]], Playback]]:
    """Each segment of the tapes with the events that it has, and what is decided of them here."""
    found = []
    for path in find(paths):
        for segment in segments(path):
            played, deciding = Playback(segment), decider(segment.head)
            at = segment.head.memory.events
            asked: list[tuple[int, bytes]] = []
            for _, wishes in decide(played.events(), [deciding]):
                at += 1
                asked += ((at, encode(wish)) for wish in wishes)
            found.append((segment, at - segment.head.memory.events, asked, played))
    return found
