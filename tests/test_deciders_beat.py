"""A decider's process beats while it gets on, and not when it hears nothing or is stuck."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import roles
from bus.config import Config
from bus.link import Publisher, WishIntake
from bus.sandbox import Sandbox
from bus.schema import VERSION, AnyEvent, Beat, Netns, Request, Tick, Trial, Verdict
from deciders.__main__ import Live, load

PATIENCE_S = 15.0
SECOND_NS = 1_000_000_000


class Running:
    """The guard on lanes of its own, in a thread of its own."""

    def __init__(self, run_dir: Path) -> None:
        for path in (roles.events_path(run_dir, "collector-proc"), roles.wish_path(run_dir, "guard")):
            path.parent.mkdir(parents=True)
        self.publisher = Publisher(roles.events_path(run_dir, "collector-proc"), "collector-proc")
        self.intake = WishIntake(roles.wish_path(run_dir, "guard"), "guard")
        self.requests: list[Request] = []
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(run_dir,))
        self._thread.start()

    def _run(self, run_dir: Path) -> None:
        policy = {"guard": {"soak_s": 1, "window_s": 1, "worse_windows": 1}}
        live = Live(run_dir, [load("guard", Config(policy=policy))], self._stop, Sandbox([], []))
        live.run()
        live.close()

    def hear(self, seconds: float) -> list[Request]:
        """What it sends meanwhile."""
        found: list[Request] = []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            found += self.intake.receive(100)
            time.sleep(0.02)
        return found

    def until(self, kind: type[Request], events: list[AnyEvent]) -> Request:
        """The first request of this kind, while the events are said again and again."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            self.publisher.publish(events)
            for request in self.hear(0.1):
                if isinstance(request, kind):
                    return request
        raise AssertionError(f"no {kind}")

    def close(self) -> None:
        os.write(self._stopper, b"x")
        self._thread.join()
        for fd in (self._stop, self._stopper):
            os.close(fd)
        self.publisher.close()
        self.intake.close()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr("deciders.__main__.BEAT_S", 1.0)
    running = Running(tmp_path)
    yield running
    running.close()


def test_a_decider_that_hears_something_beats_and_one_that_hears_nothing_does_not(running: Running) -> None:
    assert running.hear(1.3) == []
    before_ns = time.monotonic_ns()
    beat = running.until(Beat, [Tick(1, 1)])
    assert isinstance(beat, Beat)
    assert beat.version == VERSION
    assert before_ns <= beat.t_ns <= time.monotonic_ns()
    running.hear(1.3)  # what was on its way
    assert running.hear(1.3) == []


def test_verdicts_go_out_on_the_same_lane(running: Running) -> None:
    now_ns = time.monotonic_ns()
    trial = Trial(now_ns, 3, "d", "x.y", 1, 2, 3, 4, now_ns)
    running.until(Beat, [trial])
    ticks = [Tick(now_ns + second * SECOND_NS, second) for second in range(1, 10)]
    verdict = running.until(Verdict, [*ticks[:5], trial, *ticks[5:]])
    assert isinstance(verdict, Verdict)
    assert (verdict.change, verdict.confirm) == (3, True)


def test_a_decider_that_is_stuck_in_an_event_does_not_beat(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.until(Beat, [Tick(1, 1)])
    stuck, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        stuck.set()
        go_on.wait(PATIENCE_S)

    monkeypatch.setattr("deciders.samples.Flows.forget", hang)
    running.publisher.publish([Netns(1, 5, 5, "x", False)])
    assert stuck.wait(PATIENCE_S)
    running.hear(0.1)
    for _ in range(10):
        running.publisher.publish([Tick(2, 2)])
        assert not running.hear(0.2)
    go_on.set()
    assert isinstance(running.until(Beat, [Tick(3, 3)]), Beat)
