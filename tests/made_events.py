"""Events of every topic with anything in them that may be there, for hypothesis: made from the messages' own types."""

from __future__ import annotations

import functools
import typing
from itertools import accumulate
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec.structs import fields

from bus.schema import AnyEvent, Event, Trial
from bus.tunables import TUNABLES
from deciders.signals import SIGNALS

MS = 1_000_000
SIZES = (0, 1, 2, 3, 7, 10, 100, 1448, 40_000, 65_536, 131_072, 262_144, 393_216, 1 << 20, (1 << 31) - 1)
HUGE = ((1 << 32) - 1, (1 << 52) + 1)
"""A float holds whole numbers up to 2**53, and no state more than 64 bits."""
STEPS_NS = (0, MS, 50 * MS, 50 * MS, 100 * MS, 100 * MS, 1000 * MS, 2000 * MS, 61_000 * MS, 601_000 * MS)
NAMES: dict[str, tuple[str, ...]] = {
    "tunable": (
        *(row.name if not row.instances else f"{row.name}@10.1.{place}.0/24" for row in TUNABLES for place in (1, 2)),
        "net.ipv4.icmp_msgs_per_sec", "no.such",
    ),
    "decider": ("guard", "neigh_table", "tcp_buffer", "receive_path", "other"),
    "source": (*sorted({signal.source for signal in SIGNALS}), "net/none"),
    "name": ("tcp_rcvbuf", "tcp_sndbuf", "host", "web", ""),
    "publisher": ("actuator", "collector-proc"),
    "reason": ("CPU_BACKLOG", "SOCKET_RCVBUFF", "why 7"),
    "prefix": ("10.1.1.0/24", "10.1.2.0/24", "2001:db8:1::/48", "10.1.1.0/24"),
    "algorithm": ("cubic", "bbr", "reno", "new"),
    "standing": ("cubic", "cubic", "bbr", "new"),
}  # fmt: skip
COUNTED = (
    "Tcp.RetransSegs", "Tcp.OutSegs", "TcpExt.TCPOFOQueue", "TcpExt.TCPHPHits", "TcpExt.TCPMemoryPressures", "TCP.mem",
    "TcpExt.ListenOverflows", "Icmp.OutRateLimitGlobal", "some.total_us", "dropped", "time_squeeze", "processed",
    "Ip.ReasmReqds", "Ip.ReasmFails", "Ip.ReasmOKs", "FRAG.memory",
)  # fmt: skip
GUARDS = (*sorted({signal.name for signal in SIGNALS}), "no_such_signal")
ANY_SIZE: st.SearchStrategy[int] = st.one_of(st.sampled_from(SIZES), st.integers(0, 1 << 22), st.sampled_from(HUGE))
SMALL = st.sampled_from((0, 1, 1, 2, 3))
SIZE: st.SearchStrategy[int] = st.one_of(st.sampled_from(SIZES), st.integers(0, 1 << 22))
FAMILY = st.sampled_from((2, 10, 2, 10, 7))
PLACES = {"netns": SMALL, "netns_ino": SMALL, "socket": SMALL, "change": SMALL, "family": FAMILY}


@functools.cache
def topic(kind: type[Event], size: st.SearchStrategy[int] = SIZE) -> st.SearchStrategy[Any]:
    """Any event of this kind; its time is 0 to a few seconds, see `stream`."""
    found = {field.name: _field(field.name, field.type, size) for field in fields(kind)}
    # Not st.builds(): it looks at the signature again for each example.
    return st.fixed_dictionaries(found | {"t_ns": st.just(0)}).map(lambda values: kind(**values))


@functools.cache
def stream(
    kinds: tuple[type[Event], ...], max_size: int = 60, size: st.SearchStrategy[int] = SIZE
) -> st.SearchStrategy[list[AnyEvent]]:
    """Events of these kinds in the order of their lanes: time goes on, but for a little that comes late."""
    one = st.tuples(st.one_of([topic(kind, size) for kind in kinds]), st.sampled_from(STEPS_NS), st.integers(0, 30))
    return st.lists(one, max_size=max_size).map(_timed)


def sample(kind: type[Event]) -> AnyEvent:
    """One event of this kind, the same each time, with another value in each field."""
    values = {field.name: _sample(field.name, field.type, place) for place, field in enumerate(fields(kind), 1)}
    event: Any = kind(**values)
    return event


def _sample(name: str, kind: Any, place: int) -> Any:
    bare = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if typing.get_origin(bare) is typing.Literal:
        return typing.get_args(bare)[0]
    if typing.get_origin(bare) is tuple:
        return (name, "other")
    if typing.get_origin(bare) is dict:
        return {name: place, "other": -1}
    return {int: place, bool: True, str: name}[bare]


def _timed(found: list[tuple[Any, int, int]]) -> list[AnyEvent]:
    times = accumulate((step_ns for _, step_ns, _ in found), initial=10_000 * MS)
    # One in a few comes late.
    return [
        _at(event, t_ns - (late * MS if late > 24 else 0)) for (event, _, late), t_ns in zip(found, times, strict=False)
    ]


def _at(event: Any, t_ns: int) -> Any:
    if isinstance(event, Trial):
        event = msgspec.structs.replace(event, since_ns=t_ns - event.since_ns % (5000 * MS))
    return msgspec.structs.replace(event, t_ns=t_ns)


def _field(name: str, kind: Any, size: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    bare = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if name in PLACES:
        return PLACES[name]
    if name in NAMES:
        return st.sampled_from(NAMES[name])
    if name in ("values", "offsets_bytes"):
        return st.dictionaries(st.sampled_from(COUNTED), size, max_size=len(COUNTED))
    if name == "available":
        return st.sampled_from((("reno", "cubic", "bbr"), ("cubic",), ()))
    if name == "guards":
        return st.lists(st.sampled_from(GUARDS), max_size=4).map(tuple)
    if typing.get_origin(bare) is typing.Literal:
        return st.sampled_from(typing.get_args(bare))
    return {int: size, bool: st.booleans(), str: st.just("why 7")}[bare]
