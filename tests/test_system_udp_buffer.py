"""Bursts of datagrams to sockets with too little room: the whole of trimtab on the real kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab, NetNs

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(120),
]

CORE = Path("/proc/sys/net/core")
KEYS = ("rmem_default", "rmem_max")
TOO_SMALL = 32_768
BURST = 300
MUCH = 4 << 20
PORT = 5140


def opened(asks: int) -> socket.socket:
    """A socket that datagrams can be sent to; asks: what its program sets SO_RCVBUF to, 0: nothing."""
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    if asks:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asks)
    receiver.bind(("127.0.0.1", PORT))
    receiver.setblocking(False)
    return receiver


def fill(receiver: socket.socket) -> int:
    """How many of BURST datagrams it has room for."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in range(BURST):
            sender.sendto(b"x" * 1000, receiver.getsockname())
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(2000):
            taken += 1
    return taken


def burst(asks: int) -> int:
    """How many of BURST datagrams a new socket has room for."""
    with opened(asks) as receiver:
        return fill(receiver)


@pytest.fixture
def too_small(the_host: None) -> Iterator[None]:
    """The host's limits lowered, and put back."""
    before = {key: (CORE / key).read_text() for key in KEYS}
    for key in KEYS:
        (CORE / key).write_text(str(TOO_SMALL))
    yield
    for key in KEYS:
        (CORE / key).write_text(before[key])


@pytest.fixture
def place(too_small: None) -> Iterator[NetNs]:
    with Lab() as lab:
        made = lab.netns("udp")
        # Only where a process is can a namespace without a name be found.
        made.popen(["sleep", "120"])
        yield made


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


def values() -> list[int]:
    return [int((CORE / key).read_text()) for key in KEYS]


def test_bursts_find_room_whether_a_program_sets_its_buffer_or_not_and_one_that_sets_too_little_is_told_of(
    trimtab: Trimtab, place: NetNs
) -> None:
    trimtab.start("--mode", "advise", "--only", "udp_buffer")
    for _ in range(3):
        assert max(place.run(burst, asks) for asks in (0, MUCH)) < BURST / 2
        time.sleep(0.3)
    assert values() == [TOO_SMALL, TOO_SMALL]
    assert trimtab.run("mode", "enforce").returncode == 0

    def all_find_room() -> bool:
        time.sleep(0.2)
        return [place.run(burst, asks) for asks in (0, MUCH)] == [BURST, BURST]

    trimtab.until(all_find_room, "everything finds room", 40)
    grown = values()
    # What 300 datagrams of this size take is 1.3 KiB each, and no more than 16 times as much at once.
    assert all(TOO_SMALL < value <= 64 * TOO_SMALL for value in grown), grown
    with place.run(opened, 8192) as sock:
        assert place.run(fill, sock) < BURST
        words = (f"UDP port {PORT} (", f"pid {os.getpid()}) has dropped", "with the 8192 bytes that its program set")

        def told() -> bool:
            # It was looked for when it dropped, and those before it had gone by then.
            place.run(fill, sock)
            lines = trimtab.status()["advice"]
            return any(all(word in line for word in words) for line in lines)

        trimtab.until(told, "advice", 20)
    assert values() == grown
    trimtab.stop()
    assert values() == [TOO_SMALL, TOO_SMALL]
