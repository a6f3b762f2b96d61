"""`trimtab status`: what the supervisor last wrote, and what the kernel says of its processes. Asks nobody."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from trimtab import allowed, announce, drops, exits, managed, rundir, show
from trimtab.allowed import Allowed
from trimtab.drops import Drop
from trimtab.process import printable

SCHEMA = "trimtab.status/v1"
STALE_NS = 10_000_000_000
"""The supervisor writes once a second; one that has not for so long is stopped or starved."""


class RoleStatus(Struct, frozen=True):
    """One role. pid, and memory in KiB, are None where there is no process, or none of the reader's to look at."""

    name: str
    pid: int | None
    state: str
    restarts: int
    rss_kib: int | None
    pss_kib: int | None
    since_ns: int
    """CLOCK_REALTIME since when it is in this state."""
    allowed: Allowed | None = None
    """What it may do; None unless it runs and that can be seen."""


class Lane(Struct, frozen=True):
    """One publisher's events. gaps: events that some decider never got."""

    published: int
    gaps: int
    ring_drops: int


class Status(Struct, frozen=True):
    """The instance of one run directory."""

    schema: str
    ready: bool
    problem: str
    """Why it is not fine, in words; empty when it is."""
    mode: str | None
    roles: list[RoleStatus]
    events: dict[str, Lane]
    changes: dict[str, int]
    """How many in each state, over all that the journal holds."""
    watched: list[str]
    missing: list[str]
    late_verdicts: int = 0
    """Verdicts that the actuator did not count: too late, about a change that had ended, or not from the guard."""
    drops: list[Drop] = []
    """What the kernel drops most, and why."""
    advice: list[str] = []
    """What no tunable can cure, but somebody can: a program's own settings."""


def read(run_dir: Path, state_dir: Path, proc: Path = Path("/proc")) -> Status:
    """The status as it stands. A run directory without an instance is a status, too: not ready."""
    try:
        document = managed.document(run_dir) or msgspec.json.decode(
            (run_dir / rundir.STATUS).read_bytes(), type=dict[str, Any]
        )
    except FileNotFoundError:
        return _absent(run_dir, state_dir, "not running")
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = {}
    if document.get("schema") != announce.SCHEMA:
        return _absent(run_dir, state_dir, f"{rundir.STATUS} is not what this version of trimtab writes")
    problem = _problem(document, proc)
    if problem == "not running":
        return _absent(run_dir, state_dir, problem)
    rows = document["roles"]
    roles = [_role(row, proc) for row in rows]
    problem = problem or _excess(roles)
    return Status(
        SCHEMA,
        document["ready"] and not problem,
        problem,
        document["mode"],
        roles,
        _lanes(rows),
        _changes(rows, state_dir),
        document["watched"],
        document["missing"],
        sum(_numbers(row["status"]).get("late_verdicts", 0) for row in rows),
        drops.told(row["status"] for row in rows),
        _advice(row["status"] for row in rows),
    )


def show_status(run_dir: Path, state_dir: Path, as_json: bool) -> int:
    """Print it. 0 when all is well, else 3."""
    found = read(run_dir, state_dir)
    if as_json:
        show.as_json(found)
    else:
        _print(found, run_dir)
    return exits.FINE if found.ready else exits.DEGRADED


def _problem(document: dict[str, Any], proc: Path) -> str:
    stat = proc / str(document["pid"]) / "stat"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if announce.start_ticks(stat) == document["start_ticks"]:
            age_ns = time.monotonic_ns() - document["t_ns"]
            if age_ns > STALE_NS:
                return f"the supervisor (pid {document['pid']}) has said nothing for {age_ns // 10**9} s"
            down = [row["name"] for row in document["roles"] if row["state"] not in ("running", "done")]
            return f"not running: {', '.join(down)}" if down else ""
    return "not running"


def _absent(run_dir: Path, state_dir: Path, problem: str) -> Status:
    return Status(SCHEMA, False, f"{problem} ({run_dir})", None, [], {}, _changes([], state_dir), [], [])


def _role(row: dict[str, Any], proc: Path) -> RoleStatus:
    name, pid, state, wanted = row["name"], row["pid"], row["state"], row.get("allowed")
    process = proc / str(pid)
    rss_kib, pss_kib = _memory(process) if pid else (None, None)
    # Until it runs it may still be on its way to what it shall be.
    may = allowed.read(process, wanted, row["status"].get("sandbox")) if wanted and state == "running" else None
    return RoleStatus(name, pid, state, row["restarts"], rss_kib, pss_kib, row["since_ns"], may)


