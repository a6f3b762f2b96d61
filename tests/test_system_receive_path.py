"""Packets that come in bursts to a slow processor: dropped for want of room in its queue, until trimtab makes some."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab, NetNs

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="kernel: one processor, and none to hand packets over to"),
]

BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
BUDGET = Path("/proc/sys/net/core/netdev_budget")
SOFTNET = Path("/proc/net/softnet_stat")
DROPPED, TIME_SQUEEZE = 1, 2
"""Its columns: packets that found a processor's queue full; runs of the receive softirq that ended with work left."""
TOO_SMALL = 64
BURST = 500
PORT = 9999
RPS = "mount -t sysfs none /sys && echo 2 > /sys/class/net/{}/queues/rx-0/rps_cpus"
"""Whoever receives hands packets over to the second processor. A namespace's devices show in a sysfs of its own."""
SENDER = f"""
import contextlib, os, socket, sys, time
os.sched_setaffinity(0, {{0}})
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect((sys.argv[1], {PORT}))
while True:
    for _ in range({BURST}):
        with contextlib.suppress(OSError):
            sender.send(b"x")
    time.sleep(0.01)
"""
# linux/bpf_common.h, asm-generic/socket.h
ADD, RETURN, SO_ATTACH_FILTER = 0x04, 0x06, 26
INSTRUCTIONS = 4000
SLOW = 4
"""So many filters, some microseconds each, are run for each packet."""


def slow_filter(device: str) -> socket.socket:
    """A socket that wants no packet, and takes long to say so."""
    code = struct.pack("HBBI", ADD, 0, 0, 1) * INSTRUCTIONS + struct.pack("HBBI", RETURN, 0, 0, 0)
    held = ctypes.create_string_buffer(code, len(code))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", INSTRUCTIONS + 1, ctypes.addressof(held)))
    sock.bind((device, 0))
    return sock


def listener() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", PORT))
    return sock


@pytest.fixture
def too_small(the_host: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """One of the host's limits lowered, and put back."""
    before = request.param.read_text()
    request.param.write_text(str(TOO_SMALL))
    yield
    request.param.write_text(before)


lowered = pytest.mark.parametrize("too_small", [BACKLOG], indirect=True, ids=["backlog"])


@pytest.fixture
def receiver(too_small: None) -> Iterator[NetNs]:
    """A namespace that gets bursts of packets at a processor that is slow with them."""
    with Lab() as lab:
        a, b = lab.netns("sender"), lab.netns("receiver")
        link = lab.veth(a, b)
        b.command(["unshare", "-m", "sh", "-c", RPS.format(link.b_device)])
        sockets = [b.run(listener), *(b.run(slow_filter, link.b_device) for _ in range(SLOW))]
        a.popen([sys.executable, "-I", "-c", SENDER, link.b_address])
        yield b
        for sock in sockets:
            sock.close()


@pytest.fixture
def trimtab() -> Iterator[Trimtab]:
    with instance() as made:
        yield made


def counted_in(seconds: float, column: int) -> int:
    """By how much one of the kernel's own counts has grown in all processors."""
    before = counted(column)
    time.sleep(seconds)
    return counted(column) - before


def counted(column: int) -> int:
    return sum(int(line.split()[column], 16) for line in SOFTNET.read_text().splitlines())


def value() -> int:
    return int(BACKLOG.read_text())


def backlog_drops(trimtab: Trimtab) -> Callable[[], bool]:
    """That so many are told of as one burst loses at least."""
    return lambda: any(
        drop["reason"] == "CPU_BACKLOG" and drop["dropped"] > BURST for drop in trimtab.documents("drops")
    )


@lowered
def test_without_trimtabs_hand_packets_are_dropped_and_it_says_how_many_where_and_what_would_help(
    trimtab: Trimtab, receiver: NetNs
) -> None:
    trimtab.start("--mode", "advise", "--only", "receive_path")
    trimtab.until(lambda: trimtab.documents("history", "net.core.netdev_max_backlog"), "advice")
    assert counted_in(1.0, DROPPED) > BURST
    assert value() == TOO_SMALL
    advice = trimtab.documents("history", "net.core.netdev_max_backlog")[0]
    assert (advice["old"], advice["new"]) == (TOO_SMALL, 128)
    assert advice["why"].endswith(f"packets found a CPU's queue of {TOO_SMALL} full")
    trimtab.until(backlog_drops(trimtab), "drops told")
    (told, *_) = [drop for drop in trimtab.documents("drops") if drop["reason"] == "CPU_BACKLOG"]
    assert told["cure"] == ["net.core.netdev_max_backlog"]
    # Not the sender's, whose socket the packet still has.
    assert told["netns"] == receiver.cookie
    assert told["ifindex"]
    assert "CPU_BACKLOG" in trimtab.run("drops").stdout
    assert trimtab.stop() == 0


@lowered
def test_with_it_the_queue_grows_until_none_is_dropped_and_is_as_before_at_the_end(
    trimtab: Trimtab, receiver: NetNs
) -> None:
    trimtab.start("--mode", "enforce", "--only", "receive_path")
    trimtab.until(lambda: value() > TOO_SMALL, "more room")
    trimtab.until(lambda: not counted_in(1.0, DROPPED), "no packet dropped")
    steps = trimtab.documents("history", "net.core.netdev_max_backlog")
    assert steps[0]["old"] == TOO_SMALL
    assert steps[-1]["new"] == value()
    assert all(step["new"] == 2 * step["old"] for step in steps)
    assert trimtab.stop() == 0
    assert value() == TOO_SMALL


@pytest.mark.parametrize("too_small", [BUDGET], indirect=True, ids=["budget"])
def test_runs_of_the_softirq_that_end_with_work_left_get_longer_until_few_do(trimtab: Trimtab, receiver: NetNs) -> None:
    (trimtab.place / "trimtab.toml").write_text("[policy.receive_path]\nsqueeze_window_s = 1\n")
    trimtab.start("--mode", "enforce", "--only", "receive_path")
    before = counted_in(1.0, TIME_SQUEEZE)
    trimtab.until(lambda: int(BUDGET.read_text()) > TOO_SMALL, "longer runs")
    trimtab.until(lambda: counted_in(1.0, TIME_SQUEEZE) < max(20, before // 10), "few squeezes")
    first, *_ = trimtab.documents("history", "net.core.netdev_budget")
    assert (first["old"], first["new"]) == (TOO_SMALL, 96)
    assert "ended with work left" in first["why"]
    assert trimtab.stop() == 0
    assert int(BUDGET.read_text()) == TOO_SMALL
