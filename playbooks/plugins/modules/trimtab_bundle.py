#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""On the controller: all wheels that a host needs, in one archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_bundle
short_description: Make the archive of wheels that hosts install trimtab from
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Runs on the controller, once. Hosts need no network and no package index.
  - The release is named by the version and by what the sources contain, so that the same sources are the same release.
  - The archive fits hosts of the Python and of the machine that it was made with.
options:
  source:
    description: A clone of trimtab, or its wheel.
    type: path
    required: true
  folder:
    description: Where archives are kept.
    type: path
    required: true
  python:
    description: The Python to make it with, which must be of the hosts' version.
    type: path
    default: /usr/bin/python3
attributes:
  check_mode:
    support: full
    description: Names the release, and makes no archive.
"""

EXAMPLES = r"""
- name: Make the archive
  trimtab.fleet.trimtab_bundle:
    source: /home/me/trimtab
    folder: /home/me/.cache/trimtab
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
path:
  description: The archive.
  returned: always
  type: str
release:
  description: Its name.
  returned: always
  type: str
  sample: 0.1.0-5be0f42a11c9
"""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    FITS,
    error_of,
    last,
    python_version,
    read,
)

PACKAGES = ("actuators", "bpf", "bus", "collectors", "deciders", "trimtab")
OTHERS = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE", "docs/trimtab.1")


def sources(folder):
    """The files that a wheel is made of, and what decides which others come along."""
    found = [os.path.join(folder, name) for name in OTHERS]
    for package in PACKAGES:
        for place, folders, files in os.walk(os.path.join(folder, package)):
            folders[:] = sorted(each for each in folders if each != "__pycache__")
            found += [os.path.join(place, name) for name in sorted(files)]
    return [path for path in found if os.path.isfile(path)]


def release_of_wheel(path, fits):
    """version-digest of a wheel; its name begins with name-version (PEP 427)."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(fits.encode() + hashlib.sha256(file.read()).digest())
    return "{}-{}".format(os.path.basename(path).split("-")[1], digest.hexdigest()[:12])


def release(folder, python_version):
    """version-digest of the sources."""
    project = read(os.path.join(folder, "pyproject.toml"))
    version = re.search(r'^version = "([^"]+)"', project, re.MULTILINE)
    if not version:
        return ""
    digest = hashlib.sha256(python_version.encode())
    for path in sources(folder):
        digest.update(os.path.relpath(path, folder).encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return f"{version.group(1)}-{digest.hexdigest()[:12]}"


def make(module, path, fits):
    """Build trimtab's wheel, fetch those it needs and pip's, which installs them, and put them together."""
    source, python = module.params["source"], module.params["python"]
    with tempfile.TemporaryDirectory(prefix="trimtab-bundle-") as place:
        venv, wheels = os.path.join(place, "venv"), os.path.join(place, "wheels")
        lock = os.path.join(source, "requirements.lock")
        pins = {"PIP_CONSTRAINT": lock} if os.path.exists(lock) else {}
        pip = [os.path.join(venv, "bin", "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        for argv in (
            [python, "-m", "venv", venv],
            [*pip, "wheel", "-w", wheels, source],
            [*pip, "download", "--no-deps", "-d", wheels, "pip"],
        ):
            code, out, err = module.run_command(argv, environ_update=pins)
            if code:
                module.fail_json(msg="cannot make the archive: {}: {}".format(" ".join(argv[:6]), last(out + err)))
        with open(os.path.join(wheels, FITS), "w", encoding="ascii") as file:
            file.write(fits + "\n")
        fresh = path + ".new"
        with tarfile.open(fresh, "w") as archive:
            archive.add(wheels, "wheels")
        shutil.move(fresh, path)


def main():
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    python, source = module.params["python"], module.params["source"]
    version = python_version(module, python)
    if not version:
        module.fail_json(msg=f"{python} does not run here: set trimtab_controller_python")
    fits = f"Python {version} on {os.uname().machine}"
    try:
        named = release_of_wheel if source.endswith(".whl") else release
        name = named(source, version + os.uname().machine)
    except (OSError, IndexError) as error:
        module.fail_json(msg=f"{source} cannot be read: {error}")
    if not name:
        module.fail_json(
            msg=f"{source} is neither a clone of trimtab nor its wheel: set trimtab_source or trimtab_bundle"
        )
    path = os.path.join(module.params["folder"], f"trimtab-{name}.tar")
    changed = not os.path.exists(path)
    try:
        if changed and not module.check_mode:
            os.makedirs(module.params["folder"], exist_ok=True)
            make(module, path, fits)
    except OSError as error:
        module.fail_json(msg=f"cannot make the archive: {error_of(error)}")
    module.exit_json(changed=changed, path=path, release=name)


if __name__ == "__main__":
    main()
