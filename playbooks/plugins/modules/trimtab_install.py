#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""A release of trimtab in a virtual environment of its own, beside others."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_install
short_description: Install a release of trimtab, change to it, or remove all of them
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Each release has a virtual environment below C(/opt/trimtab/releases); C(/opt/trimtab/current) names the one in use.
    To change to a release that is there takes a moment, and needs no archive.
  - A release that was interrupted counts as none and is made anew.
  - Also places the command, its manual page, its completion for bash, and the fact file.
options:
  release:
    description: The name of the release. Needed unless I(state=absent).
    type: str
  bundle:
    description: The archive on the host (see M(trimtab.fleet.trimtab_bundle)). Removed when it has been used.
    type: path
  python:
    description: The Python of the virtual environment.
    type: path
    default: /usr/bin/python3
  keep:
    description: How many releases stay, to go back to.
    type: int
    default: 3
  state:
    description: Whether it is to be there. Remove it only when it is stopped.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - trimtab.fleet.changes
"""

EXAMPLES = r"""
- name: Install
  trimtab.fleet.trimtab_install:
    release: 0.1.0-5be0f42a11c9
    bundle: /var/tmp/trimtab-0.1.0-5be0f42a11c9.tar
"""

RETURN = r"""
former:
  description: The release that was in use before.
  returned: success
  type: str
