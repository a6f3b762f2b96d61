"""The supervisor with roles of the test's own: real processes, users, capabilities and signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.roles import GROUP, UID_BASE, Role
from trimtab import rundir
from trimtab.ear import NOBODY, Ear
from trimtab.privilege import held, names

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

FAKE = """
import json, os, posix, signal, sys, time
from bus.notify import notify

def main(argv):
    name, habit, *rest = argv
    told = []
    if habit != "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if habit == "crash":
        print("about to crash", file=sys.stderr)
        raise RuntimeError("boom")
    print("sees", *sorted({*os.environ, *map(os.fsdecode, posix.environ)}), file=sys.stderr)
    if habit == "orphan" and os.fork() == 0:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.02)
        time.sleep(0.1)
        print("after its end", file=sys.stderr, flush=True)
        os._exit(0)
    if habit == "escape":
        print("\\x1b[31mred\\x1b[0m and \\x07", file=sys.stderr)
    status = {"published": 1, "watched": [f"{name} things"], "missing": [f"{name} extras: none here"]}
    notify("READY=1", "STATUS=" + json.dumps(status))
    said = 0
    while not told:
        time.sleep({"calm": 0.25, "chatty": 0.001}.get(habit, 0.05))
        if habit != "silent":
            said += 1
            notify("WATCHDOG=1", "STATUS=" + json.dumps(status | {"said": said}))
    print(f"stopping at {time.monotonic_ns()}", file=sys.stderr, flush=True)
    for place in rest:
        with open(place, "w") as file:
            file.write("stopped in order")
    return 0

def once(argv):
    print("loaded", file=sys.stderr)
    return 3 if argv[1] == "fail" else 0
"""

DRIVER = """
import json, sys
from pathlib import Path
run_dir, rows, settings = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
from bus.roles import Role
from trimtab import process, rundir, start, supervisor
spared, send = settings.pop("spared", ""), process.Process.send
process.Process.send = lambda self, number: self.name == spared or send(self, number)
for key, value in settings.items():
    setattr(supervisor, key, value)
