"""What `trimtab replay --policy` and `--code` print: a line per tunable and namespace, both policies side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bus.tape import Machine
from bus.tunables import Tunable, row_of
from trimtab import show, tables
from trimtab.tape.model import Tally

if TYPE_CHECKING:
    from trimtab.tape.compare import Compared, Row

SCHEMA = "trimtab.tape.compare/v1"


@dataclass
class OnHost:
    """One host."""

    host: Machine
    events: int = 0
    rows: list[Row] = field(default_factory=list)


class Found:
    """Gathers, then prints."""

    def __init__(self, words: Iterable[str]) -> None:
        self.degraded = False
        """Something could not be read, or not be compared."""
        self._hosts: dict[str, OnHost] = {}
        self._words: list[str] = []
        self._warn(words)
        self.degraded = bool(self._words)

    @property
    def different(self) -> bool:
        """Any row differs."""
        return any(row.differs for on in self._hosts.values() for row in on.rows)

    def add(self, compared: Compared) -> None:
        """One decider of one host."""
        on = self._hosts.setdefault(compared.host.boot_id, OnHost(compared.host))
        on.events += compared.events
        on.rows += compared.rows
        self.degraded |= compared.degraded
        self._warn(compared.words)

    def other_code(self, document: dict[str, Any], policy: bool) -> None:
        """Put in place of each candidate's side what another checkout has made of the same tapes: its candidate, or
        without a policy what it makes of the recorded one."""
        side = "candidate" if policy else "recorded"
        self._warn(document["words"])
        for host in document["hosts"]:
            on = self._hosts.get(host["host"]["boot_id"])
            if on is None:
                continue
            theirs = {
                (row["decider"], row["tunable"], row["netns"]): msgspec.convert(row[side], Tally)
                for row in host["rows"]
            }
            on.rows = [_with(row, theirs.pop((row.decider, row.tunable, row.netns), None)) for row in on.rows]
            on.rows += [_added(key, tally) for key, tally in theirs.items() if not tally.idle]

    def print(self) -> None:
        """For people."""
        several = len(self._hosts) > 1
        rows = [(on.host, row) for on in self._sorted() for row in on.rows]
        # Of many hosts, only what differs is worth a line.
        shown = [(host, row) for host, row in rows if row.differs or not several]
        if shown:
            head = [
                "",
                "host",
                "tunable",
                "namespace",
                "changes",
                "refused",
                "reverted",
                "confirmed",
                "peak",
                "final",
                "reversals",
            ]
            show.table(head, [_line(host, row) for host, row in shown])
            print()
        if len(shown) < len(rows):
            print(f"{len(rows) - len(shown)} tunables on these hosts without a difference")
        print(self._sentence())

    def document(self, policy: Path | None, code: Path | None) -> None:
        """For programs."""
        show.as_json(
            {
                "schema": SCHEMA,
                "policy": str(policy) if policy else None,
                "code": str(code) if code else None,
                "different": self.different,
                "hosts": [
                    {"host": on.host, "events": on.events, "rows": [_document(row) for row in on.rows]}
                    for on in self._sorted()
                ],
                "summary": {"hosts": len(self._hosts), "recorded": self._sums(0), "candidate": self._sums(1)},
                "words": self._words,
            }
        )

    # --- how ------------------------------------------------------------------------------------------------------

    def _warn(self, words: Iterable[str]) -> None:
        for word in words:
            if word not in self._words:
                self._words.append(word)
                print(f"trimtab: {show.plain(word)}", file=sys.stderr)

    def _sorted(self) -> list[OnHost]:
        return sorted(self._hosts.values(), key=lambda on: (on.host.name, on.host.boot_id))

    def _sums(self, side: int) -> dict[str, Any]:
        tallies = {
            on.host.boot_id: [(row.tunable, _sides(row)[side]) for row in on.rows] for on in self._hosts.values()
        }
        every = [pair for pairs in tallies.values() for pair in pairs]
        peaks: dict[str, int] = {}
        for tunable, tally in every:
            peaks[tunable] = max(peaks.get(tunable, tally.peak), tally.peak)
        return {
            "changes": sum(tally.changes for _, tally in every),
            "hosts_changed": sum(any(tally.changes for _, tally in pairs) for pairs in tallies.values()),
            "refused": sum(sum(tally.refused.values()) for _, tally in every),
            "reverted": sum(tally.reverted for _, tally in every),
            "confirmed": sum(tally.confirmed for _, tally in every),
            "reversals": sum(tally.reversals for _, tally in every),
            "peaks": peaks,
        }

    def _sentence(self) -> str:
        was, now = self._sums(0), self._sums(1)
        said = f"{now['changes']} changes on {now['hosts_changed']} of {len(self._hosts)} hosts"
        if not self.different:
            return f"no difference: {said}"
        if (was["changes"], was["hosts_changed"]) != (now["changes"], now["hosts_changed"]):
            said += f" (was {was['changes']} on {was['hosts_changed']})"
        known = tables.known()
        for tunable, peak in now["peaks"].items():
            if peak != was["peaks"][tunable]:
                known_as = row_of(known, tunable)
                if known_as and known_as.words:
                    # Of names none is the highest.
                    continue
                unit = known_as.after if known_as else ""
                said += f"; highest {tunable} {peak}{unit} (was {was['peaks'][tunable]})"
        return said


def _with(row: Row, theirs: Tally | None) -> Row:
    start = row.recorded.start
    return msgspec.structs.replace(row, candidate=theirs or Tally(start, start, start))


def _added(key: tuple[str, str, int], theirs: Tally) -> Row:
    from trimtab.tape.compare import Row

    return Row(*key, "", Tally(theirs.start, theirs.start, theirs.start), theirs)


def _sides(row: Row) -> Sequence[Tally]:
    return row.recorded, row.candidate


def _line(host: Machine, row: Row) -> list[object]:
    one, other = row.recorded, row.candidate
    where = show.plain(row.namespace) or (str(row.netns) if row.netns else "")
    known = row_of(tables.known(), row.tunable)
    cells = [
        _both(*(_shown(known, name, getattr(side, name)) for side in (one, other)))
        for name in ("reverted", "confirmed", "peak", "final", "reversals")
    ]
    refused = ", ".join(
        f"{kind} {_both(one.refused.get(kind, 0), other.refused.get(kind, 0))}"
        for kind in sorted(one.refused.keys() | other.refused.keys())
    )
    changes = _both(one.changes, other.changes)
    return ["!" if row.differs else "", show.plain(host.name), row.tunable, where, changes, refused or "0", *cells]


def _shown(row: Tunable | None, name: str, value: int) -> int | str:
    return row.shown(value) if row and name in ("peak", "final") else value


def _both(one: int | str, other: int | str) -> str:
    return str(one) if one == other else f"{one} -> {other}"


def _document(row: Row) -> dict[str, Any]:
    return {
        "decider": row.decider,
        "tunable": row.tunable,
        "netns": row.netns,
        "namespace": row.namespace,
        "differs": row.differs,
        "recorded": row.recorded,
        "candidate": row.candidate,
    }
