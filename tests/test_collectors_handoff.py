"""The hand-over against callers that are hostile, broken, or somebody else."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import PROBES
from collectors import handoff
from collectors.handoff import HandOffError

NAMES = [probe.name for probe in PROBES]
OFF: list[dict[str, Any]] = [{"name": name, "road": "", "reason": "why"} for name in NAMES]


def on() -> list[dict[str, Any]]:
    return [
        {"name": name, "road": "raw tracepoint", "reason": "", "ring": 2 * place, "link": 2 * place + 1}
        for place, name in enumerate(NAMES)
    ]


def anonymous(count: int) -> list[int]:
    """Descriptors that look like BPF's to fstat: anonymous inodes."""
    return [os.eventfd(0) for _ in range(count)]


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


def sent(line: tuple[socket.socket, socket.socket], packet: object, fds: list[int]) -> handoff.Handed:
    raw = packet if isinstance(packet, bytes) else json.dumps(packet).encode()
    socket.send_fds(line[0], [raw], fds)
    return handoff.receive(line[1])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_whole_hand_over_gives_each_probe_its_own_descriptors(line: tuple[socket.socket, socket.socket]) -> None:
    fds = anonymous(2 * len(PROBES) + 1)
    numbers = [os.fstat(fd).st_ino for fd in fds]
    before = open_descriptors()
    handed = sent(line, {"version": 1, "probes": on(), "drops": len(fds) - 1}, fds)
    assert open_descriptors() == before + len(fds)
    ours = [fd for name in NAMES for fd in (handed.rows[name].ring, handed.rows[name].link)]
    assert [os.fstat(fd).st_ino for fd in (*ours, handed.drops)] == numbers
    assert not any(os.get_inheritable(fd) for fd in ours)
    handed.close()
    assert open_descriptors() == before
    for fd in fds:
        os.close(fd)


def test_a_hand_over_of_nothing_but_reasons_is_taken(line: tuple[socket.socket, socket.socket]) -> None:
    handed = sent(line, {"version": 1, "probes": OFF}, [])
    assert {name: row.reason for name, row in handed.rows.items()} == dict.fromkeys(NAMES, "why")
    assert handed.drops == -1
    handed.close()


def changed(place: int, **changes: object) -> list[dict[str, Any]]:
    rows = on()
    rows[place] |= changes
    return rows


DROPS = 2 * len(PROBES)
BAD: dict[str, tuple[object, int]] = {
    "no JSON": (b"\xff\x00{", 0),
    "nested without end": (b"[" * 60_000, 0),
    "another version": ({"version": 2, "probes": OFF}, 0),
    "a list": ([1], 0),
    "no probes": ({"version": 1}, 0),
    "one more key": ({"version": 1, "probes": OFF, "more": 1}, 0),
    "one more key in a row": ({"version": 1, "probes": [{**OFF[0], "run": "sh"}, *OFF[1:]]}, 0),
    "a probe missing": ({"version": 1, "probes": OFF[1:]}, 0),
    "a probe twice": ({"version": 1, "probes": [OFF[0], *OFF]}, 0),
    "an unknown probe": ({"version": 1, "probes": [{**OFF[0], "name": "x"}, *OFF[1:]]}, 0),
    "a name that is a number": ({"version": 1, "probes": [{**OFF[0], "name": 7}, *OFF[1:]]}, 0),
    "a reason without end": ({"version": 1, "probes": [{**OFF[0], "reason": "x" * 5000}, *OFF[1:]]}, 0),
    "no descriptors at all": ({"version": 1, "probes": on(), "drops": DROPS}, 0),
    "too few descriptors": ({"version": 1, "probes": on(), "drops": DROPS}, DROPS),
    "too many descriptors": ({"version": 1, "probes": on(), "drops": DROPS}, DROPS + 2),
    "descriptors of no probe": ({"version": 1, "probes": OFF}, 1),
    "a ring twice": ({"version": 1, "probes": changed(1, ring=0), "drops": DROPS}, DROPS + 1),
    "a negative ring": ({"version": 1, "probes": changed(1, ring=-2), "drops": DROPS}, DROPS + 1),
    "a ring of no road": ({"version": 1, "probes": changed(1, road=""), "drops": DROPS}, DROPS + 1),
    "no drops": ({"version": 1, "probes": on()}, DROPS + 1),
    "a fractional ring": ({"version": 1, "probes": changed(1, ring=2.5), "drops": DROPS}, DROPS + 1),
    "a huge ring": ({"version": 1, "probes": changed(1, ring=2**80), "drops": DROPS}, DROPS + 1),
}


