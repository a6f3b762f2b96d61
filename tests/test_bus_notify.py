"""The service manager's protocol, spoken to a real socket."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from bus.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_as_one_datagram(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"trimtab-test-{os.getpid()}" if abstract else str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify("READY=1", 'STATUS={"published":0}')
        assert manager.recv(1000) == b'READY=1\nSTATUS={"published":0}'


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_manager_nothing_happens(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")


def test_a_manager_that_has_gone_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify.sock"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    notify("WATCHDOG=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
    notify("WATCHDOG=1")


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify.sock"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        for _ in range(2000):
            notify("WATCHDOG=1")
        assert manager.recv(1000) == b"WATCHDOG=1"


def test_ready_is_said_once_and_so_waits_for_a_manager_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify.sock"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(5)
        for _ in range(2000):
            notify("WATCHDOG=1")
        speaker = threading.Thread(target=notify, args=("READY=1",))
        speaker.start()
        while manager.recv(1000) != b"READY=1":
            pass
        speaker.join()


def test_ready_gives_up_on_a_manager_that_never_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify.sock"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setattr("bus.notify.READY_WAIT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        for _ in range(2000):
            notify("WATCHDOG=1")
        notify("READY=1")
