"""Words of somebody else's choosing, fit to be shown: valid, and without control characters."""

from __future__ import annotations

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
_IN_VALUES = {code: shown for code, shown in _CONTROL.items() if chr(code) not in "\t\n"}


def word(raw: bytes) -> str:
    """A C string."""
    return raw.partition(b"\0")[0].decode(errors="replace").translate(_CONTROL)


def value(raw: bytes) -> str:
    """The same for a sysctl's value, which may hold tabs and lines; without the newline at its end."""
    return raw.partition(b"\0")[0].decode(errors="replace").rstrip("\n").translate(_IN_VALUES)
