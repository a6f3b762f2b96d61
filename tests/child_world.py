"""A process of its own, for tests of what a process gives up for good."""

from __future__ import annotations

import os
from collections.abc import Callable


def child(do: Callable[[], object]) -> str:
    """What do() returns, in words, in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(do())
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said
