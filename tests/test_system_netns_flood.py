"""Namespaces that come and go by the hundred while trimtab tunes: it stays whole, tunes those that need it meanwhile,
and keeps nothing of those that have gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance_world import Trimtab, instance

from trimtab.lab import Lab, NetNs

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PREFIX = f"ttflood{os.getpid()}-"
ALIVE = 30
"""At any moment."""
TOO_SMALL = 131_072
GROWN_KIB = 6 * 1024
"""So much more memory one process may have than before: what it needed for namespaces that have gone stays its own."""

# What is done inside a namespace, by the flood and by the test itself.
SCARCE = f"""
import ctypes, fcntl, os, socket, struct, sys, time
HIGH = "/proc/sys/net/ipv4/ipfrag_high_thresh"

def scarce():
    "Little room for fragments, and a loopback that makes them."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8922, struct.pack("16si20x", b"lo", 1500))  # SIOCSIFMTU, SIOCSIFFLAGS: IFF_UP
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 1))
    for name, value in ("low", 0), ("high", {TOO_SMALL}):
        with open(HIGH.replace("high", name), "w") as file:
            file.write(str(value))

def high():
    with open(HIGH) as file:
        return int(file.read())

def tuned(until_s):
    "Fragments that do not fit, until there is more room: how long it took."
    # Of datagrams that are never complete: what waits for their rest takes the room.
    began_s = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        number = 0
        while high() <= {TOO_SMALL}:
            if time.monotonic() > began_s + until_s:
                return 1e9
            for at in range(20):
                number += 1
                head = struct.pack("!BBHHHBBH", 0x45, 0, 0, number & 0xFFFF, 0x2000 | at, 64, 17, 0)
                sender.sendto(head + bytes((127, 0, 0, 1)) * 2 + bytes(1400), ("127.0.0.1", 0))
            time.sleep(0.002)
    return time.monotonic() - began_s
"""
FLOOD = (
    SCARCE
    + """
libc = ctypes.CDLL(None, use_errno=True)
prefix, count, alive, every = sys.argv[1], *map(int, sys.argv[2:])

def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def remove(path):
    checked(libc.umount2(path.encode(), 2))
    os.unlink(path)

os.makedirs("/run/netns", exist_ok=True)
there = []
for number in range(1, count + 1):
    checked(libc.unshare(0x40000000))
    path = f"/run/netns/{prefix}{number}"
    open(path, "x").close()
    checked(libc.mount(b"/proc/self/ns/net", path.encode(), None, 4096, None))
    there.append(path)
    if number % every == 0:
        scarce()
        print(tuned(30), flush=True)
    if len(there) > alive:
        remove(there.pop(0))
for path in there:
    remove(path)
"""
)


@pytest.fixture
def trimtab(the_host: None) -> Iterator[Trimtab]:
    """It tunes any namespace: another test's instance may not be there, nor its namespaces."""
    with instance() as made:
        yield made


@pytest.fixture
def swept() -> Iterator[None]:
    """Names that a flood left which was cut short."""
    yield
    for path in Path("/run/netns").glob(f"{PREFIX}*"):
        subprocess.run(["umount", "-l", path], capture_output=True)
        path.unlink()


def scarce(netns: NetNs, until_s: float) -> float:
    """How long it takes until there is more room in this namespace."""
    names: dict[str, object] = {}
    exec(SCARCE, names)
    netns.run(names["scarce"])  # type: ignore[arg-type]
    took: float = netns.run(names["tuned"], until_s)  # type: ignore[arg-type]
    return took


def held(trimtab: Trimtab) -> dict[str, tuple[int, int]]:
    """Descriptors and memory (KiB) of each process."""
    found = {}
    for name, pid in {"supervisor": trimtab.document()["pid"], **trimtab.pids()}.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
        found[name] = (len(os.listdir(f"/proc/{pid}/fd")), int(rollup[rollup.index("Pss:") + 1]))
    return found


def flood(trimtab: Trimtab, count: int, every: int) -> None:
    """So many namespaces that come and go, and each so manieth is short of room for fragments until it is tuned."""
    trimtab.start("--mode", "enforce", "--only", "ip_frag")
    with Lab() as lab:
        first, through = lab.netns(), lab.netns()
        assert scarce(first, 30) < 30
        pids, before = trimtab.pids(), held(trimtab)
        argv = [sys.executable, "-I", "-c", FLOOD, PREFIX, str(count), str(ALIVE), str(every)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as flooding:
            assert flooding.stdout
            took = [float(flooding.stdout.readline()), scarce(through, 30)]
            took += [float(line) for line in flooding.stdout]
        assert flooding.returncode == 0
        assert len(took) == count // every + 1
        # Others may keep the processors busy at any one moment, but hardly at all of them.
        assert max(took) < 30
        assert sorted(took)[len(took) // 2] < 1, took
        lived = {first.cookie, through.cookie}
        trimtab.until(lambda: closed(trimtab, lived) >= count // every, "rows of those that have gone to close")
        assert trimtab.pids() == pids
        # One more for the key of `through`, which stands.
        trimtab.until(lambda: all(held(trimtab)[name][0] <= fds + 1 for name, (fds, _) in before.items()), "few files")
        for name, (_, kib) in held(trimtab).items():
            assert kib < before[name][1] + GROWN_KIB, (name, kib, before[name][1])
        assert {first.cookie, through.cookie} <= standing(trimtab)
    assert trimtab.stop() == 0


def closed(trimtab: Trimtab, lived: set[int]) -> int:
    """How many of those that are gone had changes, of which none stands; 0 while one does."""
    rows = [row for row in trimtab.documents("history") if row["netns"] not in lived]
    return len({row["netns"] for row in rows}) if all(row["state"] == "lost" for row in rows) else 0


def standing(trimtab: Trimtab) -> set[int]:
    return {row["netns"] for row in trimtab.documents("history") if row["state"] in ("trial", "confirmed")}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("swept")
def test_a_thousand_namespaces_that_come_and_go_leave_nothing_and_hold_up_none(trimtab: Trimtab) -> None:
    flood(trimtab, 1000, 50)
