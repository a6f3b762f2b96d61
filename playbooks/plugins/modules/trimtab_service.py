#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""trimtab's roles on a host: kept by systemd or, where there is none, by its own supervisor."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_service
short_description: Start, restart or stop trimtab
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Renders the systemd units and users from trimtab's own table of roles (C(trimtab units)), starts them, and waits
    until all roles are ready.
  - Whether a restart is needed is seen on the host (something that it was started from is newer than it is), so that a
    play that was interrupted between a change and the restart is put right by the next one.
  - A restart ends trials, and holds what is confirmed.
options:
  state:
    description:
      - C(started) brings up what is down or out of date.
      - C(stopped) puts back what is on trial; it stays down over a reboot.
      - C(absent) stops, and removes units and users.
    type: str
    choices: [started, stopped, absent]
    default: started
  manager:
    description: What keeps the roles.
    type: str
    choices: [auto, systemd, supervisor]
    default: auto
  patience:
    description: How many seconds may go by without anything coming nearer to being ready.
    type: int
    default: 60
  limit:
    description: How many seconds it may take in all.
    type: int
    default: 300
  note:
    description: For C(stopped), who stopped it and why; said of the host until it is started again.
    type: str
    default: ""
extends_documentation_fragment:
  - trimtab.fleet.changes
"""

EXAMPLES = r"""
- name: Have it run
  trimtab.fleet.trimtab_service:
    state: started
"""

RETURN = r"""
trimtab:
  description: What it says of itself afterwards; see M(trimtab.fleet.trimtab_info).
  returned: success
  type: dict
