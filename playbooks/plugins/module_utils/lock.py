# Apache-2.0 (see LICENSE)
"""Who works on this host: one controller at a time. A file that says who, from when, and until when it counts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

from ansible_collections.trimtab.fleet.plugins.module_utils.host import HostError, read, write

# Not in the directory of trimtab's state: there may be none yet, and removal takes that away. Not below /run: a host
# may boot anew in the middle of a rollout.
LOCK = "/var/lib/trimtab.lock"
BREAK = "let that end, or break the lock by -e trimtab_force_lock=true"


def held():
    """The lock, where somebody has one: who, what, run, controller, since_s, until_s. Else, or damaged, nothing."""
    try:
        lock = json.loads(read(LOCK) or "{}")
        return lock if lock and lock["run"] and lock["until_s"] > time.time() else {}
    except (ValueError, KeyError, TypeError):
        return {}


def told(lock):
    """A lock in words."""
    ago, left = time.time() - lock["since_s"], lock["until_s"] - time.time()
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lock["since_s"]))
    return "locked by {} for {} since {}, {} ago, for at most {} more".format(
        lock.get("who", "somebody"), lock.get("what", "something"), at, _span(ago), _span(left)
    )


@contextlib.contextmanager
def alone():
    """Nobody else reads and changes the lock meanwhile: flock(2) of its directory."""
    handle = os.open(os.path.dirname(LOCK), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def take(holder, limit_s, force):
    """Lock this host, or go on with what we have. HostError where somebody else has it; what was broken otherwise."""
    with alone():
        other = held()
        other = other if other.get("run") != holder["run"] else {}
        if other and not force:
            raise HostError(f"{told(other)}: {BREAK}")
        now_s = time.time()
        write(LOCK, json.dumps({**holder, "since_s": now_s, "until_s": now_s + limit_s}) + "\n")
        return other


def release(run):
    """Let go of ours; of whosever it is where no run is given. What that was."""
    with alone():
        lock = held()
        if os.path.lexists(LOCK) and (not lock or run in ("", lock["run"])):
            os.unlink(LOCK)
        return lock


def insist(run):
    """HostError unless the lock is this run's: somebody may have broken it, and works here now. No run: not asked."""
    lock = held() if run else {"run": run}
    if lock.get("run") != run:
        now = f"it is {told(lock)}" if lock else "it was taken away, or the host was down when it was to be taken"
        raise HostError(f"not locked for this any more: {now}")


def _span(seconds):
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
