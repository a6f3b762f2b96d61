#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""A piece of configuration, checked together with the rest of it before it is placed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_policy
short_description: Place a policy, or another piece of trimtab's configuration
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - A file in C(/etc/trimtab/conf.d), or the main one. All of the configuration as it would then be is checked with
    C(trimtab config check) on the host; what cannot be used is not placed, nor shown as a
    change in check mode. Where trimtab is not installed yet nothing can check it.
  - It counts from the next start of trimtab; see M(trimtab.fleet.trimtab_service).
options:
  name:
    description: The file's name without C(.toml). C(trimtab) is the main one. Later names win over earlier ones.
    type: str
    default: 50-policy
  content:
    description: The TOML. Needed unless I(state=absent).
    type: str
  state:
    description: Whether it is to be there.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - trimtab.fleet.changes
"""

EXAMPLES = r"""
- name: Place the policy
  trimtab.fleet.trimtab_policy:
    content: "{{ lookup('ansible.builtin.file', 'policy.toml') }}"

- name: Take it away
  trimtab.fleet.trimtab_policy:
    state: absent
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
former:
  description: What was in it before, to go back to.
  returned: success
  type: str
"""

import os
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    CONFIG_DIR,
    HostError,
    Installed,
    difference,
    error_of,
    last,
    read,
    write,
)

MAIN = os.path.join(CONFIG_DIR, "trimtab.toml")


def path_of(name):
    """Below CONFIG_DIR."""
    return "trimtab.toml" if name == "trimtab" else os.path.join("conf.d", name + ".toml")


def check(installed, place, text):
    """HostError where the configuration could not be used with this in it."""
    if not installed.release:
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-policy-") as folder:
        if os.path.isdir(CONFIG_DIR):
            shutil.copytree(CONFIG_DIR, folder, dirs_exist_ok=True)
        main, staged = os.path.join(folder, "trimtab.toml"), os.path.join(folder, place)
        for file in (main, staged):
            if not os.path.exists(file):
                write(file, "")
        write(staged, text)
        code, said = installed.run("config", "check", main)
        if code:
            raise HostError(last(said).replace(folder, CONFIG_DIR))


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "50-policy"},
            "content": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["content"])],
        supports_check_mode=True,
    )
    name = module.params["name"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        module.fail_json(msg=f"{name!r} is no name for a file of the configuration")
    place = path_of(name)
    path = os.path.join(CONFIG_DIR, place)
    try:
        there, before = os.path.exists(path), read(path)
        after = module.params["content"] if module.params["state"] == "present" else ""
        changed = before != after or there != (module.params["state"] == "present")
        if changed:
            check(Installed(module), place, after)
        if changed and not module.check_mode:
            if module.params["state"] == "present":
                write(path, after)
            else:
                # What is gone is no newer than the daemon; the main file is, so that a restart is due even when this is
                # interrupted before it.
                write(MAIN, read(MAIN))
                os.unlink(path)
    except HostError as error:
        module.fail_json(msg=f"the policy cannot be used: {error}", path=path)
    except OSError as error:
        module.fail_json(msg=f"the policy cannot be placed: {error_of(error)}", path=path)
    diffs = [difference(before, after, path)] if changed else []
    module.exit_json(changed=changed, path=path, former=before, diff=diffs)


if __name__ == "__main__":
    main()
