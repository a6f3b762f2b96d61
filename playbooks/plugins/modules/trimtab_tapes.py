#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""A host's recordings in one file, anonymous."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_tapes
short_description: Put a host's recordings into one file, anonymous unless told otherwise
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - What C(trimtab tape scrub) or C(trimtab tape merge) makes of the recordings of the last hours, with the lowest
    priority. A file that an earlier run has left behind is replaced.
options:
  path:
    description: The file, which only root can read.
    type: path
    required: true
  scrub:
    description: Replace names, addresses and what programs and people wrote.
    type: bool
    default: true
  state:
    description: Whether the file is to be there.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    description: Makes no file.
extends_documentation_fragment:
  - trimtab.fleet.recordings
"""

EXAMPLES = r"""
- name: Put the recordings of today into one file
  trimtab.fleet.trimtab_tapes:
    path: /var/tmp/trimtab-collected.tape
"""

RETURN = r"""
segments:
  description: How many files of recordings there were. Of none, no file is made.
  returned: success
  type: int
bytes:
  description: How large the file is.
  returned: success
  type: int
words:
  description: What could not be read.
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import HostError, Installed, error_of, last
from ansible_collections.trimtab.fleet.plugins.module_utils.staged import recordings

# Exit codes of trimtab tape: all, or all that could be read.
WRITTEN = (0, 3)


def make(module, installed, paths):
    """Write the file; what was said of damage. HostError where there is none."""
    target = module.params["path"]
    fresh = target + ".new"
    for path in (fresh, target):
        if os.path.lexists(path):
            os.unlink(path)
    verb = "scrub" if module.params["scrub"] else "merge"
    argv = ["nice", "-n", "19", installed.program, "tape", verb, *paths, "-o", fresh]
    code, out, err = module.run_command(argv)
    if code not in WRITTEN:
        raise HostError(f"tape {verb}: {last(err or out)}")
    os.rename(fresh, target)
    return err.strip()


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "hours": {"type": "float", "default": 24},
            "scrub": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    installed, target, words = Installed(module), module.params["path"], ""
    try:
        if module.params["state"] == "absent":
            there = os.path.exists(target)
            if there and not module.check_mode:
                os.unlink(target)
            module.exit_json(changed=there, segments=0, bytes=0, words="")
        if not installed.release:
            raise HostError("not installed")
        paths = recordings(module.params["hours"])
        if paths and not module.check_mode:
            words = make(module, installed, paths)
        size = os.path.getsize(target) if paths and not module.check_mode else 0
    except HostError as error:
        module.fail_json(msg=f"trimtab: {error}")
    except OSError as error:
        module.fail_json(msg=f"trimtab: {error_of(error)}")
    module.exit_json(changed=bool(paths), segments=len(paths), bytes=size, words=words)


if __name__ == "__main__":
    main()
