"""Connections that come in a rush to a short accept queue, and SYNs of nobody: all of trimtab on the real kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from instance_world import Trimtab, instance
from listen_world import PORT, clients, connected, syns
from netns_world import PREFIX, ip, named_namespaces

from bus import netns

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(120),
]

CROWD = 300
SHORT = 16
# A program that asks for much, takes what waits four times a second, and listens anew each time, as at a reload.
SERVER = f"""
import contextlib, socket, sys, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", {PORT}))
server.setblocking(False)
while True:
    server.listen(int(sys.argv[1]))
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
    time.sleep(0.25)
"""


def sysctl(path: str, key: str, value: int | None = None) -> int:
    def do() -> int:
        file = Path("/proc/sys") / key
        if value is not None:
            file.write_text(str(value))
        return int(file.read_text())

    return netns.inside(path, do)


def rush(path: str) -> int:
    """How many of a crowd are connected half a second after they have come: before the first tries again."""

    def do() -> int:
        with clients(CROWD) as socks:
            return connected(socks, 0.5)

    return netns.inside(path, do)


def a_few() -> None:
    with clients(3) as socks:
        connected(socks, 0.05)


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """Three namespaces, each with a program that listens: one asks for much, one for little, one is flooded."""
    with named_namespaces() as make, ExitStack() as stack:
        paths = {name: make(name) for name in ("much", "little", "flooded")}
        for name, path in paths.items():
            ip("-n", PREFIX + name, "link", "set", "lo", "up")
            sysctl(path, "net/core/somaxconn", SHORT if name == "much" else 128)
            argv = ["nsenter", f"--net={path}", sys.executable, "-c", SERVER, "8" if name == "little" else "4096"]
            server = stack.enter_context(subprocess.Popen(argv))
            stack.callback(server.kill)
        for words in (
            "link add d0 type veth peer name d1",
            "addr add 10.9.0.1/24 dev d0",
            "link set d0 up",
            "link set d1 up",
            "route add 198.18.0.0/15 dev d0",
        ):
            ip("-n", f"{PREFIX}flooded", *words.split())
        yield paths


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


def test_a_rush_finds_room_a_flood_changes_nothing_and_a_program_that_asks_for_little_is_told_of(
    trimtab: Trimtab, places: dict[str, str]
) -> None:
    much, little, flooded = places["much"], places["little"], places["flooded"]
    trimtab.start("--mode", "advise", "--only", "listen_queue")
    for _ in range(2):
        assert rush(much) < CROWD / 2
        time.sleep(1)
    assert sysctl(much, "net/core/somaxconn") == SHORT
    assert trimtab.run("mode", "enforce").returncode == 0
    stop = threading.Event()

    def flood() -> None:
        """With a few among them who mean it."""
        number = 0
        while not stop.wait(0.1):
            netns.inside(flooded, lambda first=number: syns(300, first=first))
            netns.inside(flooded, a_few)
            number += 300

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        trimtab.until(lambda: rush(much) == CROWD, "everyone finds room", 40)
        rush(little)
        trimtab.until(lambda: rush(little) < CROWD and trimtab.status()["advice"], "advice", 20)
        time.sleep(1)
    finally:
        stop.set()
        flooder.join()
    # Those that found no room came again, and were counted again.
    assert CROWD <= sysctl(much, "net/core/somaxconn") <= 16 * CROWD
    for key in ("net/core/somaxconn", "net/ipv4/tcp_max_syn_backlog"):
        changed = [row for row in trimtab.documents("history") if row["tunable"] == key.replace("/", ".")]
        assert {row["netns_name"] for row in changed} <= {f"{PREFIX}much"}
    assert sysctl(flooded, "net/core/somaxconn") == 128
    (line,) = [line for line in trimtab.status()["advice"] if "with a backlog of 8," in line]
    found = re.search(rf"port {PORT} \(python\S*, pid (\d+)\)", line)
    assert found
    assert os.stat(f"/proc/{found[1]}/ns/net").st_ino == os.stat(little).st_ino
    assert line.endswith("somaxconn is 128: raise the program's own")
    assert cookies_sent(flooded) > 1000
    trimtab.stop()
    assert sysctl(much, "net/core/somaxconn") == SHORT


def cookies_sent(path: str) -> int:
    def do() -> int:
        names, numbers = (line.split() for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2])
        return int(numbers[names.index("SyncookiesSent")])

    return netns.inside(path, do)
