"""One role's process over all its lives: what it says of itself, how it ended, when it may start again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from bus.roles import Role
from trimtab import allowed, child

State = Literal["waiting", "starting", "running", "stopping", "stopped", "done", "failed"]
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
HEALTHY_S = 60.0
"""A process that lasted so long starts again without delay, as if it had never failed."""
LINE_BYTES = 4096
READ_BYTES = 65536


class Process:
    """A role's row and, while it lives, its process. `waiting` is back-off: it starts again at `start_s`."""

    def __init__(self, role: Role, arguments: Sequence[str], notify: Path) -> None:
        self.role = role
        self.state: State = "stopped"
        self.restarts = 0
        self.since_ns = time.time_ns()
        self.status: dict[str, Any] = {}
        """The last STATUS, as the role sent it."""
        self.start_s = 0.0
        self.seen_s = 0.0
        """CLOCK_MONOTONIC of the last sign of life."""
        self.spoken = False
        """This life has sent a message."""
        self.child: child.Child | None = None
        self._arguments = arguments
        self._notify = notify
        self.failures = 0
        """How often it ended in succession without having been healthy for long."""
        self._started_s = 0.0
        self._killed = False
        self._partial = b""

    @property
    def name(self) -> str:
        return self.role.name

    @property
    def daemon(self) -> bool:
        return not self.role.oneshot_for

    @property
    def delay_s(self) -> float:
        """How long the next start must wait."""
        return min(FIRST_DELAY_S * 2.0 ** max(0, self.failures - 1), LONGEST_DELAY_S)

    def become(self, state: State) -> None:
        self.state = state
        self.since_ns = time.time_ns()

    def start(self, now_s: float) -> child.Child:
        """Fork. OSError when there is no process to be had."""
        self.child = child.start(self.role, self._arguments, self._notify)
        self._started_s = self.seen_s = now_s
        self.spoken = self._killed = False
        self.become("starting" if self.daemon else "running")
        return self.child

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if there is one. By descriptor: a pid may already be another's."""
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.child.pidfd, number)

    def kill(self) -> bool:
        """SIGKILL, once; whether it was now."""
        first, self._killed = not self._killed, True
        self.send(signal.SIGKILL)
        return first

    def heard(self, message: bytes, now_s: float) -> bool:
        """Take one sd_notify message of this process; whether its state has changed."""
        before = self.state
        self.spoken = True
        for line in message.split(b"\n"):
            key, _, value = line.partition(b"=")
            if key in (b"READY", b"WATCHDOG", b"STATUS"):
                self.seen_s = now_s
            if key == b"STATUS":
                self._take(value)
            elif key == b"READY" and value == b"1" and self.state == "starting":
                self.become("running")
        return self.state != before

    def _take(self, status: bytes) -> None:
        try:
            self.status = msgspec.json.decode(status, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A compromised role can only spoil its own row.
            self.status = {"malformed_status": True}

    def lines(self) -> list[str]:
        """What it has said since the last call, line by line, printable, with its name in front."""
        assert self.child
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self.child.output, READ_BYTES)
        *whole, self._partial = (self._partial + said).split(b"\n")
        if len(self._partial) > LINE_BYTES:
            whole, self._partial = [*whole, self._partial[:LINE_BYTES]], b""
        return [self._labelled(line) for line in whole if line.strip()]

    def _labelled(self, line: bytes) -> str:
        text = printable(line.decode(errors="replace").rstrip())
        return text if text.startswith(f"{self.name}: ") else f"{self.name}: {text}"

    def reap(self, now_s: float) -> tuple[int, list[str]]:
        """Bury the process, which has ended: its exit code (-N: killed by signal N) and its last lines."""
        assert self.child
        _, status = os.waitpid(self.child.pid, 0)
        last = self.lines()
        if self._partial.strip():
            last.append(self._labelled(self._partial))
        os.close(self.child.pidfd)
        os.close(self.child.output)
        self.child, self._partial = None, b""
        self.failures = 1 if now_s - self._started_s >= HEALTHY_S else self.failures + 1
        return os.waitstatus_to_exitcode(status), last

    def again(self, now_s: float) -> None:
        """Let it start again, once its back-off is over."""
        self.start_s = now_s + self.delay_s
        self.restarts += 1
        self.become("waiting")

    def row(self) -> dict[str, Any]:
        """Its part of supervisor.json."""
        return {
            "name": self.name,
            "pid": self.child.pid if self.child else None,
            "state": self.state,
            "restarts": self.restarts,
            "since_ns": self.since_ns,
            "status": self.status,
            # A oneshot tells nobody when it has put its privileges away.
            "allowed": allowed.by_row(self.role) if self.daemon else None,
        }


def printable(text: str) -> str:
    """Text of a role's without control sequences: a role is less trusted than root's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exited with {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
