"""Letting a role that has dropped to another user import its code from a place that this user cannot walk to.

A clone below /root or another closed home directory is where a newcomer has it. The directories on the way stay closed:
the role keeps a descriptor of each folder that it imports from, opened while it still could, and imports through
/proc/self/fd/N, which leads there without a walk (proc_pid_fd(5); a process may always follow its own).
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import msgspec

import bus

READABLE = stat.S_IROTH | stat.S_IXOTH


class UnreadableError(OSError):
    """Code that the roles' users cannot read: says which, and what to do."""


def closed(folder: Path) -> bool:
    """Some directory above folder keeps other users from walking through."""
    return any(not place.stat().st_mode & stat.S_IXOTH for place in folder.parents)


def check() -> None:
    """Raise UnreadableError where a folder of ours is itself closed, as after a clone under umask 077."""
    for file in (bus.__file__, msgspec.__file__):
        package = Path(str(file)).parent
        for place, wanted in ((package.parent, READABLE), (package, READABLE), (Path(str(file)), stat.S_IROTH)):
            if place.stat().st_mode & wanted != wanted:
                raise UnreadableError(
                    f"{place}: the roles' users cannot read trimtab's code; `chmod -R go+rX {package.parent}`"
                )


def anchor() -> None:
    """Replace each closed folder of sys.path, and of the packages that are already imported, by a descriptor of it."""
    anchors = {path: _hold(path) for path in sys.path if path and os.path.isdir(path) and closed(Path(path))}
    if not anchors:
        return
    sys.path[:] = [anchors.get(path, path) for path in sys.path]
    for module in list(sys.modules.values()):
        places = getattr(module, "__path__", None)
        if isinstance(places, list):
            places[:] = [_below(place, anchors) for place in places]
    sys.path_importer_cache.clear()


def _hold(path: str) -> str:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    return f"/proc/self/fd/{fd}"


def _below(place: str, anchors: dict[str, str]) -> str:
    for path, anchored in anchors.items():
        if place == path or place.startswith(path + "/"):
            return anchored + place[len(path) :]
    return place
