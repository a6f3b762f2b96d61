"""Routes of ours by the actuator as it is started, and the dead-man beside it: real lanes, signals and namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from route_world import BBR, TO4, TO6, Net, net

from actuators import history
from actuators.leases import LEASE_NS
from bus import link, roles
from bus.schema import Ask, Wish

pytestmark = pytest.mark.system
CONGCTL, CONGCTL6 = f"route.congctl@{TO4}", f"route.congctl@{TO6}"
DEADLINE_S = 30.0


def wait_for(what: Callable[[], object], why: str, within_s: float = DEADLINE_S) -> float:
    """How long it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() < begun + within_s, f"not within {within_s:.0f} s: {why}"
        time.sleep(0.005)
    return time.monotonic() - begun


class Actuator:
    """The process, and a lane to it; the dead-man, where one is wanted."""

    def __init__(self, base: Path, place: Net) -> None:
        self.place, self.run_dir, self.state_dir = place, base / "run", base / "state"
        for folder in ("actuator", "control", "wish/congestion"):
            (self.run_dir / folder).mkdir(parents=True)
        self.options = ["--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir)]
        (base / "config.json").write_text(json.dumps({"mode": "enforce", "netns": [place.cookie]}))
        self.log = base / "log"
        self.started: list[subprocess.Popen[bytes]] = []
        self.process = self.start("actuators", "--config", str(base / "config.json"))
        self.lane = link.WishSender(roles.wish_path(self.run_dir, "congestion"))
        wait_for(lambda: roles.control_path(self.run_dir).exists(), "it listens")

    def start(self, module: str, *more: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            made = subprocess.Popen([sys.executable, "-I", "-m", module, *self.options, *more], stderr=log)
        self.started.append(made)
        return made

    def gets(self, key: str, amount: int = 0) -> None:
        want = BBR if "congctl" in key else amount
        wish = Wish(1, time.monotonic_ns(), 10**10, key, self.place.cookie, self.place.inode, 0, want, "lossy", {})
        self.lane.send(wish)
        to = key.partition("@")[2]
        wait_for(lambda: "proto 116" in self.place.route(to), f"{key}; log: {self.log.read_text()}")

    def close(self) -> None:
        self.lane.close()
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def place() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture
def actuator(tmp_path: Path, place: Net) -> Iterator[Actuator]:
    with contextlib.closing(Actuator(tmp_path, place)) as made:
        yield made


def test_the_running_actuator_takes_a_stale_route_away_within_a_second(actuator: Actuator, place: Net) -> None:
    took: list[float] = []
    # Each has a cool-down of its own.
    for key in (CONGCTL, f"route.initcwnd@{TO4}", f"route.rto_min@{TO4}"):
        actuator.gets(key, 20)
        place.ip("route replace default via 10.9.0.3 dev v0 proto static metric 50")
        took.append(wait_for(lambda: not place.ours(), "ours goes"))
        place.ip("route replace default via 10.9.0.2 dev v0 proto static metric 50")
    # It looks every five seconds, too: that the kernel tells is what makes it quick.
    assert min(took) < 1.0
    assert "has changed" in actuator.log.read_text()
    assert history.counts(actuator.state_dir) == {"reverted": 3}


def test_who_deletes_ours_under_the_running_actuator_has_the_key(actuator: Actuator, place: Net) -> None:
    actuator.gets(CONGCTL)
    place.ip(f"route del {TO4} proto 116")
    wait_for(lambda: history.counts(actuator.state_dir) == {"ceded": 1}, "the key is handed off")
    assert f"hands off {CONGCTL}" in actuator.log.read_text()
    answer = link.ask(roles.control_path(actuator.run_dir), Ask("release", tunable=CONGCTL), DEADLINE_S)
    assert answer.ok, answer.lines


def test_an_orderly_stop_takes_all_of_them_away(actuator: Actuator, place: Net) -> None:
    actuator.gets(CONGCTL)
    actuator.gets(CONGCTL6)
    actuator.process.send_signal(signal.SIGTERM)
    assert actuator.process.wait(DEADLINE_S) == 0
    assert place.ours() == []


def test_off_takes_them_away_when_the_actuator_hangs(actuator: Actuator, place: Net) -> None:
    actuator.gets(CONGCTL)
    actuator.process.send_signal(signal.SIGSTOP)
    argv = [sys.executable, "-m", "trimtab", "off", *actuator.options]
    ran = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert place.ours() == []


def test_a_namespace_that_is_deleted_under_the_running_actuator_is_let_go(actuator: Actuator, place: Net) -> None:
    actuator.gets(CONGCTL)
    subprocess.run(["ip", "netns", "del", place.here], check=True)
    wait_for(lambda: history.counts(actuator.state_dir) == {"lost": 1}, "it is lost")
    # The kernel takes the other end of the link away when nobody holds the namespace any more.
    shown = ["ip", "-n", place.there, "link"]
    wait_for(lambda: "v1" not in subprocess.run(shown, capture_output=True, text=True).stdout, "it has gone")


@pytest.mark.long
@pytest.mark.timeout(240)
def test_with_all_else_dead_the_dead_man_takes_a_route_away_at_its_lease(actuator: Actuator, place: Net) -> None:
    deadman = actuator.start("actuators.deadman")
    actuator.gets(CONGCTL)
    actuator.gets(CONGCTL6)
    actuator.process.send_signal(signal.SIGKILL)
    actuator.process.wait()
    killed_s = time.monotonic()
    wait_for(lambda: time.monotonic() > killed_s + 20, "20 s have passed")
    assert place.ours() == [TO4, TO6]
    wait_for(lambda: place.ours() == [], "the dead-man acts")
    assert time.monotonic() - killed_s < LEASE_NS / 1e9 + 5  # the promise is 1 s; this machine may be busy
    assert history.counts(actuator.state_dir) == {"reverted": 2}
    os.kill(deadman.pid, signal.SIGTERM)
