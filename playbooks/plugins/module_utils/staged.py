# Apache-2.0 (see LICENSE)
"""What a policy is tried on: a copy of a host's configuration with it in its place, and the host's own recordings."""

from __future__ import annotations

import os
import shutil
import time

from ansible_collections.trimtab.fleet.plugins.module_utils.host import CONFIG_DIR, STATE_DIR, HostError, last, write


def stage(installed, folder, name, text):
    """Copy the configuration into a folder, with this text as conf.d/NAME.toml; the main file there. HostError where
    `trimtab config check` refuses it."""
    if os.path.isdir(CONFIG_DIR):
        shutil.copytree(CONFIG_DIR, folder, dirs_exist_ok=True)
    main = os.path.join(folder, "trimtab.toml")
    if not os.path.exists(main):
        write(main, "")
    write(os.path.join(folder, "conf.d", name + ".toml"), text)
    code, said = installed.run("config", "check", main)
    if code:
        raise HostError(f"the policy cannot be used: {last(said).replace(folder, CONFIG_DIR)}")
    return main


def recordings(hours):
    """Segments that were written to in these hours, oldest first. One that is older ends before them."""
    since = time.time() - hours * 3600
    found = []
    for place, _, names in os.walk(os.path.join(STATE_DIR, "tapes")):
        for name in names:
            path = os.path.join(place, name)
            try:
                written = os.stat(path).st_mtime
            except FileNotFoundError:
                # The oldest make room while this looks.
                continue
            if name.endswith(".tape") and written >= since:
                found.append((written, path))
    return [path for _, path in sorted(found)]
