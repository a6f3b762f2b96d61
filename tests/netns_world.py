"""Namespaces of the real kernel, for tests: with names that no other run has, told apart, and taken away again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bus import netns

PREFIX = f"ttn{os.getpid()}-"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def cookie(path: str) -> int:
    return netns.inside(path, netns.cookie_here)


@contextmanager
def named_namespaces() -> Iterator[Callable[[str], str]]:
    """What makes a namespace with this name after PREFIX, and returns its path."""
    made: list[str] = []

    def make(name: str) -> str:
        ip("netns", "add", PREFIX + name)
        made.append(PREFIX + name)
        return f"/run/netns/{PREFIX}{name}"

    yield make
    for name in made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
