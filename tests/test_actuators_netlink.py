"""The neighbour tables' thresholds, in the real kernel: raised by one and put back."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.kernel import Kernel
from actuators.namespaces import Namespaces
from actuators.netlink import NLM_F_REQUEST_ACK, RTM_SETNEIGHTBL, NeighTables
from actuators.records import Spot, Swap
from actuators.sysctl import Sysctl
from bus import tunables

pytestmark = pytest.mark.system
KEYS = [f"net.{family}.neigh.default.gc_thresh{level}" for family in ("ipv4", "ipv6") for level in (1, 2, 3)]


@pytest.fixture
def tables(the_host: None) -> Iterator[NeighTables]:
    with contextlib.closing(Sysctl(Namespaces().enter)) as sysctl, contextlib.closing(NeighTables(sysctl)) as made:
        yield made


def file(key: str) -> Path:
    return Path("/proc/sys") / key.replace(".", "/")


@pytest.mark.parametrize("key", KEYS)
def test_one_threshold_is_set_and_its_neighbours_are_not(tables: NeighTables, key: str) -> None:
    if not file(key).exists():
        pytest.skip("kernel: no such table (IPv6 is off)")
    before = {name: int(file(name).read_text()) for name in KEYS if file(name).exists()}
    value = before[key]
    try:
        assert tables.swap(Spot(key, 0), value, value + 1) == Swap(value, value + 1, "")
        assert {name: int(file(name).read_text()) for name in before} == {**before, key: value + 1}
        assert tables.swap(Spot(key, 0), value, 7) == Swap(value + 1, value + 1, "")
    finally:
        file(key).write_text(str(value))


def test_the_kernel_s_refusal_comes_back_in_words_and_the_next_request_works(tables: NeighTables) -> None:
    key = KEYS[0]
    value = int(file(key).read_text())
    tables._socket.close()
    child = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while os.stat(f"/proc/{child.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            pass
        inside = _tables_inside(child.pid)
        with contextlib.closing(inside):
            assert inside.swap(Spot(key, 0), value, value + 1) == Swap(value, value, "No such file or directory")
            assert inside.swap(Spot(key, 0), value, value + 1).error == "No such file or directory"
    finally:
        child.communicate()
    assert int(file(key).read_text()) == value


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one_s(tables: NeighTables) -> None:
    key = KEYS[0]
    value = int(file(key).read_text())
    # A request without a table's name, whose refusal nobody waited for.
    tables._socket.send(struct.pack("=IHHII4x", 20, RTM_SETNEIGHTBL, NLM_F_REQUEST_ACK, 999_999, 0))
    try:
        assert tables.swap(Spot(key, 0), value, value + 1) == Swap(value, value + 1, "")
    finally:
        file(key).write_text(str(value))


def _tables_inside(pid: int) -> NeighTables:
    """Its socket in a namespace that may not set thresholds, its reading here."""
    from bus.netns import inside

    return inside(f"/proc/{pid}/ns/net", lambda: NeighTables(Sysctl(Namespaces().enter)))


def test_pyroute2_is_loaded_only_by_who_may_write_a_threshold() -> None:
    code = (
        "import sys; from actuators.kernel import Kernel; from actuators.namespaces import Namespaces;"
        "from bus import tunables; kernel = Kernel(tunables.table(), Namespaces());"
        "import actuators.__main__; kernel.prepare(['tcp_buffer']); print('pyroute2' in sys.modules);"
        "kernel.prepare(['neigh_table']); print('pyroute2' in sys.modules); kernel.close()"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.split() == ["False", "True"]


@pytest.mark.usefixtures("the_host")
def test_the_kernel_writes_a_threshold_by_netlink() -> None:
    key = KEYS[0]
    value = int(file(key).read_text())
    with contextlib.closing(Kernel(tunables.table(), Namespaces())) as kernel:
        try:
            assert kernel.swap(Spot(key, 0), 0, value, value + 1) == Swap(value, value + 1, "")
            assert kernel._tables is not None
        finally:
            file(key).write_text(str(value))
