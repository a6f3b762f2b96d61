"""The promises of docs/trust.md on the real kernel: the administrator wins every race, the dead-man acts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from actuators.change import Writer
from actuators.foreign import Foreign
from actuators.leases import LEASE_NS
from actuators.parts import assemble
from actuators.records import Spot
from bus import link, roles, tunables
from bus.schema import SysctlWrite, Wish
from trimtab.lab import Lab, NetNs

pytestmark = pytest.mark.system
RMEM = "net.ipv4.tcp_rmem[2]"
DEADLINE_S = 30.0
ROUNDS = 1000
WISHES = 10_000
THRESH3 = "net.ipv4.neigh.default.gc_thresh3"
WRITER = """
import sys, time
for line in sys.stdin:
    value, delay_us = map(int, line.split())
    until = time.perf_counter_ns() + delay_us * 1000
    while time.perf_counter_ns() < until:
        pass
    with open("/proc/sys/net/ipv4/tcp_rmem", "w") as file:
        file.write(f"4096 131072 {value}")
    print(value, flush=True)
"""


def wait_for(what: Callable[[], Any], why: str) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S:.0f} s: {why}")


class Running:
    """`trimtab run` as a user starts it, in directories of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.run_dir, self.state_dir = folder / "run", folder / "state"
        (folder / "trimtab.toml").touch()
        argv = [sys.executable, "-I", "-m", "trimtab", "run", "--config", str(folder / "trimtab.toml")]
        argv += ["--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir), *options]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            wait_for(lambda: self.status().get("ready"), "trimtab is ready")
        except AssertionError:
            self.stop()
            raise

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.run_dir / "supervisor.json").read_bytes())
            return found
        return {}

    def pids(self) -> dict[str, int]:
        return {
            role["name"]: role["pid"] for role in self.status()["roles"] if role["pid"] and role["name"] != "loader"
        }

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(DEADLINE_S)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tt-trust-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def netns() -> Iterator[NetNs]:
    with Lab() as lab:
        made = lab.netns("web")
        made.sysctl("net.ipv4.tcp_rmem", "4096 131072 262144")
        yield made


def value(netns: NetNs) -> int:
    return int(netns.sysctl("net.ipv4.tcp_rmem").split()[2])


def test_of_a_thousand_foreign_writes_that_race_an_active_tuner_none_is_overwritten(folder: Path, netns: NetNs) -> None:
    # The rows' pace would let the tuner write 120 times an hour; the race is with one that writes all the time.
    rows = {name: msgspec.structs.replace(row, cooldown_s=0.0, per_hour=10**6)
            for name, row in tunables.table().items() if name == RMEM}  # fmt: skip
    running = Running(folder, "--mode", "observe")
    events = link.Subscriber(roles.events_path(running.run_dir, "collector-bpf"), "collector-bpf")
    admin = netns.popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    parts = assemble(rows, folder / "mine", lambda line: None, lambda event: None)
    writer, foreign, spot = Writer(parts, ()), Foreign(parts), Spot(RMEM, netns.cookie)
    writer.mode = "enforce"
    parts.keeper.open()
    rng = random.Random(1)
    seen: list[int] = []

    def look() -> None:
        for event in events.receive():
            if isinstance(event, SysctlWrite) and event.netns == netns.cookie:
                foreign.written(event)
                if event.pid == admin.pid:
                    seen.append(int(event.new.split()[2]))

    def wish() -> str:
        stands = parts.kernel.read(spot, netns.inode)
        want = stands + stands // 64
        about = (RMEM, netns.cookie, netns.inode, stands, want, "why", {})
        writer.handle(Wish(1, time.monotonic_ns(), 10**9, *about), "tcp_buffer")
        return parts.keeper.held(spot)

    try:
        assert admin.stdin
        assert admin.stdout
        with contextlib.suppress(AssertionError):
            wait_for(lambda: (look(), events.received)[1], "the witness is heard")
        for number in range(ROUNDS):
            theirs = 262144 + number
            admin.stdin.write(f"{theirs} {rng.randrange(1500)}\n")
            admin.stdin.flush()
            held = ""
            for _ in range(3):
                held = held or wish()
            assert admin.stdout.readline()
            wait_for(lambda theirs=theirs: (look(), theirs in seen)[1], "the write is witnessed")  # type: ignore[misc]
            stands = value(netns)
            # Between two wishes of ours a foreign write is where we start from; during one, or after, it is theirs.
            ours = parts.keeper.standing.get(spot)
            assert stands == theirs or (ours and ours.stands == stands and not parts.keeper.held(spot)), number
            if not ours:
                assert stands == theirs
            parts.keeper.release(spot)
            parts.keeper.standing.clear()
            seen.clear()
    finally:
        parts.close()
        parts.kernel.close()
        events.close()
        running.stop()


