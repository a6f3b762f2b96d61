# Apache-2.0 (see LICENSE)
"""A policy with the rest of a host's configuration, on a copy, as it would be in use."""

from __future__ import annotations

import os
import shutil

from ansible_collections.trimtab.fleet.plugins.module_utils.host import CONFIG_DIR, HostError, last, write


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
        raise HostError("the policy cannot be used: %s" % last(said).replace(folder, CONFIG_DIR))
    return main
