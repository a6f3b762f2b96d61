"""Where a replay first decided otherwise than the recorded process, for people: both wishes field by field, and the
last events before them that are about the same thing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from actuators.records import Spot
from bus.codec import CodecError, decode_request
from bus.schema import AnyEvent, Verdict, Wish
from trimtab.tape import shown
from trimtab.tape.playback import Playback
from trimtab.tape.reels import Piece

EVENTS = 6
Asked = tuple[int, bytes]
"""A wish with the number of events folded by then."""


class Field(Struct, frozen=True):
    """One field of the two wishes; None where there is none."""

    name: str
    recorded: Any
    replayed: Any


class Difference(Struct, frozen=True):
    """The first one of a segment."""

    path: str
    event: int
    """The number of the event that brought it about, since the process began."""
    what: str
    fields: list[Field]
    before: list[AnyEvent]
    """The last events that are about the same tunable and namespace (or change), the one that brought it about last."""


def first(piece: Piece, recorded: Sequence[Asked], replayed: Sequence[Asked]) -> Difference | None:
    """The first difference of two runs of wishes, which are those of one block."""
    same = 0
    for one, other in zip(recorded, replayed, strict=False):
        if one != other:
            break
        same += 1
    ours, theirs = recorded[same : same + 1], replayed[same : same + 1]
    if not ours and not theirs:
        return None
    # Whichever asked first did what the other did not.
    number = min(at for at, _ in (*ours, *theirs))
    left, right = (_fields(raw) if at == number else {} for at, raw in (*(ours or [(0, b"")]), *(theirs or [(0, b"")])))
    names = list(dict.fromkeys([*left, *right]))
    what = "asked for something else" if left and right else "did not ask again" if left else "asked for more"
    about = ours[0][1] if left else theirs[0][1]
    fields = [Field(name, left.get(name), right.get(name)) for name in names]
    return Difference(str(piece.path), number, what, fields, _before(piece, number, about))


def lines(found: Difference) -> list[str]:
    """As they are printed."""
    said = [f"{found.path}, event {found.event}: the replay {found.what}"]
    width = max((len(field.name) for field in found.fields), default=0)
    for field in found.fields:
        if field.recorded == field.replayed:
            said.append(f"    {field.name:{width}}  {field.recorded}")
        else:
            said.append(f"  ! {field.name:{width}}  recorded: {_word(field.recorded)}")
            said.append(f"    {'':{width}}  replayed: {_word(field.replayed)}")
    said.append("  after these events:")
    return said + [f"    {_event(event)}" for event in found.before]


def _word(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _event(event: AnyEvent) -> str:
    told = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(event).items() if name != "t_ns")
    return f"{event.t_ns / 1e9:.6f} s  {type(event).__name__}: {told}"


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.structs.asdict(decode_request(raw))
    except CodecError as error:
        return {"message": str(error)}
    found.pop("version")
    return found | {f"evidence.{name}": value for name, value in found.pop("evidence", {}).items()}


def _before(piece: Piece, number: int, raw: bytes) -> list[AnyEvent]:
    """Played once more up to there: so nothing has to be kept of the many segments without a difference."""
    try:
        about = decode_request(raw)
    except CodecError:
        return []
    played = Playback(piece.open())
    found: deque[AnyEvent] = deque(maxlen=EVENTS)
    for at, event in enumerate(played.events(), played.head.memory.events + 1):
        if at == number or _concerns(event, about):
            found.append(event)
        if at == number:
            break
    return list(found)


def _concerns(event: AnyEvent, about: object) -> bool:
    if isinstance(about, Verdict):
        return getattr(event, "change", 0) == about.change
    return isinstance(about, Wish) and shown.about(event, Spot(about.tunable, about.netns))
