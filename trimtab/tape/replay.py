"""`trimtab replay`: decides each recorded segment once more, and compares every wish, byte for byte.

Each segment begins with its decider's memory, so they are played on all cores at once. Of a decider that has none that
can be kept, the segments of a session are played one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from bus.codec import encode
from bus.config import ConfigError
from bus.revision import revision
from bus.tape import TapeError
from bus.tape_reader import Unended
from deciders.__main__ import place
from deciders.engine import Decider, asking
from trimtab.tape import difference, jobs, replay_view
from trimtab.tape.difference import Difference
from trimtab.tape.playback import Playback, decider
from trimtab.tape.reels import Piece, find_reels

FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, SyntaxError)
"""What a decider may run into on a tape that is not what it says, in another version, or when it is imported.
ConfigError and TapeError are ValueErrors."""


class Played(Struct):
    """What came of one segment."""

    piece: Piece
    events: int = 0
    folded: int = 0
    """Since the process began, by the end of it."""
    wishes: int = 0
    last_ns: int = 0
    """When its last event was, CLOCK_MONOTONIC."""
    cpu_ns: int = 0
    code: str = ""
    """Revision of the code here, where it is another than the recorded."""
    differs: Difference | None = None
    words: list[str] = []
    """What is damaged, or merely not there."""
    damaged: bool = False
    skipped: bool = False


def show(tapes: Sequence[Path], count: int | None, as_json: bool) -> int:
    """Replay and print. 0: all equal, 2: different, 3: equal as far as it could be read."""
    reels = find_reels(tapes)
    view = replay_view.View()
    began_s = time.monotonic()
    view.warn([*reels.damage, *reels.skipped])
    for chain in jobs.each(play, reels.chains, count, "replaying"):
        for played in chain:
            view.add(played)
    if as_json:
        view.document(time.monotonic() - began_s)
    else:
        view.print(time.monotonic() - began_s)
    return view.code(bool(reels.damage or reels.skipped))


def play(chain: Iterable[Piece]) -> list[Played]:
    """Segments that go on from one another."""
    found: list[Played] = []
    going: Decider | None = None
    for piece in chain:
        played = Played(piece)
        found.append(played)
        if len(found) > 1 and going is None:
            _skip(played, "goes on from a segment that could not be played to its end")
            continue
        try:
            going = _play(piece, played, going, found[-2].folded if going else 0)
        except FAULTS as error:
            _skip(played, why(error))
            going = None
    return found


def why(error: Exception) -> str:
    """In words."""
    return str(error) if isinstance(error, ConfigError | TapeError) else f"{type(error).__name__}: {error}"


def _skip(played: Played, why: str) -> None:
    piece = played.piece
    played.skipped = True
    played.words.append(f"{piece.path}: segment {piece.number} of {piece.decider}: {why}; skipped")


def _play(piece: Piece, played: Played, going: Decider | None, folded: int) -> Decider | None:
    """One segment. going: the decider as it was after so many folded events; None: it begins here. Returns it as it is
    after the segment; None where that is not known."""
    playback = Playback(piece.open())
    if going and playback.head.memory.events != folded:
        raise TapeError(f"goes on after {playback.head.memory.events} events, of which {folded} are on the tape")
    began_ns = time.process_time_ns()
    going = going or decider(playback.head)
    # Of the module here: what a tape names is not looked for, as that imports the package around it.
    here = revision(place(piece.decider))
    played.code = here if here != piece.code else ""
    played.last_ns, played.folded = playback.head.t_ns, playback.head.memory.events
    try:
        _fold(playback, going, played)
    except FAULTS as error:
        _skip(played, f"the decider fails at event {played.events + 1} of it ({type(error).__name__}: {error})")
    played.cpu_ns = time.process_time_ns() - began_ns
    _look(playback, played)
    return None if played.skipped or played.damaged or played.differs else going


def _fold(playback: Playback, going: Decider, played: Played) -> None:
    began = playback.head.memory.events
    replayed: list[tuple[int, bytes]] = []
    for events in playback.blocks():
        if played.differs:
            # Only counted: whether all is there that was recorded.
            played.events += sum(1 for _ in events)
            continue
        before = playback.folded
        for number, asked in asking(events, (going,)):
            replayed += [(before + number, encode(wish)) for _, wishes in asked for wish in wishes]
        played.last_ns = max(played.last_ns, playback.last.t_ns if playback.last else 0)
        played.events, played.folded = playback.folded - began, playback.folded
        played.wishes += len(playback.asked)
        # A block ends where all had been folded: the wishes that its events brought about are all in it.
        if replayed != playback.asked and not playback.damage:
            played.differs = difference.first(played.piece, playback.asked, replayed)
        playback.asked.clear()
        replayed.clear()


def _look(playback: Playback, played: Played) -> None:
    """What else was found."""
    piece, end = played.piece, playback.end
    played.words += map(str, playback.damage)
    played.damaged = any(not isinstance(word, Unended) for word in playback.damage)
    folded = playback.head.memory.events + played.events
    if end and not played.skipped and end.events != folded:
        played.damaged, played.differs = True, None
        played.words.append(
            f"{piece.path}: segment {piece.number} of {piece.decider} ends after {end.events} events, and up to "
            f"{folded} are in it: blocks are missing, so it cannot be compared"
        )
