"""The whole of it: the real roles on the real kernel, started as the operator starts them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance_world import Trimtab, instance

from bus import netns, roles, sandbox
from trimtab.privilege import held, names

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]

NEIGH = Path("/proc/sys/net/ipv4/neigh/default")
LEVELS = ("gc_thresh1", "gc_thresh2", "gc_thresh3")
LOWERED = (32, 64, 128)
NEIGHBOURS = 2000
PER_SECOND = 1000

CHANGE_FIELDS = {
    *("schema", "id", "t_tai_ns", "tunable", "scope", "netns", "netns_inode", "netns_name"),
    *("decider", "old", "new", "why", "state", "evidence"),
}

# linux/rtnetlink.h, linux/neighbour.h
RTM_NEWNEIGH = 28
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 1, 4, 0x400
NUD_REACHABLE = 2
NDA_DST, NDA_LLADDR = 1, 2


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


@pytest.fixture
def thresholds(the_host: None) -> Iterator[None]:
    """The ARP table's thresholds lowered, and put back."""
    before = read_thresholds()
    write_thresholds(LOWERED)
    yield
    write_thresholds(before)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with a device that 65,000 neighbours can be behind."""
    name = f"tts{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "link add d0 type veth peer name d1",
            "addr add 10.9.0.1/16 dev d0",
            "link set d0 up",
            "link set d1 up",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def read_thresholds() -> tuple[int, ...]:
    return tuple(int((NEIGH / level).read_text()) for level in LEVELS)


def write_thresholds(values: tuple[int, ...]) -> None:
    """The hard limit first where it rises: nothing is refused meanwhile."""
    (NEIGH / LEVELS[2]).write_text(str(max(values[2], read_thresholds()[2])))
    for level, value in zip(LEVELS, values, strict=True):
        (NEIGH / level).write_text(str(value))


def add_neighbours(namespace: str, count: int = NEIGHBOURS, first: int = 0) -> list[int]:
    """Ask the kernel for `count` neighbours at PER_SECOND; what it answered to each, as errno (0: done)."""

    def add() -> list[int]:
        index = socket.if_nametoindex("d0")
        began_s = time.monotonic()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            answers = []
            for number in range(count):
                time.sleep(max(0.0, began_s + number / PER_SECOND - time.monotonic()))
                answers.append(_add_one(netlink, index, first + number))
            return answers

    return netns.inside(f"/run/netns/{namespace}", add)


def _add_one(netlink: socket.socket, index: int, number: int) -> int:
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, NUD_REACHABLE, 0, 0)
    body += struct.pack("=HH4B", 8, NDA_DST, 10, 9, 1 + number // 250, 1 + number % 250)
    body += struct.pack("=HHHIxx", 10, NDA_LLADDR, 2, number)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWNEIGH, flags, number + 1, 0) + body)
    (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    return -int(error)


@contextlib.contextmanager
def load(namespace: str) -> Iterator[None]:
    """Ever more neighbours meanwhile, whether or not the kernel takes them."""
    stop = threading.Event()

    def feed() -> None:
        for first in range(0, 60_000, 50):
            if stop.is_set():
                return
            add_neighbours(namespace, 50, first)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()


def test_every_role_runs_as_its_row_says_and_the_status_tells_all_of_it(trimtab: Trimtab) -> None:
    trimtab.start("--mode", "observe")
    status = trimtab.status()
    assert (status["schema"], status["ready"], status["mode"]) == ("trimtab.status/v1", True, "observe")
    found = {row["name"]: row for row in status["roles"]}
    table = {role.name: role for role in roles.roles(roles.BUILT_IN_DECIDERS)}
    assert found.keys() == table.keys()
    for name, role in table.items():
        if role.oneshot_for:
            assert found[name]["state"] == "done"
            continue
        assert (found[name]["state"], found[name]["restarts"]) == ("running", 0)
        assert found[name]["rss_kib"] > found[name]["pss_kib"] > 0
        allowed = held(Path(f"/proc/{found[name]['pid']}/status"))
        assert set(allowed.uids) == set(allowed.gids) == {role.uid}
        assert allowed.groups == (roles.GROUP,)
        assert set(names(allowed.permitted)) == set(names(allowed.bounding)) == set(role.capabilities)
        assert allowed.no_new_privs
        told = found[name]["allowed"]
        assert (told["user"], set(told["capabilities"])) == (role.uid, set(role.capabilities))
        assert told["sandbox"] == ([] if role.network else list(sandbox.PARTS))
        assert (told["more"], told["less"]) == ([], [])
    networks = {
        os.readlink(f"/proc/{row['pid']}/ns/net") for row in found.values() if row["name"].startswith("decider")
    }
    assert len(networks) == 1
    assert networks.isdisjoint({os.readlink("/proc/self/ns/net")})
    trimtab.until(lambda: trimtab.status()["events"]["collector-proc"]["published"] > 0, "events are counted")
    assert status["events"].keys() == set(roles.publishers())
    assert all(lane.keys() == {"published", "gaps", "ring_drops"} for lane in status["events"].values())
    assert trimtab.stop() == 0
    assert trimtab.run("status").returncode == 3


def test_with_less_than_its_rows_say_as_in_a_container_it_works_and_names_what_is_wanting(trimtab: Trimtab) -> None:
    trimtab.prefix = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    trimtab.start("--mode", "observe")
    status = trimtab.status()
    assert (status["ready"], status["problem"]) == (True, "")
    told = {row["name"]: row["allowed"] for row in status["roles"] if row["allowed"]}
    wanting = {"deadman", "actuator", "collector-netlink"}
    for name, allowed in told.items():
        assert allowed["more"] == []
        expected = ["CAP_SYS_ADMIN"] if name in wanting else ["empty network"] if name.startswith("decider-") else []
        assert allowed["less"] == expected
    said = trimtab.run("status")
    assert said.returncode == 0
    assert "actuator does without sys_admin\n" in said.stdout
    assert "decider-guard does without empty network\n" in said.stdout
    assert "without empty network: the host's is within reach (decider guard)\n" in said.stdout
    assert "decider-guard: keeps the host's network: " in trimtab.log.read_text()
    assert trimtab.stop() == 0


def test_a_second_instance_says_who_is_there_and_leaves(trimtab: Trimtab) -> None:
    trimtab.start("--mode", "observe")
    pids = trimtab.pids()
    second = trimtab.run("run")
    assert second.returncode == 1
    assert trimtab.process
    assert second.stderr.count("\n") == 1
    assert f"trimtab is already running here (pid {trimtab.process.pid} holds" in second.stderr
    assert trimtab.pids() == pids
    assert trimtab.status()["ready"]
    assert trimtab.stop() == 0


def test_garbage_on_every_socket_does_no_harm(trimtab: Trimtab) -> None:
    trimtab.start("--mode", "observe")
    sockets = sorted((trimtab.place / "run").rglob("*.sock"))
    assert {path.name for path in sockets} == {"events.sock", "wish.sock", "control.sock", "probes.sock", "notify.sock"}
    for path in sockets:
        for raw in (b"\0", b"\xff" * 5000, b"GET / HTTP/1.0\r\n\r\n", b"\xff\0\0\0\0\0\0\0\1\x7f\3" + b"\0" * 54):
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_UNIX, kind) as stranger, contextlib.suppress(OSError):
                    stranger.settimeout(1)
                    stranger.connect(str(path))
                    stranger.send(raw)
    pids = trimtab.pids()
    published = trimtab.status()["events"]["collector-proc"]["published"]
    trimtab.until(lambda: trimtab.status()["events"]["collector-proc"]["published"] > published, "life goes on")
    assert trimtab.pids() == pids
    assert trimtab.run("mode").stdout == "mode observe\n"
    assert trimtab.stop() == 0


@pytest.mark.usefixtures("thresholds")
class TestArpTable:
    def test_without_trimtabs_hand_the_kernel_refuses_neighbours_and_advice_says_what_would_help(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        trimtab.start("--mode", "advise", "--only", "neigh_table")
        answers = add_neighbours(namespace, 400)
        assert any(answers)
        assert read_thresholds() == LOWERED
        trimtab.until(lambda: trimtab.documents("history"), "advice")
        history = trimtab.documents("history")
        assert {change["state"] for change in history} == {"advised"}
        assert any(change["tunable"].endswith("gc_thresh3") and change["new"] > change["old"] for change in history)
        assert trimtab.stop() == 0

    def test_with_it_not_one_is_refused_each_step_is_explained_and_all_is_undone_at_the_end(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        trimtab.start("--only", "neigh_table")
        answers = add_neighbours(namespace)
        assert not any(answers)
        assert read_thresholds()[2] > NEIGHBOURS
        history = trimtab.documents("history")
        for change in history:
            assert change.keys() >= CHANGE_FIELDS
            assert change["decider"] == "neigh_table"
            assert (change["scope"], change["netns"], change["state"]) == ("host", 0, "trial")
            assert change["evidence"]["entries"] >= 0
            assert re.search(r"\d", change["why"])
        last = history[-1]["id"]
        explained = trimtab.run("explain", str(last)).stdout
        assert f"change {last}, " in explained
        assert f"trimtab rollback {last}" in explained
        assert {"net.ipv4.neigh.default.gc_thresh3"} < {change["tunable"] for change in history}
        assert trimtab.status()["events"]["collector-bpf"]["ring_drops"] == 0
        assert trimtab.stop() == 0
        assert read_thresholds() == LOWERED
        assert {change["state"] for change in trimtab.documents("history")} == {"reverted"}
        assert trimtab.log.read_text().count("put back") == 3

    def test_a_rollback_puts_all_back_and_keeps_hands_off(self, trimtab: Trimtab, namespace: str) -> None:
        trimtab.start("--only", "neigh_table")
        assert not any(add_neighbours(namespace, 300))
        assert read_thresholds() != LOWERED
        rolled_back = trimtab.run("rollback", "--all")
        assert rolled_back.returncode == 0, rolled_back.stderr
        assert read_thresholds() == LOWERED
        add_neighbours(namespace, 600)
        assert read_thresholds() == LOWERED
        assert {change["state"] for change in trimtab.documents("history")} == {"rolled_back"}
        assert trimtab.run("release", "net.ipv4.neigh.default.gc_thresh3").returncode == 0
        assert trimtab.stop() == 0

    def test_killed_under_load_each_role_comes_back_and_killed_all_at_once_the_originals_return(
        self, trimtab: Trimtab, namespace: str
    ) -> None:
        trimtab.start("--only", "neigh_table")
        with load(namespace):
            for name in trimtab.pids():
                before = trimtab.pids()
                os.kill(before.pop(name), signal.SIGKILL)
                trimtab.until(lambda: not trimtab.document()["ready"], f"{name} is missed")
                trimtab.until(lambda: trimtab.document()["ready"], f"{name} is back")
                after = trimtab.pids()
                assert after.pop(name)
                assert after == before
            trimtab.until(lambda: "sysctl_write (cgroup)" in trimtab.document()["watched"], "the probes are back")
        assert {name: row["restarts"] for name, row in trimtab.rows().items() if name != "loader"} == dict.fromkeys(
            trimtab.pids(), 1
        )
        # The table has emptied or not; that it is tuned again is what counts.
        assert not any(add_neighbours(namespace, 1000, first=61_000))
        assert read_thresholds() != LOWERED

        trimtab.kill_all()
        assert read_thresholds() != LOWERED
        trimtab.start("--mode", "advise", "--only", "neigh_table")
        assert read_thresholds() == LOWERED
        assert trimtab.stop() == 0
        assert not {change["state"] for change in trimtab.documents("history")} & {"intent", "trial"}
        with contextlib.closing(sqlite3.connect(trimtab.place / "state/journal.db")) as journal:
            assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_with_everything_killed_a_rollback_alone_puts_all_back(self, trimtab: Trimtab, namespace: str) -> None:
        trimtab.start("--only", "neigh_table")
        assert not any(add_neighbours(namespace, 300))
        trimtab.kill_all()
        assert read_thresholds() != LOWERED
        assert trimtab.run("rollback", "--all").returncode == 0
        assert read_thresholds() == LOWERED
