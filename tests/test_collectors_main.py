"""The loop that every collector runs, and the collectors as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bus import roles
from bus.link import Publisher, Subscriber
from bus.schema import AnyEvent, Counters, Netns, Tick
from collectors import loop
from collectors.__main__ import main
from collectors.loop import Loop
from collectors.source import Status

PATIENCE_S = 20.0
REPOSITORY = Path(roles.__file__).parents[1]
# As the supervisor starts a role: the code may lie where the user that it drops to cannot walk.
AS_NOBODY = """
import os, sys
sys.path[0] = os.getcwd()
from collectors.__main__ import main
from trimtab import privilege, reach
reach.anchor()
privilege.drop(65534, (), ())
sys.exit(main())
"""
FAR_NS = 10**18


class Manager:
    """A service manager: what a role has told it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.settimeout(PATIENCE_S)
        self.lines: list[str] = []

    def hear(self, start: str, nth: int = 1) -> str:
        """The nth line that starts so."""
        while True:
            found = [line for line in self.lines if line.startswith(start)]
            if len(found) >= nth:
                return found[nth - 1]
            self.lines += self._socket.recv(1 << 16).decode().splitlines()

    def status(self, nth: int = 1) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.hear("STATUS=", nth).removeprefix("STATUS="))
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    yield made
    made.close()


# --- the loop -----------------------------------------------------------------------------------------------------


class Fake:
    """A source that does as the test says."""

    def __init__(self) -> None:
        self.ready = True
        self.due_ns = 0
        self.fds: list[int] = []
        self.error: OSError | None = None
        self.said = Status(["a"], [])
        self.calls: list[frozenset[int]] = []
        self.asked = 0
        self.events: list[AnyEvent] = []

    def descriptors(self) -> Sequence[int]:
        self.asked += 1
        return self.fds

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        self.calls.append(readable)
        if self.error:
            raise self.error
        self.due_ns = t_ns + FAR_NS
        for fd in readable:
            os.read(fd, 100)
        events, self.events = self.events, []
        return events

    def status(self) -> Status:
        return self.said

    def close(self) -> None:
        return None


