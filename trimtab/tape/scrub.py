"""`trimtab tape scrub`: a tape that can be shown to others. It replays as before."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bus import roles
from bus.codec import CodecError, decode, decode_request, encode
from bus.schema import Batch, Beat, Netns, Outcome, Probe, SysctlWrite, Wish
from bus.tape import BATCH, End, Head, TapeError
from bus.tape import encode as encoded
from bus.tape_reader import Record, Segment
from trimtab.tape import edit as tape_edit
from trimtab.tape.items import Trouble, items, strands
from trimtab.tape.scrub_words import FIELDS, How, Words, people

KEY_BYTES = 32
ENDS = ("full", "old", "stopped", "cut")
CHANGED: dict[str, list[tuple[str, How]]] = {}
for (_topic, _field), _how in FIELDS.items():
    if _how != "keep":
        CHANGED.setdefault(_topic, []).append((_field, _how))


def scrub(paths: Iterable[Path], output: Path) -> int:
    """Write the tapes anew, without names. Returns the exit code. TapeError: there is nothing to write."""
    trouble = Trouble()
    found = strands(paths, trouble)
    words = Words(secrets.token_bytes(KEY_BYTES), _known(found, trouble))
    tape_edit.write(found, output, trouble, Scrubber(words))
    return trouble.code


def _known(found: Sequence[Sequence[Segment]], trouble: Trouble) -> set[str]:
    """Names anywhere on the tapes: looked for first, since a text may hold one that is told later."""
    known: set[str] = set()
    for segment in (segment for strand in found for segment in strand):
        known.add(segment.head.host.name)
        for probe in segment.head.probes:
            known |= people(probe.reason)
        for item in items(segment, trouble):
            message = item.message
            if isinstance(message, Netns):
                known.add(message.name)
            elif isinstance(message, SysctlWrite):
                known.add(message.comm)
            elif isinstance(message, Outcome | Probe):
                known |= people(message.reason)
    return known


class Scrubber:
    """Every word of a tape that is about people and places replaced (see FIELDS)."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def head(self, head: Head) -> Head:
        """The head of the same segment."""
        words = self._words
        host = msgspec.structs.replace(
            head.host, name=words.put("name", head.host.name), boot_id=words.boot(head.host.boot_id)
        )
        memory = head.memory
        if memory.state:
            put = self._words.destination if _ours(head.decider) else self._words.text
            memory = msgspec.structs.replace(
                memory, state=rewritten(memory.state, put), sent=rewritten(memory.sent, self._words.destination)
            )
        return msgspec.structs.replace(
            head,
            session=words.put("name", head.session),
            host=host,
            config=msgspec.structs.replace(head.config, policy=self._deep(head.config.policy)),
            probes=[self._message(probe) for probe in head.probes],
            memory=memory,
        )

    def records(self, head: Head, records: Iterable[Record]) -> list[Record]:
        """The records of a block. TapeError for what no version of ours sent: it could hold anything."""
        try:
            return [(kind, at, self._record(head, kind, raw)) for kind, at, raw in records]
        except CodecError as error:
            raise TapeError(str(error)) from None

    def end(self, end: End) -> End:
        """The end of a segment."""
        return end if end.why in ENDS else msgspec.structs.replace(end, why=self._words.text(end.why))

    def _record(self, head: Head, kind: int, raw: bytes) -> bytes:
        if kind == BATCH:
            batch = decode(Batch, raw)
            return encode(msgspec.structs.replace(batch, events=[self._message(event) for event in batch.events]))
        request = decode_request(raw)
        if isinstance(request, Beat):
            return raw
        if _ours(head.decider):
            return encode(self._places(request)) if isinstance(request, Wish) else raw
        return encode(self._message(request))

    def _places(self, wish: Wish) -> Wish:
        return msgspec.structs.replace(wish, tunable=self._words.put("key", wish.tunable))

    def _message(self, message: Any) -> Any:
        changed = CHANGED.get(type(message).__name__)
        if not changed:
            return message
        put = self._words.put
        fields = {}
        for field, how in changed:
            value = getattr(message, field)
            fields[field] = put(how, value) if isinstance(value, str) else self._deep(value)
        return msgspec.structs.replace(message, **fields)

    def _deep(self, value: Any) -> Any:
        return _each(value, self._words.text)


def _each(value: Any, put: Callable[[str], str]) -> Any:
    """The same with every text in it replaced, of keys, too."""
    if isinstance(value, str):
        return put(value)
    if isinstance(value, dict):
        return {_each(key, put): _each(below, put) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(below, put) for below in value)
    return value


def rewritten(raw: bytes, put: Callable[[str], str]) -> bytes:
    """A decider's memory with every text in it replaced. As it was where there is none to replace."""
    if not raw:
        return raw
    try:
        found = msgspec.msgpack.decode(raw)
        made = _each(found, put)
        return raw if made == found else encoded(made)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise TapeError(f"a decider's memory that cannot be read, and so not made anonymous: {error}") from None


def _ours(decider: str) -> bool:
    return decider in roles.BUILT_IN_DECIDERS
