"""Shutting a process in, for real, in children of the test: what it can do no more, and what it still can."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from child_world import child

from bus import landlock, sandbox, seccomp
from trimtab.privilege import drop

ROOT = Path(__file__).resolve().parent.parent
USER = 2_046_820_399
libc = ctypes.CDLL(None, use_errno=True)


def without_landlock() -> str:
    try:
        landlock.version()
    except landlock.LandlockError as error:
        return str(error)
    return ""


confined = pytest.mark.skipif(bool(without_landlock()), reason=f"kernel: {without_landlock()}")


def refusal(do: Callable[[], object]) -> str:
    """The name of the errno with which do() fails, or what it returns."""
    try:
        return repr(do())
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def call(name: str, *arguments: int) -> int:
    """A system call by its name. Raises OSError."""
    number = ctypes.CDLL(seccomp.LIBRARY).seccomp_syscall_resolve_name(name.encode())
    words = [ctypes.c_long(word) for word in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


# --- files ----------------------------------------------------------------------------------------------------------


@confined
def test_it_writes_below_its_own_directory_and_nowhere_else_though_it_be_root(tmp_path: Path) -> None:
    tapes, other = tmp_path / "tapes", tmp_path / "other"
    for folder in (tapes, other):
        folder.mkdir()
        (folder / "old").write_text("old")

    def work(folder: Path) -> list[str]:
        return [
            refusal(lambda: (folder / "new").write_text("new")),
            refusal(lambda: (folder / "old").write_text("changed")),
            refusal(lambda: os.truncate(folder / "old", 1)),
            refusal(lambda: os.rename(folder / "old", folder / "older")),
            refusal(lambda: os.unlink(folder / "older")),
        ]

    def do() -> object:
        landlock.restrict([tapes, tmp_path / "not there"])
        outside = [
            refusal(lambda: os.mkdir(other / "folder")),
            refusal(lambda: os.symlink("x", other / "link")),
            refusal(lambda: os.link(other / "old", tapes / "stolen")),
            refusal(lambda: os.rename(tapes / "old", other / "new")),
            refusal(lambda: (tmp_path / "new").write_text("new")),
        ]
        within = [refusal(lambda: os.mkdir(tapes / "folder")), refusal(lambda: os.symlink("x", tapes / "link"))]
        return [work(tapes), work(other), outside, within, (other / "old").read_text()]

    assert ast.literal_eval(child(do)) == [
        ["3", "7", "None", "None", "None"],
        ["EACCES", "EACCES", "EACCES", "EACCES", "ENOENT"],
        ["EACCES", "EACCES", "EXDEV", "EACCES", "EACCES"],
        ["EACCES", "EACCES"],
        "old",
    ]
    assert sorted(path.name for path in other.iterdir()) == ["old"]


@confined
def test_a_thread_of_the_process_is_held_too_and_signals_go_to_nobody_outside(tmp_path: Path) -> None:
    def do() -> object:
        has = landlock.restrict([])
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(refusal((tmp_path / "x").touch)))
        thread.start()
        thread.join()
        signalled = refusal(lambda: os.kill(os.getppid(), 0))
        os.kill(os.getpid(), signal.SIGCONT)
        return said, signalled if has >= 6 else "EPERM"

    assert child(do) == "(['EACCES'], 'EPERM')"


@confined
def test_third_parties_code_can_still_be_imported(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("ANSWER = 42\n")
    code = (
        "import sys; from bus import sandbox; sandbox.enter([]); "
        f"sys.path.insert(0, {str(tmp_path)!r}); import theirs, decimal, sqlite3; print(theirs.ANSWER)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "42\n"
    assert not (tmp_path / "__pycache__").exists()


def test_a_kernel_of_the_first_version_is_asked_for_no_right_that_it_does_not_know() -> None:
    assert landlock.rights(1) == ((1 << 13) - 1, 0, 0)
    assert landlock.rights(7) == ((1 << 16) - 1, 3, 2)


def test_a_kernel_without_it_says_so_and_the_rest_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def do() -> object:
        found = sandbox.enter([])
        return found.holds, found.missing, refusal(socket.socket)

    monkeypatch.setattr(landlock, "CREATE_RULESET", 100_000)
    monkeypatch.setattr(sandbox, "reachable", lambda net: False)
    assert child(do) == "(['empty network', 'seccomp'], ['landlock: not in this kernel'], 'EPERM')"


# --- system calls ---------------------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may do nothing anyway")
@pytest.mark.parametrize("name", seccomp.NEVER.split())
def test_each_system_call_of_the_table_is_refused_by_the_filter_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An errno that none of them has of its own: EPERM could be for want of a capability.
    monkeypatch.setattr(seccomp, "REFUSED", errno.EXFULL)
    library = ctypes.CDLL(seccomp.LIBRARY)
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == seccomp.UNKNOWN:
        pytest.skip(f"kernel: this libseccomp does not know {name}")
    assert number >= 0 or platform.machine() != "x86_64"

    def do() -> object:
        drop(USER, (), ())
        seccomp.refuse()
        return refusal(lambda: call(name))

    if number >= 0:
        assert child(do) == "'EXFULL'"


def test_there_is_no_socket_but_with_a_path_and_no_way_round() -> None:
    def do() -> object:
        # A process and a thread of our own can still be made.
        seccomp.refuse()
        ours = socket.socketpair()
        threading.Thread(target=int).start()
        if not (pid := os.fork()):
            os._exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kinds = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK)
        users = {refusal(lambda: clone(0x10000000 | signal.SIGCHLD)), refusal(lambda: call("clone3"))}
        return len(ours), status, {refusal(lambda kind=kind: socket.socket(kind)) for kind in kinds}, users  # type: ignore[misc]

    def clone(flags: int) -> int:
        pid = call("clone", flags)
        if pid == 0:
            os._exit(0)
        return pid

    assert ast.literal_eval(child(do)) == (2, 7, {"EPERM"}, {"EPERM", "ENOSYS"})


def test_the_filter_holds_threads_that_were_there_before_it() -> None:
    def do() -> object:
        begin, said = threading.Event(), list[str]()
        thread = threading.Thread(target=lambda: (begin.wait(), said.append(refusal(socket.socket))))
        thread.start()
        seccomp.refuse()
        begin.set()
        thread.join()
        return said

    assert child(do) == "['EPERM']"


def test_without_the_library_it_says_which_package_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "LIBRARY", "libnonesuch.so.9")
    monkeypatch.setattr(sandbox, "reachable", lambda net: False)
    monkeypatch.setattr(landlock, "restrict", lambda writable: 7)
    assert child(lambda: sandbox.enter([]).missing) == "['seccomp: no libnonesuch.so.9 (Debian: libseccomp2)']"


# --- all of it ------------------------------------------------------------------------------------------------------


def test_messages_still_come_and_go_through_sockets_with_a_path(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.bind(f"ipc://{tmp_path}/lane.sock")
        code = (
            "import sys, zmq; from bus import sandbox; sandbox.enter([])\n"
            "with zmq.Context() as context, context.socket(zmq.REQ) as lane:\n"
            "    lane.connect('ipc://' + sys.argv[1]); lane.send(b'hello'); print(lane.recv())\n"
        )
        argv = [sys.executable, "-c", code, f"{tmp_path}/lane.sock"]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as shut_in:
            assert server.poll(20_000)
            server.send(server.recv())
            assert shut_in.communicate()[0] == b"b'hello'\n"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "leads"),
    [
        ("", "", False),
        (None, None, False),
        ("eth0\t0000FEA9\t00000000\n", "", True),
        ("", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200       lo\n", False),
        ("", f"fe80{'0' * 28} 40 {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 00000001     eth0\n", True),
    ],
)
def test_a_network_is_one_that_leads_somewhere(tmp_path: Path, ipv4: str | None, ipv6: str | None, leads: bool) -> None:
    if ipv4 is not None and ipv6 is not None:
        (tmp_path / "route").write_text(f"Iface\tDestination\tGateway\n{ipv4}")
        (tmp_path / "ipv6_route").write_text(ipv6)
    assert sandbox.reachable(tmp_path) == leads
    if leads:
        said = child(lambda: sandbox.enter([], tmp_path).missing)
        assert "empty network: the host's is within reach" in said
