"""Which words of a tape are about people and places, field by field, and what stands there when it is anonymous."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from typing import Literal

from bus.tunables import AT

How = Literal["keep", "name", "boot", "sysctl", "value", "text", "prefix", "key"]
"""keep: a word of trimtab's or the kernel's. name: replaced. boot: a boot id. sysctl: the device in it is replaced.
value: replaced where it is no number. text: what is known or looks like a name, an address, a path in it is. prefix: a
destination, replaced by another. key: a tunable, in which the destination is, if it has one."""

FIELDS: dict[tuple[str, str], How] = {
    ("Batch", "publisher"): "keep",
    ("Host", "boot_id"): "boot",
    ("Host", "release"): "keep",
    ("Host", "machine"): "keep",
    ("Probe", "name"): "keep",
    ("Probe", "road"): "keep",
    ("Probe", "reason"): "text",
    ("Probe", "offsets_bytes"): "keep",
    ("Netns", "name"): "name",
    ("SysctlWrite", "comm"): "name",
    ("SysctlWrite", "name"): "sysctl",
    ("SysctlWrite", "old"): "value",
    ("SysctlWrite", "new"): "value",
    ("Drops", "reason"): "keep",
    ("Listener", "program"): "name",
    ("Owner", "program"): "name",
    ("UdpDrop", "reason"): "keep",
    ("Flows", "prefix"): "prefix",
    ("Flows", "algorithm"): "keep",
    ("Algorithms", "available"): "keep",
    ("Algorithms", "standing"): "keep",
    ("Counters", "source"): "keep",
    ("Counters", "values"): "keep",
    ("Value", "tunable"): "key",
    ("Trial", "decider"): "keep",
    ("Trial", "tunable"): "key",
    ("Trial", "guards"): "keep",
    ("Outcome", "decider"): "keep",
    ("Outcome", "tunable"): "key",
    ("Outcome", "reason"): "text",
    ("Gap", "publisher"): "keep",
    # Of trimtab's own deciders, which put no name into a sentence, all else of a wish is kept: it is to come out equal.
    ("Wish", "tunable"): "key",
    ("Wish", "why"): "text",
    ("Wish", "evidence"): "text",
    ("Verdict", "why"): "text",
    ("Verdict", "evidence"): "text",
}
"""Every field of an event or a wish that can hold a word. Numbers stay: deciders go by them."""

PRIVATE: dict[int, ipaddress.IPv4Network | ipaddress.IPv6Network] = {
    4: ipaddress.ip_network("10.0.0.0/8"),
    6: ipaddress.ip_network("fd00::/8"),
}
NOBODY = ("", "host")
"""The initial network namespace is called so everywhere, and deciders know it by that."""
TEXT_MAX = 400
_NUMBERS = re.compile(r"\s*-?\d+(\s+-?\d+)*\s*", re.ASCII)
_DEVICE = re.compile(r"(?<=/)(conf|neigh)/(?!all/|default/|lo/)([^/]+)(?=/)")
_PLACES = re.compile(
    r"(?P<uuid>\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b)"
    r"|(?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
    r"|(?P<mac>\b[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\b)"
    r"|(?P<ipv4>(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d))"
    r"|(?P<ipv6>(?<![\w:])[0-9a-fA-F:]*:[0-9a-fA-F:.]+(?:%[\w.-]+)?)"
    r"|(?P<path>(?<![\w/])/(?!(?:proc|sys|dev)/|etc/(?:sysctl|trimtab))[\w.+@~-]+(?:/[\w.+@~-]+)*)"
)
PEOPLE = (
    # actuators.foreign and actuators.orders name a program and an operator so.
    re.compile(r"(?P<name>\S+) \(pid \d+, uid \d+(?:, (?P<unit>[^)]+))?\)"),
    re.compile(r"\b(?:held|confirmed|reverted|rolled back|released) by (?P<name>[\w.@+-]*\w)"),
    re.compile(r"/(?:home|Users)/(?P<name>[^/\s:]+)"),
)


def people(text: str) -> set[str]:
    """The names that a sentence tells by how it is made."""
    found = (each for pattern in PEOPLE for match in pattern.finditer(text) for each in match.groupdict().values())
    return {name for name in found if name and name != "trimtab"}


class Words:
    """Replaces words, the same by the same, by a key that nobody keeps."""

    def __init__(self, key: bytes, known: Iterable[str]) -> None:
        """known: names of hosts, namespaces, programs and people, wherever they stand in a text."""
        self._key = key
        self._prefixes: dict[str, str] = {}
        longest = sorted({name for name in known if name not in NOBODY}, key=lambda name: (-len(name), name))
        # With a domain behind it; not within another word.
        names = "|".join(map(re.escape, longest))
        self._known = re.compile(rf"(?<![\w-])(?:{names})(?:\.[a-zA-Z][\w-]*)*(?![\w-])") if longest else None

    def put(self, how: How, word: str) -> str:
        """What stands there instead."""
        match how:
            case "name":
                return word if word in NOBODY else self._alias("name", word)
            case "boot":
                return self.boot(word)
            case "sysctl":
                return _DEVICE.sub(lambda found: f"{found[1]}/{self._alias('dev', found[2])}", word)
            case "value":
                return word if not word or _NUMBERS.fullmatch(word) else self._alias("text", word)
            case "text":
                return self.text(word)
            case "prefix" | "key":
                return self.destination(word)
            case _:
                return word

    def destination(self, word: str) -> str:
        """A prefix, alone or behind the @ of a key, as another one in a private range. Two are never made one: what a
        decider knows of each is its own. All else stays."""
        name, at, prefix = word.rpartition(AT)
        try:
            network = ipaddress.ip_network(prefix)
        except ValueError:
            return word
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._elsewhere(network)
        return name + at + self._prefixes[prefix]

    def _elsewhere(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
        whole = PRIVATE[network.version]
        size, first = network.num_addresses, int(whole.network_address)
        places, taken = max(1, whole.num_addresses // size), set(self._prefixes.values())
        at = int(self._digest("prefix", str(network))[:16], 16)
        for number in range(at, at + min(places, len(taken) + 1)):
            address = type(network.network_address)(first + number % places * size)
            found = f"{address}/{network.prefixlen}"
            if found not in taken:
                break
        return found

    def boot(self, word: str) -> str:
        """A boot id as another."""
        digits = self._digest("boot", word)
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))

    def text(self, text: str) -> str:
        """A sentence without the names that are known, and without addresses and paths."""
        text = _PLACES.sub(self._place, text)
        if self._known:
            text = self._known.sub(lambda found: self._alias("name", found[0]), text)
        return text[:TEXT_MAX]

    def _place(self, found: re.Match[str]) -> str:
        kind, word = str(found.lastgroup), found[0]
        if kind == "ipv6":
            # A time of day looks like one, too; and a sentence may end in a full stop or a colon.
            core = word.rstrip(":.") if not word.endswith("::") else word
            try:
                ipaddress.ip_address(core)
            except ValueError:
                return word
            return self._alias(kind, core) + word[len(core) :]
        return self._alias(kind, word)

    def _alias(self, kind: str, word: str) -> str:
        return f"{kind}-{self._digest('', word)[:10]}"

    def _digest(self, kind: str, word: str) -> str:
        return hmac.new(self._key, f"{kind}\0{word}".encode(), hashlib.sha256).hexdigest()
