"""Made-up recordings for tests, for the bench and for the picture in docs/: hosts on which all that can become of a
change becomes of one.

    .venv/bin/python tests/report_world.py DIR [--hours 2.17]     writes DIR/HOST/DECIDER/*.tape

and from there docs/report.png is made by:

    .venv/bin/trimtab report DIR -o DIR/report.html
    chromium --headless --hide-scrollbars --window-size=1280,1000 --screenshot=docs/report.png DIR/report.html
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bus import tape, tunables
from bus.codec import encode
from bus.config import Config
from bus.schema import (
    VERSION,
    AnyEvent,
    Batch,
    Counters,
    Host,
    NeighTable,
    Netns,
    Outcome,
    Request,
    TcpRcvBuf,
    TcpSndBuf,
    Tick,
    Trial,
    Value,
    Verdict,
    Wish,
)
from bus.tape import ASKED, BATCH, Head, Machine, Memory, asked_at, opening, pack, record

SECOND = 1_000_000_000
BOOTED_NS = 3_600 * SECOND
"""CLOCK_MONOTONIC when a recording begins."""
TAI_NS = 1_795_600_000 * SECOND
TAI_OFFSET_S = 37
GIB = 1 << 30
RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
THRESH = "net.ipv4.neigh.default.gc_thresh"
Said = tuple[str, AnyEvent]
"""Publisher and event."""


class Writer:
    """One decider's recording, segment by segment."""

    def __init__(self, folder: Path, decider: str, host: str, *, began_ns: int = BOOTED_NS, session: str = "1") -> None:
        self.folder = folder
        self.decider = decider
        self.host = host
        self.session = session
        self.began_ns = began_ns
        self.numbers: dict[str, int] = {}
        self.epochs: dict[str, int] = {}
        self.segments = 0
        self.events = 0
        self._records: list[bytes] = []
        self._size = 0
        self._waiting: dict[str, list[AnyEvent]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.begin(began_ns)

    def begin(self, t_ns: int) -> None:
        """A new segment."""
        self.path = self.folder / f"{self.session}-{self.segments:04d}.tape"
        lanes = {name: (self.epochs.get(name, 5), number) for name, number in self.numbers.items()}
        head = Head(
            schema=VERSION, decider=self.decider, module=f"deciders.{self.decider}", code="0" * 16,
            session=f"{self.host}.{self.decider}.{self.session}", number=self.segments, t_ns=t_ns,
            tai_ns=TAI_NS + t_ns - BOOTED_NS, tai_offset_s=TAI_OFFSET_S,
            host=Machine(self.host, "6.18.2", "x86_64", 16, 64 * GIB, f"boot-{self.host}"),
            config=Config(), rows=list(tunables.TUNABLES), memory=Memory(self.events, lanes),
        )  # fmt: skip
        self.path.write_bytes(opening() + pack("head", tape.encode(head)))
        self.segments += 1

    def say(self, publisher: str, event: AnyEvent) -> None:
        """An event that came."""
        waiting = self._waiting.setdefault(publisher, [])
        waiting.append(event)
        if len(waiting) >= 32:
            self._send(publisher)

    def flush(self) -> None:
        """All that waits goes out, in batches."""
        for publisher in self._waiting:
            self._send(publisher)

    def _send(self, publisher: str) -> None:
        events, number = self._waiting[publisher], self.numbers.get(publisher, 0)
        if not events:
            return
        batch = Batch(VERSION, publisher, self.epochs.get(publisher, 5), number, list(events))
        self._keep(record(BATCH, encode(batch)))
        self.numbers[publisher] = number + len(events)
        self.events += len(events)
        events.clear()

    def lose(self, publisher: str, count: int) -> None:
        """So many events never came."""
        self._send(publisher)
        self.numbers[publisher] = self.numbers.get(publisher, 0) + count

    def restart(self, publisher: str, epoch_ns: int) -> None:
        """The publisher begins anew."""
        self._send(publisher)
        self.epochs[publisher], self.numbers[publisher] = epoch_ns, 0

    def ask(self, request: Request) -> None:
        """A wish that went out."""
        self.flush()
        self._keep(record(ASKED, asked_at(self.events), encode(request)))

    def _keep(self, raw: bytes) -> None:
        self._records.append(raw)
        self._size += len(raw)
        if self._size > tape.BLOCK_BYTES:
            self._write()

    def _write(self) -> None:
        if self._records:
            with self.path.open("ab") as file:
                file.write(pack("block", b"".join(self._records)))
            self._records.clear()
            self._size = 0

    def close(self, t_ns: int, why: str = "stopped") -> None:
        """End the segment in order."""
        self.flush()
        self._write()
        with self.path.open("ab") as file:
            file.write(pack("end", tape.encode(tape.End(t_ns=t_ns, events=self.events, why=why))))


class Story:
    """What happens on one host: signals that go on, and changes of whichever state."""

    def __init__(self, name: str, seconds: int, seed: int = 1) -> None:
        self.name = name
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.values: dict[tuple[str, int], int] = {}
        self.originals: dict[tuple[str, int], int] = {}
        self.said: list[tuple[int, str, AnyEvent]] = []
        self.asked: list[tuple[int, str, Request]] = []
        self.change = 40 + seed
        self.breaks: list[tuple[float, str, int]] = []
        """(second, publisher, events lost; 0: it begins anew)"""
        self.also: Callable[[], Iterator[tuple[int, str, AnyEvent]]] = lambda: iter(())
        """More that is said, in order of time; made as it is written, where it would not fit in memory."""
        self.pause: tuple[float, float] = (0.0, 0.0)
        """When nobody records; then other processes do."""

    def at(self, second: float) -> int:
        """CLOCK_MONOTONIC of that second."""
        return BOOTED_NS + int(second * SECOND)

    def say(self, second: float, publisher: str, event: AnyEvent) -> None:
        self.said.append((self.at(second), publisher, event))

    def begin(self, tunable: str, netns: int, value: int) -> None:
        """A tunable stands there."""
        self.values[tunable, netns] = self.originals[tunable, netns] = value

    def grow(self, second: float, decider: str, tunable: str, netns: int, want: int, why: str, **numbers: int) -> int:
        """A change is asked for and made. Returns its number."""
        self.change += 1
        self.wish(second, decider, tunable, netns, want, why, **numbers)
        old = self.values[tunable, netns]
        self.outcome(second + 0.002, decider, tunable, netns, old, want, "written", why, want, self.change)
        trial = Trial(self.at(second + 0.01), self.change, decider, tunable, netns, 0, old, want, self.at(second), ())
        self.say(second + 0.01, "actuator", trial)
        self.values[tunable, netns] = want
        self.value(second + 0.02, tunable, netns)
        return self.change

    def wish(self, second: float, decider: str, tunable: str, netns: int, want: int, why: str, **numbers: int) -> None:
        evidence: dict[str, int | str] = {"event": f"TcpSndBuf@{self.at(second)}", **numbers}
        believed = self.values[tunable, netns]
        wish = Wish(VERSION, self.at(second), SECOND, tunable, netns, 0, believed, want, why, evidence)
        self.asked.append((self.at(second), decider, wish))

    def refuse(self, second: float, decider: str, tunable: str, netns: int, want: int, reason: str) -> None:
        self.wish(second, decider, tunable, netns, want, "buffer of port 443 full: 410 Mbit/s at 28 ms; one step up")
        value = self.values[tunable, netns]
        self.outcome(second + 0.002, decider, tunable, netns, value, want, "refused", reason, value, 0)

    def outcome(
        self, second: float, decider: str, tunable: str, netns: int, believed: int, want: int, verdict: str, why: str,
        value: int, change: int,
    ) -> None:  # fmt: skip
        event = Outcome(self.at(second), decider, tunable, netns, believed, want, verdict, why, value, change)  # type: ignore[arg-type]
        self.say(second, "actuator", event)

    def judge(self, second: float, decider: str, tunable: str, netns: int, change: int, back: int | None) -> None:
        """The guard's verdict, and what is done about it. back: the value to go back to; None confirms."""
        why = "not worse in 30 s: retransmit_share 0.04 % (before: 0.05 %); srtt_us 3 % (before: 4 %)"
        if back is not None:
            why = "retransmit_share got worse 6 s after the change, and for 3 s: 4.1 % of all TCP segments sent again"
        evidence: dict[str, int | str] = {"event": f"Tick@{self.at(second)}", "soaked_s": 30, "retransmit_ppm": 41_000}
        verdict = Verdict(VERSION, self.at(second), SECOND, change, back is None, why, evidence)
        self.asked.append((self.at(second), "guard", verdict))
        stands = self.values[tunable, netns]
        value = stands if back is None else back
        became = "confirmed" if back is None else "reverted"
        args = (stands, self.originals[tunable, netns], became, why, value, change)
        self.outcome(second + 0.01, decider, tunable, netns, *args)
        self.values[tunable, netns] = value
        self.value(second + 0.02, tunable, netns)

    def cede(self, second: float, decider: str, tunable: str, netns: int, found: int) -> None:
        why = f"sysctl (pid 4711, uid 0) wrote {found} in place of {self.values[tunable, netns]}"
        args = (self.values[tunable, netns], self.originals[tunable, netns], "ceded", why, found, self.change)
        self.outcome(second, decider, tunable, netns, *args)
        self.values[tunable, netns] = found
        self.value(second + 0.01, tunable, netns)

    def value(self, second: float, tunable: str, netns: int) -> None:
        row = tunables.table()[tunable]
        bounds = tunables.resolve(row, 64 * GIB)
        now, original = self.values[tunable, netns], self.originals[tunable, netns]
        event = Value(self.at(second), tunable, netns, netns, now, original, bounds.low, bounds.high, False)
        self.say(second, "actuator", event)

    def levels(self, every: int = 5) -> None:
        """The values as they stand at the beginning; later ones are told as they change."""
        for tunable, netns in self.values:
            for second in range(0, min(20, self.seconds), every):
                self.value(second, tunable, netns)

    def host(self, namespaces: dict[int, str], every: int = 2) -> None:
        """Time passes: ticks, facts, counters."""
        total = {"Tcp.OutSegs": 0, "Tcp.RetransSegs": 0}
        ofo = {"TcpExt.TCPHPHits": 0, "TcpExt.TCPOFOQueue": 0, "TcpExt.TCPMemoryPressures": 0}
        for second in range(0, self.seconds, every):
            t_ns = self.at(second)
            if second % 60 < every:
                self.say(
                    second, "collector-proc", Host(t_ns, "b", "6.18.2", "x86_64", 16, 64 * GIB, 4096, TAI_OFFSET_S)
                )
                for netns, name in namespaces.items():
                    self.say(second, "collector-netlink", Netns(t_ns, netns, netns, name, True))
            sent = int((9000 + 4000 * math.sin(second / 900)) * every)
            total["Tcp.OutSegs"] += sent
            total["Tcp.RetransSegs"] += int(sent * self.resent(second))
            ofo["TcpExt.TCPHPHits"] += sent
            ofo["TcpExt.TCPOFOQueue"] += int(sent * 0.0006 * self.chance.random())
            for netns in namespaces:
                self.say(second, "collector-proc", Counters(t_ns, netns, "net/snmp", dict(total)))
                self.say(second, "collector-proc", Counters(t_ns, netns, "net/netstat", dict(ofo)))
            mem = {"TCP.mem": int(40_000 + 20_000 * math.sin(second / 700) + 3000 * self.chance.random())}
            self.say(second, "collector-proc", Counters(t_ns, 1, "net/sockstat", mem))
            self.say(second, "collector-proc", Tick(t_ns, second))

    def resent(self, second: float) -> float:
        """The share of segments sent again."""
        return 0.0006 + 0.0008 * self.chance.random()

    def flows(self, netns: int, port: int, tunable: str, times: Iterable[tuple[float, float]], rtt_us: int) -> None:
        """Sockets near their limit. times: (second, the limit that stands then)."""
        total, again = 0, 0.0
        last = 0.0
        for second, limit in times:
            load = 0.75 + 0.2 * math.sin(second / 420) + 0.05 * self.chance.random()
            rtt = int(rtt_us * (1 + 0.06 * self.chance.random() + (0.5 if self.resent(second) > 0.01 else 0)))
            size = int(limit * min(1.0, load + 0.12))
            more = int(size * 0.66 / (rtt / 1e6) * min(second - last, 5))
            total, again = total + more, again + more / 1448 * self.resent(second)
            last, t_ns = second, self.at(second)
            if tunable == RMEM:
                event: AnyEvent = TcpRcvBuf(
                    t_ns, netns, netns, port, 2, port, 40_000, size, int(limit), False, size // 2, size // 2, 10,
                    size // 3, rtt, rtt, total,
                )  # fmt: skip
            else:
                event = TcpSndBuf(
                    t_ns, netns, netns, port, 2, port, 50_000, size, int(limit), False, rtt, rtt_us, 200, 1448, 180,
                    size, size // 2, total, 100, rtt, 3, int(again),
                )  # fmt: skip
            self.say(second, "collector-bpf", event)

    def table(self, entries: Iterable[tuple[float, int]]) -> None:
        """The ARP table fills. entries: (second, how many)."""
        changes = sorted(
            (event.t_ns, event.tunable, event.value)
            for _, _, event in self.said
            if isinstance(event, Value) and event.tunable.startswith(THRESH)
        )
        limits = {level: self.originals[f"{THRESH}{level}", 0] for level in (1, 2, 3)}
        for second, count in entries:
            t_ns = self.at(second)
            while changes and changes[0][0] <= t_ns:
                _, tunable, value = changes.pop(0)
                limits[int(tunable[-1])] = value
            event = NeighTable(t_ns, 2, count, limits[1], limits[2], limits[3], 0, 0, count, 0)
            self.say(second, "collector-netlink", event)

    def write(self, folder: Path, deciders: Iterable[str], segment_s: int = 3600) -> None:
        """Record it, as each of the deciders does."""
        self.said.sort(key=lambda said: said[0])
        self.asked.sort(key=lambda asked: asked[0])
        for decider in deciders:
            self._record(folder / self.name / decider, decider, segment_s)

    def _record(self, folder: Path, decider: str, segment_s: int) -> None:
        writer = Writer(folder, decider, self.name)
        asked = [(t_ns, request) for t_ns, whose, request in self.asked if whose == decider][::-1]
        breaks = sorted(self.breaks, reverse=True)
        pause_ns, again_ns = map(self.at, self.pause)
        end_ns = self.at(segment_s)
        for t_ns, publisher, event in heapq.merge(self.said, self.also(), key=lambda said: said[0]):
            while asked and asked[-1][0] <= t_ns:
                writer.ask(asked.pop()[1])
            while breaks and self.at(breaks[-1][0]) <= t_ns:
                _, whose, lost = breaks.pop()
                if lost:
                    writer.lose(whose, lost)
                else:
                    writer.restart(whose, t_ns)
            if pause_ns <= t_ns < again_ns:
                if writer.session == "1":
                    writer.close(t_ns)
                    numbers = writer.numbers
                    writer = Writer(folder, decider, self.name, began_ns=again_ns, session="2")
                    writer.epochs = dict.fromkeys(numbers, 6)
                continue
            if t_ns >= end_ns:
                writer.close(t_ns, "old")
                writer.begin(t_ns)
                end_ns += segment_s * SECOND
            writer.say(publisher, event)
        while asked:
            writer.ask(asked.pop()[1])
        writer.close(self.at(self.seconds))


def limits(story: Story, tunable: str, netns: int, times: Iterable[float]) -> Iterator[tuple[float, float]]:
    """(second, the value of a tunable then), from what the story has said of it."""
    told = sorted(
        (event.t_ns, event.value)
        for _, _, event in story.said
        if isinstance(event, Value) and (event.tunable, event.netns) == (tunable, netns)
    )
    place = 0
    for second in times:
        while place + 1 < len(told) and told[place + 1][0] <= story.at(second):
            place += 1
        yield second, told[place][1]


def seconds(spans: Iterable[tuple[float, float]], apart: float) -> Iterator[float]:
    """Each `apart` seconds in these stretches."""
    for start, end in spans:
        for number in range(int((end - start) / apart)):
            yield start + number * apart


def web(total: int, name: str = "web-01") -> Story:
    """Senders that outgrow their limit; one step too far is put back. A socket's namespace goes."""
    story = Story(name, total, seed=1)
    host, shop = 1, 4242
    hurt = (total * 0.62, total * 0.62 + 20)
    calm = story.resent
    story.resent = lambda second: 0.041 if hurt[0] <= second < hurt[1] else calm(second)  # type: ignore[method-assign]
    story.begin(WMEM, shop, 4 << 20)
    story.begin(RMEM, host, 6 << 20)
    story.levels()
    at, size = total * 0.06, 4 << 20
    for step in range(5):
        size = size * 3 // 2
        why = f"send buffer of port 443 full at {size * 2 // 3} bytes: {120 + 70 * step} Mbit/s at 28.1 ms; one step up"
        number = story.grow(
            at, "tcp_buffer", WMEM, shop, size, why, socket=77, sport=443, kbit_s=120_000, rtt_us=28_100
        )
        if at < hurt[0] - 60:
            story.judge(at + 32, "tcp_buffer", WMEM, shop, number, None)
        at += total * 0.12
    number = story.grow(
        hurt[0] - 6, "tcp_buffer", WMEM, shop, size * 3 // 2, "send buffer of port 443 full; one step up"
    )
    story.judge(hurt[0] + 9, "tcp_buffer", WMEM, shop, number, size)
    for second in range(12):
        reason = f"changed {14 + second} times within the hour, at most 12"
        story.refuse(total * 0.8 + 40 * second, "tcp_buffer", WMEM, shop, size * 3 // 2, reason)
    number = story.grow(total * 0.3, "tcp_buffer", RMEM, host, 9 << 20, "receive buffer of port 5432 full; one step up")
    story.judge(total * 0.3 + 31, "tcp_buffer", RMEM, host, number, None)
    story.grow(total - 14, "tcp_buffer", RMEM, host, 13 << 20, "receive buffer of port 5432 full; one step up")
    story.host({host: "host", shop: "shop"})
    spans = [(total * 0.03, total * 0.44), (total * 0.47, total * 0.99)]
    story.flows(shop, 443, WMEM, limits(story, WMEM, shop, seconds(spans, 2)), 28_000)
    spans = [(total * 0.2, total * 0.5), (total * 0.9, total - 1)]
    story.flows(host, 5432, RMEM, limits(story, RMEM, host, seconds(spans, 2)), 9_000)
    return story


def gateway(total: int, name: str = "gw-01") -> Story:
    """A neighbour table that fills; then an administrator writes a limit."""
    story = Story(name, total, seed=60)
    for level, value in ((1, 128), (2, 512), (3, 1024)):
        story.begin(f"{THRESH}{level}", 0, value)
    story.levels()
    for step, share in enumerate((0.15, 0.24, 0.36)):
        for order, level in enumerate((3, 2, 1)):
            value = story.values[f"{THRESH}{level}", 0] * 2
            why = f"{700 << step} of {1024 << step} entries, and 38 more each second: full in 8 s; doubled"
            when = total * share + 0.1 * order
            number = story.grow(when, "neigh_table", f"{THRESH}{level}", 0, value, why, entries=700 << step)
            story.judge(when + 33, "neigh_table", f"{THRESH}{level}", 0, number, None)
    story.cede(total * 0.7, "neigh_table", f"{THRESH}3", 0, 16384)
    story.value(total * 0.9, f"{THRESH}1", 0)
    story.host({1: "host"})
    grown = ((second, int(380 + 5200 / (1 + math.exp(-(second / total - 0.4) * 11)) + 40 * math.sin(second / 60)))
             for second in range(0, total, 5))  # fmt: skip
    story.table(grown)
    story.breaks = [(total * 0.5, "collector-netlink", 120), (total * 0.86, "actuator", 0)]
    return story


def database(total: int, name: str = "db-01") -> Story:
    """Advice, a failure, and a namespace that goes."""
    story = Story(name, total, seed=90)
    jobs = 777
    story.begin(RMEM, 1, 6 << 20)
    story.begin(WMEM, jobs, 4 << 20)
    story.levels()
    first = story.grow(total * 0.1, "tcp_buffer", WMEM, jobs, 6 << 20, "send buffer of port 9000 full; one step up")
    story.judge(total * 0.1 + 31, "tcp_buffer", WMEM, jobs, first, None)
    story.grow(total * 0.2, "tcp_buffer", WMEM, jobs, 9 << 20, "send buffer of port 9000 full; one step up")
    story.say(total * 0.21, "collector-netlink", Netns(story.at(total * 0.21), jobs, jobs, "jobs", False))
    why = "receive buffer of port 5432 full at 6291456 bytes: 388 Mbit/s at 41.0 ms; one step up"
    for place, verdict in ((0.4, "advised"), (0.55, "failed")):
        story.wish(total * place, "tcp_buffer", RMEM, 1, 9 << 20, why, socket=9)
        said = why if verdict == "advised" else "Read-only file system"
        story.change += 1
        args = (6 << 20, 9 << 20, verdict, said, 6 << 20, story.change)
        story.outcome(total * place + 0.1, "tcp_buffer", RMEM, 1, *args)
    story.host({1: "host", jobs: "jobs"})
    story.flows(1, 5432, RMEM, limits(story, RMEM, 1, seconds([(total * 0.3, total * 0.95)], 2)), 41_000)
    story.flows(jobs, 9000, WMEM, limits(story, WMEM, jobs, seconds([(total * 0.05, total * 0.2)], 2)), 12_000)
    story.pause = (total * 0.66, total * 0.72)
    return story


STORIES = (web, gateway, database)
DECIDERS = ("guard", "neigh_table", "tcp_buffer")


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description="Made-up recordings of three hosts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=13 / 6)
    options = parser.parse_args()
    for story in STORIES:
        story(round(options.hours * 3600)).write(options.folder, DECIDERS)


if __name__ == "__main__":
    main()