@pytest.mark.parametrize("what", BAD)
def test_a_packet_that_is_not_the_loaders_is_one_error_and_leaves_nothing_open(
    line: tuple[socket.socket, socket.socket], what: str
) -> None:
    packet, count = BAD[what]
    fds = anonymous(count)
    before = open_descriptors()
    with pytest.raises(HandOffError) as told:
        sent(line, packet, fds)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
    assert open_descriptors() == before
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kind", ["file", "memfd", "pipe", "socket", "directory"])
def test_a_descriptor_that_is_no_bpf_object_is_refused(
    line: tuple[socket.socket, socket.socket], tmp_path: Path, kind: str
) -> None:
    fds = anonymous(DROPS + 1)
    read, write = os.pipe()
    (tmp_path / "file").write_text("")
    instead = {
        "file": lambda: os.open(tmp_path / "file", os.O_RDWR),
        "memfd": lambda: os.memfd_create("x"),
        "pipe": lambda: os.dup(read),
        "socket": lambda: os.dup(line[0].fileno()),
        "directory": lambda: os.open(tmp_path, os.O_RDONLY),
    }[kind]()
    os.dup2(instead, fds[3])
    os.close(instead)
    before = open_descriptors()
    with pytest.raises(HandOffError, match=r"^the loader's packet holds a descriptor that is no BPF object$"):
        sent(line, {"version": 1, "probes": on(), "drops": DROPS}, fds)
    assert open_descriptors() == before
    for fd in (*fds, read, write):
        os.close(fd)


def test_a_packet_over_its_bounds_is_refused(line: tuple[socket.socket, socket.socket]) -> None:
    before = open_descriptors()
    with pytest.raises(HandOffError, match="is over 65536 bytes or 64 descriptors"):
        sent(line, b" " * (handoff.PACKET_BYTES + 1), [])
    fds = anonymous(100)
    with pytest.raises(HandOffError, match="is over 65536 bytes or 64 descriptors"):
        sent(line, {"version": 1, "probes": OFF}, fds)
    for fd in fds:
        os.close(fd)
    assert open_descriptors() == before


def test_a_caller_that_goes_away_is_told(line: tuple[socket.socket, socket.socket]) -> None:
    line[0].close()
    with pytest.raises(HandOffError, match=r"^the loader ended without a word$"):
        handoff.receive(line[1])


@given(st.binary(min_size=1, max_size=400))
def test_whatever_the_bytes_it_is_one_error(raw: bytes) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.send(raw)
        with pytest.raises(HandOffError):
            handoff.receive(there)


def test_the_socket_is_open_to_callers_who_then_must_be_root_or_ourselves(tmp_path: Path) -> None:
    path = tmp_path / "probes.sock"
    with handoff.listen(path) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert handoff.accept(listener) is None
        caller.connect(str(path))
        connection = handoff.accept(listener)
        assert connection
        connection.close()


def test_what_an_earlier_run_left_is_replaced_but_never_a_file(tmp_path: Path) -> None:
    path = tmp_path / "probes.sock"
    handoff.listen(path).close()
    handoff.listen(path).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(OSError, match=r"probes\.sock"):
        handoff.listen(path)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"probes\.sock"):
        handoff.listen(path)


CALLER = """
import os, socket, sys
os.setgroups([]); os.setresgid(65533, 65533, 65533); os.setresuid(65533, 65533, 65533)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
    caller.connect(sys.argv[1])
    print(len(caller.recv(1)))
"""


@pytest.mark.system
def test_another_user_is_turned_away() -> None:
    # An abstract path would do, but the rights of a real one are what ships.
    folder = Path(f"/run/trimtab-test-handoff-{os.getpid()}")
    folder.mkdir(mode=0o755)
    try:
        with (
            handoff.listen(folder / "probes.sock") as listener,
            subprocess.Popen(
                [sys.executable, "-I", "-c", CALLER, str(folder / "probes.sock")], stdout=subprocess.PIPE, text=True
            ) as caller,
        ):
            listener.setblocking(True)
            listener.settimeout(20)
            with pytest.raises(HandOffError, match=r"^user 65533 is not to hand over probes$"):
                handoff.accept(listener)
            assert caller.communicate(timeout=20)[0] == "0\n"
    finally:
        (folder / "probes.sock").unlink(missing_ok=True)
        folder.rmdir()