Running = Callable[[Fake], contextlib.AbstractContextManager[Publisher]]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Runs the loop around a source in a thread, until the block ends; ten times as fast as it is."""
    monkeypatch.setattr(loop, "STATUS_NS", 100_000_000)
    monkeypatch.setattr(loop, "PAUSE_NS", 100_000_000)

    @contextlib.contextmanager
    def run(source: Fake) -> Iterator[Publisher]:
        read, write = os.pipe()
        publisher = Publisher(tmp_path / "events.sock", "collector-x")
        thread = threading.Thread(target=Loop("collector-x", source, publisher, read).run)
        thread.start()
        try:
            yield publisher
        finally:
            os.write(write, b"x")
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            publisher.close()
            os.close(read)
            os.close(write)

    return run


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def test_events_go_out_at_the_wake_up_that_brought_them(running: Running, tmp_path: Path) -> None:
    source = Fake()
    read, write = os.pipe()
    source.fds = [read]
    heard: list[AnyEvent] = []
    with contextlib.closing(Subscriber(tmp_path / "events.sock", "collector-x")) as subscriber, running(source):
        until(lambda: source.calls)

        def told() -> bool:
            # A subscription takes a moment to arrive; until then nobody hears.
            source.events = [Tick(7, 8)]
            os.write(write, b"x")
            time.sleep(0.02)
            heard.extend(subscriber.receive())
            return bool(heard)

        until(told)
    assert set(heard) == {Tick(7, 8)}
    assert frozenset({read}) in source.calls  # and maybe one more, to tell how it goes
    os.close(read)
    os.close(write)


def test_descriptors_may_come_and_go(running: Running) -> None:
    source = Fake()
    first, second = os.pipe(), os.pipe()
    source.fds = [first[0]]
    with running(source):
        until(lambda: source.calls)
        source.fds = [second[0]]
        os.write(first[1], b"x")
        until(lambda: frozenset({first[0]}) in source.calls)
        os.write(second[1], b"x")
        until(lambda: frozenset({second[0]}) in source.calls)
        source.fds = []
        os.write(second[1], b"x")
        until(lambda: source.calls.count(frozenset({second[0]})) == 2)
        count = len(source.calls)
        os.write(second[1], b"x")
        time.sleep(0.05)
        assert len(source.calls) <= count + 1
    for fd in (*first, *second):
        os.close(fd)


def test_ready_is_told_when_the_source_is_and_not_before(running: Running, manager: Manager) -> None:
    source = Fake()
    source.ready = False
    with running(source):
        manager.hear("STATUS=", 2)
        assert "READY=1" not in manager.lines
        source.ready = True
        manager.hear("READY=1")
        manager.hear("STATUS=", 4)
    manager.hear("STOPPING=1")
    assert manager.lines.count("READY=1") == 1
    assert manager.lines.count("WATCHDOG=1") >= 4
    assert manager.lines[-1] == "STOPPING=1"


def test_status_is_one_line_of_json_with_what_the_source_says(running: Running, manager: Manager) -> None:
    source = Fake()
    source.said = Status(["a", "b"], ["c: why"], {"ring_drops": 3})
    source.events = [Tick(1, 1)] * 5
    with running(source):
        assert manager.status() == {"published": 5, "watched": ["a", "b"], "missing": ["c: why"], "ring_drops": 3}


def test_a_source_that_fails_is_left_alone_for_a_while_and_then_asked_again(
    running: Running, manager: Manager, capfd: pytest.CaptureFixture[str]
) -> None:
    source = Fake()
    read, write = os.pipe()
    os.write(write, b"x")
    source.fds = [read]  # readable all the while: it must not make the loop spin
    source.error = OSError(5, "Input/output error")
    with running(source):
        manager.hear("READY=1")
        assert manager.status()["missing"] == ["collector-x: [Errno 5] Input/output error"]
        manager.hear("STATUS=", 3)
        assert len(source.calls) <= 4
        assert source.asked <= 8
        source.error = None
        until(lambda: frozenset({read}) in source.calls)
        nth = 4
        while manager.status(nth)["missing"]:
            nth += 1
    assert capfd.readouterr().err.splitlines() == [
        "collector-x: without collector-x: [Errno 5] Input/output error",
        "collector-x: again with collector-x",
    ]
    os.close(read)
    os.close(write)


def test_what_is_missing_is_said_once_and_so_is_its_return(
    running: Running, manager: Manager, capfd: pytest.CaptureFixture[str]
) -> None:
    source = Fake()
    source.said = Status([], ["net/snmp6: No such file or directory"])
    with running(source):
        manager.hear("STATUS=", 3)
        source.said = Status([], [])
        nth = 4
        while manager.status(nth)["missing"]:
            nth += 1
    assert capfd.readouterr().err.splitlines() == [
        "collector-x: without net/snmp6: No such file or directory",
        "collector-x: again with net/snmp6",
    ]


def test_with_nothing_to_do_the_loop_sleeps(running: Running, manager: Manager) -> None:
    source = Fake()
    with running(source):
        manager.hear("STATUS=", 3)
    assert len(source.calls) <= 6


# --- as processes -------------------------------------------------------------------------------------------------


class Collector:
    """A collector as a process, and what it publishes."""

    def __init__(self, kind: str, run_dir: Path, program: Sequence[str] = ("-m", "collectors")) -> None:
        self.role = f"collector-{kind}"
        argv = [sys.executable, *program, kind, "--run-dir", str(run_dir)]
        self.process = subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        self.subscriber = Subscriber(roles.events_path(run_dir, self.role), self.role)

    def hear(self, enough: Callable[[list[AnyEvent]], bool]) -> list[AnyEvent]:
        events: list[AnyEvent] = []

        def heard() -> bool:
            events.extend(self.subscriber.receive())
            return enough(events)

        until(heard)
        return events

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        self.subscriber.close()
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for kind in ("proc", "netlink", "bpf"):
        (tmp_path / "run" / f"collector-{kind}").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def start(run_dir: Path, manager: Manager) -> Iterator[Callable[[str], Collector]]:
    made: list[Collector] = []

    def run(kind: str) -> Collector:
        made.append(Collector(kind, run_dir))
        return made[-1]

    yield run
    for collector in made:
        collector.subscriber.close()
        if collector.process.poll() is None:
            collector.process.kill()
        collector.process.communicate()


def kinds(events: list[AnyEvent]) -> set[str]:
    return {type(event).__name__ for event in events}


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_proc_says_what_it_reads_and_stops_in_order(
    start: Callable[[str], Collector], manager: Manager, number: int
) -> None:
    collector = start("proc")
    manager.hear("READY=1")
    events = collector.hear(lambda events: {"Tick", "Counters"} <= kinds(events))
    assert {event.source for event in events if isinstance(event, Counters)} >= {"net/snmp", "net/softnet_stat"}
    status = manager.status(2)
    assert isinstance(status["watched"], list)
    assert "net/netstat" in status["watched"]
    assert int(str(status["published"])) > 0
    assert collector.stop(number) == (0, "")
    manager.hear("STOPPING=1")


@pytest.mark.system
def test_netlink_tells_of_namespaces_and_tables(start: Callable[[str], Collector], manager: Manager) -> None:
    collector = start("netlink")
    manager.hear("READY=1")
    collector.hear(
        lambda events: (
            {"Netns", "Attached", "NeighTable"} <= kinds(events)
            and "host" in [event.name for event in events if isinstance(event, Netns)]
        )
    )
    assert collector.stop()[0] == 0


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that everybody can get to: pytest's own is root's alone."""
    with tempfile.TemporaryDirectory(prefix="tcm") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.system
