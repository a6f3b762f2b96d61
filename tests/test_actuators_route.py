"""Which route is copied for a destination and how, on routes made up and through the kernel's format."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actuators import route
from actuators.records import Spot
from actuators.route import (
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTAX_CC_ALGO,
    RTAX_INITCWND,
    RTAX_LOCK,
    RTAX_RTO_MIN,
    Route,
    UnfitError,
)
from actuators.routes import place
from actuators.rtnetlink import attributes, messages, packed
from bus.prefix import Network, network

TO = network("203.0.113.0/24")
MTU, CACHEINFO, MULTIPATH, ENCAP = 2, 12, 9, 22


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def made(to: str = "203.0.112.0/20", attrs: dict[int, bytes] | None = None, **fields: Any) -> Route:
    """A route via 10.9.0.2, parsed from a message of its own."""
    where = network(to)
    hop = {1: where.network_address.packed, RTA_TABLE: u32(254), RTA_OIF: u32(3), RTA_GATEWAY: b"\x0a\x09\0\2"}
    one = Route(where, 0, 0, 254, 3, 0, 1, 0, tuple({**hop, **(attrs or {})}.items()))
    found = route.parse(route.message(replace(one, **fields)))
    assert found
    # The message of a route that is made says nothing of these.
    return replace(found, source_bits=fields.get("source_bits", 0), attributes=replace(one, **fields).attributes)


def why(*routes: Route) -> str:
    with pytest.raises(UnfitError) as raised:
        route.cover(routes, TO)
    return str(raised.value)


def metrics(**values: int) -> bytes:
    kinds = {"mtu": MTU, "initcwnd": RTAX_INITCWND, "rto_min": RTAX_RTO_MIN, "lock": RTAX_LOCK}
    return packed(sorted((kinds[name], u32(value)) for name, value in values.items()))


def test_the_longest_prefix_is_taken_and_of_those_the_lowest_metric() -> None:
    wide, near = made("203.0.0.0/8"), made("203.0.112.0/20", {RTA_PRIORITY: u32(20)})
    far = made("203.0.112.0/20", {RTA_PRIORITY: u32(50)})
    assert route.cover([wide, far, near, made("198.18.0.0/15")], TO) is near
    assert route.cover([wide], TO) is wide


def test_ours_to_the_same_destination_is_no_hindrance_and_one_of_another_is() -> None:
    ours = made("203.0.113.0/24", protocol=116)
    assert route.cover([made(), ours], TO).to == network("203.0.112.0/20")
    assert "is trimtab's own copy" in why(made("203.0.112.0/20", protocol=116))
    assert "lies inside" in why(made(), made("203.0.113.0/25", protocol=116))


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (made("203.0.113.0/24"), "there is a route to 203.0.113.0/24 itself, proto boot"),
        (made("203.0.113.0/24", protocol=77), "there is a route to 203.0.113.0/24 itself, proto 77"),
        (made("203.0.113.7/32"), "203.0.113.7/32 (proto boot) lies inside 203.0.113.0/24"),
        (made(kind=6), "is blackhole, and leads nowhere"),
        (made(kind=77), "is of type 77, and leads nowhere"),
        (made(attrs={MULTIPATH: b""}), "has several next hops, which is not copied"),
        (made(attrs={ENCAP: b""}), "has a tunnel's header (encap), which is not copied"),
        (made(attrs={99: b""}), "has attribute 99, which is not copied"),
        (made(source_bits=8), "has a source prefix, which is not copied"),
        (made(tos=8), "routes by TOS stand at 203.0.112.0/20 (proto boot)"),
        (made(flags=1), "the device of 203.0.112.0/20 (proto boot) is down"),
        (made(attrs={RTA_METRICS: metrics(initcwnd=9)}), "sets initcwnd itself"),
        (made(attrs={RTA_METRICS: metrics(rto_min=9, lock=1 << 13)}), "sets rto_min itself"),
        (made(attrs={RTA_METRICS: metrics(lock=1 << 16)}), "sets congctl itself"),
    ],
)
def test_what_cannot_be_copied_whole_is_refused(one: Route, reason: str) -> None:
    assert reason in why(one)
    assert reason in why(made("203.0.0.0/8"), one)


def test_what_has_no_gateway_is_left_alone() -> None:
    local = made()
    bare = replace(local, attributes=tuple(pair for pair in local.attributes if pair[0] != RTA_GATEWAY))
    assert "has no gateway: what is on the local network is left alone" in why(bare)


def test_two_of_one_metric_are_several_next_hops() -> None:
    assert "has several next hops" in why(made(), made())
    assert "no route of the main table leads to" in why()
    assert "no route of the main table leads to" in why(made("198.18.0.0/15"))


def test_a_copy_has_the_way_and_the_other_metrics_and_ours_and_our_protocol() -> None:
    kept = metrics(mtu=1400, lock=1 << MTU)
    cover = made(attrs={RTA_METRICS: kept, RTA_PRIORITY: u32(50), CACHEINFO: bytes(32)}, flags=4 | 16, scope=0)
    copy = route.copy(cover, TO, {RTAX_RTO_MIN: u32(50), RTAX_CC_ALGO: b"bbr\0"})
    assert (copy.to, copy.protocol, copy.flags, copy.kind) == (TO, 116, 4, 1)
    has = dict(copy.attributes)
    assert has.keys() == {1, RTA_TABLE, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS}
    assert copy.metrics == {
        MTU: u32(1400), RTAX_RTO_MIN: u32(50), RTAX_CC_ALGO: b"bbr\0", RTAX_LOCK: u32(1 << MTU | 1 << RTAX_RTO_MIN),
    }  # fmt: skip
    # A copy of the copy, with one fewer: no lock is left behind.
    less = route.copy(copy, TO, {RTAX_CC_ALGO: b"bbr\0"})
    assert less.metrics == {MTU: u32(1400), RTAX_CC_ALGO: b"bbr\0", RTAX_LOCK: u32(1 << MTU)}
    assert route.copy(copy, TO, {}).metrics == {MTU: u32(1400), RTAX_LOCK: u32(1 << MTU)}
    assert route.ours_of(copy) == {RTAX_RTO_MIN: u32(50), RTAX_CC_ALGO: b"bbr\0"}


@pytest.mark.parametrize(
    "change",
    [
        {"to": network("203.0.113.0/25")},
        {"tos": 4},
        {"protocol": 4},
        {"scope": 253},
        {"kind": 6},
        {"flags": 4},
        {"attributes": made(attrs={RTA_GATEWAY: b"\x0a\x09\0\3"}).attributes},
        {"attributes": made(attrs={RTA_PRIORITY: u32(9)}).attributes},
        {"attributes": made(attrs={RTA_METRICS: metrics(mtu=1300)}).attributes},
    ],
)
def test_another_route_is_not_the_same(change: dict[str, Any]) -> None:
    assert made().same(made())
    assert not made().same(replace(made(), **change))


def test_what_the_kernel_counts_and_notes_makes_no_other_route() -> None:
    assert made().same(made(attrs={CACHEINFO: bytes(32)}))
    assert made().same(replace(made(), flags=0x40))
    swapped = tuple(reversed(made().attributes))
    assert made().same(replace(made(), attributes=swapped))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_route_or_none(raw: bytes) -> None:
    found = route.parse(raw)
    assert found is None or found.to.prefixlen <= found.to.max_prefixlen
    assert all(len(message) == 4 for message in messages(raw))
    assert all(len(value) < 80 for _, value in attributes(raw))


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20)), max_size=8))
def test_attributes_come_back_as_they_were_packed(pairs: list[tuple[int, bytes]]) -> None:
    assert attributes(packed(pairs)) == tuple(pairs)


nets = st.tuples(st.ip_addresses(v=4), st.integers(8, 32)).map(
    lambda pair: network_of(int(pair[0]), pair[1])
)  # fmt: skip


def network_of(address: int, bits: int) -> Network:
    from ipaddress import IPv4Network

    return IPv4Network((address >> 32 - bits << 32 - bits, bits))


@given(nets, nets)
def test_inside_is_what_the_library_says(one: Network, other: Network) -> None:
    assert route.inside(one, other) == one.subnet_of(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key", ["route.congctl", "route.other@10.0.0.0/8", "net.core.x@10.0.0.0/8", "route.congctl@x", ""]
)
def test_a_key_that_names_no_metric_of_a_destination_is_an_error(key: str) -> None:
    with pytest.raises(OSError, match=r"prefix|names no metric"):
        place(Spot(key, 1).tunable)
