"""Congestion control for a destination, on the real kernel: connections over a path with losses."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from instance_world import Trimtab, instance

from bus import netns
from trimtab.lab import Lab, NetNs, Way

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]

THERE, PORT = "203.0.113.5", 8888
PREFIX = "203.0.113.0/24"
KEY = f"route.congctl@{PREFIX}"
SIZE = 1_000_000
AT_ONCE = 3
POLICY = "[policy.congestion]\nslice_s = 1.0\nslot_s = 60.0\n"


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        (made.place / "trimtab.toml").write_text(POLICY)
        yield made


class Traffic:
    """Connections one after another, a few at once, from one namespace to an address behind another: each brings SIZE
    bytes over a path of 20 ms that loses two of a hundred packets, and ends."""

    def __init__(self, lab: Lab) -> None:
        self.here, there = lab.netns("here"), lab.netns("there")
        lab.relay(self.here, there, Way(delay_ms=10, loss=0.02, rate_mbit=100), offload=False)
        there.command(["ip", "addr", "add", f"{THERE}/32", "dev", "lo"])
        self.here.command(["ip", "route", "add", "default", "via", "10.77.0.2"])
        # cubic may be restricted to the initial namespace (tcp_allowed_congestion_control).
        self.here.sysctl("net.ipv4.tcp_congestion_control", "reno")
        # Nothing of the path is to be remembered from one connection for the next.
        self.here.sysctl("net.ipv4.tcp_no_metrics_save", "1")
        # A namespace without a name is found by its processes.
        self.here.popen(["sleep", "600"])
        self.took_s: list[tuple[str, float]] = []
        """Of each connection: its algorithm, and how long it took."""
        self._ended, self._alone = threading.Event(), threading.Event()
        self._listener = there.run(socket.create_server, ("", PORT), backlog=64)
        jobs = [self._serve, *[lambda: netns.inside(f"/proc/self/fd/{self.here.fd}", self._send)] * AT_ONCE]
        self._threads = [threading.Thread(target=job) for job in jobs]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        # Until the last sender has ended: a connection that nobody takes up would never bring all.
        while not self._alone.is_set():
            end, _ = self._listener.accept()
            threading.Thread(target=drain, args=(end,)).start()

    def _send(self) -> None:
        while not self._ended.is_set():
            began_s = time.monotonic()
            with socket.create_connection((THERE, PORT)) as sock:
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0]
                sock.sendall(bytes(SIZE))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            self.took_s.append((name.decode(), time.monotonic() - began_s))

    def mean_s(self, algorithm: str) -> float:
        took_s = [seconds for name, seconds in self.took_s if name == algorithm]
        return sum(took_s) / len(took_s)

    def close(self) -> None:
        self._ended.set()
        if self._threads[0].is_alive():
            for thread in self._threads[1:]:
                thread.join()
            self._alone.set()
            self.here.run(socket.create_connection, (THERE, PORT)).close()
            self._threads[0].join()
        self._listener.close()


def drain(end: socket.socket) -> None:
    with end:
        while end.recv(1 << 20):
            pass


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with Lab() as lab:
        made = Traffic(lab)
        yield made
        made.close()


def ours(here: NetNs) -> str:
    return " ".join(here.command(["ip", "route", "show", "proto", "116"]).split())


def test_in_advise_another_algorithm_is_named_and_nothing_done(trimtab: Trimtab, traffic: Traffic) -> None:
    trimtab.start("--mode", "advise", "--only", "congestion", "--netns", str(traffic.here.cookie))
    traffic.begin()
    trimtab.until(lambda: trimtab.documents("history"), "advice", 60)
    assert ours(traffic.here) == ""
    (change, *_) = trimtab.documents("history")
    assert (change["tunable"], change["state"]) == (KEY, "advised")
    assert "sent again; a try of bbr" in change["why"]
    assert {name for name, _ in traffic.took_s} == {"reno"}
    assert trimtab.stop() == 0


def test_in_enforce_new_connections_have_the_faster_one_for_good_and_after_the_end_no_route_is_left(
    trimtab: Trimtab, traffic: Traffic
) -> None:
    trimtab.start("--only", "congestion", "--netns", str(traffic.here.cookie))
    traffic.begin()
    trimtab.until(lambda: ours(traffic.here), "a route of ours", 60)
    assert ours(traffic.here).startswith(f"{PREFIX} via 10.77.0.2 dev tun0")
    assert "congctl bbr" in ours(traffic.here)
    tried = len(traffic.took_s)
    trimtab.until(lambda: sum(name == "bbr" for name, _ in traffic.took_s[tried:]) >= 20, "connections with bbr", 60)
    # A try would have ended by now where it was no better.
    time.sleep(2.0)
    assert "congctl bbr" in ours(traffic.here)
    assert traffic.mean_s("bbr") < 0.5 * traffic.mean_s("reno")
    assert trimtab.stop() == 0
    assert ours(traffic.here) == ""
