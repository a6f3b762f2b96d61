"""Runs a program inside a network namespace, and never lets it outlive who started it.

    python -I -m trimtab.enter PARENT_PID NETNS_FD PROGRAM [ARG...]

A program of its own, because the thread that starts a process may hold locks: between fork and exec nothing of Python
is safe there, while here, after exec, everything is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from bus.netns import CLONE_NEWNET

PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise OSError for the errno of a libc call that returned result, when that is not 0."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def die_with(parent: int, how: int = signal.SIGKILL) -> None:
    """Have the kernel send this process `how` when its parent ends, or send it now when the parent is not there."""
    checked(libc.prctl(PR_SET_PDEATHSIG, how, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def main(argv: Sequence[str]) -> int:
    """Become PROGRAM; 1 with one line when that cannot be."""
    parent, netns_fd, *program = argv
    die_with(int(parent))
    try:
        checked(libc.setns(int(netns_fd), CLONE_NEWNET), "setns")
        os.close(int(netns_fd))
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
