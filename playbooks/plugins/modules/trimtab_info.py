#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""One look at a host: what it is, and how trimtab is there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_info
short_description: How trimtab is on a host
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - One look at a host, for all that the plays of this collection decide by it.
  - Changes nothing, needs no other facts, and works where trimtab is not installed.
options:
  packages:
    description: Family of distributions to a list of packages; those of the host's own that are missing are returned.
    type: dict
    default: {}
  python:
    description: The Python that a release would be installed with; its version is returned.
    type: path
    default: /usr/bin/python3
extends_documentation_fragment:
  - trimtab.fleet.looks
"""

EXAMPLES = r"""
- name: See how trimtab is
  trimtab.fleet.trimtab_info:
  register: seen

- name: Say what it owns
  ansible.builtin.debug:
    msg: "{{ seen.trimtab.owned }}"
"""

RETURN = r"""
host:
  description: What the host is.
  returned: always
  type: dict
  sample: {family: debian, id: debian, version: "12", service: systemd, python: "3.11", free_mib: 2048, missing: []}
installed:
  description: The release that is in use, those that are there, and whether there is any.
  returned: always
  type: dict
  sample: {release: 0.1.0-5be0f42a11c9, releases: [0.1.0-5be0f42a11c9], is: true}
trimtab:
  description:
    - What trimtab says of itself (schema trimtab.facts/v1) - version, mode, configured_mode, ready, problem, roles,
      changes, standing, owned, held, may_change. Empty where it is not installed.
  returned: always
  type: dict
off:
  description: Since when it is stopped because somebody wanted that, and who; empty where it is not.
  returned: always
  type: str
problem:
  description: Why trimtab cannot be asked; empty when all is well.
  returned: always
  type: str
"""

import os
import platform
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    OFF,
    ROOT,
    HostError,
    Installed,
    python_version,
    read,
    service_manager,
)


def existing(path):
    """The nearest directory that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def missing(module, packages, family):
    """Those packages that are not installed."""
    if not packages:
        return []
    if family == "debian":
        argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]
        _, out, _ = module.run_command(argv + packages)
        have = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    else:
        _, out, _ = module.run_command(["rpm", "-q", "--qf", "%{NAME}\n", *packages])
        # Of one that is missing it says so in words, to stdout as well.
        have = set(out.splitlines())
    return [name for name in packages if name not in have]


def host(module):
    """What this host is, by os-release(5)."""
    rows = [line.partition("=") for line in read("/etc/os-release").splitlines()]
    found = {key: value.strip("\"'") for key, _, value in rows}
    words = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    families = {"debian": "debian", "ubuntu": "debian", "rhel": "redhat", "fedora": "redhat", "centos": "redhat"}
    family = next((families[word] for word in words if word in families), "other")
    try:
        lacking = missing(module, module.params["packages"].get(family, []), family)
    except OSError as error:
        lacking = [f"(cannot be told: {error})"]
    return {
        "family": family,
        "id": found.get("ID", "unknown"),
        "version": found.get("VERSION_ID", ""),
        "service": service_manager(),
        "python": python_version(module, module.params["python"]),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "free_mib": shutil.disk_usage(existing(ROOT)).free >> 20,
        "missing": lacking,
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "dict", "default": {}},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    installed = Installed(module)
    facts, problem = {}, ""
    try:
        facts = installed.facts()
    except (HostError, ValueError) as error:
        problem = str(error)
    module.exit_json(
        changed=False,
        host=host(module),
        installed={"release": installed.release, "releases": installed.releases(), "is": bool(facts or problem)},
        trimtab=facts,
        problem=problem,
        off=read(OFF).strip(),
    )


if __name__ == "__main__":
    main()
