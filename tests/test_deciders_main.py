"""A decider as a process, on real lanes, and what keeps a module from being one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus import landlock, roles, sandbox
from bus.config import Config, ConfigError
from bus.link import Publisher, WishIntake
from bus.schema import AnyEvent, Beat, NeighEntries, NeighTable, Tick, Wish
from deciders import neigh_table, tcp_buffer
from deciders.__main__ import load, main, shape

PATIENCE_S = 20.0
REPOSITORY = Path(roles.__file__).parents[1]
SEC = 1_000_000_000


class Stage:
    """A run directory with every publisher, the intake of a decider and its service manager; then the decider."""

    def __init__(self, base: Path, decider: str) -> None:
        self.base = base
        self.decider = decider
        self.run_dir = base / "run"
        for role in roles.publishers():
            (self.run_dir / role).mkdir(parents=True)
        (self.run_dir / "wish" / decider).mkdir(parents=True)
        self.config = base / "config.json"
        self.config.write_text("{}")
        self.publishers = {name: Publisher(roles.events_path(self.run_dir, name), name) for name in roles.publishers()}
        self.intake = WishIntake(roles.wish_path(self.run_dir, decider), decider)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(base / "notify"))
        self.manager.settimeout(0.01)
        self.told: list[str] = []
        self.heard: list[Any] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "deciders", self.decider, "--run-dir", str(self.run_dir), "--config"]
        self.process = subprocess.Popen(
            [*argv, str(self.config)],
            cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(self.base / "notify")},
        )  # fmt: skip

    def until(self, true: Callable[[], object], say: Callable[[], object] = lambda: None) -> None:
        """Wait until it is so; meanwhile say() again and again, and take in what is told and wished for."""
        end_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end_s, (self.told[-3:], self.heard[-3:])
            say()
            self.heard += self.intake.receive(64)
            try:
                self.told.append(self.manager.recv(4096).decode())
            except TimeoutError:
                continue

    def publish(self, role: str, *events: AnyEvent) -> None:
        self.publishers[role].publish(events)

    def wishes(self) -> list[Wish]:
        return [one for one in self.heard if isinstance(one, Wish)]

    def status(self) -> dict[str, Any]:
        lines = [line for text in self.told for line in text.splitlines() if line.startswith("STATUS=")]
        found: dict[str, Any] = json.loads(lines[-1].removeprefix("STATUS="))
        return found

    def stop(self) -> tuple[int, str]:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        _, error = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, error

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for publisher in self.publishers.values():
            publisher.close()
        self.intake.close()
        self.manager.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="tt") as folder:  # pytest's own are too long for a socket's path
        made = Stage(Path(folder), "neigh_table")
        yield made
        made.close()


def filling() -> NeighEntries:
    return NeighEntries(time.monotonic_ns(), 2, 120, 120, 32, 64, 128, 7, 7, 3, 0)


def test_a_decider_gets_ready_wishes_for_what_events_call_for_and_stops_when_told(stage: Stage) -> None:
    stage.start()
    stage.until(lambda: any("READY=1" in text for text in stage.told))
    stage.until(stage.wishes, lambda: stage.publish("collector-bpf", filling()))
    wish = stage.wishes()[0]
    assert (wish.tunable, wish.believed, wish.want) == ("net.ipv4.neigh.default.gc_thresh3", 128, 256)
    assert stage.stop() == (0, "")


def test_every_publisher_is_heard(stage: Stage) -> None:
    stage.start()
    level = NeighTable(time.monotonic_ns(), 2, 3, 32, 64, 128, 0, 0, 0, 0)
    rates = {"n": 0}

    def say() -> None:
        rates["n"] += 1
        for role in roles.publishers():
            stage.publish(role, Tick(time.monotonic_ns(), rates["n"]), level)

    stage.until(lambda: stage.told and stage.status()["received"] >= 2 * len(roles.publishers()) * 5, say)
    assert stage.status()["gaps"] == dict.fromkeys(roles.publishers(), 0)


def test_status_counts_what_came_and_what_was_malformed_and_keeps_the_watchdog_fed(stage: Stage) -> None:
    stage.start()
    stage.until(lambda: any("READY=1" in text for text in stage.told))

    def garbage() -> None:
        stage.publishers["actuator"].socket.send(b"\xc1 no message")
        stage.publish("collector-netlink", Tick(time.monotonic_ns(), 1))

    stage.until(lambda: stage.status()["malformed"] > 0 and stage.status()["received"] > 0, garbage)
    assert all("WATCHDOG=1" in text for text in stage.told)
    assert {"received", "malformed", "gaps", "wishes", "dropped"} <= stage.status().keys()
    assert stage.process
    assert stage.process.poll() is None


def test_a_decider_that_hears_nothing_sends_no_beat_and_one_that_hears_does(stage: Stage) -> None:
    stage.start()
    stage.until(lambda: len(stage.told) >= 3)
    assert stage.heard == []
    stage.until(
        lambda: any(isinstance(one, Beat) for one in stage.heard),
        lambda: stage.publish("collector-proc", Tick(time.monotonic_ns(), 1)),
    )


def test_a_decider_works_before_anybody_else_is_there() -> None:
    with tempfile.TemporaryDirectory(prefix="tt") as folder:
        made = Stage(Path(folder), "neigh_table")
        for publisher in made.publishers.values():
            publisher.close()
        made.intake.close()
        made.start()
        made.publishers = {}
        made.intake = WishIntake(roles.wish_path(made.run_dir, made.decider), made.decider)
        made.until(lambda: any("READY=1" in text for text in made.told))
        made.publishers["collector-bpf"] = Publisher(roles.events_path(made.run_dir, "collector-bpf"), "collector-bpf")
        made.until(made.wishes, lambda: made.publish("collector-bpf", filling()))
        made.close()


HOSTILE = """
import errno, os, socket, subprocess

