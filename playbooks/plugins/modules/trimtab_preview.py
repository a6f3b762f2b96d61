#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""What a policy would have done on a host: its own recordings, decided once more where they are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_preview
short_description: What a policy would have done on a host
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Puts a candidate in the place of the policy in use, on a copy of the configuration, checks all of it, and decides
    the host's own recordings once more (C(trimtab replay --policy)). Only what differs is returned.
  - Changes nothing. Runs with the lowest priority, in one process.
options:
  name:
    description: The file in C(/etc/trimtab/conf.d) that the candidate would take the place of, without C(.toml).
    type: str
    default: 50-policy
  content:
    description: The candidate's TOML.
    type: str
    required: true
  limit:
    description: How many seconds it may take.
    type: int
    default: 600
extends_documentation_fragment:
  - trimtab.fleet.looks
  - trimtab.fleet.recordings
"""

EXAMPLES = r"""
- name: See what it would have done
  trimtab.fleet.trimtab_preview:
    content: "{{ lookup('ansible.builtin.file', 'candidate.toml') }}"
    hours: 6
  register: seen
"""

RETURN = r"""
segments:
  description: How many files of recordings there were.
  returned: success
  type: int
events:
  description: How many recorded events were decided once more.
  returned: success
  type: int
rows:
  description: The tunables with a difference - recorded and candidate, each with changes, peak, final and more.
  returned: success
  type: list
  elements: dict
recorded:
  description: In sum over all tunables, by the recorded policy.
  returned: success
  type: dict
candidate:
  description: In sum over all tunables, by the candidate.
  returned: success
  type: dict
words:
  description: What could not be read or played.
  returned: success
  type: list
  elements: str
"""

import json
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import HostError, Installed, error_of, last
from ansible_collections.trimtab.fleet.plugins.module_utils.staged import recordings, stage

WORDS_MAX = 5
SIDE = ("changes", "peak", "final", "reverted", "reversals")
# Exit codes of trimtab replay: no difference, differences, some of it could not be read.
TOLD = (0, 2, 3)


def replay(module, installed, paths, policy):
    """The document of trimtab replay. HostError where there is none."""
    limit = str(module.params["limit"])
    argv = ["timeout", limit, "nice", "-n", "19", installed.program, "replay", "--policy", policy, "--json", "-j", "1"]
    code, out, err = module.run_command(argv + paths)
    if code == 124:
        raise HostError(f"not done within {limit} s: fewer hours, or a higher limit")
    try:
        if code in TOLD:
            return json.loads(out)
    except ValueError:
        pass
    raise HostError(last(err or out))


def brief(document):
    """What is worth its way to the controller."""
    rows = [row for host in document["hosts"] for row in host["rows"] if row["differs"]]
    return {
        "events": sum(host["events"] for host in document["hosts"]),
        "rows": [
            {
                "decider": row["decider"],
                "tunable": row["tunable"],
                "namespace": row["namespace"] or (str(row["netns"]) if row["netns"] else ""),
                "recorded": {key: row["recorded"][key] for key in SIDE},
                "candidate": {key: row["candidate"][key] for key in SIDE},
            }
            for row in rows
        ],
        "recorded": document["summary"]["recorded"],
        "candidate": document["summary"]["candidate"],
        "words": document["words"][:WORDS_MAX],
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "50-policy"},
            "content": {"type": "str", "required": True},
            "hours": {"type": "float", "default": 24},
            "limit": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    installed = Installed(module)
    nothing = {"changes": 0, "peaks": {}, "reverted": 0, "reversals": 0}
    found = {"events": 0, "rows": [], "recorded": nothing, "candidate": nothing, "words": []}
    try:
        if not installed.release:
            raise HostError("not installed")
        with tempfile.TemporaryDirectory(prefix="trimtab-preview-") as folder:
            policy = stage(installed, folder, module.params["name"], module.params["content"])
            paths = recordings(module.params["hours"])
            if paths:
                found = brief(replay(module, installed, paths, policy))
    except HostError as error:
        module.fail_json(msg=f"trimtab: {error}")
    except OSError as error:
        module.fail_json(msg=f"trimtab: {error_of(error)}")
    module.exit_json(changed=False, segments=len(paths), **found)


if __name__ == "__main__":
    main()