roles = [Role(**row) for row in rows]
rundir.prepare(run_dir)
rundir.lay_out(run_dir, roles)
sys.exit(supervisor.Supervisor(roles, run_dir, lambda role: (), "advise", start.say).run())
"""


def role(kind: str, name: str, uid_offset: int, habit: str = "good", **more: Any) -> dict[str, Any]:
    argv = more.pop("argv", (name, habit))
    return dict(name=name, module="fake_role", argv=argv, uid_offset=uid_offset, kind=kind, summary="a test's", **more)


ROLES = (
    role("actuator", "actuator", 0, capabilities=("CAP_NET_ADMIN",), publishes=True),
    role("collector", "collector-x", 90, publishes=True, capabilities=("CAP_SYS_ADMIN",)),
    role("decider", "decider-y", 91),
)


class Run:
    """A supervisor in a process of its own, and what it says."""

    def __init__(
        self, run_dir: Path, code: Path, rows: Sequence[dict[str, Any]], settings: dict[str, Any], output: int | None
    ) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_suffix(".log")
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(run_dir), json.dumps(rows), json.dumps(settings)],
                stdout=output or log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": f"{code}:{Path(rundir.__file__).parent.parent}"},
            )

    def text(self) -> str:
        return self.output.read_text()

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run_dir / rundir.STATUS).read_bytes())
        return document

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.document()["roles"] if row["name"] == name)

    def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in self.document()["roles"]}

    def until(self, true: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(FileNotFoundError):
                if true():
                    return
            time.sleep(0.02)
        pytest.fail(f"never: {what}\n{self.text()}")

    def until_said(self, words: str) -> None:
        self.until(lambda: words in self.text(), words)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can walk through, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="trimtab-test-", dir="/tmp"))
    path.chmod(0o755)
    (path / "code").mkdir(0o755)
    (path / "code/fake_role.py").write_text(FAKE)
    (path / "code/fake_mute.py").write_text("import time\ndef main(argv):\n    time.sleep(60)\n")
    (path / "code/fake_once.py").write_text("from fake_role import once as main\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def runs(place: Path) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def start(*rows: dict[str, Any], code: Path | None = None, output: int | None = None, **settings: Any) -> Run:
        started.append(Run(place / "run", code or place / "code", rows or ROLES, settings, output))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_says_once_what_is_watched_what_is_not_and_that_it_is_ready(runs: Callable[..., Run]) -> None:
    run = runs()
    run.until_said("ready in ")
    assert "mode advise, 3 roles" in run.text()
    assert "collector-x watches collector-x things" in run.text()
    assert "without collector-x extras: none here" in run.text()
    run.until(lambda: run.document()["ready"], "ready in supervisor.json")
    document = run.document()
    assert document["mode"] == "advise"
    assert [row["state"] for row in document["roles"]] == ["running"] * 3
    assert run.stop() == 0
    assert run.text().count("ready in ") == 1
    assert run.document()["ready"] is False


def test_each_role_runs_as_its_own_user_with_its_own_capabilities_and_nothing_else(runs: Callable[..., Run]) -> None:
    run = runs()
    run.until_said("ready in ")
    pids = run.pids()
    expected = {
        "actuator": (0, ("CAP_NET_ADMIN",)),
        "collector-x": (UID_BASE + 90, ("CAP_SYS_ADMIN",)),
        "decider-y": (UID_BASE + 91, ()),
    }
    for name, (uid, capabilities) in expected.items():
        allowed = held(Path(f"/proc/{pids[name]}/status"))
        assert set(allowed.uids) == set(allowed.gids) == {uid}
        assert allowed.groups == (GROUP,)
        assert names(allowed.permitted) == names(allowed.effective) == names(allowed.bounding) == capabilities
        assert (allowed.inheritable, allowed.ambient, allowed.no_new_privs) == (0, 0, True)
        assert os.getsid(pids[name]) == pids[name]
        # stdin, stdout, stderr, and the far end of its own output; nothing of the supervisor's.
        assert sorted(map(int, os.listdir(f"/proc/{pids[name]}/fd"))) == [0, 1, 2, 3]
        assert Path(f"/proc/{pids[name]}/cmdline").read_bytes().startswith(f"trimtab: {name}\0".encode())
        # Nothing of root's environment, on /proc or in Python's own copies of it.
        assert Path(f"/proc/{pids[name]}/environ").read_bytes().strip(b"\0") == b""
        run.until_said(f"{name}: sees LC_ALL NOTIFY_SOCKET PATH WATCHDOG_USEC\n")
    assert run.stop() == 0


def test_a_killed_role_comes_back_and_the_others_do_not_notice(runs: Callable[..., Run]) -> None:
    run = runs()
    run.until_said("ready in ")
    for name, before in run.pids().items():
        others = {other: pid for other, pid in run.pids().items() if other != name}
        os.kill(before, signal.SIGKILL)
        run.until_said(f"{name}: killed by SIGKILL; again in 0.1 s")
        run.until_said(f"{name}: running again, pid ")
        after = run.pids()
        assert after.pop(name) != before
        assert after == others
        assert run.row(name)["restarts"] == 1
    assert run.stop() == 0


def test_a_role_that_keeps_failing_is_tried_again_ever_more_slowly_and_said_each_time(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("collector", "collector-bad", 92, "crash", publishes=True))
    run.until_said("collector-bad: exited with 1; again in 0.8 s")
    waits = re.findall(r"collector-bad: exited with 1; again in ([0-9.]+) s", run.text())
    assert waits == ["0.1", "0.2", "0.4", "0.8"]
    assert "collector-bad: about to crash" in run.text()
    assert "collector-bad: RuntimeError: boom" in run.text()
    assert "ready in" not in run.text()
    assert run.row("collector-x")["restarts"] == 0
    assert run.stop() == 0


def test_it_stops_deciders_then_collectors_then_the_actuator(runs: Callable[..., Run]) -> None:
    run = runs()
    run.until_said("ready in ")
    assert run.stop() == 0
    ends = {name: int(t_ns) for name, t_ns in re.findall(r"(\S+): stopping at (\d+)", run.text())}
    assert ends["decider-y"] < ends["collector-x"] < ends["actuator"]
    assert {row["state"] for row in run.document()["roles"]} == {"stopped"}
    assert not (run.run_dir / rundir.NOTIFY).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_closed_terminal_stop_it_in_order_too(runs: Callable[..., Run], number: int) -> None:
    run = runs()
    run.until_said("ready in ")
    run.process.send_signal(number)
    assert run.process.wait(20) == 0
    assert run.text().count("stopping at") == 3


def test_a_role_that_will_not_stop_is_killed_a_second_interrupt_is_harmless_and_the_exit_code_tells(
    runs: Callable[..., Run],
) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "stubborn"), STOP_S=(1.0, 2.0, 10.0))
    run.until_said("ready in ")
    run.process.send_signal(signal.SIGINT)
    run.until_said("SIGINT: stopping")
    assert run.stop() == 1
    assert "SIGINT: already stopping" in run.text()
    assert "decider-z: did not stop in time; killing it" in run.text()
    assert run.text().count("stopping at") == 3


def test_a_role_that_does_not_die_keeps_the_others_from_no_orderly_stop(runs: Callable[..., Run]) -> None:
    # As one that waits for a disk that hangs, which no signal reaches.
    run = runs(STOP_S=(0.3, 5.0, 10.0), spared="decider-y")
    run.until_said("ready in ")
    assert run.stop() == 1
    text = run.text()
    assert text.count("decider-y: did not stop in time; killing it") == 1
    assert text.count("decider-y: does not die") == 1
    assert text.count("stopping at") == 2


def test_while_all_is_well_it_wakes_now_and_then_and_hears_all_the_same(runs: Callable[..., Run]) -> None:
    run = runs(*(row | {"argv": (row["name"], "calm")} for row in ROLES))
    run.until_said("ready in ")
    before, began_s = switches(run.process.pid), time.monotonic()
    run.until(lambda: run.row("decider-y")["status"].get("said", 0) > 6, "it goes on hearing")
    assert switches(run.process.pid) - before < 5 * (time.monotonic() - began_s), "twice, and once to write it down"
    os.kill(run.pids()["decider-y"], signal.SIGKILL)
    run.until_said("decider-y: running again")
    assert run.stop() == 0


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


def test_a_role_that_says_more_than_can_wait_drowns_no_other(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "chatty"), WATCHDOG_S=1.0)
    run.until(lambda: run.row("decider-z")["status"].get("said", 0) > 500, "it says a lot")
    assert "silent" not in run.text()
    assert run.stop() == 0


def test_a_silent_role_is_killed_and_started_again(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "silent"), WATCHDOG_S=0.5)
    run.until_said("decider-z: silent for 0.5 s; killing it")
    run.until_said("decider-z: running again")
    assert run.row("actuator")["restarts"] == 0
    assert run.stop() == 0


def test_only_a_roles_own_process_can_speak_for_it(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "silent"), WATCHDOG_S=1.0)
    run.until_said("ready in ")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        while "decider-z: silent" not in run.text():
            assert run.process.poll() is None
            stranger.sendto(b'WATCHDOG=1\nSTATUS={"mode": "observe"}', str(run.run_dir / rundir.NOTIFY))
            time.sleep(0.05)
    assert run.document()["mode"] == "advise"
    assert run.stop() == 0


def test_malformed_notifications_spoil_nothing(runs: Callable[..., Run], place: Path) -> None:
    (place / "code/fake_rude.py").write_text(
        "import fake_role\n"
        "from bus.notify import notify\n"
        "def main(argv):\n"
        "    for text in ('', '=', 'STATUS=', 'STATUS=[1]', 'STATUS={', 'STATUS=' + '['*9000, 'READY=2', 'X'*20000):\n"
        "        notify(text)\n"
        "    return fake_role.main(argv)\n"
    )
    run = runs(*ROLES, {**role("collector", "collector-r", 94, publishes=True), "module": "fake_rude"})
    run.until_said("collector-r watches collector-r things")
    assert run.row("collector-r")["restarts"] == 0
    assert run.stop() == 0


def test_with_the_supervisor_killed_no_role_stays_and_the_actuator_still_stops_in_order(
    runs: Callable[..., Run], place: Path
) -> None:
    mark = place / "run/actuator/mark"
    actuator = role("actuator", "actuator", 0, argv=("actuator", "good", str(mark)), publishes=True)
    run = runs(actuator, *ROLES[1:])
    run.until_said("ready in ")
    pids = run.pids().values()
    run.process.kill()
    run.process.wait()
    run.until(lambda: all(gone(pid) for pid in pids), "all roles end")
    assert mark.read_text() == "stopped in order"


def test_what_a_role_prints_cannot_drive_the_terminal(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "escape"))
    run.until_said("decider-z:  [31mred [0m and")
    assert run.stop() == 0
    assert "\x1b" not in run.text()
    assert "\x07" not in run.text()


def test_an_end_and_words_that_come_after_it_in_one_turn_are_both_taken(runs: Callable[..., Run]) -> None:
    run = runs(*ROLES, role("decider", "decider-z", 93, "orphan"))
    run.until_said("ready in ")
    run.process.send_signal(signal.SIGSTOP)
    os.kill(run.pids()["decider-z"], signal.SIGKILL)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGCONT)
    run.until_said("decider-z: running again")
    assert "decider-z: after its end" in run.text()
    assert run.stop() == 0


def test_a_message_too_long_is_none_and_the_next_is_heard(place: Path) -> None:
    ear = Ear(place / "ear.sock")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for message in (b"READY=1\n" + b"X" * 20000, b"READY=1"):
                sender.sendto(message, str(place / "ear.sock"))
        assert ear.hear() == (NOBODY, b"")
        assert ear.hear() == (os.getpid(), b"READY=1")
        assert ear.hear() is None
    finally:
        ear.close()


def test_with_nobody_left_to_read_what_it_says_roles_still_come_back(runs: Callable[..., Run]) -> None:
    run = runs(output=subprocess.PIPE)
    run.until(lambda: run.document()["ready"], "ready")
    assert run.process.stdout
    run.process.stdout.close()
    os.kill(run.pids()["collector-x"], signal.SIGKILL)
    run.until(lambda: run.row("collector-x")["restarts"] == 1 and run.document()["ready"], "it is back")
    assert run.stop() == 0


def test_stopped_for_a_while_it_blames_no_role_for_what_it_did_not_hear(runs: Callable[..., Run]) -> None:
    run = runs(WATCHDOG_S=1.0, LATE_S=0.5)
    run.until_said("ready in ")
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    run.process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert run.stop() == 0
    assert "silent" not in run.text()


def test_it_tells_its_own_service_manager_when_it_is_ready_and_when_it_stops(
    runs: Callable[..., Run], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "manager.sock"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "manager.sock"))
        run = runs()
        assert manager.recv(100) == b"READY=1"
        assert run.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_a_oneshot_runs_again_whenever_its_daemon_has_started(runs: Callable[..., Run]) -> None:
    once = {**role("collector", "once", 0), "module": "fake_once", "oneshot_for": "collector-x"}
    run = runs(*ROLES, once)
    run.until(lambda: run.row("once")["state"] == "done", "the oneshot is done")
    os.kill(run.pids()["collector-x"], signal.SIGKILL)
    run.until(lambda: run.text().count("once: loaded") == 2, "it runs again")
    assert run.stop() == 0


def test_a_oneshot_begins_with_its_daemon_and_not_only_when_that_has_spoken(runs: Callable[..., Run]) -> None:
    once = {**role("collector", "once", 0), "module": "fake_once", "oneshot_for": "collector-x"}
    mute = {**role("collector", "collector-x", 90), "module": "fake_mute"}
    run = runs(mute, once)
    run.until_said("once: loaded")
    run.until(lambda: run.row("once")["state"] == "done", "the oneshot is done")
    assert run.row("collector-x")["state"] == "starting"
    assert run.stop() == 0


def test_a_oneshot_that_fails_is_tried_a_few_times_and_then_said_to_have_failed(runs: Callable[..., Run]) -> None:
    once = {**role("collector", "once", 0, "fail"), "module": "fake_once", "oneshot_for": "collector-x"}
    run = runs(*ROLES, once)
    run.until_said("once: exited with 3; not tried again until collector-x restarts")
    run.until(lambda: run.row("once")["state"] == "failed", "failed in supervisor.json")
    assert run.document()["ready"] is True
    assert run.stop() == 0


def test_roles_import_their_code_from_below_a_closed_home(runs: Callable[..., Run], place: Path) -> None:
    home = place / "home"
    home.mkdir(0o700)
    shutil.move(place / "code", home / "code")
    (home / "code/fake_late.py").write_text("import fake_role\nmain = fake_role.main\n")
    run = runs(*({**row, "module": "fake_late"} for row in ROLES), code=home / "code")
    run.until_said("ready in ")
    assert run.stop() == 0


# --- the run directory


def test_the_run_directory_has_the_owners_and_modes_that_keep_roles_apart(place: Path) -> None:
    rows = [Role(**row) for row in ROLES]
    rundir.prepare(place / "run")
    rundir.lay_out(place / "run", rows)
    found = {
        str(path.relative_to(place / "run")): (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777)
        for path in (place / "run").rglob("*")
    }
    assert found == {
        "actuator": (0, GROUP, 0o2750),
        "collector-x": (UID_BASE + 90, GROUP, 0o2750),
        "control": (0, 0, 0o700),
        "wish": (0, 0, 0o711),
        **{f"wish/{name}": (0, UID_BASE + 91, 0o710) for name in rows[-1].argv},
    }


def _link(run: Path) -> None:
    run.rmdir()
    run.symlink_to("/")


def _strangers_wish(run: Path) -> None:
    (run / "wish").mkdir()
    os.chown(run / "wish", 1000, 0)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_link, "run: a symbolic link; refused"),
        (lambda run: run.chmod(0o777), "mode 0777 lets others write there"),
        (lambda run: run.chmod(0o1777), "mode 1777 lets others write there"),
        (lambda run: os.chown(run, 65534, 0), "belongs to user 65534"),
        (lambda run: run.parent.chmod(0o700), "mode 0700 keeps the roles' users out"),
        (lambda run: run.parent.chmod(0o775), "mode 0775 lets others write there"),
        (lambda run: (run.rmdir(), run.write_text("")), "run: not a directory"),
        (lambda run: (run / "wish").symlink_to("/etc"), "wish: not a directory of trimtab's"),
        (lambda run: (run / "control").write_text(""), "control: not a directory of trimtab's"),
        (_strangers_wish, "wish: belongs to user 1000"),
        (lambda run: (run / "actuator/deep").mkdir(parents=True), "deep: not trimtab's"),
    ],
)
def test_a_hostile_run_directory_is_refused(place: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    run = place / "run"
    run.mkdir(0o755)
    spoil(run)

    def use() -> None:
        rundir.prepare(run)
        rundir.lay_out(run, [Role(**row) for row in ROLES])

    with pytest.raises(rundir.RunDirError, match=re.escape(complaint)):
        use()


def test_what_a_role_left_in_its_own_directory_is_removed_and_never_followed(place: Path) -> None:
    rows = [Role(**row) for row in ROLES]
    victim = place / "victim"
    victim.write_text("precious")
    run = place / "run"
    rundir.prepare(run)
    rundir.lay_out(run, rows)
    (run / "collector-x/events.sock").symlink_to(victim)
    (run / "collector-x/events.lock").symlink_to(victim)
    (run / "actuator/events.lock").write_text("77")
    rundir.lay_out(run, rows)
    assert list((run / "collector-x").iterdir()) == []
    # A role of a killed supervisor may still hold it.
    assert (run / "actuator/events.lock").exists()
    assert victim.read_text() == "precious"


def test_a_planted_link_is_not_written_through(place: Path) -> None:
    victim = place / "victim"
    victim.write_text("precious")
    (place / ".status.json.new").symlink_to(victim)
    (place / "status.json").symlink_to(victim)
    rundir.write(place / "status.json", b"{}")
    assert victim.read_text() == "precious"
    assert (place / "status.json").read_bytes() == b"{}"
    assert not (place / "status.json").is_symlink()


def test_a_run_directory_too_deep_for_sockets_is_refused_in_words(place: Path) -> None:
    run = place / ("x" * 90)
    rundir.prepare(run)
    with pytest.raises(rundir.RunDirError, match="choose another --run-dir"):
        rundir.lay_out(run, [Role(**row) for row in ROLES])
