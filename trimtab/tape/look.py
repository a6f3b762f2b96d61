"""`trimtab tape info` and `tape dump`: what is on a tape, for people and for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct

from bus.schema import TOPICS, Beat, Gap, Verdict, Wish
from bus.tape_reader import Segment, being_written
from trimtab import show
from trimtab.tape.items import SEC, Item, Trouble, in_order, items, strands, tai_ns, utc_ns
from trimtab.tape.jobs import Bar
from trimtab.tape.times import Span, Window, window

INFO_SCHEMA = "trimtab.tape/v1"
ITEM_SCHEMA = "trimtab.tape-item/v1"
ASKED = {kind.__name__: kind for kind in (Wish, Verdict)}


class Info(Struct, frozen=True):
    """One decider's part of one host's tapes, as one revision of the code decided it."""

    schema: str
    host: str
    boot_id: str
    release: str
    machine: str
    cpus: int
    mem_bytes: int
    decider: str
    code: str
    sessions: int
    """Runs of the process."""
    segments: int
    from_tai_ns: int
    to_tai_ns: int
    tai_offset_s: int
    """TAI - UTC; 0: nobody has set it, and the times are the host's wall clock."""
    seconds: float
    events: int
    topics: dict[str, int]
    """Events by type."""
    wishes: int
    verdicts: int
    gaps: int
    lost: int
    """Events that never came, as far as their numbers tell."""
    size_bytes: int
    """Of the files that it is in."""
    writing: bool
    """A recorder is at it."""
    unended: bool
    """The process was killed, or its disk was full: up to a second before that is missing."""
    damage: list[str]


def show_info(paths: Iterable[Path], as_json: bool) -> int:
    """Print what is on the tapes. Returns the exit code: 3 where one is damaged, 1 where a file is none."""
    trouble = Trouble()
    parts = [part for strand in strands(paths, trouble) for part in _by_code(strand)]
    with contextlib.closing(Bar("reading", sum(map(len, parts)))) as bar:
        found = [_info(part, trouble, bar) for part in parts]
    if as_json:
        show.as_json(*found)
    elif found:
        _table(found)
    return trouble.code


def _by_code(strand: Sequence[Segment]) -> list[list[Segment]]:
    parts: dict[str, list[Segment]] = {}
    for segment in strand:
        parts.setdefault(segment.head.code, []).append(segment)
    return list(parts.values())


def _info(part: Sequence[Segment], trouble: Trouble, bar: Bar) -> Info:
    topics: Counter[str] = Counter()
    gaps = lost = 0
    head = part[0].head
    first, latest = head.tai_ns, head.tai_ns
    for segment in part:
        head = segment.head
        latest = max(latest, head.tai_ns)
        for item in items(segment, trouble):
            message = item.message
            topics[type(message).__name__] += 1
            latest = max(latest, tai_ns(head, message.t_ns))
            if isinstance(message, Gap):
                gaps, lost = gaps + 1, lost + message.lost
        bar.step()
    wishes, verdicts, _ = (topics.pop(kind.__name__, 0) for kind in (Wish, Verdict, Beat))
    files = {segment.path for segment in part}
    # Some of it was told of before anybody knew whose it is.
    told = {where for where in trouble.told if where.startswith(tuple(f"{file}, " for file in files))}
    told |= {str(file) for file in files} & trouble.told.keys()
    host = head.host
    return Info(
        INFO_SCHEMA, host.name, host.boot_id, host.release, host.machine, host.cpus, host.mem_bytes,
        head.decider, head.code, len({segment.head.session for segment in part}), len(part),
        first, latest, head.tai_offset_s, round((latest - first) / SEC, 3),
        topics.total(), dict(topics.most_common()), wishes, verdicts, gaps, lost,
        sum(file.stat().st_size for file in files), any(being_written(file) for file in files),
        bool(told & trouble.unended),
        [word for where, word in trouble.told.items() if where in told - trouble.unended],
    )  # fmt: skip


