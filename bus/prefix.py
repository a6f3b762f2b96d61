"""Destinations in the names of keys, as in `route.congctl@10.1.2.0/24`: one way to write each, and only such as may be
a network elsewhere. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

LENGTHS = {4: (8, 32), 6: (16, 128)}
TEXT_MAX = 43
"""The longest prefix there is to write."""
NOT_ELSEWHERE: dict[int, tuple[tuple[Network, str], ...]] = {
    4: (
        (IPv4Network("0.0.0.0/8"), "this network"),
        (IPv4Network("127.0.0.0/8"), "loopback"),
        (IPv4Network("169.254.0.0/16"), "link-local"),
        (IPv4Network("224.0.0.0/4"), "multicast"),
        (IPv4Network("240.0.0.0/4"), "reserved"),
    ),
    6: (
        # With the unspecified address, loopback, and addresses that are really IPv4's.
        (IPv6Network("::/16"), "reserved"),
        (IPv6Network("fe80::/10"), "link-local"),
        (IPv6Network("ff00::/8"), "multicast"),
    ),
}


def network(text: str) -> Network:
    """The prefix that a text names. ValueError with one sentence where it names none, or none that may be had."""
    try:
        # A scope (fe80::1%eth0) is no part of a route's destination.
        found = ip_network(text) if len(text) <= TEXT_MAX and "%" not in text else None
    except ValueError as error:
        raise ValueError(f"{text!r} is no prefix: {error}") from None
    if found is None or str(found) != text:
        raise ValueError(f"{text[: TEXT_MAX + 1]!r} is not how a prefix is written" + (f": {found}" if found else ""))
    least, most = LENGTHS[found.version]
    if not least <= found.prefixlen <= most:
        raise ValueError(f"{found} is not between /{least} and /{most}")
    for other, what in NOT_ELSEWHERE[found.version]:
        if found.overlaps(other):
            raise ValueError(f"{found} lies in {other}, which is {what}, or around it")
    return found


def fault(text: str) -> str:
    """What is wrong with a prefix; empty when nothing is."""
    try:
        network(text)
    except ValueError as error:
        return str(error)
    return ""
