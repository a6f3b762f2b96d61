"""What stands in a namespace about the setting up of connections: counters, and the sockets that listen."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from bus import netns
from bus.netns import HOST, Handle
from bus.schema import ListenQueues
from collectors import sockdiag
from collectors.sockdiag import Listening
from collectors.trials import read_here

FIELDS = {
    "overflows": "TcpExt.ListenOverflows",
    "drops": "TcpExt.ListenDrops",
    "full_cookies": "TcpExt.TCPReqQFullDoCookies",
    "full_drops": "TcpExt.TCPReqQFullDrop",
    "cookies_sent": "TcpExt.SyncookiesSent",
    "cookies_valid": "TcpExt.SyncookiesRecv",
    "cookies_failed": "TcpExt.SyncookiesFailed",
    "opened": "Tcp.PassiveOpens",
}
"""Of ListenQueues, by its name in net/netstat or net/snmp."""
SYSCTLS = {"somaxconn": "net/core/somaxconn", "max_syn_backlog": "net/ipv4/tcp_max_syn_backlog"}
SYSCTL = Path("/proc/sys")
"""Shows the namespace of the thread that looks (net_ctl_root in net/sysctl_net.c)."""


class Look(Struct, frozen=True):
    """What was found in a namespace."""

    cookie: int
    totals: dict[str, int]
    listening: list[Listening]


def glance_here() -> Look:
    """The counters of the calling thread's namespace. Raises OSError."""
    cookie, texts = read_here()
    # A kernel that lacks one of them has had none of it.
    totals = dict.fromkeys(FIELDS, 0)
    try:
        for raw in texts:
            totals |= _picked(raw)
    except (ValueError, IndexError) as error:
        raise OSError(errno.EPROTO, f"counters: {error}") from None
    return Look(cookie, totals, [])


def _picked(raw: bytes) -> dict[str, int]:
    """FIELDS in a file of pairs of lines. counters.line_pairs does as much for all of it, in ten times the time."""
    lines = raw.splitlines()
    found: dict[str, int] = {}
    for above, below in zip(lines[::2], lines[1::2], strict=True):
        places = _places(above)
        if places:
            numbers = below.split()
            found |= {field: max(0, int(numbers[at])) for field, at in places}
    return found


@functools.lru_cache(maxsize=64)
def _places(names: bytes) -> tuple[tuple[str, int], ...]:
    """Which of FIELDS stand where, below a line of names. The same line comes again and again."""
    group, *rest = names.decode("ascii").split()
    at = {group[:-1] + "." + name: place for place, name in enumerate(rest, 1)}
    return tuple((field, at[name]) for field, name in FIELDS.items() if name in at)


def look_here() -> Look:
    """The same, how long queues may be, and who listens. Raises OSError."""
    found = glance_here()
    with sockdiag.open_socket() as sock:
        standing = {field: int((SYSCTL / path).read_bytes()) for field, path in SYSCTLS.items()}
        return Look(found.cookie, found.totals | standing, sockdiag.listening(sock))


def visit(handles: list[Handle], do: Callable[[], Look]) -> list[Look | OSError]:
    """What is found in each. The caller's own namespace needs no thread and no privilege."""
    away = [handle.path for handle in handles if handle.name != HOST]
    found = iter(netns.inside_each(away, do) if away else ())
    return [_home(do) if handle.name == HOST else next(found) for handle in handles]


def _home(do: Callable[[], Look]) -> Look | OSError:
    try:
        return do()
    except OSError as error:
        return error


def moved(before: ListenQueues, now: ListenQueues) -> bool:
    """Connections could not be set up in between, or only with a cookie."""
    return (before.overflows, before.drops, before.full_cookies, before.full_drops) != (
        now.overflows,
        now.drops,
        now.full_cookies,
        now.full_drops,
    )
