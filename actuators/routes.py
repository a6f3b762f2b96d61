"""Route metrics per destination: one more route, a copy of the one that leads there, with the metrics.

    route.congctl@10.1.2.0/24 = bbr    ip route add 10.1.2.0/24 via ... proto 116 congctl bbr

No route that somebody else made is ever altered. Several keys of one destination share one route of ours, which goes
when the last of them is back at 0. It must not outlive the route that it is a copy of, whose next hop may have become
another: check() tells, and takes it away.
"""

from __future__ import annotations

import errno
import struct
from typing import Any, Protocol

from msgspec import Struct

from actuators import route, route_table
from actuators.ears import Ears
from actuators.records import Spot, Swap
from actuators.route import METRICS, RTAX_CC_ALGO, Route, UnfitError
from actuators.rtnetlink import RTM_DELROUTE, RTM_NEWROUTE, Socket
from bus import prefix
from bus.prefix import Network
from bus.tunables import ALGORITHMS, AT

UNKNOWN = -1
"""The value of an algorithm that has no number here: nobody of ours has set it."""


class Enter(Protocol):
    """Namespaces.enter, or what stands for it."""

    def __call__(self, cookie: int, inode: int, do: Any) -> Any: ...


class Made(Struct, frozen=True):
    """A route of ours as the kernel shows it, and the one that it is a copy of."""

    ours: Route
    cover: Route


class Finding(Struct, frozen=True):
    """A destination where ours is not any more what it was, or not there."""

    to: Network
    taken: bool
    """Somebody else touched ours. Else it has gone, since what it was a copy of is not what it was."""
    why: str


class Routes:
    """Reads and writes `route.*` keys. Methods raise NamespaceGoneError or another OSError."""

    def __init__(self, enter: Enter) -> None:
        self._enter = enter
        self.ears = Ears()
        self._made: dict[tuple[int, Network], Made] = {}
        """By namespace and destination: what this process has made."""

    def read(self, spot: Spot, inode: int) -> int:
        """What of ours stands there; 0: nothing."""
        metric, to = place(spot.tunable)

        def do() -> int:
            with Socket() as sock:
                return _value(route_table.ours(sock, to), metric)

        return int(self._enter(spot.netns, inode, do))

    def swap(self, spot: Spot, inode: int, old: int, new: int) -> Swap:
        """Set new if old stands there, and read back."""
        metric, to = place(spot.tunable)

        def do() -> Swap:
            with Socket() as sock:
                before = route_table.ours(sock, to)
                found = _value(before, metric)
                if found != old:
                    return Swap(found, found, "")
                metrics = route.ours_of(before) if before else {}
                metrics.pop(metric, None)
                if new:
                    metrics[metric] = _encoded(metric, new)
                    error = self._add(sock, (spot.netns, to), metrics)
                else:
                    error = self._reduce(sock, (spot.netns, to), before, metrics)
                return Swap(found, _value(route_table.ours(sock, to), metric), error)

        swap: Swap = self._enter(spot.netns, inode, do)
        return swap

    def objection(self, spot: Spot, inode: int, new: int) -> str:
        """What stands against setting this there, in one sentence; empty when nothing does."""
        metric, to = place(spot.tunable)

        def do() -> str:
            if metric == RTAX_CC_ALGO and ALGORITHMS[new] not in (there := route_table.algorithms()):
                # The kernel would load a module (tcp_ca_get_key_by_name, net/ipv4/tcp_cong.c).
                return f"{ALGORITHMS[new]} is not available here: there are {', '.join(there)}"
            try:
                with Socket() as sock:
                    self._leading(sock, (spot.netns, to))
            except UnfitError as error:
                return str(error)
            return ""

        return str(self._enter(spot.netns, inode, do)) if new else ""

    def knows(self, netns: int, to: Network) -> bool:
        """This process has made our route there."""
        return (netns, to) in self._made

    def check(self, netns: int, inode: int) -> list[Finding]:
        """Look at all that this process has made in a namespace. What has become stale is taken away at once."""
        made = [(to, one) for (where, to), one in self._made.items() if where == netns]

        def do() -> list[Finding]:
            with Socket() as sock:
                return [found for to, one in made if (found := _found(sock, to, one))]

        findings: list[Finding] = self._enter(netns, inode, do) if made else []
        for found in findings:
            del self._made[netns, found.to]
        self._quiet(netns)
        return findings

    def heard(self) -> list[int]:
        """The namespaces where something has happened that may concern what was made there."""
        return self.ears.heard(self._concerns)

    def forget(self, netns: int) -> None:
        """The namespace has gone."""
        self.ears.forget(netns)
        for key in [key for key in self._made if key[0] == netns]:
            del self._made[key]

    def close(self) -> None:
        """Give all descriptors back."""
        self.ears.close()

    # --- how ------------------------------------------------------------------------------------------------------

    def _add(self, sock: Socket, key: tuple[int, Network], metrics: dict[int, bytes]) -> str:
        # What happens from here on is heard of.
        self.ears.listen(key[0])
        try:
            cover, before = self._leading(sock, key)
        except UnfitError as unfit:
            self._quiet(key[0])
            return str(unfit)
        error = route_table.replaced(sock, before, cover, key[1], metrics)
        self._remember(sock, key, cover)
        return error

    def _reduce(self, sock: Socket, key: tuple[int, Network], before: Route | None, left: dict[int, bytes]) -> str:
        """Without a metric; in the end without the route. Asks for nothing but ours, whatever the others are by now."""
        if not before:
            return ""
        known = self._made.get(key)
        error = route_table.replaced(sock, before, before, key[1], left)
        self._remember(sock, key, known.cover if known else None)
        return error

    def _remember(self, sock: Socket, key: tuple[int, Network], cover: Route | None) -> None:
        self._made.pop(key, None)
        ours = route_table.ours(sock, key[1])
        if ours and cover:
            self._made[key] = Made(ours, cover)
        self._quiet(key[0])

    def _quiet(self, netns: int) -> None:
        """Where nothing was made there is nothing to hear."""
        if all(where != netns for where, _ in self._made):
            self.ears.forget(netns)

    def _leading(self, sock: Socket, key: tuple[int, Network]) -> tuple[Route, Route | None]:
        cover, ours = route_table.leading(sock, key[1])
        made = self._made.get(key)
        if ours and not (made and made.ours.same(ours) and made.cover.same(cover)):
            raise UnfitError(f"a route of trimtab's to {key[1]} stands there that is not a copy of {cover.words()}")
        return cover, ours

    def _concerns(self, netns: int, what: int, body: bytes) -> bool:
        """A route somewhere else does not."""
        if what not in (RTM_NEWROUTE, RTM_DELROUTE):
            return True
        found = route.parse(body)
        if found is None or found.table != route.RT_TABLE_MAIN:
            return False
        return any(where == netns and _meet(found.to, to) for where, to in self._made)


