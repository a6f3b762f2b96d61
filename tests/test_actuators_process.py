"""The actuator as it is started: a process of its own, real lanes, real namespaces, real signals."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from actuators import history, offline
from bus import codec, link, roles, tunables
from bus.netns import cookie_here, inside
from bus.schema import Answer, Ask, Outcome, Value, Verdict, Wish

pytestmark = pytest.mark.system
PREFIX = f"tt-actp-{os.getpid()}-"
RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
LIMIT = 262144
DEADLINE_S = 20.0
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""What fails with a real process fails slowly: it is told as it is, not made short."""
CAPABILITIES = next(role.capabilities for role in roles.FIXED if role.name == "actuator")


class Netns:
    """A namespace of ours with both limits at LIMIT."""

    def __init__(self, name: str) -> None:
        self.name = PREFIX + name
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.handle = f"/run/netns/{self.name}"
        self.inode = os.stat(self.handle).st_ino
        self.cookie = inside(self.handle, cookie_here)
        for key in (RMEM, WMEM):
            self.write(LIMIT, key)

    def read(self, key: str = RMEM) -> int:
        return int(inside(self.handle, lambda: self._file(key).read_text()).split()[2])

    def write(self, value: int, key: str = RMEM, default: int = 131072) -> None:
        inside(self.handle, lambda: self._file(key).write_text(f"4096 {default} {value}"))

    def remove(self) -> None:
        """Remove it, and wait until the kernel has, too."""
        if os.path.exists(self.handle):
            fd: int = inside(self.handle, lambda: os.open(self._file(RMEM), os.O_RDONLY))
            subprocess.run(["ip", "netns", "del", self.name], check=True)
            with contextlib.suppress(FileNotFoundError):
                wait_for(lambda: not os.pread(fd, 10, 0), "the namespace is gone")
            os.close(fd)

    @staticmethod
    def _file(key: str) -> Path:
        return Path("/proc/sys") / key.partition("[")[0].replace(".", "/")


@pytest.fixture
def web() -> Iterator[Netns]:
    made = Netns("web")
    try:
        yield made
    finally:
        made.remove()


def wait_for(what: Callable[[], Any], why: str = "") -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"did not come true in {DEADLINE_S} s: {why or what}")


