"""Connections that are soon over, and a program that sets too small a buffer: all of trimtab on the real kernel."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab
from trimtab.namespace import NetNs
from trimtab.relay import Way

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]

PORT, BULK_PORT = 5201, 5202
ANSWER = b"x" * 1_000_000
SMALL = 8192
LARGEST = 16 << 20
RECEIVE, SEND = "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"


class Traffic:
    """Short connections one after another, and one that never ends, until stopped."""

    def __init__(self, client: NetNs, server: NetNs, address: str) -> None:
        self.stopped = threading.Event()
        self.began_with: list[int] = []
        self._client, self._address = client, address
        listeners = [server.run(partial(socket.create_server, (address, port))) for port in (PORT, BULK_PORT)]
        self.slow = client.run(self._connect_slow)
        self._threads = [
            threading.Thread(target=do, args=args)
            for do, args in (
                (self._answer, (listeners[0],)),
                (self._pour, (listeners[1],)),
                (self._ask, ()),
                (self._sip, ()),
            )
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(20)

    def _connect_slow(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.settimeout(1)
        sock.connect((self._address, BULK_PORT))
        return sock

    def _answer(self, listener: socket.socket) -> None:
        with listener:
            listener.settimeout(0.2)
            while not self.stopped.is_set():
                try:
                    sock = listener.accept()[0]
                except TimeoutError:
                    continue
                with sock:
                    sock.sendall(ANSWER)

    def _pour(self, listener: socket.socket) -> None:
        with listener, listener.accept()[0] as sock:
            sock.settimeout(1)
            while not self.stopped.is_set():
                try:
                    sock.send(ANSWER)
                except OSError:
                    return

    def _ask(self) -> None:
        while not self.stopped.is_set():
            with self._client.run(lambda: socket.create_connection((self._address, PORT), timeout=10)) as sock:
                self.began_with.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
                left = len(ANSWER)
                while left:
                    left -= len(sock.recv(left))

    def _sip(self) -> None:
        with self.slow:
            while not self.stopped.is_set():
                self.slow.recv(65536)


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[NetNs, NetNs, Traffic]]:
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        for end in (client, server):
            # Only where a process is can a namespace without a name be found.
            end.popen(["sleep", "180"])
            end.sysctl(RECEIVE, f"4096 131072 {LARGEST}")
            end.sysctl(SEND, f"4096 16384 {LARGEST}")
        relay = lab.relay(client, server, Way(delay_ms=10))
        traffic = Traffic(client, server, relay.link.address_of(server))
        try:
            yield client, server, traffic
        finally:
            traffic.stop()


def small_buffers(trimtab: Trimtab) -> list[str]:
    """The advice on them, with the programs."""
    return [line for line in trimtab.status()["advice"] if "(SO_RCVBUF)" in line and ", pid " in line]


def initial(end: NetNs, name: str) -> int:
    return int(end.run(lambda: Path("/proc/sys", *name.split(".")).read_text()).split()[1])


def test_connections_begin_with_what_those_before_needed_and_a_program_that_sets_too_little_is_told_of(
    trimtab: Trimtab, ends: tuple[NetNs, NetNs, Traffic]
) -> None:
    client, server, traffic = ends
    trimtab.start("--mode", "advise", "--only", "tcp_buffer")
    wanted = {f"{RECEIVE}[1]", f"{SEND}[1]"}
    trimtab.until(
        lambda: {row["tunable"] for row in trimtab.documents("history")} >= wanted, "advice on initial sizes", 60
    )
    assert (initial(client, RECEIVE), initial(server, SEND)) == (131072, 16384)
    assert set(traffic.began_with) == {131072}

    assert trimtab.run("mode", "enforce").returncode == 0
    trimtab.until(lambda: initial(client, RECEIVE) > 131072 and initial(server, SEND) > 16384, "larger ones", 40)
    assert initial(client, RECEIVE) == 131072 * 3 // 2
    before = len(traffic.began_with) + 1
    trimtab.until(lambda: len(traffic.began_with) > before, "another connection", 20)
    assert traffic.began_with[-1] == 131072 * 3 // 2
    here = {client.cookie, server.cookie}  # others may have short connections at the same time
    whys = [row["why"] for row in trimtab.documents("history") if row["tunable"] in wanted and row["netns"] in here]
    assert len(whys) >= len(wanted)
    assert all(f"most of them to port {PORT}, needed" in why for why in whys)

    trimtab.until(lambda: small_buffers(trimtab), "advice on the small buffer", 40)
    (line,) = small_buffers(trimtab)
    comm = Path("/proc/self/comm").read_text().strip()
    port = traffic.slow.getsockname()[1]
    assert f"TCP port {port} ({comm}, pid {os.getpid()}) to port {BULK_PORT} has" in line
    assert f"with the {SMALL} bytes of receive buffer that its program set" in line
    has, could, loss = (
        int(found) for found in re.findall(r"(\d+) bytes/s|up to (\d+),", line) for found in found if found
    )
    # A window in each round trip of 20 ms, and no more.
    assert 50_000 < has <= 2 * SMALL / 0.02
    assert could - has == pytest.approx(loss, abs=2)
    assert loss > has
    assert traffic.slow.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * SMALL
    trimtab.stop()
    assert (initial(client, RECEIVE), initial(server, SEND)) == (131072, 16384)
