"""`trimtab rollback`, `hold`, `release`, `mode`: orders to the running actuator or, without one, to the kernel."""

from __future__ import annotations

import fcntl
import getpass
import os
from pathlib import Path

import msgspec

from bus.link import ask
from bus.roles import control_path
from bus.schema import Answer, Ask
from trimtab import exits, show, tables

SCHEMA = "trimtab.answer/v1"
TIMEOUT_S = 30.0
"""Undoing everything reads and writes each key, and each read-back; a busy actuator finishes its turn first."""


def order(run_dir: Path, state_dir: Path, request: Ask, as_json: bool) -> int:
    """Have the request carried out, and print the answer. 0 done, 1 not all of it, 4 refused. Raises LinkError."""
    exits.need_root(f"trimtab {request.verb}")
    request = msgspec.structs.replace(request, tunable=_full_name(request.tunable), who=_who())
    if _serving(run_dir):
        answer = ask(control_path(run_dir), request, TIMEOUT_S)
    else:
        from actuators import offline

        answer = offline.order(state_dir, request)
    if as_json:
        show.as_json({"schema": SCHEMA, "ok": answer.ok, "lines": answer.lines, "data": answer.data})
    else:
        show.say("\n".join(answer.lines), hang=2)
    return _code(answer)


def _code(answer: Answer) -> int:
    if answer.ok:
        return exits.FINE
    return exits.ERROR if answer.data.get("left") else exits.REFUSED


def _serving(run_dir: Path) -> bool:
    """An actuator serves there: it holds its socket's lock. A socket alone may be a dead one's."""
    try:
        fd = os.open(control_path(run_dir).with_suffix(".lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _full_name(key: str) -> str:
    """The tunable's name; what is none stays as it is, for the actuator to refuse."""
    row = tables.find(key) if key else None
    return row.name if row else key


def _who() -> str:
    """Who gives the order, as far as sudo tells."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
