"""Exit codes, and which errors are told to the operator in one line, with which code."""

from __future__ import annotations

import errno
import os
import sys

FINE = 0
ERROR = 1
PENDING = 2
DEGRADED = 3
REFUSED = 4
USAGE = 64
NOT_PERMITTED = 77
INTERRUPTED = 130
"""64 and 77 are sysexits.h's EX_USAGE and EX_NOPERM, 130 the shell's for SIGINT."""


class NotPermittedError(PermissionError):
    """Something that only root may do: says what."""


def need_root(what: str) -> None:
    """Raise NotPermittedError for anybody but root."""
    if os.geteuid() != 0:
        raise NotPermittedError(f"{what} needs root; try sudo")


def expected() -> tuple[type[Exception], ...]:
    """The errors that a user or a host can cause. Only those of modules already imported can have been raised."""
    kinds: list[type[Exception]] = [OSError]
    for module, name in (
        ("bus.config", "ConfigError"),
        ("actuators.state_dir", "JournalError"),
        ("bus.tape", "TapeError"),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


def line(error: Exception) -> str:
    """The error in one line, without errno's number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def code(error: Exception) -> int:
    """77 for what another user may do, else 1."""
    denied = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM)
    return NOT_PERMITTED if denied or isinstance(error, PermissionError) else ERROR
