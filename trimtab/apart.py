"""The network namespace of the roles that are to have none: one for all of them, empty, as old as the supervisor.

One, and not one each: a namespace costs the kernel some 100 KiB and a moment to make. It has no name and no process but
deciders, by whose users bus.netns leaves it out: it is no container.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

from bus.netns import CLONE_NEWNET
from trimtab.enter import checked, libc


@functools.cache
def namespace() -> int:
    """A descriptor of it; it lives for as long as that is open. OSError where none can be made, as in a container."""

    def make() -> int:
        # In a thread, for it is the thread alone that moves, and it ends here.
        checked(libc.unshare(CLONE_NEWNET), "a network namespace")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    with ThreadPoolExecutor(1, "apart") as thread:
        return thread.submit(make).result()


def enter(namespace: int) -> None:
    """Move the calling process, which must have but one thread. OSError without CAP_SYS_ADMIN."""
    checked(libc.setns(namespace, CLONE_NEWNET), "the empty network namespace")
