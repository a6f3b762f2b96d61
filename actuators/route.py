"""One route of the main table as netlink has it, and which one to copy for a destination. Pure.

Only what is known to be copied whole is copied: a unicast route over one next hop with a gateway. All else is refused
in one sentence: what has no gateway is the fast path of the local network; several next hops, next hop objects, tunnels
and what else there may be would not be the same route any more.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network

from msgspec import Struct
from msgspec.structs import replace

from actuators.rtnetlink import Attributes, attributes, packed
from bus.prefix import Network

PROTOCOL = 116
"""Who made a route: 't', which nobody else has (rtnetlink.h, /etc/iproute2/rt_protos). `ip route list proto 116` shows
ours, and a route with another one is never altered."""
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
KINDS = ("unspecified", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable",
         "prohibit", "throw", "NAT", "resolved elsewhere")  # fmt: skip
PROTOCOLS = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird",
             16: "dhcp", 18: "keepalived", 42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip"}  # fmt: skip
RTNH_F_DEAD, RTNH_F_ONLINK = 1, 4
RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_FLOW, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_PREF, RTA_NH_ID = 9, 11, 12, 15, 18, 20, 30
HOP = frozenset((RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_FLOW, RTA_VIA, RTA_PREF))
"""What of a route leads on, and is copied as it stands."""
KNOWN = HOP | {RTA_DST, RTA_METRICS, RTA_CACHEINFO, RTA_TABLE}
NAMES = {RTA_MULTIPATH: "several next hops", RTA_NH_ID: "a next hop object", 21: "a tunnel's header (encap)",
         22: "a tunnel's header (encap)", 2: "a source prefix", 19: "another destination"}  # fmt: skip
RTAX_LOCK, RTAX_INITCWND, RTAX_RTO_MIN, RTAX_CC_ALGO = 1, 11, 13, 16
METRICS = {"congctl": RTAX_CC_ALGO, "initcwnd": RTAX_INITCWND, "rto_min": RTAX_RTO_MIN}
LOCKED = {RTAX_RTO_MIN}
"""Means nothing unless it is locked (tcp_rto_min, net/ipv4/tcp_output.c); ip-route(8) does that by itself."""

_rtmsg = struct.Struct("=BBBBBBBBI")
_u32 = struct.Struct("=I")


class UnfitError(Exception):
    """No route that can be copied, and why, in one sentence."""

    def __init__(self, reason: str, *, exact: bool = False) -> None:
        super().__init__(reason)
        self.exact = exact
        """Somebody else has a route to the very destination."""


class Route(Struct, frozen=True):
    """One route."""

    to: Network
    source_bits: int
    tos: int
    table: int
    protocol: int
    scope: int
    kind: int
    flags: int
    attributes: Attributes

    @property
    def priority(self) -> int:
        """Its metric, as ip-route(8) calls it: the lowest is taken."""
        return number(dict(self.attributes).get(RTA_PRIORITY, b""))

    @property
    def metrics(self) -> dict[int, bytes]:
        """RTAX_... to its value."""
        return dict(attributes(dict(self.attributes).get(RTA_METRICS, b"")))

    @property
    def ours(self) -> bool:
        """trimtab made it."""
        return self.protocol == PROTOCOL

    def same(self, other: Route) -> bool:
        """The same route, whatever the kernel counts and notes of it."""
        return self._self() == other._self()

    def _self(self) -> tuple[object, ...]:
        hop = sorted((kind, value) for kind, value in self.attributes if kind not in (RTA_CACHEINFO, RTA_METRICS))
        head = (self.to, self.source_bits, self.tos, self.table, self.protocol, self.scope, self.kind)
        return (*head, self.flags & RTNH_F_ONLINK, hop, sorted(self.metrics.items()))

    def words(self) -> str:
        """As a person would name it."""
        to = "default" if not self.to.prefixlen else str(self.to)
        return f"{to} (proto {PROTOCOLS.get(self.protocol, self.protocol)})"


def number(value: bytes) -> int:
    """An attribute of 32 bits; 0 where it is none."""
    return int(_u32.unpack(value)[0]) if len(value) == _u32.size else 0


def parse(body: bytes) -> Route | None:
    """A route of IPv4's or IPv6's from a message's body; None where it is none that can be looked at."""
    if len(body) < _rtmsg.size:
        return None
    family, bits, source_bits, tos, table, protocol, scope, kind, flags = _rtmsg.unpack_from(body)
    found = attributes(body, _rtmsg.size)
    by_kind = dict(found)
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family, 0)
    address = by_kind.get(RTA_DST, bytes(size))
    if not size or len(address) != size or bits > size * 8:
        return None
    to = ip_network((address, bits), strict=False)
    if RTA_TABLE in by_kind:
        table = number(by_kind[RTA_TABLE])
    return Route(to, source_bits, tos, table, protocol, scope, kind, flags, found)


def family(to: Network) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if to.version == 4 else socket.AF_INET6


def query(of: int, protocol: int = 0) -> bytes:
    """What asks for the main table's routes of an address family (of one protocol)."""
    return _rtmsg.pack(of, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0) + packed([(RTA_TABLE, _u32.pack(RT_TABLE_MAIN))])


