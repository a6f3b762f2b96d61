#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""One controller at a time on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_lock
short_description: Lock a host for one run of a play
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Keeps two controllers from working on a host at once. The lock is C(/var/lib/trimtab.lock) on the host; it says
    whose it is, and what for.
  - It counts no longer than its limit, so that a controller that is gone keeps nobody out for ever.
  - A lock is no change of the host.
options:
  state:
    description:
      - C(taken) locks, and fails where another run has locked.
      - C(released) lets go of the own lock; without I(holder) of whosever it is.
    type: str
    choices: [taken, released]
    required: true
  holder:
    description: Whose lock it is, as the filter C(trimtab.fleet.run) says it.
    type: dict
    default: {}
  limit:
    description: After how many seconds it counts no more.
    type: int
    default: 14400
  force:
    description: Break another run's lock. That run then changes nothing here any more.
    type: bool
    default: false
extends_documentation_fragment:
  - trimtab.fleet.looks
"""

EXAMPLES = r"""
- name: Lock the host
  trimtab.fleet.trimtab_lock:
    state: taken
    holder: "{{ 'my own play' | trimtab.fleet.run }}"

- name: Let go
  trimtab.fleet.trimtab_lock:
    state: released
    holder: "{{ 'my own play' | trimtab.fleet.run }}"
"""

RETURN = r"""
lock:
  description: The lock that another run has, or had where it was broken; empty where there was none.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import HostError, error_of
from ansible_collections.trimtab.fleet.plugins.module_utils.lock import BREAK, held, release, take, told


def taken(module):
    holder, force = module.params["holder"], module.params["force"]
    if not module.check_mode:
        return take(holder, module.params["limit"], force)
    other = held()
    if other and other["run"] != holder["run"] and not force:
        raise HostError(f"{told(other)}: {BREAK}")
    return other


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "released"], "required": True},
            "holder": {"type": "dict", "default": {}},
            "limit": {"type": "int", "default": 14400},
            "force": {"type": "bool", "default": False},
        },
        required_if=[("state", "taken", ["holder"])],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "taken":
            lock = taken(module)
        else:
            lock = held() if module.check_mode else release(module.params["holder"].get("run", ""))
    except HostError as error:
        module.fail_json(msg=str(error), lock=held())
    except OSError as error:
        module.fail_json(msg=f"cannot be locked: {error_of(error)}", lock={})
    module.exit_json(changed=False, lock=lock)


if __name__ == "__main__":
    main()
