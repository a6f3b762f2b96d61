"""A trimtab to be measured: started as a user would, in directories of its own, stopped in order. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from bus import link, roles

READY_S = 60.0
STOP_S = 20.0


@contextlib.contextmanager
def running(*options: str) -> Iterator[Path]:
    """`trimtab run OPTIONS`, ready: yields the directory with its `run` and `state`. TimeoutError when it is not."""
    with tempfile.TemporaryDirectory(prefix="tt-bench-", dir="/run") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the roles' users must get to their sockets
        (folder / "trimtab.toml").touch()
        argv = [sys.executable, "-I", "-m", "trimtab", "run", "--config", f"{folder}/trimtab.toml"]
        argv += ["--run-dir", f"{folder}/run", "--state-dir", f"{folder}/state", *options]
        with (folder / "log").open("w") as log, subprocess.Popen(argv, stdout=log, stderr=log) as trimtab:
            try:
                wait_ready(folder / "run")
                yield folder
            finally:
                trimtab.terminate()
                trimtab.wait(STOP_S)


def wait_ready(run_dir: Path) -> dict[str, Any]:
    """The supervisor's status once it is ready. TimeoutError."""
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(FileNotFoundError):
            status: dict[str, Any] = json.loads((run_dir / "supervisor.json").read_bytes())
            if status["ready"]:
                return status
        time.sleep(0.01)
    raise TimeoutError(f"trimtab was not ready within {READY_S:.0f} s; see {run_dir.parent}/log")


def end_in_order() -> None:
    """SIGTERM, too, puts back what is not ours, and ends what we have started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def need_root() -> None:
    """Exit 77 with one line unless root."""
    if os.geteuid():
        sys.exit("needs root")


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def lane_as(decider: str, run_dir: Path) -> link.WishSender:
    """A way to the actuator that was opened in the decider's name: nobody else's is taken, not even root's."""
    path = roles.wish_path(run_dir, decider)
    os.setegid(path.parent.stat().st_gid)  # the C library does so in all threads; zmq connects in one of its own
    try:
        sender = link.WishSender(path)
        sender.socket.disconnect(f"ipc://{path}")
        with sender.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            sender.socket.connect(f"ipc://{path}")
            if not monitor.poll(10_000):
                raise TimeoutError(f"{path} does not take us")
            sender.socket.disable_monitor()
    finally:
        os.setegid(0)
    return sender
