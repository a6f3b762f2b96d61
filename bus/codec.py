"""Bytes <-> messages. Strict: what is unknown, misshapen or of another version is a CodecError, never a guess."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from bus.schema import Answer, Ask, Batch, Beat, Request, Verdict, Wish


class CodecError(ValueError):
    """Bytes that are no message of ours; says where and why."""


Message = Batch | Request | Ask | Answer
M = TypeVar("M", Batch, Wish, Verdict, Beat, Ask, Answer)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Batch, Wish, Verdict, Beat, Ask, Answer)
}
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)


def encode(message: Message) -> bytes:
    """MessagePack of a message."""
    return _encoder.encode(message)


def decode(kind: type[M], raw: bytes) -> M:
    """The message of this kind in raw, or CodecError."""
    message: M = _decode(_decoders[kind], kind.__name__, raw)
    return message


def decode_request(raw: bytes) -> Request:
    """What a decider has sent, or CodecError."""
    request: Request = _decode(_requests, "request", raw)
    return request


def _decode(decoder: msgspec.msgpack.Decoder[Any], what: str, raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    # msgspec: ValidationError is a DecodeError; bad UTF-8 in a str surfaces as UnicodeDecodeError;
    # nesting bombs surface as RecursionError.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"not a {what}: {error}") from None