"""

import contextlib
import glob
import os
import shutil
import sqlite3
import tarfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    COMPLETE,
    CONFIG_DIR,
    FACT_FILE,
    FITS,
    LOG,
    MADE,
    ROOT,
    RUN_DIR,
    STATE_DIR,
    HostError,
    Installed,
    difference,
    error_of,
    last,
    make_folder,
    python_version,
    read,
    write,
)

LINKS = {
    "/usr/local/bin/trimtab": ROOT + "/current/bin/trimtab",
    "/usr/local/share/man/man1/trimtab.1": ROOT + "/current/share/man/man1/trimtab.1",
}
COMPLETION = "/etc/bash_completion.d/trimtab"
FILES = {
    COMPLETION: "# Of trimtab; see click's documentation, Shell Completion.\n"
    'command -v trimtab >/dev/null && eval "$(_TRIMTAB_COMPLETE=bash_source trimtab)"\n',
    FACT_FILE: "#!/bin/sh\n# What trimtab owns on this host, as ansible_local.trimtab.\n"
    f"exec {ROOT}/current/bin/python -I -B -m trimtab.facts\n",
}

JOURNAL = os.path.join(STATE_DIR, "journal.db")
KNOWN = "from actuators import store; print(len(store.MIGRATIONS))"


def place(release):
    return os.path.join(ROOT, "releases", release)


def make(module, release):
    """Unpack the archive and have its pip fill a new virtual environment. HostError says what went wrong."""
    folder, bundle = place(release), module.params["bundle"]
    if not bundle or not os.path.exists(bundle):
        raise HostError(f"release {release} is not here, and there is no archive of it")
    shutil.rmtree(folder, ignore_errors=True)
    check_fit(module, bundle)
    python = os.path.join(folder, "bin", "python")
    run(module, [module.params["python"], "-m", "venv", "--without-pip", folder])
    with tarfile.open(bundle) as archive:
        # Of our own making; Python before 3.11.4 knows no filter.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    wheels = os.path.join(folder, "wheels")
    pip = glob.glob(os.path.join(wheels, "pip-*.whl"))[0] + "/pip"
    options = ["--no-index", "--no-cache-dir", "--no-warn-script-location", "--disable-pip-version-check", "-q"]
    run(module, [python, pip, "install", *options, "--find-links", wheels, "trimtab"])
    shutil.rmtree(wheels)
    run(module, [os.path.join(folder, "bin", "trimtab"), "--version"])
    # The users of the roles read it, whatever root's umask is.
    run(module, ["chmod", "-R", "go+rX", ROOT])
    write(os.path.join(folder, COMPLETE), release + "\n")
    os.unlink(bundle)


def check_fit(module, bundle):
    """HostError where the archive is for another Python or machine: pip would only say that it finds nothing."""
    here = f"Python {python_version(module, module.params['python']) or '(none)'} on {os.uname().machine}"
    with tarfile.open(bundle) as archive:
        try:
            fits = archive.extractfile("wheels/" + FITS).read().decode().strip()
        except KeyError:
            return
    if fits != here:
        python = module.params["python"]
        raise HostError(
            f"the archive is for {fits}, and {python} here is {here}: set trimtab_python, or make an archive"
            " for these hosts with another trimtab_controller_python"
        )


def check_journal(module, release):
    """HostError where this release could not read the journal that is here, before it takes the place of one that can:
    an older one does not know what a newer one writes. A journal that is damaged is no matter: it is set aside."""
    if not os.path.exists(JOURNAL):
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{JOURNAL}?mode=ro", uri=True)) as journal:
            [(version,)] = journal.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error:
        return
    argv = [os.path.join(place(release), "bin", "python"), "-I", "-B", "-c", KNOWN]
    known = int(run(module, argv))
    if version > known:
        raise HostError(
            f"{JOURNAL} was written by a newer one (version {version}; {release} knows up to {known}): what runs stays"
        )


def run(module, argv):
    """What it prints. HostError when it fails."""
    code, out, err = module.run_command(argv)
    if code:
        raise HostError(f"{os.path.basename(argv[0])}: {last(out + err)}")
    return out


def link(path, target):
    """Replace a symbolic link at once."""
    make_folder(os.path.dirname(path))
    fresh = path + ".trimtab-new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    os.symlink(target, fresh)
    os.rename(fresh, path)


def linked(path, target):
    return os.path.islink(path) and os.readlink(path) == target


def present(module, installed):
    release, check = module.params["release"], module.check_mode
    former, diffs = installed.release, []
    new = release not in installed.releases()
    if new or former != release:
        diffs.append(difference(f"{former}\n", f"{release}\n", "release"))
    texts = {path: text for path, text in FILES.items() if read(path) != text}
    links = {path: target for path, target in LINKS.items() if not linked(path, target)}
    diffs += [difference(read(path), text, path) for path, text in texts.items()]
    diffs += [difference("", f"-> {target}\n", path) for path, target in links.items()]
    if check:
        return diffs, former
    if new:
        make(module, release)
    if former != release:
        check_journal(module, release)
        link(installed.current, place(release))
    for path, text in texts.items():
        write(path, text, 0o755 if path == FACT_FILE else 0o644)
    for path, target in links.items():
        link(path, target)
    tidy(module, installed, (release, former))
    return diffs, former


def tidy(module, installed, stay):
    """The oldest go; those in use and just left stay."""
    others = [name for name in installed.releases() if name not in stay]
    others.sort(key=lambda name: os.path.getmtime(os.path.join(place(name), COMPLETE)))
    for name in others[: max(0, len(others) + len(set(stay) - {""}) - module.params["keep"])]:
        shutil.rmtree(place(name))


def absent(module):
    files = [*FILES, *LINKS, LOG]
    paths = [path for path in (*files, ROOT, CONFIG_DIR, STATE_DIR, RUN_DIR) if os.path.lexists(path)]
    made = read(MADE).split()
    diffs = [difference(f"{path}\n", "", path) for path in paths]
    for path in paths if not module.check_mode else ():
        if os.path.islink(path) or os.path.isfile(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)
    for folder in reversed(made) if not module.check_mode else ():
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
    return diffs


def main():
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str"},
            "bundle": {"type": "path"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "keep": {"type": "int", "default": 3},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["release"])],
        supports_check_mode=True,
    )
    installed = Installed(module)
    former = installed.release
    try:
        diffs, former = present(module, installed) if module.params["state"] == "present" else (absent(module), former)
    except HostError as error:
        module.fail_json(msg=f"cannot install trimtab: {error}")
    except OSError as error:
        module.fail_json(msg=f"cannot install trimtab: {error_of(error)}")
    module.exit_json(changed=bool(diffs), diff=diffs, former=former)


if __name__ == "__main__":
    main()
