"""`trimtab replay --policy` and `--code`: what would have been written otherwise, by another configuration or by
the code of another checkout. Both policies, the recorded and the candidate, meet the same model of the host
(rerun), so that only they can make a difference; both begin with deciders that know nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bus import config, plugins, tunables
from bus.config import Config
from bus.roles import GUARD
from bus.schema import Netns
from bus.tape import Machine
from bus.tape_reader import Unended
from bus.tunables import Tunable
from trimtab import exits, start
from trimtab.tape import checkout, compare_view, jobs
from trimtab.tape.model import Tally
from trimtab.tape.playback import Playback
from trimtab.tape.reels import Piece, find_reels
from trimtab.tape.replay import FAULTS, why
from trimtab.tape.rerun import Rerun


class Job(Struct, frozen=True):
    """One decider of one host."""

    pieces: list[Piece]
    decider: str
    candidate: Config | None
    """None: only the recorded policy."""


class Row(Struct, frozen=True):
    """One tunable in one namespace, of which either policy has asked for something."""

    decider: str
    tunable: str
    netns: int
    namespace: str
    """Its name, where it has one."""
    recorded: Tally
    candidate: Tally

    @property
    def differs(self) -> bool:
        """Something would have become of it otherwise."""
        return self.recorded != self.candidate


class Compared(Struct):
    """What came of one job."""

    host: Machine
    decider: str
    rows: list[Row] = []
    events: int = 0
    words: list[str] = []
    degraded: bool = False


def show(tapes: Sequence[Path], policy: Path | None, code: Path | None, count: int | None, as_json: bool) -> int:
    """Compare and print. 0: no difference, 2: differences, 3: none as far as could be read."""
    candidate = start.effective(policy, None, (), ()) if policy else None
    reels = find_reels(tapes)
    found = compare_view.Found([*reels.damage, *reels.skipped])
    pieces = [piece for chain in reels.chains for piece in chain]
    for compared in jobs.each(compare, _jobs(pieces, candidate), count, "comparing"):
        found.add(compared)
    if code:
        found.other_code(checkout.compare(code, tapes, policy, count), policy is not None)
    if as_json:
        found.document(policy, code)
    else:
        found.print()
    return exits.PENDING if found.different else exits.DEGRADED if found.degraded else exits.FINE


# --- what is run --------------------------------------------------------------------------------------------------


def _jobs(pieces: Collection[Piece], candidate: Config | None) -> list[Job]:
    """A job for each decider of each host: on its own tape, or where it has none on any of that host, as each tape
    holds all events."""
    hosts: dict[str, dict[str, dict[tuple[str, int], Piece]]] = {}
    for piece in pieces:
        tape = hosts.setdefault(piece.host.boot_id, {}).setdefault(piece.decider, {})
        # A segment that is there twice, as in a copy, counts once.
        tape.setdefault((piece.session, piece.number), piece)
    return [job for tapes in hosts.values() for job in _of_host(tapes, candidate)]


def _of_host(tapes: Mapping[str, Mapping[tuple[str, int], Piece]], candidate: Config | None) -> list[Job]:
    order = {
        name: sorted(tape.values(), key=lambda piece: (piece.t_ns, piece.number))
        for name, tape in sorted(tapes.items())
    }
    own = [name for name in order if name != GUARD]
    spare = order.get(own[0] if own else GUARD, [])
    recorded = spare[0].open().head.config
    turned_on = [
        name
        for name in (candidate.deciders if candidate else {})
        if candidate and candidate.deciders[name] and (not own or not recorded.deciders.get(name, True))
    ]
    names = dict.fromkeys([*own, *(turned_on if own else start.deciders())])
    return [Job(order.get(name, spare), name, candidate) for name in names if name != GUARD]


def compare(job: Job) -> Compared:
    """Run both policies side by side, so that each event is read once."""
    found = Compared(job.pieces[0].host, job.decider)
    try:
        _compare(job, found)
    except FAULTS as error:
        found.degraded = True
        found.words.append(f"{found.host.name}: {job.decider} cannot be compared: {why(error)}")
    return found


def _compare(job: Job, found: Compared) -> None:
    runs: list[Rerun] = []
    names: dict[int, str] = {}
    session, heard = "", 0
    for piece in job.pieces:
        played = Playback(piece.open())
        runs = runs or _runs(job, played)
        if piece.session != session:
            session = piece.session
            for run in runs:
                run.restart()
        for block in played.blocks():
            events = list(block)
            found.events += len(events)
            names |= {event.netns: event.name for event in events if type(event) is Netns and event.name}
            actuator = played.lanes.get("actuator")
            began = actuator.epoch_ns if actuator else 0
            for run in runs:
                if heard and began not in (0, heard) and events:
                    run.stop(events[0].t_ns)
                run.feed(events)
            heard = began or heard
        found.words += map(str, played.damage)
        found.degraded |= any(not isinstance(word, Unended) for word in played.damage)
    found.rows = _rows(job.decider, runs, names)


def _runs(job: Job, played: Playback) -> list[Rerun]:
    head = played.head
    recorded = head.config
    # A fence names namespaces of that host and boot; a configuration that has none leaves it.
    candidate = job.candidate and msgspec.structs.replace(job.candidate, netns=job.candidate.netns or recorded.netns)
    rows = [_narrowed(recorded)] + ([_narrowed(candidate)] if candidate else [])
    return [
        Rerun(job.decider, settings, table, head.host.mem_bytes)
        for settings, table in zip([recorded, *filter(None, [candidate])], rows, strict=True)
    ]


def _narrowed(settings: Config) -> Mapping[str, Tunable]:
    """The rows as they are here; what the configuration says of tunables that are not, is left out."""
    rows = tunables.table(row for tuner in plugins.tuners() for row in tuner.rows)
    known = {name: narrow for name, narrow in settings.tunables.items() if name in rows}
    return config.narrowed(rows, msgspec.structs.replace(settings, tunables=known))


def _rows(decider: str, runs: Sequence[Rerun], names: Mapping[int, str]) -> list[Row]:
    first, last = runs[0].model.tallies, runs[-1].model.tallies
    found: list[Row] = []
    for spot in sorted(first.keys() | last.keys()):
        one, other = first.get(spot), last.get(spot)
        one, other = one or _nothing(other), other or _nothing(one)
        if not (one.idle and other.idle):
            found.append(Row(decider, spot.tunable, spot.netns, names.get(spot.netns, ""), one, other))
    return found


def _nothing(other: Tally | None) -> Tally:
    value = other.start if other else 0
    return Tally(value, value, value)
