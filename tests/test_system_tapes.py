"""Tapes of the real pipeline on real traffic, with roles killed, namespaces that come and go, foreign writes: each
replays byte for byte, also under another hash seed, and after everything was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from instance_world import ROOT, Trimtab, instance

from trimtab.lab import Lab, NetNs, Plan, Way

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
RMEM = "net.ipv4.tcp_rmem"
LIMITS = "4096 131072 262144"
ROUNDS = 12
"""Of some nine seconds each."""


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


def slow_pair(lab: Lab) -> tuple[NetNs, NetNs]:
    """Two namespaces with 40 ms between them and limits far too small for that."""
    a, b = lab.netns(), lab.netns()
    lab.relay(a, b, Way(delay_ms=20, rate_mbit=400))
    for netns in (a, b):
        netns.sysctl(RMEM, LIMITS)
        netns.sysctl("net.ipv4.tcp_wmem", LIMITS)
    return a, b


def start(trimtab: Trimtab, *touched: NetNs) -> None:
    """Fenced to these namespaces: other tests have theirs."""
    trimtab.start("--only", "tcp_buffer", "--netns", ",".join(str(netns.cookie) for netns in touched))


def transfer(lab: Lab, a: NetNs, b: NetNs, seconds: float) -> None:
    for _ in lab.bulk(a, b, Plan(seconds=seconds)):
        pass


def replay(trimtab: Trimtab, seed: str = "0") -> tuple[int, dict[str, object], str]:
    """Exit code, document, and what is said on stderr."""
    command = [sys.executable, "-m", "trimtab", "replay", str(trimtab.place / "state/tapes"), "--json"]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    return done.returncode, json.loads(done.stdout), done.stderr


def wishes(document: dict[str, object]) -> int:
    return sum(row["wishes"] for row in document["deciders"])  # type: ignore[attr-defined]


def live(trimtab: Trimtab, lab: Lab, seconds: float) -> None:
    """Traffic, and all that can go wrong around it."""
    a, b = slow_pair(lab)
    c, d = slow_pair(lab)
    start(trimtab, a, b, c, d)
    transfer(lab, a, b, seconds)
    os.kill(trimtab.pids()["decider-tcp"], signal.SIGKILL)
    os.kill(trimtab.pids()["collector-bpf"], signal.SIGKILL)
    passing = lab.netns()
    trimtab.until(lambda: trimtab.status()["ready"], "all roles are back")
    b.sysctl(RMEM, "4096 131072 1000000")
    transfer(lab, a, b, seconds)
    passing.close()
    transfer(lab, c, d, seconds)


def test_a_run_with_roles_killed_and_a_foreign_write_replays_byte_for_byte(trimtab: Trimtab) -> None:
    with Lab() as lab:
        live(trimtab, lab, 3.0)
        (change, *_) = trimtab.documents("history")
        assert trimtab.stop() == 0
    code, document, said = replay(trimtab)
    assert code == 0, said
    assert document["equal"]
    assert wishes(document) >= 4
    # A decider that was killed leaves a tape without an end, and no other damage.
    assert all("has no end" in line for line in said.splitlines() if "tape" in line), said
    code, again, said = replay(trimtab, "77")
    assert (code, again["equal"], wishes(again)) == (0, True, wishes(document)), said
    (told,) = trimtab.documents("explain", str(change["id"]))
    assert told["changes"][0]["story"]["event"] == change["evidence"]["event"].partition("@")[0]


def test_when_all_are_killed_what_was_recorded_replays(trimtab: Trimtab) -> None:
    with Lab() as lab:
        a, b = slow_pair(lab)
        start(trimtab, a, b)
        transfer(lab, a, b, 4.0)
        # A wish is on the disk a second later.
        time.sleep(1.5)
        trimtab.kill_all()
        code, document, said = replay(trimtab)
        assert trimtab.run("off").returncode == 0
    assert (code, document["equal"]) == (0, True), said
    assert wishes(document) >= 2
    assert said.count("has no end") == 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_minutes_of_faults_replay_byte_for_byte(trimtab: Trimtab) -> None:
    """Every role killed again and again, under load, and namespaces made and gone meanwhile."""
    stop = threading.Event()

    def harass() -> None:
        turn = 0
        while not stop.wait(7.0):
            names = sorted(name for name in trimtab.pids() if name.startswith(("decider", "collector")))
            os.kill(trimtab.pids()[names[turn % len(names)]], signal.SIGKILL)
            turn += 1

    with Lab() as lab:
        a, b = slow_pair(lab)
        start(trimtab, a, b)
        harasser = threading.Thread(target=harass)
        harasser.start()
        try:
            for _ in range(ROUNDS):
                transfer(lab, a, b, 5.0)
                c, d = slow_pair(lab)
                transfer(lab, c, d, 4.0)
                c.close()
                d.close()
        finally:
            stop.set()
            harasser.join()
        assert trimtab.stop() == 0
    code, document, said = replay(trimtab)
    assert (code, document["equal"]) == (0, True), said
    assert wishes(document) >= ROUNDS
