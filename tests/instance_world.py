"""An instance of trimtab as an operator starts it, for the system tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Trimtab:
    """An instance in directories of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.dirs = ("--run-dir", str(place / "run"), "--state-dir", str(place / "state"))
        self.log = place / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: tuple[str, ...] = ()

    def start(self, *arguments: str) -> None:
        """Run it, and return when it is ready."""
        config = self.place / "trimtab.toml"
        config.touch()
        said = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "trimtab", "run", "--config", str(config), *self.dirs, *arguments],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT,
            )  # fmt: skip
        self.until(lambda: "ready in " in self.log.read_text()[said:], "ready")

    def until(self, true: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not true():
            assert self.process
            if time.monotonic() > deadline_s or self.process.poll() is not None:
                pytest.fail(f"never: {what}\n{self.log.read_text()}")
            time.sleep(0.02)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trimtab", *arguments, *self.dirs]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)

    def documents(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def status(self) -> dict[str, Any]:
        return self.documents("status")[0]

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.status()["roles"]}

    def pids(self) -> dict[str, int]:
        """Of the daemons."""
        return {row["name"]: row["pid"] for row in self.document()["roles"] if row["name"] != "loader"}

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.place / "run/supervisor.json").read_bytes())
        return document

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def kill_all(self) -> None:
        """Everything at once: all are stopped before the first one dies, so that none can act on another's end."""
        assert self.process
        pids = (self.process.pid, *self.pids().values())
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        self.process.wait()
        while any(alive(pid) for pid in pids):
            time.sleep(0.02)


def alive(pid: int) -> bool:
    """Not gone, and not a zombie that waits for whoever has taken it over: proc_pid_stat(5), field 3."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def instance() -> Iterator[Trimtab]:
    """In a place that every user can walk through, which pytest's own are not."""
    place = Path(tempfile.mkdtemp(prefix="trimtab-test-", dir="/tmp"))
    place.chmod(0o755)
    made = Trimtab(place)
    try:
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.process.wait(15)
            made.process.kill()
            made.process.wait()
        shutil.rmtree(place)