"""

import contextlib
import glob
import json
import os
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    COMPLETE,
    CONFIG_DIR,
    LOG,
    MODE_FILE,
    OFF,
    RUN_DIR,
    HostError,
    Installed,
    difference,
    error_of,
    last,
    read,
    service_manager,
    write,
)

TARGET = "trimtab.target"
LAYOUT = "trimtab-layout.service"
UNITS = "/etc/systemd/system/trimtab*"
USERS = "/etc/sysusers.d/trimtab.conf"
LOCK = os.path.join(RUN_DIR, "supervisor.lock")
UP = ("running", "done")
STEP_S = 0.2
STEP_MAX_S = 2.0


class Service:
    """The roles on this host."""

    def __init__(self, module, installed, systemd):
        self.module = module
        self.installed = installed
        self.systemd = systemd
        self.diffs = []
        self.child = None
        self.said_before = 0

    def started(self):
        """Bring it up, where it is not up with what is there now."""
        self.render()
        why = self.due()
        if why:
            self.diffs.append(difference(f"{why}\n", "running\n", "trimtab"))
        if self.module.check_mode:
            return {}
        if why:
            self.restart()
        if os.path.exists(OFF):
            os.unlink(OFF)
        return self.wait()

    def stopped(self):
        """Bring it down, whatever state it is in."""
        enabled = self.systemd and self.call("systemctl", "is-enabled", TARGET) == 0
        if self.since() or enabled:
            self.diffs.append(difference("running\n" if self.since() else "enabled\n", "stopped\n", "trimtab"))
            if not self.module.check_mode:
                self.stop()
                self.remember()
        return {}

    def remember(self):
        """That it is off because somebody wants that. On a disk that is full nothing is remembered, but it is off."""
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        with contextlib.suppress(OSError):
            write(OFF, " ".join(["since", at, self.module.params["note"]]).strip() + "\n")

    def absent(self):
        """Down, and no unit or user left."""
        self.stopped()
        paths = [*glob.glob(UNITS), USERS] if self.systemd else []
        gone = [path for path in paths if os.path.lexists(path)]
        self.diffs += [difference(read(path), "", path) for path in gone]
        if gone and not self.module.check_mode:
            users = [line.split()[1] for line in read(USERS).splitlines() if line.startswith("u ")]
            for path in gone:
                os.unlink(path)
            for name in users:
                self.must("userdel", name)
            self.call("groupdel", "trimtab")
            self.must("systemctl", "daemon-reload")
            self.call("systemctl", "reset-failed", "trimtab*")
        return {}

    # --- how

    def render(self):
        """The units as the release that is in use has them. Those of deciders that are off go."""
        if not self.systemd or not self.installed.release:
            return
        code, out = self.installed.run("units", "--json")
        if code:
            raise HostError(last(out))
        files = {os.path.join("/etc", path): text for path, text in json.loads(out)["files"].items()}
        stale = [path for path in glob.glob(UNITS) if path not in files]
        changed = {path: text for path, text in files.items() if read(path) != text}
        self.diffs += [difference(read(path), text, path) for path, text in changed.items()]
        self.diffs += [difference(read(path), "", path) for path in stale]
        if (changed or stale) and not self.module.check_mode:
            for path, text in changed.items():
                write(path, text)
            for path in stale:
                self.call("systemctl", "disable", "--now", os.path.basename(path))
                os.unlink(path)
            self.must("systemd-sysusers", USERS)
            self.must("systemctl", "daemon-reload")

    def due(self):
        """Why it must be started; empty where it need not."""
        since = self.since()
        if not since:
            return "stopped"
        if self.systemd and self.call("systemctl", "is-enabled", TARGET):
            return "not started at boot"
        newer = [path for path in self.made_from() if os.lstat(path).st_ctime > since]
        return f"running since before {newer[0]} changed" if newer else ""

    def made_from(self):
        """All that a start depends on; the mode is changed while it runs."""
        config = [path for path in glob.glob(CONFIG_DIR + "/**", recursive=True) if path.endswith(".toml")]
        complete = os.path.join(self.installed.current, COMPLETE)
        paths = [self.installed.current, complete, *(path for path in config if path != MODE_FILE)]
        return paths + (glob.glob(UNITS + ".service") if self.systemd else [])

    def holder(self):
        """The pid of what runs there: it holds the lock, proc_locks(5). 0 where nothing does."""
        try:
            inode = os.stat(LOCK).st_ino
        except OSError:
            return 0
        for line in read("/proc/locks").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return int(words[4])
        return 0

    def since(self):
        """When it was started, in seconds since 1970; 0 where it does not run."""
        stat = read(f"/proc/{self.holder()}/stat")
        if not stat:
            return 0
        # proc_pid_stat(5), field 22: ticks after boot. Rounded up, that what was written just before counts as older.
        ticks = int(stat.rpartition(")")[2].split()[19]) + 1
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return boot + ticks / os.sysconf("SC_CLK_TCK")

    def check(self):
        """HostError where it could not start with what is there now, before what runs is stopped."""
        code, said = self.installed.run("config", "check")
        if code:
            left = "; what ran before goes on" if self.since() else ""
            raise HostError(f"not started, the configuration cannot be used: {last(said)}{left}")

    def restart(self):
        self.check()
        if self.systemd:
            self.must("systemctl", "enable", "-q", TARGET)
            self.must("systemctl", "restart", TARGET)
            return
        self.stop()
        os.makedirs(os.path.dirname(LOG), exist_ok=True)
        with open(LOG, "ab") as log:
            self.said_before = log.tell()
            argv = [self.installed.program, "run"]
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )

    def stop(self):
        if self.systemd:
            self.must("systemctl", "disable", "-q", TARGET)
            self.must("systemctl", "stop", TARGET, LAYOUT)
        if self.installed.release:
            code, said = self.installed.run("off")
            if code:
                raise HostError(f"cannot be stopped: {last(said)}")

    def wait(self):
        """Until all roles are ready. HostError with the reason when it has ended, when nothing comes nearer to it for
        too long, or when all of it takes too long: a host that is busy is slow, and not broken."""
        began = moved = time.monotonic()
        most, pause = -1, STEP_S
        while True:
            facts = self.installed.facts()
            if facts.get("ready"):
                return facts
            now = time.monotonic()
            # Roles that come and go by turns are no progress.
            up = [state for state in facts.get("roles", {}).values() if state in UP]
            come = len(up) + (1 if self.holder() else 0)
            if come > most:
                most, moved = come, now
            self.give_up(facts, now - moved, now - began)
            time.sleep(pause)
            # Each look is a process of its own, on a host that has roles to start.
            pause = min(2 * pause, STEP_MAX_S)

    def give_up(self, facts, still_s, in_all_s):
        """HostError where there is nothing to wait for any more."""
        why = facts.get("problem") or "roles are starting"
        if self.ended():
            raise HostError(f"did not start: {self.words()}")
        if still_s > self.module.params["patience"]:
            raise HostError(f"not ready, and no nearer to it for {still_s:.0f} s: {why}; {self.words()}")
        if in_all_s > self.module.params["limit"]:
            raise HostError(f"not ready within {in_all_s:.0f} s: {why}; {self.words()}")

    def ended(self):
        """What was started is no more, and nothing runs in its place."""
        if self.systemd:
            argv = ["systemctl", "show", "-p", "ActiveState", "--value", LAYOUT]
            return self.module.run_command(argv)[1].strip() in ("failed", "inactive")
        return self.child is not None and self.child.poll() is not None and not self.holder()

    def words(self):
        """The last that it said."""
        if not self.systemd:
            return last(read(LOG, self.said_before))
        argv = ["journalctl", "-q", "-o", "cat", "-n", "5", "-u", "trimtab*", "--no-pager"]
        return last(self.module.run_command(argv)[1])

    def call(self, *argv):
        return self.module.run_command(list(argv))[0]

    def must(self, *argv):
        code, out, err = self.module.run_command(list(argv))
        if code:
            raise HostError("{}: {}".format(" ".join(argv), last(out + err)))


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
            "manager": {"type": "str", "choices": ["auto", "systemd", "supervisor"], "default": "auto"},
            "patience": {"type": "int", "default": 60},
            "limit": {"type": "int", "default": 300},
            "note": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    manager = module.params["manager"]
    manager = service_manager() if manager == "auto" else manager
    service = Service(module, Installed(module), manager == "systemd")
    try:
        facts = getattr(service, module.params["state"])()
    except HostError as error:
        module.fail_json(msg=f"trimtab: {error}")
    except OSError as error:
        module.fail_json(msg=f"trimtab: {error_of(error)}")
    module.exit_json(changed=bool(service.diffs), diff=service.diffs, trimtab=facts)


if __name__ == "__main__":
    main()
