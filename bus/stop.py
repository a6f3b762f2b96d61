"""How a role is told to stop: a descriptor that its loop waits for beside everything else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that becomes readable at SIGTERM or SIGINT; poll(2) itself is resumed after a handler (PEP 475)."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {
        number: signal.signal(number, lambda *_: None) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield read
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(read)
        os.close(write)