@pytest.mark.parametrize(
    ("kind", "wanted", "without"), [("proc", "Tick", []), ("netlink", "NeighTable", ["other network namespaces"])]
)
def test_without_any_privilege_it_works_and_says_once_what_it_lacks(
    kind: str, wanted: str, without: list[str], open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = open_dir / f"collector-{kind}"
    own.mkdir()
    os.chown(own, 65534, 65534)
    manager = Manager(open_dir / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    collector = Collector(kind, open_dir, ("-c", AS_NOBODY))
    try:
        manager.hear("READY=1")
        collector.hear(lambda events: wanted in kinds(events))
        missing = manager.status(3)["missing"]
    finally:
        manager.close()
        code, said = collector.stop()
    assert isinstance(missing, list)
    assert [str(what).partition(":")[0] for what in missing] == without
    assert code == 0
    assert said.splitlines() == [f"collector-{kind}: without {what}" for what in missing]


@pytest.mark.system
def test_a_collector_that_was_killed_leaves_nothing_in_the_way_of_the_next(
    start: Callable[[str], Collector], manager: Manager
) -> None:
    first = start("proc")
    manager.hear("READY=1")
    first.stop(signal.SIGKILL)
    second = start("proc")
    manager.hear("READY=1", 2)
    second.hear(lambda events: "Tick" in kinds(events))
    assert second.stop() == (0, "")


@pytest.mark.system
def test_a_second_one_on_the_same_run_directory_says_who_was_first(
    start: Callable[[str], Collector], manager: Manager
) -> None:
    first = start("proc")
    manager.hear("READY=1")
    second = start("proc")
    _, said = second.process.communicate(timeout=PATIENCE_S)
    assert second.process.returncode == 1
    assert said.startswith(f"collector-proc: collector-proc is already running here (pid {first.process.pid} holds ")
    assert said.count("\n") == 1
    assert first.stop()[0] == 0


USAGE = {
    (): "required: kind",
    ("tea",): "invalid choice: 'tea'",
    ("proc", "--speed", "9"): "unrecognized arguments: --speed 9",
    ("proc", "--run-dir"): "expected one argument",
    ("proc", "netlink"): "unrecognized arguments: netlink",
}


@pytest.mark.parametrize("argv", USAGE, ids=" ".join)
def test_arguments_that_make_no_sense_are_one_line_and_exit_64(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 64
    said = capsys.readouterr().err
    assert USAGE[argv] in said
    assert said.startswith("collectors: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["proc", "netlink"])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("no.toml", "no.toml: no such file"),
        ("bad.toml", "unknown field `colour`"),
        ("good.toml", "events.lock: No such file or directory"),
    ],
)
def test_what_stands_in_the_way_is_one_line_and_exit_1(
    kind: str, config: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text('colour = "blue"')
    (tmp_path / "good.toml").touch()
    assert main([kind, "--run-dir", str(tmp_path / "no"), "--config", str(tmp_path / config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"collector-{kind}: ")
    assert reason in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["proc", "netlink"])
def test_no_collector_brings_in_what_it_does_not_use(kind: str) -> None:
    program = (
        "import sys\n"
        "import collectors.__main__\n"
        f"import collectors.{kind}\n"
        "print(*(set(sys.modules) & {'pyroute2', 'bcc', 'rich', 'click', 'asyncio', 'bpf', 'collectors.bpf'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
