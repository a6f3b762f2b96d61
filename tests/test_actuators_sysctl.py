"""Sysctls and the ways into namespaces: a fake root for the parsing, real namespaces for the rest."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actuators.kernel import Kernel
from actuators.namespaces import SCAN_S, Namespaces
from actuators.records import Site, Spot, Swap
from actuators.sysctl import Sysctl
from bus import tunables
from bus.netns import NamespaceGoneError, cookie_here, inside

PREFIX = f"tt-act-{os.getpid()}-"
RMEM = "net.ipv4.tcp_rmem[2]"
SOMAXCONN = "net.core.somaxconn"


def here(cookie: int, inode: int, do: Callable[[], Any]) -> Any:
    return do()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Sysctl]:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    (tmp_path / "net/core").mkdir()
    (tmp_path / "net/ipv4/tcp_rmem").write_text("4096\t131072\t6291456\n")
    (tmp_path / "net/core/somaxconn").write_text("4096\n")
    (tmp_path / "net/core/default_qdisc").write_text("pfifo_fast\n")
    with contextlib.closing(Sysctl(here, tmp_path, keep=2)) as sysctl:
        yield sysctl


# --- parsing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [(RMEM, 6291456), ("net.ipv4.tcp_rmem[0]", 4096), (SOMAXCONN, 4096)])
def test_one_integer_is_read(fake: Sysctl, key: str, value: int) -> None:
    assert fake.read(Spot(key, 0), 0) == value


def test_the_other_integers_stay_as_they_are_at_that_moment(fake: Sysctl, tmp_path: Path) -> None:
    assert fake.read(Spot(RMEM, 0), 0) == 6291456
    (tmp_path / "net/ipv4/tcp_rmem").write_text("5000\t6000\t6291456\n")
    assert fake.swap(Spot(RMEM, 0), 0, 6291456, 100) == Swap(6291456, 100, "")
    assert (tmp_path / "net/ipv4/tcp_rmem").read_text() == "5000 6000 100\n"


def test_nothing_is_written_over_a_value_that_was_not_expected(fake: Sysctl, tmp_path: Path) -> None:
    assert fake.swap(Spot(SOMAXCONN, 0), 0, 128, 256) == Swap(4096, 4096, "")
    assert (tmp_path / "net/core/somaxconn").read_text() == "4096\n"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "net",
        "../etc/passwd",
        "net.ipv4/../../x",
        "net..ipv4",
        "net.ipv4.x\0",
        "/etc/shadow",
        "net.ipv4.tcp_rmem[4]",
        "net.ipv4.tcp_rmem[-1]",
        "net.ipv4.tcp_rmem\n",
        "NET.ipv4.x",
        "net.ipv4.tcp_rmem[2][2]",
    ],
)
def test_no_name_leads_out_of_proc_sys(fake: Sysctl, name: str) -> None:
    with pytest.raises(OSError, match="names no sysctl"):
        fake.read(Spot(name, 0), 0)
    with pytest.raises(OSError, match="names no sysctl"):
        fake.swap(Spot(name, 0), 0, 1, 2)


def test_what_is_no_integer_or_has_too_few_is_an_error(fake: Sysctl) -> None:
    with pytest.raises(OSError, match="not all integers"):
        fake.read(Spot("net.core.default_qdisc", 0), 0)
    with pytest.raises(OSError, match=r"none at \[3\]"):
        fake.read(Spot("net.ipv4.tcp_rmem[3]", 0), 0)
    with pytest.raises(FileNotFoundError):
        fake.read(Spot("net.core.nothing", 0), 0)


def test_only_so_many_descriptors_are_kept(fake: Sysctl, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for netns in range(20):
        assert fake.read(Spot(SOMAXCONN, netns), 0) == 4096
    assert len(os.listdir("/proc/self/fd")) == before + 2


# --- real namespaces --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def namespace(name: str) -> Iterator[tuple[int, int]]:
    """Cookie and inode of a namespace that is there while the block runs, unless it was removed inside."""
    subprocess.run(["ip", "netns", "add", PREFIX + name], check=True)
    handle = f"/run/netns/{PREFIX}{name}"
    try:
        yield inside(handle, cookie_here), os.stat(handle).st_ino
    finally:
        if os.path.exists(handle):
            remove(name)


def remove(name: str) -> None:
    subprocess.run(["ip", "netns", "del", PREFIX + name], check=True)


def until_gone(do: Callable[[], object]) -> None:
    """The kernel takes a namespace apart a moment after its last user has left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        do()
        time.sleep(0.02)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with contextlib.closing(Kernel(tunables.table(), Namespaces())) as made:
        yield made


