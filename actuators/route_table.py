"""The main table of the namespace that a thread is in: what leads where, and ours made and taken away.

The kernel takes a route away only if it is exactly the one that is named, and makes one only where there is none
(NLM_F_EXCL): so nobody's is overwritten, though the kernel has no compare-and-write. Between the two, packets go by the
route that was copied, which is the same way. Functions raise OSError, and UnfitError where it says so.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Mapping
from pathlib import Path

from actuators import route
from actuators.route import RT_TABLE_MAIN, Route, UnfitError, family
from actuators.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    Socket,
    attributes,
)
from bus.prefix import Network

ROUTES_MAX = 4096
"""In a main table with more than these nothing is set: that is a router, and to read it costs more than a metric can
bring."""
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
FRA_SUPPRESS_PREFIXLEN = 14
NOT_SUPPRESSED = struct.pack("=i", -1)
RULE_BYTES = 12
"""struct fib_rule_hdr."""


def algorithms() -> list[str]:
    """The congestion control that there is without loading a module."""
    return AVAILABLE.read_text().split()


def ours(sock: Socket, to: Network) -> Route | None:
    """Our route to a destination."""
    return route.to_exactly(_routes(sock, family(to), route.PROTOCOL), to)


def leading(sock: Socket, to: Network) -> tuple[Route, Route | None]:
    """The route that leads to a destination and can be copied, and the copy that there is. Raises UnfitError."""
    routes = _routes(sock, family(to))
    if len(routes) > ROUTES_MAX:
        raise UnfitError(f"the main table has {len(routes)} routes, more than {ROUTES_MAX}: this is a router")
    cover, copy = route.cover(routes, to), route.to_exactly(routes, to)
    _is_taken(sock, to, cover)
    _none_is_suppressed(sock, to)
    return cover, copy


def replaced(sock: Socket, before: Route | None, base: Route, to: Network, metrics: Mapping[int, bytes]) -> str:
    """Put a copy of base with these metrics (none: nothing) in the place of our route. Returns the kernel's error."""
    after = route.copy(base, to, metrics) if metrics else None
    try:
        if before:
            taken(sock, before)
        if after:
            sock.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route.message(after))
    except OSError as error:
        if before and after:
            with contextlib.suppress(OSError):
                sock.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route.message(before))
        return f"netlink: {error.strerror}"
    return ""


def taken(sock: Socket, ours: Route) -> None:
    """Take our route away."""
    sock.change(RTM_DELROUTE, 0, route.message(ours))


# --- how


def _routes(sock: Socket, of: int, protocol: int = 0) -> list[Route]:
    try:
        bodies = sock.dump(RTM_GETROUTE, route.query(of, protocol))
    except OSError as error:
        # No route was ever made there: it has no main table yet.
        if error.errno == errno.ENOENT:
            return []
        raise
    found = [one for body in bodies if (one := route.parse(body)) and one.table == RT_TABLE_MAIN]
    return [one for one in found if one.protocol == protocol or not protocol]


def _is_taken(sock: Socket, to: Network, cover: Route) -> None:
    """The kernel takes that route indeed: no rule leads to another table before (ip-rule(8))."""
    try:
        found = route.parse(sock.get(RTM_GETROUTE, route.lookup(to)))
    except OSError as error:
        raise UnfitError(f"the kernel has no way to {to}: {error.strerror}") from None
    if found is None or found.table != RT_TABLE_MAIN:
        raise UnfitError(f"{to} is routed by table {found.table if found else 0}, not by the main one")
    if found.to not in (cover.to, to):
        raise UnfitError(f"the kernel takes {found.words()} to {to}, not {cover.words()}")


def _none_is_suppressed(sock: Socket, to: Network) -> None:
    """A longer prefix would be followed by whom a rule keeps from the shorter one, as wg-quick(8) does with default."""
    try:
        rules = sock.dump(RTM_GETRULE, bytes((family(to),)) + bytes(RULE_BYTES - 1))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return
        raise
    for body in rules:
        if dict(attributes(body, RULE_BYTES)).get(FRA_SUPPRESS_PREFIXLEN, NOT_SUPPRESSED) != NOT_SUPPRESSED:
            raise UnfitError("a rule suppresses short prefixes: a longer one would be taken where that one is not")