class Actuator:
    """One process and our ends of its lanes."""

    def __init__(self, base: Path, mode: str = "enforce", wrapper: tuple[str, ...] = (), **config: Any) -> None:
        self.base, self.run_dir, self.state_dir = base, base / "run", base / "state"
        for folder in ("actuator", "control", "wish/tcp_buffer", "wish/neigh_table"):
            (self.run_dir / folder).mkdir(parents=True, exist_ok=True)
        self.config = base / "config.json"
        self.config.write_text(json.dumps({"mode": mode, **config}))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(FileNotFoundError):
            (base / "notify").unlink()
        self.notify.bind(str(base / "notify"))
        self.notify.settimeout(DEADLINE_S)
        self.log = base / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, *self.command()], stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(base / "notify")}
            )
        self.events = link.Subscriber(roles.events_path(self.run_dir, "actuator"), "actuator")
        self.senders = {
            name: link.WishSender(roles.wish_path(self.run_dir, name)) for name in ("tcp_buffer", "neigh_table")
        }
        self.heard: list[str] = []
        self.seen: list[Any] = []

    def command(self, run_dir: Path | None = None, state_dir: Path | None = None) -> list[str]:
        return [
            sys.executable,
            "-I",
            "-m",
            "actuators",
            "--run-dir",
            str(run_dir or self.run_dir),
            "--state-dir",
            str(state_dir or self.state_dir),
            "--config",
            str(self.config),
        ]

    def ready(self) -> Actuator:
        while not any("READY=1" in line for line in self.heard):
            self.heard.append(self.notify.recv(65536).decode())
        return self

    def wish(self, place: Netns, want: int, key: str = RMEM, lane: str = "tcp_buffer", **more: Any) -> None:
        fields = {
            "t_ns": time.monotonic_ns(),
            "valid_ns": 10**10,
            "tunable": key,
            "netns": place.cookie,
            "netns_ino": place.inode,
            "believed": place.read(key),
            "why": "7 drops",
            "evidence": {"drops": 7},
        }
        self.senders[lane].send(Wish(1, **{**fields, **more}, want=want))

    def outcome(self, **like: Any) -> Outcome:
        """The next outcome with these fields."""

        def look() -> Outcome | None:
            self.seen += self.events.receive()
            for event in self.seen:
                if isinstance(event, Outcome) and all(getattr(event, name) == is_ for name, is_ in like.items()):
                    self.seen.remove(event)
                    return event
            return None

        found: Outcome = wait_for(look, f"outcome {like}; log: {self.log.read_text()}")
        return found

    def values(self) -> dict[str, Value]:
        """Of the host and the initial namespace, as soon as they have been told."""

        def look() -> dict[str, Value]:
            self.seen += self.events.receive()
            return {event.tunable: event for event in self.seen if isinstance(event, Value)}

        found: dict[str, Value] = wait_for(look)
        return found

    def asked_for(self, place: Netns, want: int, key: str = RMEM, **more: Any) -> Outcome:
        self.wish(place, want, key, **more)
        return self.outcome(want=want, tunable=key)

    def gets(self, place: Netns, want: int, key: str = RMEM) -> None:
        """Asks until it is written: the row has a cool-down."""
        wait_for(lambda: self.asked_for(place, want, key).verdict == "written", f"{want}; log: {self.log.read_text()}")

    def ask(self, verb: Any, **fields: Any) -> Answer:
        return link.ask(roles.control_path(self.run_dir), Ask(verb, **fields), DEADLINE_S)

    def status(self) -> dict[str, Any]:
        return dict(self.ask("status").data)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.events.close()
        self.notify.close()
        for sender in self.senders.values():
            sender.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Actuator]]:
    with contextlib.ExitStack() as stack:

        def begin(**more: Any) -> Actuator:
            made = Actuator(**{"base": tmp_path, **more})
            stack.callback(made.close)
            # A subscriber that joins late misses what was said before.
            return made.ready() if more.get("wrapper") is None else made

        yield begin


Start = Callable[..., Actuator]


# --- the life of a change ---------------------------------------------------------------------------------------------


def test_a_wish_is_written_rolled_back_held_and_released(start: Start, web: Netns) -> None:
    actuator = start()
    actuator.gets(web, 393216)
    assert (web.read(), web.read(WMEM)) == (393216, LIMIT)
    assert actuator.status()["changes"] == {"trial": 1}
    answer = actuator.ask("rollback", change=1, who="a test")
    assert answer.ok
    assert web.read() == LIMIT
    assert actuator.outcome(verdict="reverted").change == 1
    assert "rolled back by a test" in actuator.asked_for(web, 393216).reason
    assert actuator.ask("release", tunable=RMEM, netns=web.cookie).ok
    actuator.gets(web, 393216)
    assert actuator.end() == 0
    assert web.read() == LIMIT
    assert history.counts(actuator.state_dir) == {"rolled_back": 1, "reverted": 1}


def test_an_orderly_stop_tells_the_service_manager_and_the_journal(start: Start, web: Netns) -> None:
    actuator = start()
    actuator.gets(web, 393216)
    assert actuator.end(signal.SIGINT) == 0
    actuator.notify.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            actuator.heard.append(actuator.notify.recv(65536).decode())
    lines = "\n".join(actuator.heard).splitlines()
    assert [lines.count(word) for word in ("READY=1", "STOPPING=1")] == [1, 1]
    assert "WATCHDOG=1" in lines
    status = json.loads(next(line for line in lines if line.startswith("STATUS=")).removeprefix("STATUS="))
    assert status["mode"] == "enforce"
    assert status.keys() >= {"changes", "refused", "malformed", "published", "late_verdicts"}
    assert history.keys(actuator.state_dir) == []