@pytest.mark.system
def test_a_write_stays_in_its_namespace_and_the_thread_never_moves(kernel: Kernel) -> None:
    mine = cookie_here()
    with namespace("a") as (one, inode), namespace("b") as (other, other_inode):
        value = kernel.read(Spot(RMEM, one), inode)
        unrelated = kernel.read(Spot(RMEM, other), other_inode)
        own = kernel.read(Spot(RMEM, kernel.own), 0)
        assert kernel.swap(Spot(RMEM, one), inode, value, value + 4096) == Swap(value, value + 4096, "")
        assert kernel.read(Spot(RMEM, one), inode) == value + 4096
        assert kernel.read(Spot(RMEM, other), other_inode) == unrelated
        assert kernel.read(Spot(RMEM, kernel.own), 0) == own
        assert kernel.site(one) == Site(inode, PREFIX + "a")
        assert kernel.site(kernel.own).name == "host"
        assert kernel.site(0) == Site()
    assert cookie_here() == mine
    assert threading.active_count() == 1


@pytest.mark.system
def test_a_namespace_without_a_name_is_found_through_its_process(kernel: Kernel) -> None:
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE) as child:
        handle = f"/proc/{child.pid}/ns/net"
        deadline = time.monotonic() + 10
        while os.stat(handle).st_ino == os.stat("/proc/self/ns/net").st_ino and time.monotonic() < deadline:
            time.sleep(0.01)
        cookie, inode = inside(handle, cookie_here), os.stat(handle).st_ino
        assert kernel.read(Spot(SOMAXCONN, cookie), inode) > 0
        assert kernel.site(cookie) == Site(inode, "")
        child.communicate()


@pytest.mark.system
def test_a_wrong_hint_still_finds_the_namespace(kernel: Kernel) -> None:
    with namespace("a") as (one, _), namespace("b") as (_, wrong):
        assert kernel.read(Spot(SOMAXCONN, one), wrong) > 0


@pytest.mark.system
def test_a_made_up_cookie_is_gone_and_does_not_keep_us_busy(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []

    def scan(cookie: int, inode: int) -> Any:
        scans.append(cookie)
        raise NamespaceGoneError(errno.ENOENT, "no")

    now_s = time.monotonic()
    monkeypatch.setattr("actuators.namespaces.find", scan)
    # The clock stands still: on a loaded host fifty looks for the hint alone may take longer than the pause.
    monkeypatch.setattr("actuators.namespaces.time", SimpleNamespace(monotonic=lambda: now_s))
    for cookie in range(10**6, 10**6 + 50):
        with pytest.raises(NamespaceGoneError):
            kernel.read(Spot(SOMAXCONN, cookie), 0)
    assert len(scans) == 1
    now_s += SCAN_S
    with pytest.raises(NamespaceGoneError):
        kernel.read(Spot(SOMAXCONN, 10**6), 0)
    assert len(scans) == 2


@pytest.mark.system
def test_a_kept_descriptor_does_not_keep_the_namespace_alive_and_never_means_another(kernel: Kernel) -> None:
    with namespace("a") as (one, inode):
        value = kernel.read(Spot(SOMAXCONN, one), inode)
        remove("a")
        with namespace("a") as (second, second_inode):
            assert second != one
            with pytest.raises(NamespaceGoneError):
                until_gone(lambda: kernel.read(Spot(SOMAXCONN, one), second_inode))
            with pytest.raises(NamespaceGoneError):
                kernel.swap(Spot(SOMAXCONN, one), second_inode, value, value + 1)
            assert kernel.read(Spot(SOMAXCONN, second), second_inode) == value


@pytest.mark.system
def test_a_namespace_that_goes_between_look_and_write_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Sysctl(Namespaces().enter)) as sysctl, namespace("a") as (one, inode):
        value = sysctl.read(Spot(SOMAXCONN, one), inode)
        write = sysctl._write

        def vanish_first(fd: int, values: list[int]) -> str:
            remove("a")
            with contextlib.suppress(OSError):
                until_gone(lambda: os.pread(fd, 10, 0))
            return write(fd, values)

        monkeypatch.setattr(sysctl, "_write", vanish_first)
        with pytest.raises(NamespaceGoneError):
            sysctl.swap(Spot(SOMAXCONN, one), inode, value, value + 1)


@pytest.mark.system
def test_what_the_kernel_refuses_comes_back_in_its_words(kernel: Kernel) -> None:
    with namespace("a") as (one, inode):
        # tcp_wmem's minimum is 4608 or so (tcp_wmem_min in net/ipv4/sysctl_net_ipv4.c); 0 is below every one's.
        spot = Spot("net.ipv4.tcp_rmem[0]", one)
        value = kernel.read(spot, inode)
        assert kernel.swap(spot, inode, value, 0) == Swap(value, value, "Invalid argument")


@pytest.mark.system
def test_related_values_that_cannot_be_read_are_left_out(kernel: Kernel) -> None:
    found = kernel.related(["net.ipv4.tcp_rmem[1]", "net.ipv4.nothing"], kernel.own, 0)
    assert set(found) == {"net.ipv4.tcp_rmem[1]"}