def lane_as(decider: str, run_dir: Path) -> link.WishSender:
    """A way to the actuator that was opened in the decider's name: nobody else's is taken, not even root's."""
    path = roles.wish_path(run_dir, decider)
    os.setegid(path.parent.stat().st_gid)  # the C library does so in all threads; zmq connects in one of its own
    try:
        sender = link.WishSender(path)
        sender.socket.disconnect(f"ipc://{path}")
        with sender.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            sender.socket.connect(f"ipc://{path}")
            assert monitor.poll(10_000), "the lane does not take us"
            sender.socket.disable_monitor()
    finally:
        os.setegid(0)
    return sender


def test_no_red_team_moves_a_value_out_of_its_bounds_by_the_witness_of_bpf(folder: Path, netns: NetNs) -> None:
    running = Running(folder, "--mode", "enforce", "--only", "tcp_buffer", "--netns", str(netns.cookie))
    witness = link.Subscriber(roles.events_path(running.run_dir, "collector-bpf"), "collector-bpf")
    lane = lane_as("tcp_buffer", running.run_dir)
    row = tunables.table()[RMEM]
    actuator = running.pids()["actuator"]
    rng = random.Random(7)
    wants = [row.low - 1, row.high + 1, 0, -1, 2**31 - 1, 2**31, 2**62, -(2**62), 1, 4096]
    written: list[int] = []

    def look() -> None:
        events = witness.receive(1000)
        ours = [event for event in events if isinstance(event, SysctlWrite) and event.pid == actuator]
        written.extend(int(event.new.split()[2]) for event in ours)

    try:
        for number in range(WISHES):
            stands = 262144
            want = rng.choice([*wants, rng.randrange(-(2**33), 2**33), stands + stands // 2 + 1 + rng.randrange(10**6)])
            tunable = rng.choice([RMEM, RMEM, "net.ipv4.tcp_wmem[2]", THRESH3, "kernel.panic", "../../etc/passwd"])
            where = rng.choice([netns.cookie, netns.cookie, 0, 1, 2**63])
            believed = rng.choice([stands, want, 0])
            shape = (tunable, where, netns.inode, believed, want, f"lie {number}", {"drops": 10**9})
            lane.send(Wish(1, time.monotonic_ns() - rng.choice([0, 10**10]), 10**9, *shape))
            if number % 200 == 0:
                time.sleep(0.02)
                look()
        # One good wish at the end shows that the lane is alive and all before it has been dealt with.
        wait_for(lambda: _good(lane, netns) or value(netns) == 393216, "an honest wish is granted")
        wait_for(lambda: (look(), 393216 in written)[1], "the witness has seen it")
        assert lane.dropped < WISHES // 2
        assert all(row.low <= one <= row.high for one in written)
        assert set(written) == {393216}
    finally:
        lane.close()
        witness.close()
        running.stop()
    assert value(netns) == 262144


def _good(lane: link.WishSender, netns: NetNs) -> None:
    lane.send(Wish(1, time.monotonic_ns(), 10**9, RMEM, netns.cookie, netns.inode, 262144, 393216, "honest", {}))
    time.sleep(0.2)


@pytest.mark.long
def test_with_every_other_process_dead_the_dead_man_ends_a_trial_at_its_lease(folder: Path, netns: NetNs) -> None:
    running = Running(folder, "--mode", "enforce", "--netns", str(netns.cookie))
    try:
        sender = lane_as("tcp_buffer", running.run_dir)
        wish = Wish(1, time.monotonic_ns(), 10**10, RMEM, netns.cookie, netns.inode, 262144, 393216, "why", {})
        sender.send(wish)
        wait_for(lambda: value(netns) == 393216, "the wish is granted")
        sender.close()
        pids = running.pids()
        deadman = pids.pop("deadman")
        victims = [*pids.values(), running.process.pid]
        # Stopped first: else the actuator would put things back in order when the supervisor dies.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                os.kill(pid, number)
        killed_s = time.monotonic()
        wait_for(lambda: time.monotonic() - killed_s > 20, "20 s have passed")
        assert value(netns) == 393216
        wait_for(lambda: value(netns) == 262144, "the dead-man acts")
        assert time.monotonic() - killed_s < LEASE_NS / 1e9 + 5  # the promise is 1 s; this machine may be busy
        wait_for(lambda: not Path(f"/proc/{deadman}/cmdline").exists() or not _runs(deadman), "the dead-man is done")
    finally:
        running.stop()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