def _table(found: Sequence[Info]) -> None:
    head = ["host", "decider", "code", "from", "to", "length", "segments", "events", "wishes", "gaps", "lost", "size",
            "state"]  # fmt: skip
    show.table(
        head,
        [
            [_plain(info.host), _plain(info.decider), _plain(info.code),
             show.local_time(info.from_tai_ns - info.tai_offset_s * SEC),
             show.local_time(info.to_tai_ns - info.tai_offset_s * SEC),
             _length(info.seconds), info.segments, info.events, info.wishes + info.verdicts, info.gaps, info.lost,
             _size(info.size_bytes), _state(info)]
            for info in found
        ],
    )  # fmt: skip
    print()
    topics = list(dict.fromkeys(topic for info in found for topic in info.topics))
    show.table(
        ["events", *(_plain(info.decider) for info in found)],
        [[topic, *(info.topics.get(topic) for info in found)] for topic in sorted(topics)],
    )
    if not all(info.tai_offset_s for info in found):
        print("\nnobody has set the TAI offset of a host here: its times are its own wall clock's")


def _state(info: Info) -> str:
    if info.damage:
        return "damaged"
    return "being written" if info.writing else "not closed" if info.unended else "whole"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:.1f} KiB" if size_bytes < 1 << 20 else f"{size_bytes / (1 << 20):.1f} MiB"


def _length(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def dump(paths: Iterable[Path], span: Span, only: str | None, as_json: bool) -> int:
    """Print events and wishes, one per line, in order of time. Returns the exit code, as show_info does."""
    wanted = _topics(only)
    trouble = Trouble()
    paths = list(paths)
    limits = window(span, strands(paths, trouble), trouble) if span != (None, None) else Window(None, None)
    write = _json if as_json else _text
    for tai, item in in_order(paths, trouble):
        if type(item.message).__name__ in wanted and _within(limits, item):
            sys.stdout.write(write(tai, item))
    return trouble.code


def _topics(only: str | None) -> set[str]:
    known = {**TOPICS, **ASKED}
    words = [word.strip() for word in only.split(",")] if only is not None else list(known)
    for word in words:
        if word not in known:
            raise click.BadParameter(
                f"{word!r} is no topic; there are: {', '.join(sorted(known))}", param_hint="--only"
            )
    return set(words)


def _within(limits: Window, item: Item) -> bool:
    moment = utc_ns(item.segment.head, item.message.t_ns)
    return (limits.since_ns is None or moment >= limits.since_ns) and (
        limits.until_ns is None or moment <= limits.until_ns
    )


def _json(tai: int, item: Item) -> str:
    head = item.segment.head
    row = {
        "schema": ITEM_SCHEMA,
        "tai_ns": tai,
        "tai_offset_s": head.tai_offset_s,
        "host": head.host.name,
        "decider": head.decider,
        "session": head.session,
        "at": item.at,
        "publisher": item.publisher,
        "topic": type(item.message).__name__,
        "fields": _fields(item.message),
    }
    return msgspec.json.encode(row).decode() + "\n"


def _text(tai: int, item: Item) -> str:
    head = item.segment.head
    fields = " ".join(f"{name}={_value(value)}" for name, value in _fields(item.message).items() if name != "t_ns")
    said = item.publisher or f"decider-{head.decider}"
    when = _when(tai - head.tai_offset_s * SEC)
    who = f"{_plain(head.host.name)} {_plain(head.decider)} {_plain(said)}"
    return f"{when} {who} {type(item.message).__name__} {fields}\n"


def _when(utc: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(utc // SEC)) + f".{utc // 1_000_000 % 1000:03d}"


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _plain(value)
    return str(value) if isinstance(value, int) else msgspec.json.encode(value).decode()


def _plain(word: str) -> str:
    """As it is where it is one printable word; else quoted: a terminal must not obey a tape."""
    return word if word and word.isprintable() and " " not in word and '"' not in word else json.dumps(word)
