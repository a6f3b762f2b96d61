"""Folds events through deciders. Live and replay run this and nothing else, so neither can decide differently.

No clock, file, socket, chance, thread or log in this package (but __main__): time is event.t_ns, and what became of a
wish is an event too. An engine adds one thing to its deciders: a wish (or a verdict) that was sent less than REPEAT_NS
ago is not sent again. So a decider may ask for the same thing at every event: a lost wish is repeated, a granted one
floods nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from bus.schema import AnyEvent, Event, Netns, Verdict, Wish

REPEAT_NS = 1_000_000_000
SENT_MAX = 4096
"""Wishes remembered per decider; the oldest is forgotten first."""

ADVICE_MAX = 16

State = Any
Asked = Wish | Verdict
"""What a decider asks for: verdicts are the guard's alone."""
Step = Callable[[State, Any], tuple[State, Sequence[Asked]]]
NO_WISHES: tuple[Asked, ...] = ()
Key = tuple[str | int, int, int, int]


class DeciderModule(Protocol):
    """What a decider's module offers."""

    NAME: str
    """The decider's name, as in the tunables' rows, the config and the roles."""
    TOPICS: tuple[type[Event], ...]
    """The kinds of event that it wants."""
    Policy: type[Any]
    """Its settings: a msgspec Struct with a default for each, that forbids unknown fields."""

    @staticmethod
    def start(policy: Any) -> State:
        """The state before any event."""
        ...

    @staticmethod
    def step(state: State, event: Any) -> tuple[State, Sequence[Asked]]:
        """The state after the event, and what is wished for. The state passed in may be changed: go on with the new."""
        ...


class Decider:
    """A decider's module with its policy, its state, and what it has asked for lately."""

    __slots__ = ("_advise", "_sent", "fold", "name", "state", "topics")

    def __init__(self, module: DeciderModule, policy: Any) -> None:
        self.name = module.NAME
        self.topics = module.TOPICS
        self.fold: Step = module.step
        self.state: State = module.start(policy)
        self._advise: Callable[[State], list[str]] | None = getattr(module, "advice", None)
        self._sent: dict[Key, int] = {}

    @property
    def remembered(self) -> int:
        """How many wishes are remembered."""
        return len(self._sent)

    def advice(self) -> list[str]:
        """What this decider would have people do, since no tunable can: a line each. Where the module has an `advice`:
        a function of the state, as pure as step()."""
        return self._advise(self.state)[:ADVICE_MAX] if self._advise else []

    def fresh(self, wishes: Sequence[Asked], t_ns: int) -> list[Asked]:
        """Those of the wishes, made at t_ns, that are no repetitions."""
        return [wish for wish in wishes if self._is_new(wish, t_ns)]

    def forget(self, netns: int) -> None:
        """A namespace has gone: its cookie never comes back."""
        for key in [key for key in self._sent if key[1] == netns]:
            del self._sent[key]

    def remember(self) -> tuple[bytes, bytes]:
        """The state, and what was asked for lately, as bytes to go on from. No state (b"") where it is none that
        msgspec can write and read again as it was: Structs, dataclasses, and what they may hold."""
        try:
            state = msgspec.msgpack.encode(self.state)
            again = msgspec.msgpack.decode(state, type=type(self.state))
        # What third parties' states may hold: objects, numbers of 65 bits, halves of characters, themselves.
        except (TypeError, ValueError, OverflowError, RecursionError, AttributeError):
            return b"", b""
        # A tuple in a plain dict comes back as a list. Not a number is not equal to itself, but reads the same.
        if again != self.state and repr(again) != repr(self.state):
            return b"", b""
        return state, msgspec.msgpack.encode(self._sent)

    def recall(self, state: bytes, sent: bytes) -> None:
        """Go on from what remember() gave. ValueError when that is none of this decider's."""
        # The kind of state is known from the one that this decider has begun with.
        self.state = msgspec.msgpack.decode(state, type=type(self.state))
        self._sent = msgspec.msgpack.decode(sent, type=dict[Key, int])

    def _is_new(self, wish: Asked, t_ns: int) -> bool:
        key = _key(wish)
        before = self._sent.pop(key, None)
        # Events of several publishers come in no strict order, so time may seem to go back a little.
        repeated = before is not None and abs(t_ns - before) < REPEAT_NS
        self._sent[key] = before if repeated and before is not None else t_ns
        if len(self._sent) > SENT_MAX:
            del self._sent[next(iter(self._sent))]
        return not repeated


def _key(wish: Asked) -> Key:
    if isinstance(wish, Wish):
        return (wish.tunable, wish.netns, wish.believed, wish.want)
    # No namespace: which one a change is in, a verdict does not say. Its number never comes back.
    return (wish.change, -1, int(wish.confirm), 0)


def decide(events: Iterable[AnyEvent], deciders: Sequence[Decider]) -> Iterator[tuple[AnyEvent, Sequence[Asked]]]:
    """Every event in its order, with the wishes that it brought about, in the order of the deciders."""
    for event, asked in decide_apart(events, deciders):
        yield event, [wish for _, wishes in asked for wish in wishes] if asked else NO_WISHES


def decide_apart(
    events: Iterable[AnyEvent], deciders: Sequence[Decider]
) -> Iterator[tuple[AnyEvent, Sequence[tuple[Decider, Sequence[Asked]]]]]:
    """As decide(), with who wishes for what."""
    hearers = _hearers(deciders)
    for event in events:
        asked: Sequence[tuple[Decider, Sequence[Asked]]] = ()
        for decider in hearers.get(type(event), ()):
            # Not in a function, here and in asking(): this is the one line that each event runs through.
            decider.state, more = decider.fold(decider.state, event)
            if more and (fresh := decider.fresh(more, event.t_ns)):
                asked = [*asked, (decider, fresh)]
        if type(event) is Netns:
            _gone(event, deciders)
        yield event, asked


def asking(
    events: Iterable[AnyEvent], deciders: Sequence[Decider]
) -> Iterator[tuple[int, Sequence[tuple[Decider, Sequence[Asked]]]]]:
    """As decide_apart(), but only where something is asked for, with how many events had been folded by then: most of
    what a replay reads is not for its decider, or nothing comes of it."""
    hearers = _hearers(deciders)
    for folded, event in enumerate(events, 1):
        heard_by = hearers.get(type(event))
        if heard_by is None:
            continue
        asked: Sequence[tuple[Decider, Sequence[Asked]]] = ()
        for decider in heard_by:
            decider.state, more = decider.fold(decider.state, event)
            if more and (fresh := decider.fresh(more, event.t_ns)):
                asked = [*asked, (decider, fresh)]
        if type(event) is Netns:
            _gone(event, deciders)
        if asked:
            yield folded, asked


def _hearers(deciders: Sequence[Decider]) -> dict[type[Any], list[Decider]]:
    """Topic -> who wants it. That a namespace has gone is for all."""
    found: dict[type[Any], list[Decider]] = {Netns: []}
    for decider in deciders:
        for topic in decider.topics:
            found.setdefault(topic, []).append(decider)
    return found


def _gone(event: Netns, deciders: Sequence[Decider]) -> None:
    if not event.alive:
        for decider in deciders:
            decider.forget(event.netns)
