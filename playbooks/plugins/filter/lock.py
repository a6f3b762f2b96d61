# Apache-2.0 (see LICENSE)
"""Who a run of a play is, in words for people and as a name that no other run has; and whether another has ended."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lock
short_description: Who runs a play, for the locks on hosts
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - C(run) says of the play that runs who it is, for M(trimtab.fleet.trimtab_lock). C(ended) says of a lock whether its
    run was one of this controller's that is no more.
  - C(barred) says why a host is not ours, from what locking it returned; C(taken) who works on which of many.
options:
  _input:
    description: For C(run) what it is for, in words; for C(ended) a lock; for the others results of locking.
    type: raw
    required: true
"""

import getpass
import multiprocessing
import os
import socket

from ansible_collections.trimtab.fleet.plugins.plugin_utils.words import line

NAMED_MAX = 5


def run(what, who=""):
    """The holder of a lock. what: the play. who: instead of the user's name."""
    parent = multiprocessing.parent_process()
    # Of Ansible's processes the one that all others are children of.
    pid = parent.pid if parent else os.getpid()
    place = _place()
    return {
        "who": f"{who or _user()} at {socket.gethostname()}",
        "what": what,
        "controller": place,
        "pid": pid,
        "run": f"{place}/{pid}/{_began(pid)}",
    }


def ended(lock):
    """True where it can be told: the run was here, and its process is gone."""
    if not lock or lock.get("controller") != _place() or not os.path.isdir("/proc/self"):
        return False
    return lock["run"] != "{}/{}/{}".format(lock["controller"], lock["pid"], _began(lock["pid"]))


def barred(results):
    """Why this host is not ours, from what locking it returned, the last try counts; empty where it is."""
    tries = [each for each in results if each and not each.get("skipped")]
    one = tries[-1] if tries else {}
    words = line(one.get("msg") or "")
    return f"unreachable: {words}" if one.get("unreachable") else words


def taken(results):
    """Host -> what locking it returned: who works on which of them, in words; empty where nobody does."""
    words = [f"{host} is {barred(each)}" for host, each in results.items() if not any(_lost(one) for one in each)]
    words = [word for word in words if not word.endswith(" is ")]
    return "; ".join(words[:NAMED_MAX]) + (f"; and {len(words) - NAMED_MAX} more" if len(words) > NAMED_MAX else "")


def _lost(one):
    return bool(one and one.get("unreachable"))


def _place():
    """This controller since it booted, or this container: process numbers mean something within that."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _began(pid):
    """When a process began, in ticks since the boot: field 22 of proc_pid_stat(5). Empty where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _user():
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


class FilterModule:
    """Ansible finds the filters by this."""

    def filters(self):
        return {"run": run, "ended": ended, "barred": barred, "taken": taken}