def refusal(do):
    try:
        do()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

tape, other = os.environ["TAPE"], os.environ["OTHER"]
raise ImportError(" ".join(refusal(do) for do in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.socket(socket.AF_NETLINK),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: open(f"{other}/x", "w"),
    lambda: open("/proc/sys/net/ipv4/tcp_rmem", "w"),
    lambda: open("/proc/self/oom_score_adj", "w"),
    lambda: open(f"{tape}/x", "w").close(),
)))
"""


def test_a_third_partys_module_is_imported_after_the_decider_has_shut_itself_in(tmp_path: Path) -> None:
    try:
        landlock.version()
    except landlock.LandlockError as error:
        pytest.skip(f"kernel: landlock: {error.strerror}")
    # As root: what is refused is refused by the sandbox, not for want of a right.
    for name in ("tape/hostile", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "hostile.py").write_text(HOSTILE)
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys; from bus import roles; from deciders.__main__ import main\n"
        "roles.BUILT_IN_DECIDERS['hostile'] = roles.BuiltIn('hostile', 'tcp')\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = ["--run-dir", str(tmp_path), "--config", str(tmp_path / "config.json"), "--tapes", str(tmp_path / "tape")]
    places = {
        "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
        "TAPE": f"{tmp_path}/tape/hostile",
        "OTHER": f"{tmp_path}/other",
    }
    run = subprocess.run(
        [sys.executable, "-c", code, "hostile", *options], env=os.environ | places, capture_output=True, text=True
    )
    assert run.returncode == 1
    complaint = "deciders: decider hostile: hostile cannot be imported: "
    assert run.stderr == f"{complaint}EPERM EPERM EPERM EACCES EACCES EACCES done\n"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """main() in this process, which it must not shut in."""
    monkeypatch.setattr(sandbox, "enter", lambda writable: sandbox.Sandbox([], []))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"policy": {"neigh_table": {"ful": 0.5}}}, "policy.neigh_table"),
        ({"policy": {"neigh_table": {"full": "most"}}}, "policy.neigh_table"),
        ({"policy": {"neigh_table": {"full": 1.5}}}, "policy.neigh_table"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], complaint: str
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(msgspec.json.encode(config))
    assert main(["neigh_table", "--run-dir", str(tmp_path), "--config", str(file)]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("deciders: ")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("here")
def test_an_unknown_decider_is_one_line_that_names_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    assert main(["nonesuch", "--run-dir", str(tmp_path), "--config", str(file)]) == 1
    error = capsys.readouterr().err
    assert "no decider 'nonesuch'; there are: " in error
    assert "tcp_buffer" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("here")
def test_a_run_directory_too_deep_for_a_socket_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    assert main(["neigh_table", "--run-dir", str(tmp_path / ("x" * 120)), "--config", str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["neigh_table", "--no-such-option"]])
def test_odd_arguments_are_one_line_and_64(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 64
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", sorted(roles.BUILT_IN_DECIDERS))
def test_every_decider_of_the_table_loads_with_defaults_for_all_its_settings(name: str) -> None:
    assert load(name, Config()).name == name


def test_a_policy_from_the_configuration_reaches_the_decider() -> None:
    decider = load("neigh_table", Config(policy={"neigh_table": {"full": 0.9}}))
    assert decider.state.policy.full == 0.9


class Fits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy."""


class Lax(msgspec.Struct):
    """Takes whatever it is given."""


GOOD: dict[str, Any] = {
    "NAME": "x",
    "TOPICS": (Tick,),
    "Policy": Fits,
    "start": lambda policy: None,
    "step": lambda state, event: (state, ()),
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"NAME": "y"}, "calls itself 'y'"),
        ({"TOPICS": ()}, "TOPICS"),
        ({"TOPICS": [Tick]}, "TOPICS"),
        ({"TOPICS": (int,)}, "TOPICS"),
        ({"TOPICS": ("Tick",)}, "TOPICS"),
        ({"TOPICS": (Wish,)}, "TOPICS"),
        ({"Policy": dict}, "Policy"),
        ({"Policy": Fits()}, "Policy"),
        ({"Policy": Lax}, "forbid_unknown_fields"),
        ({"start": 1}, "start"),
        ({"step": None}, "step"),
    ],
)
def test_a_module_that_is_no_decider_is_told_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    assert shape("x", SimpleNamespace(**GOOD)) == ""
    assert complaint in shape("x", SimpleNamespace(**(GOOD | change)))


@pytest.mark.parametrize("gone", sorted(GOOD))
def test_a_module_that_lacks_something_is_told_what(gone: str) -> None:
    assert shape("x", SimpleNamespace(**{name: what for name, what in GOOD.items() if name != gone})) == f"lacks {gone}"


def test_a_tuner_whose_module_cannot_be_imported_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roles.BUILT_IN_DECIDERS, "ghost", roles.BuiltIn("deciders.ghost", "tcp"))
    with pytest.raises(ConfigError, match=r"decider ghost: deciders\.ghost cannot be imported"):
        load("ghost", Config())


def test_a_tuner_whose_module_is_none_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roles.BUILT_IN_DECIDERS, "json", roles.BuiltIn("json", "tcp"))
    with pytest.raises(ConfigError, match=r"decider json: json lacks NAME, TOPICS, Policy, start, step"):
        load("json", Config())


@pytest.mark.parametrize("module", [neigh_table, tcp_buffer])
def test_the_built_in_deciders_have_the_shape_that_third_parties_must_have(module: Any) -> None:
    assert shape(module.NAME, module) == ""
