"""A tape (bus.tape) made of events in memory, with the wishes that a decider has for them: it replays like one that was
recorded, and is the same, byte for byte, each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from bus import config, plugins, tunables
from bus.codec import encode
from bus.config import Config
from bus.revision import revision
from bus.schema import VERSION, AnyEvent, Batch, Gap
from bus.tape import ASKED, BATCH, BLOCK_BYTES, End, Head, Machine, Memory, asked_at, opening, pack, record
from bus.tape import encode as encoded
from deciders.__main__ import load, place
from deciders.engine import decide

PUBLISHER = "made-up"
BATCH_EVENTS = 32
MACHINE = Machine("made-up", "0", "none", 2, 32 << 30, "00000000-0000-0000-0000-000000000000")


def write(path: Path, events: Iterable[AnyEvent], decider: str = "tcp_buffer", settings: Config | None = None) -> None:
    """A tape of these events as `decider` would have recorded it, in one segment. Gaps are left out: a tape's are made
    when it is read. Raises OSError (also where the file exists), ConfigError for no such decider or a wrong policy."""
    settings = settings or Config()
    stream = (event for event in events if not isinstance(event, Gap))
    first = list(islice(stream, 1))
    with path.open("xb") as file:
        file.write(opening() + pack("head", encoded(_head(decider, settings, first[0].t_ns if first else 0))))
        for frame in _frames(chain(first, stream), decider, settings):
            file.write(frame)


def _head(decider: str, settings: Config, t_ns: int) -> Head:
    module = place(decider)
    rows = config.narrowed(tunables.table(row for tuner in plugins.tuners() for row in tuner.rows), settings)
    return Head(
        schema=VERSION,
        decider=decider,
        module=module,
        code=revision(module),
        session=f"made-up.{decider}.{t_ns}",
        number=0,
        t_ns=t_ns,
        tai_ns=t_ns,
        tai_offset_s=0,
        host=MACHINE,
        config=settings,
        rows=list(rows.values()),
        memory=Memory(0, {}),
    )


def _frames(events: Iterable[AnyEvent], name: str, settings: Config) -> Iterator[bytes]:
    """The blocks, and the end."""
    decider, stream = load(name, settings), iter(events)
    gathered: list[bytes] = []
    count = last_ns = size = 0
    while batch := list(islice(stream, BATCH_EVENTS)):
        raw = encode(Batch(VERSION, PUBLISHER, 1, count, batch))
        gathered.append(record(BATCH, raw))
        for number, (_, asked) in enumerate(decide(batch, [decider]), count + 1):
            gathered += [record(ASKED, asked_at(number), encode(wish)) for wish in asked]
        count, last_ns, size = count + len(batch), batch[-1].t_ns, size + len(raw)
        if size >= BLOCK_BYTES:
            yield pack("block", b"".join(gathered))
            gathered, size = [], 0
    if gathered:
        yield pack("block", b"".join(gathered))
    yield pack("end", encoded(End(t_ns=last_ns, events=count, why="stopped")))
