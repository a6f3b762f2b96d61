#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""An order to trimtab on a host, and what it changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_order
short_description: Set the mode, hold or release a key, undo what was done
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - What C(trimtab mode), C(hold), C(release) and C(rollback) do on a host, but only where there is something to do.
options:
  order:
    description:
      - C(mode) sets the mode, of what runs and of later starts.
      - C(hold) keeps hands off a tunable, C(release) ends that.
      - C(rollback) undoes all that stands, or one change, and keeps hands off its keys.
      - C(restore) puts all back where trimtab has been stopped, and holds nothing.
    type: str
    choices: [mode, hold, release, rollback, restore]
    required: true
  mode:
    description: For C(mode).
    type: str
    choices: [observe, advise, enforce]
  keep:
    description: For C(mode) - where a mode has been set before, leave it.
    type: bool
    default: false
  key:
    description: The tunable, for C(hold) and C(release).
    type: str
  change:
    description: The number of a change, for C(rollback). Default is all.
    type: int
  limit:
    description: For C(hold) - ends by itself after a time such as C(30m) or C(7d).
    type: str
extends_documentation_fragment:
  - trimtab.fleet.changes
"""

EXAMPLES = r"""
- name: Let it act
  trimtab.fleet.trimtab_order:
    order: mode
    mode: enforce

- name: Keep hands off
  trimtab.fleet.trimtab_order:
    order: hold
    key: net.ipv4.tcp_rmem[2]
"""

RETURN = r"""
lines:
  description: What trimtab said.
  returned: success
  type: list
  elements: str
trimtab:
  description: What it says of itself afterwards; see M(trimtab.fleet.trimtab_info).
  returned: success
  type: dict
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    MODE_FILE,
    HostError,
    Installed,
    difference,
    error_of,
    last,
    read,
    write,
)

MODE = '# Set by trimtab_order. It wins over the files before it.\nmode = "%s"\n'
SETTLED_S = 10.0
STEP_S = 0.2


class Orders:
    """Each returns the lines that were said, or None where nothing is to be done; and notes differences."""

    def __init__(self, module, installed):
        self.module = module
        self.installed = installed
        self.diffs = []

    def mode(self):
        wanted = self.module.params["mode"]
        if self.module.params["keep"] and os.path.exists(MODE_FILE):
            return []
        facts, lines = self.installed.facts(), []
        running = facts.get("mode")
        if read(MODE_FILE) != MODE % wanted:
            self.diffs.append(difference(read(MODE_FILE), MODE % wanted, MODE_FILE))
            if not self.module.check_mode:
                write(MODE_FILE, MODE % wanted)
        if running and running != wanted:
            self.diffs.append(difference(f"mode {running}\n", f"mode {wanted}\n", "trimtab"))
            lines = self.say("mode", wanted)
            self.settle(wanted)
        return lines

    def settle(self, mode):
        """Its status follows within a second or two."""
        deadline = time.monotonic() + SETTLED_S
        while not self.module.check_mode and self.installed.facts().get("mode") != mode:
            if time.monotonic() > deadline:
                raise HostError(f"did not take up mode {mode}")
            time.sleep(STEP_S)

    def hold(self):
        key, held = self.module.params["key"], self.held()
        if key in held:
            return []
        self.diffs.append(difference(shown(held), shown({*held, key}), "held"))
        limit = ("--for", self.module.params["limit"]) if self.module.params["limit"] else ()
        return self.say("hold", key, *limit)

    def release(self):
        key, held = self.module.params["key"], self.held()
        if key not in held:
            return []
        self.diffs.append(difference(shown(held), shown(held - {key}), "held"))
        return self.say("release", key)

    def rollback(self):
        change, stands = self.module.params["change"], self.stands()
        wanted = [row for row in stands if change in (None, row["id"])]
        if not wanted:
            return []
        self.diffs.append(difference(rows(stands), rows([row for row in stands if row not in wanted]), "standing"))
        return self.say("rollback", str(change) if change else "--all")

    def restore(self):
        stands = self.stands()
        if not stands:
            return []
        self.diffs.append(difference(rows(stands), "", "standing"))
        return self.say("off", "--restore")

    def held(self):
        return {row["tunable"] for row in self.installed.facts().get("held", [])}

    def stands(self):
        return self.installed.facts().get("standing", [])

    def say(self, *words):
        if self.module.check_mode:
            return []
        code, said = self.installed.run(*words)
        if code:
            raise HostError("{}: {}".format(" ".join(words), last(said)))
        return said.splitlines()


def shown(keys):
    return "".join(f"{key}\n" for key in sorted(keys))


def rows(stands):
    return "".join("{id} {tunable} {netns_name} {old} -> {new} ({state})\n".format(**row) for row in stands)


def main():
    module = AnsibleModule(
        argument_spec={
            "order": {"type": "str", "choices": ["mode", "hold", "release", "rollback", "restore"], "required": True},
            "mode": {"type": "str", "choices": ["observe", "advise", "enforce"]},
            "keep": {"type": "bool", "default": False},
            "key": {"type": "str", "no_log": False},
            "change": {"type": "int"},
            "limit": {"type": "str"},
        },
        required_if=[("order", "mode", ["mode"]), ("order", "hold", ["key"]), ("order", "release", ["key"])],
        supports_check_mode=True,
    )
    installed = Installed(module)
    if not installed.release:
        module.exit_json(changed=False, lines=["trimtab is not installed here"], trimtab={})
    orders = Orders(module, installed)
    try:
        lines = getattr(orders, module.params["order"])()
        facts = installed.facts()
    except HostError as error:
        module.fail_json(msg=f"trimtab: {error}")
    except OSError as error:
        module.fail_json(msg=f"trimtab: {error_of(error)}")
    release = {"release": installed.release}
    module.exit_json(changed=bool(orders.diffs), diff=orders.diffs, lines=lines, trimtab=facts, installed=release)


if __name__ == "__main__":
    main()