def test_after_a_kill_the_next_start_restores_the_originals(start: Start, web: Netns) -> None:
    actuator = start()
    for want in (393216, 500000):
        actuator.gets(web, want)
    actuator.gets(web, 393216, WMEM)
    assert actuator.end(signal.SIGKILL) == -signal.SIGKILL
    assert (web.read(), web.read(WMEM)) == (500000, 393216)
    again = start()
    assert (web.read(), web.read(WMEM)) == (LIMIT, LIMIT)
    assert history.counts(again.state_dir) == {"reverted": 3}
    again.gets(web, 393216)


def test_an_order_without_an_actuator_restores_them_too(start: Start, web: Netns) -> None:
    actuator = start()
    actuator.gets(web, 393216)
    with pytest.raises(link.LinkError, match="already running"):
        offline.order(actuator.state_dir, Ask("rollback"))
    actuator.end(signal.SIGKILL)
    answer = offline.order(actuator.state_dir, Ask("rollback", who="root"))
    assert (answer.ok, answer.data) == (True, {"undone": 1, "left": 0})
    assert web.read() == LIMIT
    assert offline.order(actuator.state_dir, Ask("hold", tunable=WMEM)).ok
    held = [hold.spot.tunable for hold in history.holds(actuator.state_dir)]
    assert held == [RMEM.replace("2", "1"), RMEM, WMEM.replace("2", "1"), WMEM]
    assert offline.order(actuator.state_dir, Ask("release", tunable=RMEM)).ok
    with pytest.raises(link.LinkError, match="needs one"):
        offline.order(actuator.state_dir, Ask("status"))


def test_a_foreign_write_takes_the_key_away_within_the_next_look(start: Start, web: Netns) -> None:
    actuator = start()
    actuator.gets(web, 393216)
    web.write(300000)
    # Nobody wishes for anything: the watch finds it.
    assert actuator.outcome(verdict="ceded").value == 300000
    assert actuator.end() == 0
    assert web.read() == 300000


def test_a_namespace_that_goes_is_lost_and_nothing_else_is(start: Start, web: Netns) -> None:
    actuator = start()
    other = Netns("other")
    try:
        actuator.gets(web, 393216)
        actuator.gets(other, 393216)
        other.remove()
        gone = Wish(1, time.monotonic_ns(), 10**10, RMEM, other.cookie, other.inode, 393216, 500000, "why", {})
        actuator.senders["tcp_buffer"].send(gone)
        assert actuator.outcome(netns=other.cookie, want=500000).verdict == "refused"
        assert actuator.end() == 0
        assert web.read() == LIMIT
        assert history.counts(actuator.state_dir) == {"lost": 1, "reverted": 1}
    finally:
        other.remove()


# --- who may run ------------------------------------------------------------------------------------------------------


def test_a_second_one_says_so_in_one_line_and_the_first_works_on(start: Start, web: Netns, tmp_path: Path) -> None:
    actuator = start()
    elsewhere = tmp_path / "e"  # a socket's path may have 107 bytes
    for folder in ("run/actuator", "run/control", "run/wish/tcp_buffer", "run/wish/neigh_table"):
        (elsewhere / folder).mkdir(parents=True)
    for run_dir, state_dir in ((None, elsewhere / "state"), (elsewhere / "run", None)):
        second = subprocess.run(actuator.command(run_dir, state_dir), capture_output=True, text=True)
        assert second.returncode == 1
        assert re.fullmatch(r"actuator: (the )?actuator is already running here \(pid \d+ holds .*\)\n", second.stderr)
    actuator.gets(web, 393216)


def test_bad_arguments_and_bad_configuration_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mode": "enforce", "speed": 11}')
    for arguments, code in (
        (["--nonsense"], 64),
        (["--config", str(tmp_path / "config.json")], 1),
        (["--run-dir", str(tmp_path / "nowhere"), "--config", str(tmp_path / "ok.json")], 1),
    ):
        (tmp_path / "ok.json").write_text("{}")
        found = subprocess.run([sys.executable, "-I", "-m", "actuators", *arguments], capture_output=True, text=True)
        assert found.returncode == code
        assert re.fullmatch(r"actuator: .+\n", found.stderr)


