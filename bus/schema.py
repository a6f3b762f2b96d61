"""The messages: events in batches (bus.events has the topics), wishes and verdicts, the operator's questions.

Frozen structs; fields are named with their units. Evolution: append a field with a default. Anything else raises
VERSION and adds a migration.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

# Whoever speaks of messages speaks of events, too.
from bus.events import *  # noqa: F403
from bus.events import AnyEvent, Count, Name

VERSION: Literal[1] = 1


class Batch(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What one PUB message holds: up to link.BATCH_EVENTS events of one publisher, numbered."""

    version: Literal[1]
    publisher: Name
    epoch_ns: Count
    """When this publisher process began: another epoch numbers anew."""
    number: Count
    """How many events this publisher sent before the first one here."""
    events: list[AnyEvent]


# --- wishes ------------------------------------------------------------------------------------------------------

Evidence = Annotated[dict[Name, int | Name], Meta(max_length=24)]


class Wish(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=True):
    """A decider asks the actuator for one value. Who asks is told by the socket, never by the message."""

    version: Literal[1]
    t_ns: Count
    valid_ns: Annotated[int, Meta(ge=0, le=60_000_000_000)]
    """Not to be granted later than t_ns + valid_ns: a late wish is worse than a lost one."""
    tunable: Name
    netns: Count
    netns_ino: Count
    believed: int
    """The value that the decider thinks stands there."""
    want: int
    why: Annotated[str, Meta(min_length=1, max_length=400)]
    """One sentence with numbers."""
    evidence: Evidence
    """Number by name; `event` names what tipped it, as topic@t_ns."""


class Verdict(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=True):
    """The guard says of a change on trial that it may stay, or must go. From its lane alone."""

    version: Literal[1]
    t_ns: Count
    valid_ns: Annotated[int, Meta(ge=0, le=60_000_000_000)]
    change: Annotated[int, Meta(ge=1)]
    confirm: bool
    """False: put it back, and park the key."""
    why: Annotated[str, Meta(min_length=1, max_length=400)]
    evidence: Evidence


class Beat(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=True):
    """A decider is alive and gets on: what it has on trial keeps its lease. About once a second."""

    version: Literal[1]
    t_ns: Count


Request = Wish | Verdict | Beat
"""What may come in on a decider's lane."""


# --- the control lane --------------------------------------------------------------------------------------------


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """A request of the operator's to the actuator."""

    verb: Literal["ping", "status", "mode", "rollback", "hold", "release", "confirm", "revert"]
    mode: Literal["", "observe", "advise", "enforce"] = ""
    change: Count = 0
    """Rollback: the change to undo; 0 for all."""
    tunable: Name = ""
    netns: Count = 0
    who: Name = ""
    seconds: Annotated[int, Meta(ge=0, le=10**9)] = 0
    """Hold: for so long; 0: until release."""


class Answer(Struct, frozen=True, forbid_unknown_fields=True):
    """ok, or what stood in the way; `lines` are for the operator, `data` for programs."""

    ok: bool
    lines: list[str] = []
    data: dict[str, int | str | bool | dict[str, int]] = {}