def _excess(roles: Iterable[RoleStatus]) -> str:
    found = [f"{role.name} ({', '.join(role.allowed.more)})" for role in roles if role.allowed and role.allowed.more]
    return f"more than its row allows: {'; '.join(found)}" if found else ""


def _memory(process: Path) -> tuple[int | None, int | None]:
    """(RSS, PSS) in KiB: proc_pid_smaps(5), its roll-up."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None, None
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss:", "Pss:"))}
    return tuple(int(found[key]) if key in found else None for key in ("Rss", "Pss"))  # type: ignore[return-value]


def _lanes(rows: list[dict[str, Any]]) -> dict[str, Lane]:
    lost: dict[str, int] = {}
    for row in rows:
        for publisher, count in _numbers(row["status"].get("gaps")).items():
            lost[publisher] = lost.get(publisher, 0) + count
    return {
        row["name"]: Lane(numbers["published"], lost.get(row["name"], 0), numbers.get("ring_drops", 0))
        for row in rows
        if "published" in (numbers := _numbers(row["status"]))
    }


def _changes(rows: list[dict[str, Any]], state_dir: Path) -> dict[str, int]:
    for row in rows:
        if "changes" in row["status"]:
            return _numbers(row["status"]["changes"])
    from actuators import history
    from actuators.state_dir import JournalError

    try:
        return history.counts(state_dir)
    except JournalError:
        return {}


def _numbers(found: object) -> dict[str, int]:
    """What is a number in what a role said: it may have said anything."""
    return {key: value for key, value in found.items() if type(value) is int} if isinstance(found, dict) else {}


def _advice(statuses: Iterable[dict[str, Any]]) -> list[str]:
    """The lines in what deciders said of themselves. Programs have chosen words in them."""
    found = (status.get("advice") for status in statuses)
    return [printable(line) for lines in found if isinstance(lines, list) for line in lines if isinstance(line, str)]


def _print_allowed(roles: Iterable[RoleStatus]) -> None:
    known = [(role.name, role.allowed) for role in roles if role.allowed]
    if not known:
        return
    show.table(
        ["role", "user", "capabilities", "sandbox"],
        [[name, str(may.user), _words(may.capabilities), ", ".join(may.sandbox)] for name, may in known],
    )
    for name, may in known:
        if may.more:
            show.say(f"{name} may do more than its row allows: {_words(may.more)}", hang=2)
        if may.less:
            show.say(f"{name} does without {_words(may.less)}", hang=2)
    print()


def _words(names: Iterable[str]) -> str:
    return ", ".join(name.removeprefix("CAP_").lower() for name in names) or "none"


def _print(status: Status, run_dir: Path) -> None:
    if not status.roles:
        show.say(f"trimtab: {status.problem}")
        return
    state = f"ready, mode {status.mode}" if status.ready else f"not ready: {status.problem or 'starting or stopping'}"
    show.say(f"trimtab is {state}\n", hang=2)
    show.table(
        ["role", "pid", "state", "since", "restarts", "PSS"],
        [
            [role.name, role.pid, role.state, show.local_time(role.since_ns), role.restarts,
             show.mib(role.pss_kib)]
            for role in status.roles
        ],
    )  # fmt: skip
    known = [role.pss_kib for role in status.roles if role.pss_kib is not None]
    print(f"all roles: {show.mib(sum(known))} PSS\n" if known else "")
    _print_allowed(status.roles)
    show.table(
        ["publisher", "published", "gaps", "ring drops"],
        [[name, lane.published, lane.gaps, lane.ring_drops] for name, lane in status.events.items()],
    )
    _print_remarks(status)


def _print_remarks(status: Status) -> None:
    counted = ", ".join(f"{count} {state}" for state, count in status.changes.items() if count)
    print(f"changes: {counted or 'none'}")
    if status.late_verdicts:
        print(f"verdicts that did not count: {status.late_verdicts}")
    for drop in status.drops:
        if drop.cure and drop.per_s:
            what = f"{drop.per_s:g} packets/s, {drop.meaning} ({drop.reason}); see `trimtab drops`"
            show.say(f"dropped: {what}", hang=2)
    for line in status.advice:
        show.say(f"advice: {line}", hang=2)
    for what in status.missing:
        show.say(f"without {what}", hang=2)