def test_uid_0_with_the_role_s_capabilities_alone_is_enough(start: Start, web: Netns) -> None:
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in CAPABILITIES)
    # With noroot, being uid 0 brings nothing over execve: what is kept has to be ambient.
    least = ("--bounding-set", "--inh-caps", "--ambient-caps")
    actuator = start(
        wrapper=(
            "setpriv",
            "--securebits",
            "+noroot,+noroot_locked",
            "--no-new-privs",
            *(word for option in least for word in (option, f"-all,{names}")),
        )
    )
    actuator.ready()
    status = Path(f"/proc/{actuator.process.pid}/status").read_text()
    assert int(re.findall(r"CapEff:\s(\w+)", status)[0], 16).bit_count() == len(CAPABILITIES)
    actuator.gets(web, 393216)
    assert actuator.end() == 0
    assert web.read() == LIMIT


# --- hostile input ----------------------------------------------------------------------------------------------------


def lane(actuator: Actuator, name: str = "tcp_buffer") -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    sock.setsockopt(zmq.LINGER, 2000)
    sock.connect(f"ipc://{roles.wish_path(actuator.run_dir, name)}")
    return sock


GOOD = {
    "t_ns": 1,
    "valid_ns": 10**10,
    "tunable": RMEM,
    "netns": 1,
    "netns_ino": 1,
    "believed": 1,
    "want": 1,
    "why": "x",
    "evidence": {},
}


def shaped(**changes: Any) -> bytes:
    return msgspec.msgpack.encode([1, *{**GOOD, **changes}.values()])


HOSTILE = [
    b"",
    b"\x00",
    b"\xff" * 5000,
    b"\x92" * 4000,
    shaped(want="9"),
    shaped(want=1.5),
    shaped(want=None),
    shaped(evidence=[1]),
    shaped(tunable="x" * 500),
    shaped(t_ns=-1),
    shaped(valid_ns=10**12),
    shaped(why=""),
    shaped()[:-1],
    shaped() + b"\x01",
    msgspec.msgpack.encode([2, *GOOD.values()]),
    b"\xdd\xff\xff\xff\xff",
]


def test_bytes_that_are_no_wish_are_counted_and_change_nothing(start: Start, web: Netns) -> None:
    actuator = start()
    with contextlib.closing(lane(actuator)) as sock:
        for raw in HOSTILE:
            sock.send(raw)
        sock.send_multipart([b"two", b"parts"])
    with contextlib.closing(lane(actuator)) as sock:
        # Larger than a wish may be: zmq drops the connection.
        sock.send(b"x" * (link.WISH_BYTES_MAX + 1))
    with socket.socket(socket.AF_UNIX) as raw_sock:
        raw_sock.connect(str(roles.wish_path(actuator.run_dir, "tcp_buffer")))
        raw_sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 50)
    wait_for(lambda: actuator.status()["malformed"]["tcp_buffer"] == len(HOSTILE) + 1)
    actuator.gets(web, 393216)
    assert actuator.status()["refused"] == {}


def test_a_verdict_from_a_lane_that_is_not_the_guards_is_counted_and_not_carried_out(start: Start, web: Netns) -> None:
    actuator = start()
    actuator.gets(web, 393216)
    assert actuator.status()["late_verdicts"] == 0
    word = Verdict(1, time.monotonic_ns(), 10**10, 1, confirm=False, why="it lies", evidence={})
    with contextlib.closing(lane(actuator)) as sock:
        sock.send(codec.encode(word))
        wait_for(lambda: actuator.status()["late_verdicts"] == 1)
    assert web.read() == 393216


@settings(max_examples=5, deadline=None, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raws=st.lists(st.binary(max_size=300), min_size=40, max_size=40))
def test_any_bytes_are_survived(raws: list[bytes], one_actuator: Actuator, web: Netns) -> None:
    before = one_actuator.status()["malformed"]["neigh_table"]
    with contextlib.closing(lane(one_actuator, "neigh_table")) as sock:
        for raw in raws:
            sock.send(raw)
        wait_for(lambda: one_actuator.status()["malformed"]["neigh_table"] == before + len(raws))
    assert (web.read(), web.read(WMEM)) == (LIMIT, LIMIT)


