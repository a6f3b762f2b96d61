"""The demo as a user starts it, and that nothing of it stays, whatever ends it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from actuators.journal import Journal
from actuators.records import Change, Intent, Site, Spot
from trimtab import demo, demo_view
from trimtab.demo import LIMIT_BYTES, PATH, Stage
from trimtab.demo_view import View
from trimtab.instance import PLACES, Instance, InstanceError
from trimtab.lab import Lab

TIMEOUT_S = 30.0
TRIMTAB = [sys.executable, "-I", "-m", "trimtab"]


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {TIMEOUT_S:.0f} s: {what}"
        time.sleep(0.05)


def folders() -> set[Path]:
    return {path for place in PLACES for path in Path(place).glob("trimtab-demo-*")}


def running(folder: Path) -> list[str]:
    """The other processes that have to do with that directory: all of trimtab's have it in their command or files."""
    return [process.name for process in Path("/proc").glob("[0-9]*") if str(folder) in _traces(process)]


def _traces(process: Path) -> str:
    found = []
    if process.name != str(os.getpid()):
        with contextlib.suppress(OSError):
            found.append((process / "cmdline").read_bytes().decode())
        for fd in glob(f"{process}/fd/*"):  # Path.glob minds a process that ends meanwhile
            with contextlib.suppress(OSError):
                found.append(os.readlink(fd))
    return "\n".join(found)


def sysctls() -> dict[str, str]:
    """The host's own TCP limits."""
    return {key: Path("/proc/sys/net/ipv4", key).read_text() for key in ("tcp_rmem", "tcp_wmem")}


def change(**given: Any) -> Change:
    fields: dict[str, Any] = dict.fromkeys(Change.__struct_fields__, 0)
    words = {"boot_id": "b", "scope": "netns", "netns_name": "", "decider": "tcp_buffer", "detail": "", "advice": ""}
    return Change(**fields | words | {"evidence": {}, "tai_known": True} | given)


