"""The directories of `trimtab run`: who owns what in them, and whom they are safe from.

    run_dir/                    0755 root        supervisor.json, config.json, notify.sock, supervisor.lock
    run_dir/<publisher>/        2750 role:GROUP  its events.sock; setgid, so that every role may connect
    run_dir/wish/<decider>/     0710 root:decider  the actuator's wish.sock for that decider alone
    run_dir/control/            0700 root        control.sock
    state_dir/                  0711 root        journal.db and what goes with it, each 0600
    state_dir/tapes/<decider>/  0700 decider     what it records: the only place where it may write

Nothing is taken over from others: a directory that is a link, or is owned or writable by somebody else, is refused.
What lies in a role's own directory was that role's to make, so it is removed, whatever it is, and never opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from bus.link import PATH_MAX
from bus.roles import GROUP, Role, events_path, tape_dir, wish_path

NOTIFY = "notify.sock"
CONFIG = "config.json"
STATUS = "supervisor.json"
LOCK = "supervisor.lock"


class RunDirError(OSError):
    """A directory that cannot be used: says which, and what is wrong with it."""


def prepare(run_dir: Path) -> None:
    """Make run_dir, or check the one that is there. Raises RunDirError. It must be absolute."""
    _mkdir_all(run_dir)
    for place in (*reversed(run_dir.parents), run_dir):
        status = place.lstat()
        # A link in the middle of the way (/var/run) is fine where only root can have made it.
        if stat.S_ISLNK(status.st_mode) and place != run_dir and status.st_uid == 0:
            status = place.stat()
        _ours(place, status, sticky=place != run_dir)
        if not status.st_mode & stat.S_IXOTH:
            raise RunDirError(
                f"{place}: mode {_octal(status)} keeps the roles' users out; choose another --run-dir or `chmod o+x`"
            )


def lay_out(run_dir: Path, roles: Iterable[Role]) -> None:
    """Make or take back every directory in run_dir, emptied. Only for the holder of run_dir's lock."""
    roles = tuple(roles)
    deciders = [(role, name) for role in roles if role.kind == "decider" for name in role.argv]
    sockets = [wish_path(run_dir, name) for _, name in deciders]
    sockets += [events_path(run_dir, role.name) for role in roles]
    if any(len(os.fsencode(path)) > PATH_MAX for path in sockets):
        raise RunDirError(f"{run_dir}: too long for the sockets below it ({PATH_MAX} bytes); choose another --run-dir")
    _directory(run_dir / "wish", 0, 0, 0o711)
    _directory(run_dir / "control", 0, 0, 0o700)
    _empty(run_dir / "control")
    for role in roles:
        if role.publishes:
            _directory(run_dir / role.name, role.uid, GROUP, 0o2750)
            _empty(run_dir / role.name)
    for role, name in deciders:
        folder = wish_path(run_dir, name).parent
        _directory(folder, 0, role.uid, 0o710)
        _empty(folder)


def state(state_dir: Path, roles: Iterable[Role]) -> None:
    """Make state_dir, or check the one that is there: only root may write there; and each decider's place for its
    tapes. Raises RunDirError."""
    if not state_dir.exists():
        _mkdir_all(state_dir.parent)
        state_dir.mkdir(0o711)
    _ours(state_dir, state_dir.lstat(), sticky=False)
    try:
        state_dir.chmod(0o711)
        for role in roles:
            for name in role.argv if role.kind == "decider" else ():
                folder = tape_dir(state_dir, name)
                _directory(folder.parent, 0, 0, 0o711)
                _directory(folder, role.uid, role.uid, 0o700)
    except OSError as error:
        # No tape then, which each decider says; what a disk that is full or read-only means for changes, the actuator.
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise


def write(path: Path, content: bytes) -> None:
    """Replace path at once, for all to read. A crash leaves the old content or the new one."""
    # Without pathlib and a file object: the supervisor does this every second.
    fresh = f"{path.parent}/.{path.name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(fresh, path)


def _mkdir_all(path: Path) -> None:
    try:
        for place in (*reversed(path.parents), path):
            if not place.exists():
                place.mkdir(0o755)
                place.chmod(0o755)
    except OSError as error:
        raise RunDirError(f"{place}: {error.strerror}") from None


def _ours(place: Path, status: os.stat_result, sticky: bool) -> None:
    """Refuse what somebody else could write or rename. sticky: a sticky directory (/tmp) will do."""
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise RunDirError(f"{place}: {kind}; refused")
    if status.st_uid not in (0, os.geteuid()):
        raise RunDirError(f"{place}: belongs to user {status.st_uid}, not to root; refused")
    if status.st_mode & 0o022 and not (sticky and status.st_mode & stat.S_ISVTX):
        raise RunDirError(f"{place}: mode {_octal(status)} lets others write there; refused")


def _directory(path: Path, uid: int, gid: int, mode: int) -> None:
    # The parent is root's alone (prepare), so nobody changes what stands here between these steps.
    try:
        path.mkdir(0o700)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise RunDirError(f"{path}: not a directory of trimtab's; refused, remove it") from None
        if status.st_uid not in (0, uid):
            raise RunDirError(f"{path}: belongs to user {status.st_uid}; refused, remove it") from None
    try:
        os.chown(path, uid, gid)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be given to user {uid}: {error.strerror}") from None
    path.chmod(mode)


def _empty(path: Path) -> None:
    """Remove what an earlier run left. unlink(2) follows no link; a directory is nothing of ours.

    Locks stay: a role of a killed supervisor may still hold one, and a new file in its place would be a second lock.
    """
    for entry in path.iterdir():
        kind = entry.lstat().st_mode
        if stat.S_ISDIR(kind):
            raise RunDirError(f"{entry}: not trimtab's; refused, remove it")
        if not (stat.S_ISREG(kind) and entry.suffix == ".lock"):
            entry.unlink()


def _octal(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
