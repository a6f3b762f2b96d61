"""A trimtab of one's own for a while, fenced to some namespaces, in a directory that goes when it does.

    with Instance("enforce", "tcp_buffer", [cookie]) as trimtab:
        trimtab.wait_ready()
        trimtab.changes()

Between the caller and `trimtab run` stands a keeper, a process of its own: it sees the caller end, however that ends,
has trimtab undo its changes and stop, waits for the last of its processes, and removes the directory.

    python -I -m trimtab.instance MODE DECIDER COOKIE[,COOKIE...]
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from actuators.history import history
from actuators.records import Change
from actuators.state_dir import JournalError
from trimtab.enter import checked, die_with, libc

PR_SET_CHILD_SUBREAPER = 36
PLACES = ("/run", tempfile.gettempdir())
READY_S = 20.0
STOP_S = 20.0
"""Longer than the supervisor gives its own roles to stop."""
TAIL_LINES = 5


class InstanceError(OSError):
    """trimtab did not start, or did not stay: with the last that it said."""


class Instance:
    """A running trimtab. A context manager; stop() may be called more than once."""

    def __init__(self, mode: str, decider: str, cookies: Sequence[int]) -> None:
        argv = [sys.executable, "-I", "-m", "trimtab.instance", mode, decider, ",".join(map(str, cookies))]
        # Its own process group: Ctrl-C is for the caller, who then stops it in order.
        self._keeper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0, text=True)
        assert self._keeper.stdout
        self.folder = Path(self._keeper.stdout.readline().rstrip("\n"))
        if not self.folder.name:
            self._keeper.communicate()
            raise InstanceError("there is no place for trimtab's files")
        self._log = (self.folder / "log").open("rb")

    @property
    def keeper_pid(self) -> int:
        """The process between us and it."""
        return self._keeper.pid

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_ready(self) -> None:
        """Return when all roles are up. InstanceError when that takes too long or fails."""
        deadline_s = time.monotonic() + READY_S
        while not self._ready():
            if self._keeper.poll() is not None or time.monotonic() > deadline_s:
                raise InstanceError(f"trimtab did not get ready: {self._last_words()}")
            time.sleep(0.05)

    def changes(self) -> list[Change]:
        """The history so far: what was changed, or in mode advise would have been. InstanceError when it has ended."""
        if self._keeper.poll() is not None:
            raise InstanceError(f"trimtab has ended: {self._last_words()}")
        try:
            # What is just about to be made is told of when it is.
            return [change for change in history(self.folder / "state") if change.state != "intent"]
        except JournalError as error:
            if error.errno != errno.ENOENT:
                raise
            return []

    def stop(self) -> None:
        """Have it undo what it changed and end; return when all of it is gone."""
        for pipe in (self._keeper.stdin, self._keeper.stdout, self._log):
            if pipe:
                pipe.close()
        self._keeper.wait()

    def _ready(self) -> bool:
        try:
            return json.loads((self.folder / "run" / "supervisor.json").read_bytes())["ready"] is True
        except FileNotFoundError:
            return False

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "; ".join(lines[-TAIL_LINES:]) or "it said nothing"


def main(argv: Sequence[str]) -> int:
    """Be the keeper: run trimtab until it ends or our stdin closes, and clear away what it leaves. Its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # What the supervisor leaves when it is killed becomes ours to wait for.
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
    place = next(place for place in PLACES if os.access(place, os.W_OK))
    with tempfile.TemporaryDirectory(prefix="trimtab-demo-", dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the roles' users must get to their sockets
        (folder / "trimtab.toml").touch()
        (folder / "log").touch()
        sys.stdout.write(f"{folder}\n")
        sys.stdout.flush()
        pid = _start(folder, *argv)
        try:
            select.select([sys.stdin, os.pidfd_open(pid)], [], [])
        finally:
            _end(pid)
    return 0


def _start(folder: Path, mode: str, decider: str, cookies: str) -> int:
    argv = [sys.executable, "-I", "-m", "trimtab", "run", "--mode", mode, "--only", decider, "--netns", cookies]
    argv += ["--config", f"{folder}/trimtab.toml", "--run-dir", f"{folder}/run", "--state-dir", f"{folder}/state"]
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        # Should the keeper itself be killed, trimtab stops in order all the same.
        die_with(keeper, signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, file in enumerate(("/dev/null", f"{folder}/log", f"{folder}/log")):
            os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
        os.execv(argv[0], argv)
    return pid


def _end(pid: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(pid, signal.SIGTERM)  # nobody has waited for it yet, so that the number is still its own
    deadline_s = time.monotonic() + STOP_S
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
            if time.monotonic() > deadline_s:
                for child in children():
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)


def children() -> Iterator[int]:
    """The processes whose parent this one is. (The kernel's own list is there with CONFIG_PROC_CHILDREN alone.)"""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc_pid_stat(5): the parent is the fourth field; the command before it may hold anything.
            number, fields = stat.parent.name, stat.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == os.getpid():
                yield int(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