def place(tunable: str) -> tuple[int, Network]:
    """The metric and the destination of a key. Raises OSError where it names none."""
    name, _, text = tunable.partition(AT)
    metric = METRICS.get(name.removeprefix("route."))
    try:
        to = prefix.network(text)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    if metric is None:
        raise OSError(errno.EINVAL, f"{tunable!r} names no metric of a route")
    return metric, to


def _found(sock: Socket, to: Network, made: Made) -> Finding | None:
    ours = route_table.ours(sock, to)
    touched = ours is None or not ours.same(made.ours)
    stale, exact = "", False
    try:
        cover, _ = route_table.leading(sock, to)
        if not cover.same(made.cover):
            stale = f"{made.cover.words()}, of which it is a copy, has changed"
    except UnfitError as error:
        stale, exact = str(error), error.exact
    if touched and (ours is not None or exact or not stale):
        done = "changed" if ours else "replaced" if exact else "deleted"
        return Finding(to, True, f"somebody else {done} the route to {to}")
    if not stale:
        return None
    if ours:
        route_table.taken(sock, ours)
    return Finding(to, False, stale)


def _value(ours: Route | None, metric: int) -> int:
    raw = ours.metrics.get(metric, b"") if ours else b""
    if metric != RTAX_CC_ALGO or not raw:
        return route.number(raw)
    name = raw.rstrip(b"\0").decode(errors="replace")
    return ALGORITHMS.index(name) if name in ALGORITHMS else UNKNOWN


def _encoded(metric: int, value: int) -> bytes:
    return ALGORITHMS[value].encode() + b"\0" if metric == RTAX_CC_ALGO else struct.pack("=I", value)


def _meet(one: Network, other: Network) -> bool:
    return one.version == other.version and route.inside(*sorted((one, other), key=_length, reverse=True))


def _length(to: Network) -> int:
    return to.prefixlen
