"""The whole of trimtab on a path of its own: a change that makes nothing worse stays, one that does goes."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actuators.history import history, holds
from actuators.records import Change
from actuators.state_dir import JournalError
from trimtab.lab import Lab, NetNs, Plan, Relay, Way

pytestmark = pytest.mark.system

LIMIT_BYTES = 128 << 10
TUNABLE = "net.ipv4.tcp_wmem[2]"
POLICY = """
[policy.guard]
soak_s = 6
window_s = 1
worse_windows = {worse_windows}
baseline_s = 10
"""
PATIENCE_S = 25.0


class Running:
    """A trimtab that tunes one namespace, and is guarded."""

    def __init__(self, folder: Path, cookie: int, worse_windows: int) -> None:
        self.folder = folder
        self._log = (folder / "log").open("w+")
        (folder / "trimtab.toml").write_text(POLICY.format(worse_windows=worse_windows))
        argv = [sys.executable, "-m", "trimtab", "run", "--mode", "enforce", "--only", "tcp_buffer,guard"]
        argv += ["--netns", str(cookie), "--config", f"{folder}/trimtab.toml"]
        argv += ["--run-dir", f"{folder}/run", "--state-dir", f"{folder}/state"]
        self._process = subprocess.Popen(argv, stdout=self._log, stderr=self._log, process_group=0)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait(self, what: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not what():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.05)

    def ready(self) -> bool:
        status = self.folder / "run" / "supervisor.json"
        return status.exists() and json.loads(status.read_bytes())["ready"] is True

    def changes(self) -> list[Change]:
        try:
            return history(self.folder / "state")
        except JournalError:
            return []

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE_S)
        self._log.close()


@pytest.fixture
def ends() -> Iterator[tuple[Lab, NetNs, NetNs, Relay]]:
    """A sender whose buffer is too small for the path, and a receiver whose is not."""
    with Lab() as lab:
        a, b = lab.netns("sender"), lab.netns("receiver")
        relay = lab.relay(a, b, Way(delay_ms=20, rate_mbit=200, queue_kib=8192))
        a.sysctl("net.ipv4.tcp_wmem", f"4096 16384 {LIMIT_BYTES}")
        b.sysctl("net.ipv4.tcp_rmem", f"4096 131072 {16 << 20}")
        yield lab, a, b, relay


@pytest.fixture
def trimtab(ends: tuple[Lab, NetNs, NetNs, Relay], request: pytest.FixtureRequest) -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="tt-guard-", dir="/run"))
    folder.chmod(0o755)
    running = Running(folder, ends[1].cookie, request.param)
    try:
        running.wait(running.ready)
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def limit(netns: NetNs) -> int:
    return int(netns.sysctl("net.ipv4.tcp_wmem").split()[2])


@pytest.mark.parametrize("trimtab", [5], indirect=True, ids=["patient"])
def test_with_nothing_wrong_a_change_is_confirmed_and_stays(
    ends: tuple[Lab, NetNs, NetNs, Relay], trimtab: Running
) -> None:
    lab, a, b, _ = ends
    with contextlib.closing(lab.bulk(a, b, Plan(seconds=60, congestion="bbr"))):
        trimtab.wait(lambda: any(change.state == "confirmed" for change in trimtab.changes()))
    first = trimtab.changes()[0]
    assert (first.tunable, first.old, first.state) == (TUNABLE, LIMIT_BYTES, "confirmed")
    assert first.detail.startswith("guard: not worse in ")
    assert "retransmit_share 0 % (before: 0 %)" in first.detail
    assert not [change for change in trimtab.changes() if change.state == "reverted"], trimtab.log()
    assert limit(a) > LIMIT_BYTES


@pytest.mark.parametrize("trimtab", [3], indirect=True, ids=["quick"])
def test_losses_that_begin_with_a_change_put_it_back_and_park_its_key(
    ends: tuple[Lab, NetNs, NetNs, Relay], trimtab: Running
) -> None:
    lab, a, b, relay = ends
    with contextlib.closing(lab.bulk(a, b, Plan(seconds=60, congestion="bbr"))):
        trimtab.wait(lambda: bool(trimtab.changes()))
        relay.set(loss=0.05)
        # Steps that were made before the losses began may go after the others.
        trimtab.wait(lambda: limit(a) == LIMIT_BYTES)
    changes = trimtab.changes()
    assert {change.state for change in changes} == {"reverted"}
    assert all("retransmit_share got worse" in change.detail for change in changes), trimtab.log()
    held = [hold for hold in holds(trimtab.folder / "state") if hold.spot.netns == a.cookie]
    assert [hold.spot.tunable for hold in held if hold.why.startswith("parked: guard: ")] == [TUNABLE]
