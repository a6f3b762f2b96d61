"""The relay as a process of its own between two pairs of datagram sockets: what a TUN device is to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab.relay import Lane, Way

TIMEOUT_S = 30


class Rig:
    """A relay process; `a` and `b` are what stands behind its two devices."""

    def __init__(self, *options: str) -> None:
        self.a, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.b, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [near.fileno(), far.fileno(), theirs.fileno()]
        argv = [sys.executable, "-I", "-m", "trimtab.relay", "--tun", *map(str, fds[:2]), "--control", str(fds[2])]
        self.process = subprocess.Popen([*argv, *options], pass_fds=fds, stderr=subprocess.PIPE)
        for end in (near, far, theirs):
            end.close()
        for end in (self.a, self.b, self.control):
            end.settimeout(TIMEOUT_S)

    def ask(self, request: bytes | dict[str, Any]) -> dict[str, Any]:
        self.control.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self.control.recv(4096))
        return answer

    def stats(self) -> dict[str, Any]:
        return self.ask({"stats": True})

    def close(self) -> None:
        for end in (self.a, self.b, self.control):
            end.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(*getattr(request, "param", ()))
    yield made
    made.close()


def settled(rig: Rig, way: str, total: int) -> dict[str, int]:
    """The counters once everything of `total` packets has met its end."""
    while True:
        counts: dict[str, int] = rig.stats()[way]
        if counts["packets"] + counts["lost"] + counts["dropped"] >= total:
            return counts
        time.sleep(0.01)


@pytest.mark.parametrize("rig", [("--delay-ms", "50")], indirect=True)
def test_every_packet_arrives_whole_in_order_and_not_before_its_delay(rig: Rig) -> None:
    sent = [bytes([number]) * (number * 16 + 1) for number in range(100)]
    begun_s = time.monotonic()
    for packet in sent:
        rig.a.send(packet)
    first = rig.b.recv(65536)
    assert time.monotonic() - begun_s >= 0.050
    assert [first, *(rig.b.recv(65536) for _ in sent[1:])] == sent


@pytest.mark.parametrize("rig", [("--delay-ms", "30")], indirect=True)
def test_the_way_back_has_its_own_delay(rig: Rig) -> None:
    rig.ask({"set": {"delay_ms": 0}, "way": "ab"})
    begun_s = time.monotonic()
    rig.a.send(b"there")
    rig.b.send(rig.b.recv(100))
    assert rig.a.recv(100) == b"there"
    assert time.monotonic() - begun_s >= 0.030
    assert rig.stats()["ab"]["way"]["delay_ms"] == 0
    assert rig.stats()["ba"]["way"]["delay_ms"] == 30


@pytest.mark.parametrize("rig", [("--loss", "0.2")], indirect=True)
def test_the_share_that_is_lost_is_the_one_asked_for(rig: Rig) -> None:
    rig.b.setblocking(False)
    arrived = 0
    for number in range(4000):
        rig.a.send(b"x")
        if number % 50 == 49:
            counts = settled(rig, "ab", number + 1)
            for _ in range(counts["packets"] - arrived):
                rig.b.recv(10)
            arrived = counts["packets"]
    # Five standard deviations of a binomial: sqrt(4000 * 0.2 * 0.8) = 25.3.
    assert abs(counts["lost"] - 800) < 127
    assert counts["lost"] + arrived == 4000


def test_the_same_seed_loses_the_same_packets() -> None:
    def lost(seed: int) -> list[int]:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            near.setblocking(False)
            lane = Lane(near.fileno(), -1, Way(loss=0.5), seed)
            for number in range(64):
                far.send(bytes([number]))
            assert lane.take(0.0) == 64
            return [packet[0] for _, packet in lane.line]

    assert lost(1) == lost(1) != lost(2)


@pytest.mark.parametrize("rig", [("--rate-mbit", "4", "--queue-kib", "10000")], indirect=True)
def test_nothing_passes_faster_than_the_rate(rig: Rig) -> None:
    begun_s = time.monotonic()
    for _ in range(100):
        rig.a.send(bytes(1000))
    for _ in range(100):
        rig.b.recv(2000)
    # 100 packets of 8000 bits at 4 Mbit/s.
    assert time.monotonic() - begun_s >= 0.2


@pytest.mark.parametrize("rig", [("--rate-mbit", "1", "--queue-kib", "8")], indirect=True)
def test_what_the_queue_cannot_hold_is_dropped_and_counted(rig: Rig) -> None:
    for _ in range(100):
        rig.a.send(bytes(1024))
    counts = settled(rig, "ab", 100)
    assert counts["dropped"] > 0
    assert counts["packets"] + counts["dropped"] == 100
    # Eight can wait, and mostly one is on the wire; more pass where sending took longer than its 8 ms there.
    assert counts["packets"] >= 8


def test_a_packet_that_would_wait_longer_than_the_queue_allows_is_dropped() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        near.setblocking(False)
        lane = Lane(near.fileno(), -1, Way(delay_ms=5, rate_mbit=8, queue_kib=10), 1)
        for _ in range(30):
            far.send(bytes(1000))
        lane.take(100.0)
        # 8 Mbit/s: a millisecond for each; ten KiB of queue: 10.24 ms, so eleven get on, the last after 11 ms.
        assert [round(due - 100, 6) for due, _ in lane.line] == [round(0.001 * n + 0.005, 6) for n in range(1, 12)]
        assert lane.stats()["dropped"] == 19


def test_a_shorter_delay_set_later_lets_no_packet_overtake(rig: Rig) -> None:
    rig.ask({"set": {"delay_ms": 200}})
    rig.a.send(b"first")
    while not rig.stats()["ab"]["waiting"]:
        time.sleep(0.001)
    rig.ask({"set": {"delay_ms": 0}})
    rig.a.send(b"second")
    assert [rig.b.recv(10), rig.b.recv(10)] == [b"first", b"second"]


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff\x00",
        b"[]",
        b"7",
        b'{"set": 3}',
        b'{"set": {"delay_ms": -1}}',
        b'{"set": {"delay_ms": NaN}}',
        b'{"set": {"loss": 1.5}}',
        b'{"set": {"loss": "much"}}',
        b'{"set": {"loss": true}}',
        b'{"set": {"colour": 1}}',
        b'{"set": {"loss": 0.1}, "way": "up"}',
        b'{"set": {"loss": 0.1}, "way": []}',
        b"[" * 4000,
    ],
)
def test_a_senseless_request_is_answered_with_an_error_and_changes_nothing(rig: Rig, request_: bytes) -> None:
    before = rig.stats()
    assert "error" in rig.ask(request_)
    assert rig.stats() == before


@pytest.mark.parametrize("option", [("--loss", "2"), ("--delay-ms", "-1"), ("--rate-mbit", "nan")])
def test_settings_that_no_wire_has_are_refused_at_the_start(option: tuple[str, str]) -> None:
    rig = Rig(*option)
    try:
        assert rig.process.wait(TIMEOUT_S) == 2
        assert rig.process.stderr is not None
        assert option[0].strip("-").replace("-", "_").encode() in rig.process.stderr.read().splitlines()[-1]
    finally:
        rig.close()


def test_the_relay_ends_when_its_owner_closes_the_control_socket(rig: Rig) -> None:
    rig.stats()
    rig.control.close()
    assert rig.process.wait(TIMEOUT_S) == 0


def test_the_relay_ends_with_one_line_when_a_device_is_gone() -> None:
    # A pipe that nobody reads is readable to select(2), and read(2) of its writing end fails: as with a removed device.
    read_end, write_end = os.pipe()
    os.close(read_end)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fds = [str(write_end), str(write_end), "--control", str(theirs.fileno())]
        done = subprocess.run(
            [sys.executable, "-I", "-m", "trimtab.relay", "--tun", *fds],
            pass_fds=[write_end, theirs.fileno()],
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
        )
    os.close(write_end)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"relay: a device is gone")