@pytest.fixture
def one_actuator(start: Start) -> Actuator:
    return start()


def test_bytes_that_are_no_ask_are_answered_and_the_next_ask_works(start: Start) -> None:
    actuator = start()
    for raw in (
        b"",
        b"\xff" * 1000,
        msgspec.msgpack.encode({"verb": "explode"}),
        msgspec.msgpack.encode({"verb": 7}),
        msgspec.msgpack.encode({"verb": "ping", "more": 1}),
    ):
        sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        sock.setsockopt(zmq.LINGER, 0)
        with contextlib.closing(sock):
            sock.connect(f"ipc://{roles.control_path(actuator.run_dir)}")
            sock.send(raw)
            assert sock.poll(5000)
            answer = msgspec.msgpack.decode(sock.recv(), type=Answer)
            assert not answer.ok
            assert "\n" not in answer.lines[0]
    assert actuator.ask("ping").ok
    assert actuator.status()["malformed"]["control"] == 5


ASKS = st.one_of(
    st.binary(max_size=300),
    # Of the right shape, with fields that are not.
    st.dictionaries(st.sampled_from(["verb", "mode", "change", "netns", "seconds", "more"]),
                    st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=20), st.just("explode")),
                    max_size=4).map(msgspec.msgpack.encode),
)  # fmt: skip


@settings(max_examples=5, deadline=None, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raws=st.lists(ASKS, min_size=20, max_size=20))
def test_any_bytes_on_the_control_lane_are_answered_no(raws: list[bytes], one_actuator: Actuator, web: Netns) -> None:
    before = one_actuator.status()
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    sock.setsockopt(zmq.LINGER, 0)
    with contextlib.closing(sock):
        sock.connect(f"ipc://{roles.control_path(one_actuator.run_dir)}")
        for raw in raws:
            sock.send(raw)
            assert sock.poll(int(DEADLINE_S * 1000))
            assert not msgspec.msgpack.decode(sock.recv(), type=Answer).ok
    found = one_actuator.status()
    assert found["malformed"]["control"] == before["malformed"]["control"] + len(raws)
    assert {**found, "malformed": 0} == {**before, "malformed": 0}
    assert (web.read(), web.read(WMEM)) == (LIMIT, LIMIT)


@settings(max_examples=5, deadline=None, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raws=st.lists(st.binary(min_size=1, max_size=300), min_size=10, max_size=10), greeted=st.booleans())
def test_any_bytes_below_the_messages_are_survived_on_both_lanes(
    raws: list[bytes], greeted: bool, one_actuator: Actuator
) -> None:
    # ZMTP 3.1's greeting: what comes after it is read as frames of a handshake.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 32) if greeted else b""
    paths = (roles.wish_path(one_actuator.run_dir, "tcp_buffer"), roles.control_path(one_actuator.run_dir))
    for path, raw in itertools.product(paths, raws):
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.connect(str(path))
            sock.sendall(greeting + raw)
    assert one_actuator.ask("ping").ok
    assert one_actuator.process.poll() is None


def test_an_asker_that_leaves_before_the_answer_stops_nobody(start: Start) -> None:
    actuator = start()
    for _ in range(20):
        sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"ipc://{roles.control_path(actuator.run_dir)}")
        sock.send(msgspec.msgpack.encode(Ask("status")))
        sock.close()
    assert actuator.ask("ping").ok


