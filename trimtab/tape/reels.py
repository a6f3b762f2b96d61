"""Which segments there are on some tapes, and which of them must be played one after the other.

Nothing of a segment's memory is kept here, so that thousands of segments take little room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from bus.tape import Head, Machine
from bus.tape_reader import Damage, Segment, find, heads, segment
from trimtab.tape.playback import begins


class Piece(Struct, frozen=True):
    """One segment, by its place."""

    path: Path
    offset: int
    source: int
    decider: str
    module: str
    code: str
    session: str
    number: int
    t_ns: int
    tai_ns: int
    tai_offset_s: int
    host: Machine
    begins: bool
    """It can be played without the one before."""

    def open(self) -> Segment:
        """Read its head (again). TapeError when it is not there any more."""
        return segment(self.path, self.offset)


class Reels(Struct, frozen=True):
    """What is on some tapes."""

    chains: list[list[Piece]]
    """Each is to be played in its order; the first of each begins."""
    damage: list[str]
    """One line for each place that cannot be read."""
    skipped: list[str]
    """One line for each segment that cannot begin."""


def find_reels(paths: Iterable[Path]) -> Reels:
    """All segments of these tapes. TapeError: no tape, or one of a newer format."""
    damage: list[str] = []
    pieces: list[Piece] = []
    for path in {path.resolve(): path for path in find(paths)}.values():
        before = len(pieces), len(damage)
        for found in heads(path):
            if isinstance(found, Damage):
                damage.append(str(found))
            else:
                pieces.append(_piece(found, found.head))
        if before == (len(pieces), len(damage)):
            damage.append(f"{path}: nothing in it but its first bytes")
    skipped: list[str] = []
    return Reels(list(_chains(pieces, skipped)), damage, skipped)


def _piece(found: Segment, head: Head) -> Piece:
    return Piece(
        found.path,
        found.offset,
        found.source,
        head.decider,
        head.module,
        head.code,
        head.session,
        head.number,
        head.t_ns,
        head.tai_ns,
        head.tai_offset_s,
        head.host,
        begins(head),
    )


def _chains(pieces: list[Piece], skipped: list[str]) -> Iterator[list[Piece]]:
    """The pieces of a session in their order, parted wherever one can begin by itself."""
    chain: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.session, piece.source, piece.number)):
        last = chain[-1] if chain else None
        if piece.begins:
            if chain:
                yield chain
            chain = [piece]
        elif last and (last.session, last.source, last.number + 1) == (piece.session, piece.source, piece.number):
            chain.append(piece)
        else:
            skipped.append(
                f"{piece.path}: segment {piece.number} of {piece.decider} has no memory of what it decided by, and the "
                "segment before it is not here; skipped"
            )
    if chain:
        yield chain
