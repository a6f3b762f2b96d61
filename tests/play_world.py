"""What tests run of Ansible's: the archive that its plays hand over, and how a play went."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from host_world import TREE, FleetError

BIN = Path(sys.executable).parent
BUNDLE_S = 3600.0
"""How long an archive of another tree stays for others who test."""


def bundle(source: Path = TREE) -> Path:
    """The archive of this tree, or of another one, made where it is not there yet; here, where there is a network."""
    folder = Path(sys.prefix) / "bundles"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # Of several processes that test, one makes it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _bundle(source, folder)


def _bundle(source: Path, folder: Path) -> Path:
    plays = TREE / "playbooks"
    words = ["localhost", "-m", "trimtab.fleet.trimtab_bundle", "-a", f"source={source} folder={folder}"]
    done = subprocess.run(
        [str(BIN / "ansible"), *words, "--playbook-dir", str(plays)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(plays / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )
    if done.returncode:
        raise FleetError(done.stdout + done.stderr)
    path = Path(json.loads(done.stdout.partition("=> ")[2])["path"])
    for other in folder.glob("*.tar"):
        if other.stat().st_mtime < time.time() - BUNDLE_S:
            other.unlink()
    path.touch()
    return path


class Played:
    """How a play went."""

    def __init__(self, code: int, said: str, took_s: float) -> None:
        self.code = code
        self.said = said
        self.took_s = took_s

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Host -> what its line of the recap counts."""
        _, _, lines = self.said.rpartition("PLAY RECAP")
        rows = [line.partition(" : ") for line in lines.splitlines() if " : " in line]
        return {
            name.strip(): {key: int(value) for key, _, value in (word.partition("=") for word in counts.split())}
            for name, _, counts in rows
        }

    @property
    def changed(self) -> int:
        """Tasks that changed something, on all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())