def test_evil_wishes_are_refused_each_with_its_kind_and_values_stay(start: Start, web: Netns) -> None:
    actuator = start()
    initial = Path("/proc/sys/net/ipv4/tcp_rmem").read_text()
    web.write(LIMIT, default=200000)
    now = time.monotonic_ns()
    evil: dict[str, dict[str, Any]] = {
        "unknown": {"want": 1, "key": RMEM, "tunable": "kernel.core_pattern"},
        "owner": {"want": 393216, "lane": "neigh_table"},
        "bounds": {"want": 2**30},
        "range": {"want": 2**40},
        "stale": {"want": 393216, "t_ns": now - 10**11},
        "future": {"want": 393216, "t_ns": now + 10**12},
        "believed": {"want": 393216, "believed": LIMIT + 1},
        "step": {"want": LIMIT * 2},
        "nothing": {"want": LIMIT},
        "relation": {"want": 180000},
        "scope": {"want": 393216, "netns": 0},
        "gone": {"want": 393216, "netns": 2**62, "netns_ino": 1},
        "text": {"want": 393216, "why": "\x1b]0;owned\x07"},
    }
    for number, (kind, fields) in enumerate(evil.items(), 1):
        actuator.wish(web, **fields)
        actuator.outcome(verdict="refused")
        assert actuator.status()["refused"].get(kind) == 1, f"{kind}: {actuator.status()['refused']}"
        assert sum(actuator.status()["refused"].values()) == number
    assert (web.read(), web.read(WMEM)) == (LIMIT, LIMIT)
    assert Path("/proc/sys/net/ipv4/tcp_rmem").read_text() == initial
    assert history.history(actuator.state_dir) == []
    assert "\x1b" not in actuator.log.read_text()


