"""Words of somebody else's choosing, fit to be shown: valid, and without control characters."""

from __future__ import annotations

import socket

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
_IN_VALUES = {code: shown for code, shown in _CONTROL.items() if chr(code) not in "\t\n"}


def word(raw: bytes) -> str:
    """A C string."""
    return raw.partition(b"\0")[0].decode(errors="replace").translate(_CONTROL)


def value(raw: bytes) -> str:
    """The same for a sysctl's value, which may hold tabs and lines; without the newline at its end."""
    return raw.partition(b"\0")[0].decode(errors="replace").rstrip("\n").translate(_IN_VALUES)


def prefix_of(family: int, address: bytes) -> str:
    """The network of a destination as routes have it: its /24, or its /48. Not by ipaddress, which takes a megabyte."""
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(socket.AF_INET, address[:3] + bytes(1))}/24"
    return f"{socket.inet_ntop(socket.AF_INET6, address[:6] + bytes(10))}/48"
