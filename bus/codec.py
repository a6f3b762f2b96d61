"""Bytes <-> messages. Strict: what is unknown, misshapen or of another version is a CodecError, never a guess."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from bus.schema import Answer, Ask, Batch, Wish


class CodecError(ValueError):
    """Bytes that are no message of ours; says where and why."""


Message = Batch | Wish | Ask | Answer
M = TypeVar("M", Batch, Wish, Ask, Answer)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Batch, Wish, Ask, Answer)
}


def encode(message: Message) -> bytes:
    """MessagePack of a message."""
    return _encoder.encode(message)


def decode(kind: type[M], raw: bytes) -> M:
    """The message of this kind in raw, or CodecError."""
    try:
        message: M = _decoders[kind].decode(raw)
    # msgspec: ValidationError is a DecodeError; bad UTF-8 in a str surfaces as UnicodeDecodeError;
    # nesting bombs surface as RecursionError.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"not a {kind.__name__}: {error}") from None
    return message
