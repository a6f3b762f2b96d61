"""Privileges, dropped for real in a child and read back from outside by its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from child_world import child

from trimtab.privilege import NUMBERS, PrivilegeError, drop, held, mask, names

USER = 2_046_820_399
system = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def test_names_and_masks_are_each_others_inverse() -> None:
    assert names(mask(NUMBERS)) == tuple(NUMBERS)
    assert mask(("CAP_BPF",)) == 1 << 39
    assert mask(("CAP_NET_ADMIN", "CAP_NET_ADMIN")) == 1 << 12


def test_a_capability_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        mask(("CAP_EVERYTHING",))


def test_every_capability_of_this_kernel_has_a_name() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert set(range(last + 1)) <= set(NUMBERS.values())
    # linux/capability.h
    assert (NUMBERS["CAP_CHOWN"], NUMBERS["CAP_SYS_ADMIN"], NUMBERS["CAP_CHECKPOINT_RESTORE"]) == (0, 21, 40)


class TestDropping:
    pytestmark = system

    def test_drops_user_groups_and_every_capability(self) -> None:
        def do() -> object:
            drop(USER, {USER + 1}, ())
            return held()

        said = child(do)
        assert said == (
            f"Held(uids={(USER,) * 4}, gids={(USER,) * 4}, groups=({USER + 1},), inheritable=0, permitted=0, "
            f"effective=0, bounding=0, ambient=0, no_new_privs=True, filtered={held().filtered})"
        )

    @pytest.mark.parametrize("uid", [0, USER])
    def test_keeps_just_the_capabilities_named(self, uid: int) -> None:
        def do() -> object:
            drop(uid, (), ("CAP_NET_ADMIN", "CAP_BPF"))
            now = held()
            return [names(bits) for bits in (now.permitted, now.effective, now.bounding, now.ambient)]

        kept = ("CAP_NET_ADMIN", "CAP_BPF")
        assert child(do) == repr([kept, kept, kept, ()])

    @pytest.mark.parametrize("uid", [0, USER])
    @pytest.mark.parametrize("keep", [True, False])
    def test_a_program_that_the_process_becomes_has_them_only_when_told_so(self, uid: int, keep: bool) -> None:
        code = (
            "import os; from trimtab.privilege import drop; "
            f"drop({uid}, (), ('CAP_NET_ADMIN',), keep_over_exec={keep}); "
            "os.execv('/bin/grep', ['grep', '-E', '^(CapPrm|CapEff)', '/proc/self/status'])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert {line.split()[1] for line in run.stdout.splitlines()} == {f"{1 << 12 if keep else 0:016x}"}

    def test_what_is_gone_does_not_come_back(self) -> None:
        def do() -> object:
            drop(USER, (), ())
            os.setuid(0)
            return "root again"

        assert child(do).startswith("PermissionError")

    def test_uid_0_without_capabilities_reads_nobodys_files(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("x")
        os.chown(secret, 65534, 65534)
        secret.chmod(0o600)

        def do() -> object:
            drop(0, (), ("CAP_NET_ADMIN",))
            return secret.read_text()

        assert child(do).startswith("PermissionError")

    def test_a_capability_that_this_process_lacks_is_left_out(self) -> None:
        def do() -> object:
            drop(0, (), ("CAP_NET_ADMIN", "CAP_SETPCAP", "CAP_SETGID", "CAP_SETUID"))
            drop(0, (), ("CAP_NET_ADMIN", "CAP_SYS_ADMIN"))
            return names(held().permitted)

        assert child(do) == repr(("CAP_NET_ADMIN",))

    def test_without_the_right_to_drop_it_says_so(self) -> None:
        def do() -> object:
            drop(USER, (), ())
            drop(USER + 1, (), ())
            return "dropped twice"

        said = child(do)
        assert said.startswith(PrivilegeError.__name__)
        assert "Operation not permitted" in said


ROOT = Path(__file__).resolve().parent.parent
