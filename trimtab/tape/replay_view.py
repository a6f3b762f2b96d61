"""What `trimtab replay` prints: a line per host and decider, the first difference of each, sums per class of hosts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from bus.tape import Machine
from trimtab import exits, show
from trimtab.tape.difference import Difference, lines

if TYPE_CHECKING:
    from trimtab.tape.replay import Played

SCHEMA = "trimtab.tape.replay/v1"


class Line(Struct):
    """One decider of one host."""

    host: Machine
    decider: str
    segments: int = 0
    events: int = 0
    wishes: int = 0
    different: int = 0
    """Segments."""
    skipped: int = 0
    damaged: int = 0
    unended: int = 0
    first_ns: int = 0
    last_ns: int = 0
    first_utc_ns: int = 0
    """When it begins, by that host's clock."""
    code: str = ""
    """By which it was decided, where it is not the code here."""
    differs: Difference | None = None
    place: tuple[int, int] = (0, 0)
    """Of the first difference."""


class View:
    """Gathers, then prints."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], Line] = {}
        self._said: set[str] = set()
        self._words: list[str] = []
        self._cpu_ns = 0

    def warn(self, words: Iterable[str]) -> None:
        """On stderr, each once."""
        for word in words:
            if word not in self._said:
                self._said.add(word)
                print(f"trimtab: {show.plain(word)}", file=sys.stderr)

    def add(self, played: Played) -> None:
        """One segment."""
        piece = played.piece
        self.warn(played.words)
        self._cpu_ns += played.cpu_ns
        key = (piece.host.boot_id, piece.decider)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(piece.host, piece.decider, first_ns=piece.t_ns)
        line.segments += 1
        line.events += played.events
        line.wishes += played.wishes
        line.skipped += played.skipped
        line.damaged += played.damaged
        line.unended += bool(played.words) and not played.damaged and not played.skipped
        utc_ns = piece.tai_ns - piece.tai_offset_s * 10**9
        line.first_utc_ns = min(line.first_utc_ns or utc_ns, utc_ns)
        line.first_ns = min(line.first_ns, piece.t_ns)
        line.last_ns = max(line.last_ns, played.last_ns)
        line.code = piece.code if played.code else line.code
        if played.differs:
            line.different += 1
            place = (piece.t_ns, played.differs.event)
            if line.differs is None or place < line.place:
                line.differs, line.place = played.differs, place

    def code(self, degraded: bool) -> int:
        """The exit code. degraded: something else could not be read."""
        rows = self._lines.values()
        if any(line.different for line in rows):
            return exits.PENDING
        return exits.DEGRADED if degraded or any(line.damaged or line.skipped for line in rows) else exits.FINE

    def print(self, seconds: float) -> None:
        """For people."""
        rows = self._sorted()
        show.table(
            ["host", "decider", "segments", "events", "wishes", "from", "seconds", ""],
            [
                [show.plain(line.host.name), show.plain(line.decider), line.segments, line.events, line.wishes,
                 show.local_time(line.first_utc_ns), _seconds(line), verdict(line)]
                for line in rows
            ],
        )  # fmt: skip
        for line in rows:
            if line.differs:
                where = show.plain(f"{line.decider} on {line.host.name}")
                print(f"\nfirst difference of {where}")
                print(*map(show.plain, lines(line.differs)), sep="\n")
        self._print_code(rows)
        self._print_classes()
        events = sum(line.events for line in rows)
        print(f"\n{events} events in {seconds:.1f} s: {self._rate()} events/s and core")

    def document(self, seconds: float) -> None:
        """For programs."""
        rows = self._sorted()
        show.as_json(
            {
                "schema": SCHEMA,
                "equal": not any(line.different for line in rows),
                "deciders": [_document(line) for line in rows],
                "classes": [{"release": kind[0], "machine": kind[1], "cpus": kind[2], "memory_gib": kind[3], **sums}
                            for kind, sums in self._classes().items()],
                "words": sorted(self._said),
                "seconds": round(seconds, 3),
                "events_per_s_and_core": self._rate(),
            }
        )  # fmt: skip

    def _sorted(self) -> list[Line]:
        return sorted(self._lines.values(), key=lambda line: (line.host.name, line.host.boot_id, line.decider))

    def _rate(self) -> int:
        events = sum(line.events for line in self._lines.values())
        return round(events * 1e9 / self._cpu_ns) if self._cpu_ns else 0

    def _print_code(self, rows: list[Line]) -> None:
        for code in sorted({line.code for line in rows if line.code}):
            names = ", ".join(sorted({line.decider for line in rows if line.code == code}))
            said = show.plain(f"{names} decided by {code}")
            may = ": that may be why" if any(line.different for line in rows if line.code == code) else ""
            print(f"\nnote: {said}, and the code here is another{may}")

    def _print_classes(self) -> None:
        if len({line.host.boot_id for line in self._lines.values()}) < 2:
            return
        print()
        show.table(
            ["kernel", "machine", "CPUs", "memory GiB", "hosts", "segments", "events", "wishes", "different"],
            [
                [show.plain(kind[0]), show.plain(kind[1]), *kind[2:], *sums.values()]
                for kind, sums in self._classes().items()
            ],
        )

    def _classes(self) -> dict[tuple[str, str, int, int], dict[str, int]]:
        """Hosts that are alike, with their sums."""
        found: dict[tuple[str, str, int, int], dict[str, int]] = {}
        hosts: set[str] = set()
        for line in self._sorted():
            host = line.host
            kind = (host.release, host.machine, host.cpus, round(host.mem_bytes / 2**30))
            sums = found.setdefault(kind, dict.fromkeys(("hosts", "segments", "events", "wishes", "different"), 0))
            sums["hosts"] += host.boot_id not in hosts
            hosts.add(host.boot_id)
            for name in ("segments", "events", "wishes", "different"):
                sums[name] += getattr(line, name)
        return found


def verdict(line: Line) -> str:
    """In words."""
    many = "segment" if line.different == 1 else "segments"
    said = f"{line.different} {many} DIFFERENT" if line.different else "equal"
    for count, word in ((line.damaged, "damaged"), (line.skipped, "skipped"), (line.unended, "without an end")):
        said += f", {count} {word}" if count else ""
    return said if line.skipped < line.segments else "skipped"


def _seconds(line: Line) -> int:
    return round(max(0, line.last_ns - line.first_ns) / 1e9)


def _document(line: Line) -> dict[str, Any]:
    return {
        "host": line.host,
        "decider": line.decider,
        "segments": line.segments,
        "events": line.events,
        "wishes": line.wishes,
        "from_utc_ns": line.first_utc_ns,
        "seconds": _seconds(line),
        "different": line.different,
        "damaged": line.damaged,
        "skipped": line.skipped,
        "unended": line.unended,
        "other_code": line.code or None,
        "first_difference": line.differs,
    }