def lookup(to: Network) -> bytes:
    """What asks which route of which table the kernel would take there."""
    address = to.network_address + (1 if to.num_addresses > 1 else 0)
    # IPv6 always names the table, and refuses to be asked for it (inet6_rtm_valid_getroute_req, net/ipv6/route.c).
    flags = RTM_F_FIB_MATCH | (RTM_F_LOOKUP_TABLE if to.version == 4 else 0)
    head = _rtmsg.pack(family(to), to.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    return head + packed([(RTA_DST, address.packed)])


def message(route: Route) -> bytes:
    """What makes a route, or takes exactly this one away."""
    head = _rtmsg.pack(family(route.to), route.to.prefixlen, 0, route.tos, RT_TABLE_MAIN, route.protocol,
                       route.scope, route.kind, route.flags)  # fmt: skip
    return head + packed((kind, value) for kind, value in route.attributes if kind != RTA_CACHEINFO)


def copy(cover: Route, to: Network, metrics: Mapping[int, bytes]) -> Route:
    """Ours: the same way, to a destination of its own, with these metrics instead of those of METRICS."""
    kept = [(kind, value) for kind, value in cover.attributes if kind in HOP]
    own = [(RTA_DST, to.network_address.packed), (RTA_TABLE, _u32.pack(RT_TABLE_MAIN))]
    made = packed(sorted(_with_locks(cover.metrics, metrics).items()))
    return replace(
        cover,
        to=to,
        protocol=PROTOCOL,
        flags=cover.flags & RTNH_F_ONLINK,
        attributes=(*own, *kept, *([(RTA_METRICS, made)] if made else [])),
    )


def ours_of(route: Route) -> dict[int, bytes]:
    """The metrics of a route of ours that are keys of ours."""
    return {kind: value for kind, value in route.metrics.items() if kind in METRICS.values()}


def _with_locks(theirs: dict[int, bytes], ours: Mapping[int, bytes]) -> dict[int, bytes]:
    kept = {kind: value for kind, value in theirs.items() if kind not in METRICS.values()}
    locks = number(kept.pop(RTAX_LOCK, b""))
    locks &= ~sum(1 << kind for kind in METRICS.values())
    locks |= sum(1 << kind for kind in LOCKED & ours.keys())
    return kept | dict(ours) | ({RTAX_LOCK: _u32.pack(locks)} if locks else {})


def cover(routes: Sequence[Route], to: Network) -> Route:
    """The route that leads to a destination now and can be copied. Raises UnfitError."""
    others = [route for route in routes if not (route.ours and route.to == to)]
    for route in others:
        if route.to == to:
            raise UnfitError(
                f"there is a route to {to} itself, proto {_protocol(route)}: it is its maker's", exact=True
            )
        if inside(route.to, to):
            raise UnfitError(f"{route.words()} lies inside {to}")
    found = [route for route in others if inside(to, route.to)]
    if not found:
        raise UnfitError(f"no route of the main table leads to {to}")
    longest = max(route.to.prefixlen for route in found)
    best = sorted((route for route in found if route.to.prefixlen == longest), key=lambda route: route.priority)
    if any(route.tos for route in best):
        raise UnfitError(f"routes by TOS stand at {best[0].words()}")
    if len(best) > 1 and best[0].priority == best[1].priority:
        raise UnfitError(f"{best[0].words()} has several next hops")
    _copyable(best[0])
    return best[0]


def _protocol(route: Route) -> str:
    return str(PROTOCOLS.get(route.protocol, route.protocol))


def inside(inner: Network, outer: Network) -> bool:
    """Whether the one is part of the other, or the same."""
    if inner.version != outer.version or inner.prefixlen < outer.prefixlen:
        return False
    bits = inner.max_prefixlen - outer.prefixlen
    return int(inner.network_address) >> bits == int(outer.network_address) >> bits


def _copyable(route: Route) -> None:
    has = dict(route.attributes)
    if route.ours:
        raise UnfitError(f"{route.words()} is trimtab's own copy for a wider destination")
    if route.kind != RTN_UNICAST:
        raise UnfitError(f"{route.words()} is {_kind(route)}, and leads nowhere")
    for strange in sorted(has.keys() - KNOWN):
        raise UnfitError(f"{route.words()} has {NAMES.get(strange, f'attribute {strange}')}, which is not copied")
    if route.source_bits:
        raise UnfitError(f"{route.words()} has {NAMES[2]}, which is not copied")
    if RTA_GATEWAY not in has and RTA_VIA not in has:
        raise UnfitError(f"{route.words()} has no gateway: what is on the local network is left alone")
    if route.flags & RTNH_F_DEAD:
        raise UnfitError(f"the device of {route.words()} is down")
    own = [name for name, kind in METRICS.items() if kind in route.metrics]
    own += [name for name, kind in METRICS.items() if number(route.metrics.get(RTAX_LOCK, b"")) >> kind & 1]
    if own:
        raise UnfitError(f"{route.words()} sets {', '.join(dict.fromkeys(own))} itself: that is its maker's choice")


def _kind(route: Route) -> str:
    return KINDS[route.kind] if route.kind < len(KINDS) else f"of type {route.kind}"


def to_exactly(routes: Iterable[Route], to: Network) -> Route | None:
    """Our route to a destination."""
    return next((route for route in routes if route.ours and route.to == to), None)