# What is wrong with a wish that is right in all else, any of which is enough to refuse it.
LIES = st.one_of(
    st.fixed_dictionaries({"want": st.one_of(st.integers(-(2**63), 65535), st.integers((512 << 20) + 1, 2**64 - 1))}),
    st.fixed_dictionaries({"want": st.integers(LIMIT + LIMIT // 2 + 1, 512 << 20)}),
    st.fixed_dictionaries({"believed": st.integers(-(2**63), 2**63).filter(lambda value: value != LIMIT)}),
    st.fixed_dictionaries({"t_ns": st.one_of(st.integers(0, 10**6), st.integers(2**62, 2**64 - 1))}),
    st.fixed_dictionaries({"tunable": st.text(max_size=120)}),
    st.fixed_dictionaries({"netns": st.one_of(st.just(0), st.integers(2**40, 2**64 - 1))}),
    st.fixed_dictionaries({"why": st.text(min_size=1, max_size=50).map(lambda text: text + "\x1b")}),
    st.fixed_dictionaries({"evidence": st.dictionaries(st.just("\n"), st.integers(-5, 5), min_size=1)}),
)


@settings(max_examples=5, deadline=None, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lies=st.lists(st.tuples(LIES, st.dictionaries(st.just("netns_ino"), st.integers(0, 2**64 - 1))), min_size=12,
                     max_size=12))  # fmt: skip
def test_any_valid_but_evil_wish_is_refused(
    lies: list[tuple[dict[str, Any], dict[str, Any]]], one_actuator: Actuator, web: Netns
) -> None:
    initial = Path("/proc/sys/net/ipv4/tcp_rmem").read_text()
    before = sum(one_actuator.status()["refused"].values())
    honest = {"tunable": RMEM, "netns": web.cookie, "netns_ino": web.inode, "believed": LIMIT, "want": 393216}
    with contextlib.closing(lane(one_actuator)) as sock:
        for lie, more in lies:
            fields = {"valid_ns": 10**10, "why": "7 drops", "evidence": {}, **honest, "t_ns": time.monotonic_ns()}
            sock.send(msgspec.msgpack.encode(Wish(version=1, **{**fields, **more, **lie})))
        wait_for(lambda: sum(one_actuator.status()["refused"].values()) == before + len(lies))
    assert (web.read(), web.read(WMEM)) == (LIMIT, LIMIT)
    assert Path("/proc/sys/net/ipv4/tcp_rmem").read_text() == initial
    assert history.history(one_actuator.state_dir) == []


def test_a_flood_on_one_lane_does_not_keep_another_waiting(start: Start, web: Netns) -> None:
    actuator = start()
    flood = [Wish(1, time.monotonic_ns(), 10**10, RMEM, 2**50 + number, 0, 1, 2, "flood", {}) for number in range(5000)]
    with contextlib.closing(lane(actuator, "neigh_table")) as sock:
        sock.setsockopt(zmq.SNDHWM, 0)
        for wish in flood:
            sock.send(msgspec.msgpack.encode(wish), zmq.DONTWAIT)
        actuator.gets(web, 393216)
        wait_for(lambda: actuator.status()["refused"].get("owner") == len(flood))
    assert actuator.log.read_text().count("refused neigh_table's wish") == 1


def test_a_fence_keeps_everything_outside_untouched(start: Start, web: Netns) -> None:
    other = Netns("other")
    try:
        actuator = start(netns=[other.cookie])
        assert actuator.asked_for(web, 393216).verdict == "refused"
        actuator.gets(other, 393216)
        assert actuator.status()["refused"] == {"fence": 1}
    finally:
        other.remove()


def test_a_narrowed_row_binds(start: Start, web: Netns) -> None:
    actuator = start(tunables={RMEM: {"high": 300000}})
    assert "outside 65536 to 300000" in actuator.asked_for(web, 393216).reason
    actuator.gets(web, 300000)


# --- modes and disks --------------------------------------------------------------------------------------------------


def test_observe_opens_nothing_for_writing(start: Start, web: Netns, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tracer = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=openat,openat2,open,creat,socket,truncate")
    actuator = start(mode="observe", wrapper=tracer)
    actuator.ready()
    assert actuator.asked_for(web, 393216).reason == "mode observe: nothing is written"
    assert actuator.ask("status").data["journal"] == "the journal is not open"
    actuator.values()
    pid = int((actuator.run_dir / "actuator/events.lock").read_text())
    os.kill(pid, signal.SIGTERM)
    assert actuator.process.wait(DEADLINE_S) == 0
    lines = trace.read_text().splitlines()
    writing = [line for line in lines if re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|creat\(|truncate\(", line)]
    places = {found[1] for line in writing if (found := re.search(r'"([^"]*)"', line))}
    lanes = {str(path) for path in actuator.run_dir.rglob("*.lock")}
    assert places <= {*lanes, str(actuator.state_dir / "actuator.lock"), "/dev/null"}
    assert not any("AF_NETLINK" in line for line in lines)
    assert any("/proc/sys/net/ipv4/tcp_rmem" in line and "O_RDONLY" in line for line in lines)
    assert web.read() == LIMIT


def test_the_mode_is_changed_at_run_time(start: Start, web: Netns) -> None:
    actuator = start(mode="advise")
    assert actuator.asked_for(web, 393216).verdict == "advised"
    assert web.read() == LIMIT
    assert actuator.ask("mode", mode="enforce").lines == ["mode enforce (was advise)"]
    actuator.gets(web, 393216)
    assert actuator.ask("mode").lines == ["mode enforce"]
    assert actuator.ask("mode", mode="observe").data["undone"] == 1
    assert web.read() == LIMIT


def test_on_a_full_disk_nothing_is_changed_and_the_stop_still_reverts(start: Start, web: Netns, tmp_path: Path) -> None:
    small = tmp_path / "state"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", small], check=True)
    try:
        actuator = start()
        actuator.gets(web, 393216)
        with (small / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        # What is left in half-full pages may still take a change or two.
        refused = wait_for(lambda: _refused_for_the_disk(actuator, web))
        assert "no journal, no change" in refused.reason
        assert history.counts(small)["trial"] >= 1
        assert actuator.end() == 0
        assert web.read() == LIMIT
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def _refused_for_the_disk(actuator: Actuator, web: Netns) -> Outcome | None:
    outcome = actuator.asked_for(web, 393216 if web.read() == 380000 else 380000)
    return outcome if "journal" in outcome.reason else None


def test_the_rows_of_the_initial_namespace_and_the_host_are_told_with_their_bounds(start: Start) -> None:
    actuator = start()
    told = actuator.values()
    assert told[RMEM].netns == cookie_here()
    assert told["net.ipv4.neigh.default.gc_thresh1"].netns == 0
    assert told[RMEM].low == tunables.table()[RMEM].low
    assert told[RMEM].value == int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
