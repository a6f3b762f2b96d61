"""Starting one role: fork from the preloaded parent, put away all that is the parent's, drop privileges, run main().

Forked and not executed, so that the roles share the parent's pages. The loader alone becomes another program: bcc lives
in the distribution's python3.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import posix
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

from bus.roles import GROUP, Role
from trimtab import apart, reach
from trimtab.enter import die_with
from trimtab.privilege import PrivilegeError, drop

PYTHON = "/usr/bin/python3"
EX_NOPERM = 77
PR_SET_NAME = 15
WATCHDOG_S = 15
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_libc = ctypes.CDLL(None, use_errno=True)


class Child(Struct, frozen=True):
    """A started role, as its parent sees it."""

    pid: int
    pidfd: int
    """Readable once the process has ended; never another process's, unlike the pid."""
    output: int
    """What it says on stdout and stderr; non-blocking."""


def start(role: Role, arguments: Sequence[str], notify: Path) -> Child:
    """Fork `role` with its row's arguments and then `arguments`. OSError when there is no process to be had."""
    output, write_end = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        # What waits in a buffer would be written twice. Nobody left to read it is no reason not to start.
        with contextlib.suppress(OSError):
            stream.flush()
    if not role.network:
        # Made here, that all such roles share it. What keeps us from it keeps the child from it, who says so.
        with contextlib.suppress(OSError):
            apart.namespace()
    # Until the child has its own handlers (the default ones), a signal to it would run ours, in it, and be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _be(role, (*role.argv, *arguments), notify, (output, write_end, parent))
    except OSError:
        os.close(output)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(write_end)
    os.set_blocking(output, False)
    return Child(pid, os.pidfd_open(pid), output)


def _be(role: Role, argv: Sequence[str], notify: Path, inherited: tuple[int, int, int]) -> NoReturn:
    """The child's whole life. Never returns into the parent's frames."""
    code = 1
    try:
        output, write_end, parent = inherited
        kept = "" if role.network else _leave_network()
        _leave_parent(role, notify, output, write_end)
        if kept:
            print(f"{role.name}: keeps the host's network: {kept}", file=sys.stderr)
        reach.anchor()
        drop(role.uid, {GROUP}, role.capabilities, keep_over_exec=role.kind == "loader")
        # After the drop: a change of credentials clears it (commit_creds in kernel/cred.c). The actuator is given the
        # time to undo its changes, the dead-man is there for just this; the others have nothing to put in order.
        if role.kind != "deadman":
            die_with(parent, signal.SIGTERM if role.kind == "actuator" else signal.SIGKILL)
        if role.kind == "loader":
            program = _source(role.module)
            os.execv(PYTHON, [PYTHON, "-I", program, *argv])
        code = importlib.import_module(role.module).main(list(argv))
    except PrivilegeError as error:
        print(f"{role.name}: {error}", file=sys.stderr)
        code = EX_NOPERM
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last resort of a process: nothing above may catch it
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _leave_network() -> str:
    """Why not; empty when done. Before the parent's descriptors are put away, for one of them is the way."""
    try:
        apart.enter(apart.namespace())
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _leave_parent(role: Role, notify: Path, output: int, write_end: int) -> None:
    # A session of its own: Ctrl-C in the terminal reaches the supervisor alone.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open("/dev/null", os.O_RDONLY)
    # The pipe's reading end stays open here as descriptor 3: with the supervisor gone a line goes nowhere, rather than
    # breaking an orderly stop by EPIPE.
    for number, fd in enumerate([os.dup(fd) for fd in (null, write_end, write_end, output)]):
        os.dup2(fd, number, inheritable=number < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    os.umask(0o077)
    path = os.environ.get("PATH", os.defpath)
    # Root's environment may hold what is no business of a third party's decider.
    os.environ.clear()
    posix.environ.clear()
    os.environ.update(
        {"PATH": path, "LC_ALL": "C.UTF-8", "NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000)}
    )
    _title(role.name)


def _source(module: str) -> str:
    """The file of one of our modules, which this process must not import."""
    return str(Path(__file__).resolve().parent.parent.joinpath(*module.split("."))) + ".py"


def _title(name: str) -> None:
    """What ps(1) and top(1) show: the thread's name (15 bytes) and the memory that argv was passed in."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.removeprefix("collector-").encode()), 0, 0, 0)
    # proc_pid_stat(5), fields 48 to 51: where argv and the environment were passed in; the command in field 2 may hold
    # spaces. The environment is wiped: what of it still counts has been set anew.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end, environ_start, environ_end = map(int, fields[45:49])
    if 0 < start < end:
        ctypes.memmove(start, f"trimtab: {name}".encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)
    if 0 < environ_start < environ_end:
        ctypes.memset(environ_start, 0, environ_end - environ_start)