@pytest.mark.system
def test_the_demo_shows_the_gain_and_touches_nothing_of_the_hosts() -> None:
    before = sysctls(), folders(), sorted(os.listdir("/sys/class/net"))
    done = subprocess.run([*TRIMTAB, "demo", "--seconds", "16", "--json"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (sysctls(), folders(), sorted(os.listdir("/sys/class/net"))) == before
    figures = json.loads(done.stdout)
    advise, enforce, by_hand = figures["stages"]
    # What a window of 256 KiB lets pass in 40 ms (more where the relay had to wait for the processor: what has waited
    # for that long goes on at once), and what the path does.
    assert 0 < figures["before_mbit"] < 1.5 * LIMIT_BYTES * 8 / 0.040 / 1e6
    assert figures["before_mbit"] * 3 < figures["by_hand_mbit"] < 1.05 * PATH.rate_mbit
    assert figures["gain"] > 1.2
    assert {row["state"] for row in advise["changes"]} == {"advised"}
    assert set(advise["limits"].values()) == {LIMIT_BYTES}
    assert {row["tunable"] for row in enforce["changes"]} == {"net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"}
    assert all(row["why"] for row in enforce["changes"])
    # Where others keep the processors busy the path loses packets, and a step may go back.
    assert {"trial"} <= {row["state"] for row in enforce["changes"]} <= {"trial", "reverted"}
    assert min(enforce["limits"].values()) > LIMIT_BYTES
    assert by_hand["changes"] == []
    for words in ("[1/3]", "would set", "[2/3]", ": set net.ipv4.", "Mbit/s", "put both limits back", "x before"):
        assert words in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.system
@pytest.mark.parametrize(("how", "code"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_nothing_of_the_demo_is_left_when_it_is_ended_early(how: str, code: int) -> None:
    before = folders()
    argv = [*TRIMTAB, "demo", "--seconds", "100"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(argv, text=True, process_group=0, **pipes) as process:
        assert process.stdout is not None
        while "would set" not in process.stdout.readline():
            assert process.poll() is None
        (folder,) = folders() - before
        assert len(running(folder)) >= 5
        # As a terminal does it for Ctrl-C: to the whole group.
        os.killpg(process.pid, signal.Signals[how])
        last = process.stdout.read()
    assert process.returncode == code
    assert "Traceback" not in last
    assert ("nothing is left behind" in last) == (how != "SIGKILL")
    eventually(lambda: not folder.exists(), "its directory goes")
    eventually(lambda: not running(folder), "its processes end")


@pytest.mark.system
def test_an_instance_gets_ready_and_takes_its_directory_along() -> None:
    with Lab() as lab, Instance("observe", "tcp_buffer", [lab.netns().cookie]) as trimtab:
        trimtab.wait_ready()
        assert json.loads((trimtab.folder / "run" / "supervisor.json").read_bytes())["mode"] == "observe"
        assert trimtab.changes() == []
        assert len(running(trimtab.folder)) >= 5
        log = (trimtab.folder / "log").open()
    assert not trimtab.folder.exists()
    assert not running(trimtab.folder)
    with log:
        assert "SIGTERM: stopping" in log.read()


@pytest.mark.system
def test_trimtab_stops_in_order_also_when_its_keeper_is_killed() -> None:
    with Lab() as lab:
        trimtab = Instance("observe", "tcp_buffer", [lab.netns().cookie])
        try:
            trimtab.wait_ready()
            os.kill(trimtab.keeper_pid, signal.SIGKILL)
            eventually(lambda: not running(trimtab.folder), "all of it ends")
            assert "SIGTERM: stopping" in (trimtab.folder / "log").read_text()
            with pytest.raises(InstanceError, match="has ended"):
                trimtab.changes()
        finally:
            trimtab.stop()
            subprocess.run(["rm", "-r", str(trimtab.folder)], check=True)


@pytest.mark.system
def test_the_directory_of_an_instance_stays_until_its_last_process_has_ended() -> None:
    with Lab() as lab, Instance("observe", "tcp_buffer", [lab.netns().cookie]) as trimtab:
        trimtab.wait_ready()
        status = json.loads((trimtab.folder / "run" / "supervisor.json").read_bytes())
        (actuator,) = [role["pid"] for role in status["roles"] if role["name"] == "actuator"]
        os.kill(actuator, signal.SIGSTOP)
        os.kill(status["pid"], signal.SIGKILL)
        eventually(lambda: len(running(trimtab.folder)) <= 2, "all but the actuator and the keeper end")
        assert trimtab.folder.exists()
        os.kill(actuator, signal.SIGCONT)
        eventually(lambda: not trimtab.folder.exists(), "its directory goes")
        assert not Path(f"/proc/{actuator}").exists()
        eventually(lambda: trimtab._keeper.poll() is not None, "the keeper ends")
        with pytest.raises(InstanceError, match="has ended"):
            trimtab.changes()


@pytest.mark.system
def test_a_trimtab_that_does_not_start_is_reported_with_its_last_words() -> None:
    with Instance("observe", "no_such_decider", [1]) as trimtab, pytest.raises(InstanceError, match="no_such_decider"):
        trimtab.wait_ready()
    assert not trimtab.folder.exists()


class Meddler:
    """Stands in for trimtab in advise; changes limits all the same, as a second instance would."""

    lab: Lab

    def __init__(self, mode: str, decider: str, cookies: Sequence[int]) -> None:
        self.cookies = cookies

    def __enter__(self) -> Meddler:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def wait_ready(self) -> None:
        pass

    def changes(self) -> list[Change]:
        return []


@pytest.mark.system
def test_the_demo_stops_when_somebody_else_changes_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = demo._joined
    ends: list[Any] = []

    def spied(lab: Lab, limit_bytes: int) -> Any:
        ends.extend(joined(lab, limit_bytes))
        return tuple(ends)

    def meddle(self: Meddler) -> None:
        ends[0].sysctl("net.ipv4.tcp_wmem", "4096 16384 524288")

    monkeypatch.setattr(demo, "_joined", spied)
    monkeypatch.setattr(demo, "Instance", Meddler)
    monkeypatch.setattr(Meddler, "wait_ready", meddle)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(demo.MeddlingError):
        demo.show(2, True)


def limits(wmem: int, rmem: int) -> dict[str, int]:
    return {"net.ipv4.tcp_wmem[2]": wmem, "net.ipv4.tcp_rmem[2]": rmem}


STAGES = [
    Stage("advise", 8, 100.0, 33.0, [(1.0, 33.0)], [], limits(1 << 18, 1 << 18)),
    Stage(
        "enforce", 22, 200.0, 396.0, [(1.0, 33.0), (9.0, 396.0)],
        [change(t_ns=202_500_000_000, tunable="net.ipv4.tcp_rmem[2]", netns=7, old=1, new=2, why="w", state="trial")],
        limits(5 << 20, 1500),
    ),
    Stage("by hand", 10, 300.0, 400.0, [(1.0, 400.0)], [], limits(16 << 20, 16 << 20)),
]  # fmt: skip


def test_the_figures_compare_with_before_and_with_by_hand() -> None:
    figures = demo.document(STAGES)
    assert (figures["gain"], figures["share_of_by_hand"]) == (12.0, 0.99)
    assert figures["stages"][1]["changes"][0]["after_s"] == 2.5


def test_figures_without_anything_to_compare_with_are_left_out() -> None:
    nothing = [Stage(name, 1, 0.0, 0.0, []) for name in ("advise", "enforce", "by hand")]
    figures = demo.document(nothing)
    assert (figures["gain"], figures["share_of_by_hand"]) == (None, None)
    assert demo_view.ratios(1.0, 0.0, 0.0) == ("", "")


def shown(monkeypatch: pytest.MonkeyPatch, encoding: str, stages: Sequence[Stage] = STAGES) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(
        demo_view, "Console", lambda **options: Console(file=file, width=80, **options | {"stderr": False})
    )
    with View(as_json=False) as view:
        view.begin(PATH, LIMIT_BYTES)
        view.stage("enforce")
        for at_s in (0.5, 1.0, 2.5, 3.0):
            view.sample(at_s, 8.0, 33.0)
        view.change(change(tunable="k", old=LIMIT_BYTES, new=3 << 19, why="full " * 30, state="trial"), 1.0, "sender")
        view.change(change(tunable="k", old=3 << 19, new=LIMIT_BYTES, why="queue", state="ceded"), 2.0, "sender")
        view.put_back(False, LIMIT_BYTES)
        view.report(stages)
    file.seek(0)
    return file.read()


def test_a_change_that_is_just_being_made_is_not_told_of_twice(tmp_path: Path) -> None:
    spot = Spot("net.ipv4.tcp_rmem[2]", 7)
    with contextlib.closing(Journal(tmp_path / "state", "a-boot")) as journal:
        journal.intend(Intent(spot, Site(), "tcp_buffer", 1, 2, "why", {}, 1))
        running = Instance.__new__(Instance)
        running.folder, running._keeper = tmp_path, cast("Any", SimpleNamespace(poll=lambda: None))
        assert running.changes() == []
        journal.settle(spot, (1,), "trial", "", 2)
        assert [change.id for change in running.changes()] == [1]


def test_a_pipe_gets_whole_lines_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, "utf-8")
    assert "\x1b" not in text
    assert "  1.0 s sender: set k 256 KiB -> 1.5 MiB: " + "full " * 30 in text
    assert "  2.0 s sender: ceded k 1.5 MiB -> 256 KiB: queue\n" in text
    # One line of progress in two seconds.
    assert text.count(" s of 8 ") == 1
    assert "not put back" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("with trimtab")]
    assert row == ["with", "trimtab", "5", "MiB", "1.465", "KiB", "396.0", "12.0", "99%"]


def test_a_machine_that_is_too_busy_is_said_to_be_and_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (35.12, 0, 0))
    busy = [*STAGES[:2], replace(STAGES[2], mbit=31.2)]
    assert demo.document(busy)["too_busy"]
    text = shown(monkeypatch, "utf-8", busy)
    said = "too busy to show anything: even by hand 31 of the path's 400 Mbit/s came through (load 35.1, "
    assert text.splitlines()[-1].startswith(said)
    (row,) = [line.split() for line in text.splitlines() if line.startswith("with trimtab")]
    assert row[-1] == "396.0"
    assert not demo.document(STAGES)["too_busy"]
    assert "too busy" not in shown(monkeypatch, "utf-8")


def test_where_only_ascii_is_to_be_had_the_plot_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "    400|" in shown(monkeypatch, "ascii")
    assert "    400│" in shown(monkeypatch, "utf-8")
