"""Roles that have no network: in a namespace that they share and nobody else is in, or else with a word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
ROOT = Path(__file__).resolve().parent.parent

TELLS = """
import os
from pathlib import Path

def main(argv):
    devices = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    real = [line for line in devices if line.split()[1] != "0"]
    print(os.readlink("/proc/self/ns/net"), len(devices) > 0, bool(real), sorted(os.listdir("/proc/self/fd")), sep="|")
    return 0
"""

STARTS = """
import ctypes, json, os, sys
from pathlib import Path
from bus.roles import Role
from trimtab import apart, child

def refuse(_):
    ctypes.set_errno(1)
    return -1

if sys.argv[2] == "refuse":
    apart.libc.unshare = refuse
said = []
for number, network in enumerate([False, False, True]):
    name = f"role-{number}"
    row = Role(name=name, module="role_that_tells", uid_offset=90 + number, network=network, kind="decider", summary="")
    started = child.start(row, (), Path(sys.argv[1]) / "notify.sock")
    os.waitpid(started.pid, 0)
    said.append(os.read(started.output, 4096).decode().splitlines())
print(json.dumps([os.readlink("/proc/self/ns/net"), *said]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can walk through, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="trimtab-test-", dir="/tmp"))
    path.chmod(0o755)
    (path / "role_that_tells.py").write_text(TELLS)
    yield path
    shutil.rmtree(path)


def said(place: Path, how: str) -> tuple[str, list[list[str]]]:
    """The network namespace of who starts the roles, and what three say: two without a network, one with it."""
    run = subprocess.run(
        [sys.executable, "-c", STARTS, str(place), how],
        env=os.environ | {"PYTHONPATH": f"{place}:{ROOT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours, *roles = json.loads(run.stdout)
    return ours, roles


def test_all_such_roles_share_one_network_namespace_that_is_empty_and_not_the_hosts(place: Path) -> None:
    ours, (first, second, third) = said(place, "make")
    assert first == second
    (where, devices, used, descriptors), (there, _, _, others) = first[0].split("|"), third[0].split("|")
    assert where != ours
    assert (devices, used) == ("True", "False")
    # Who starts them has not moved, the role with a network is there too, and the way does not stay open.
    assert ours == there == os.readlink("/proc/self/ns/net")
    assert descriptors == others


def test_where_none_can_be_made_each_says_so_and_works_with_the_hosts(place: Path) -> None:
    ours, roles = said(place, "refuse")
    for number, (word, where) in enumerate(roles[:2]):
        assert word == f"role-{number}: keeps the host's network: a network namespace: Operation not permitted"
        assert where.startswith(f"{ours}|")
    assert len(roles[2]) == 1
