"""How the roles are where systemd runs them: what it says of their units, in the shape of the supervisor's file.

systemd keeps each role's last STATUS, which is what the roles tell the supervisor as well: sd_notify(3).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bus.config import MODES
from bus.roles import Role
from trimtab import allowed, announce, units
from trimtab.process import printable

MARK = "units.json"
"""In the run directory: that systemd runs what is there, and what it is."""
PROPERTIES = "Id,ActiveState,SubState,Result,MainPID,NRestarts,StateChangeTimestamp,StatusText"
TIMEOUT_S = 10.0
STATES = {"active": "running", "activating": "starting", "deactivating": "stopping", "failed": "failed"}


class SystemdError(OSError):
    """systemd does not answer."""


def marked(rows: Sequence[Role], mode: str) -> bytes:
    """The content of MARK."""
    roles = [
        {
            "name": role.name,
            "unit": units.name(role),
            "oneshot": bool(role.oneshot_for),
            "allowed": None if role.oneshot_for else allowed.by_row(role),
        }
        for role in rows
    ]
    return msgspec.json.encode({"schema": "trimtab.units/v1", "mode": mode, "roles": roles})


def document(run_dir: Path) -> dict[str, Any] | None:
    """As announce.document(); None where no units run from this directory. Raises SystemdError."""
    try:
        mark = msgspec.json.decode((run_dir / MARK).read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    shown = _shown([units.LAYOUT, *(role["unit"] for role in mark["roles"])])
    layout = shown.get(units.LAYOUT, {})
    pid = int(layout.get("MainPID", 0))
    if not pid:
        return None
    rows = [_row(role, shown.get(role["unit"], {})) for role in mark["roles"]]
    said = [row["status"] for row in rows]
    return {
        "schema": announce.SCHEMA,
        "pid": pid,
        "start_ticks": announce.start_ticks(Path(f"/proc/{pid}/stat")),
        "t_ns": time.monotonic_ns(),
        "ready": all(row["state"] == "running" for row in rows if row["allowed"]),
        "mode": next((word for word in MODES if word in [each.get("mode") for each in said]), mark["mode"]),
        "roles": rows,
        "watched": _lines(said, "watched"),
        "missing": _lines(said, "missing"),
    }


def _shown(names: Sequence[str]) -> dict[str, dict[str, str]]:
    argv = ["systemctl", "show", "--timestamp=unix", f"--property={PROPERTIES}", "--", *names]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemdError(f"systemctl: {error}") from None
    if done.returncode:
        raise SystemdError(done.stderr.strip() or f"systemctl exited with {done.returncode}")
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in done.stdout.split("\n\n") if block]
    return {block["Id"]: block for block in blocks}


def _row(role: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    pid = int(shown.get("MainPID", 0))
    return {
        "name": role["name"],
        "pid": pid or None,
        "state": _state(role, shown),
        "restarts": int(shown.get("NRestarts", 0)),
        "since_ns": int(shown.get("StateChangeTimestamp", "").removeprefix("@") or 0) * 1_000_000_000,
        "status": _status(shown.get("StatusText", "")),
        "allowed": role["allowed"],
    }


def _state(role: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    active = shown.get("ActiveState", "inactive")
    if shown.get("SubState") == "auto-restart":
        return "waiting"
    if role["oneshot"] and active == "inactive":
        return "done" if shown.get("Result") == "success" else "failed"
    return STATES.get(active, "stopped")


def _status(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except (msgspec.DecodeError, RecursionError):
        return {"malformed_status": True}


def _lines(said: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    lists = [status.get(key) for status in said]
    return [printable(str(line)) for lines in lists if isinstance(lines, list) for line in lines]
