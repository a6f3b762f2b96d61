"""The table of processes: users, capabilities, places."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from bus import roles
from bus.config import RUN_DIR
from bus.link import PATH_MAX
from bus.roles import BUILT_IN_DECIDERS, FIXED, UID_BASE, Role

ALL = roles.roles(BUILT_IN_DECIDERS)
every_role = pytest.mark.parametrize("role", ALL, ids=[role.name for role in ALL])
PRIVILEGED = {"actuator", "deadman", "loader", "collector-netlink"}


@every_role
def test_its_module_is_there_and_has_a_main(role: Role) -> None:
    spec = importlib.util.find_spec(role.module)
    assert spec
    assert spec.origin
    assert "def main(" in Path(spec.origin).read_text()


@every_role
def test_its_user_is_from_the_range_that_nobody_hands_out(role: Role) -> None:
    assert role.uid == 0 or 1879048192 <= UID_BASE < role.uid <= 2147483647


@every_role
def test_only_those_that_must_have_capabilities(role: Role) -> None:
    assert bool(role.capabilities) == (role.name in PRIVILEGED)
    assert all(name.startswith("CAP_") for name in role.capabilities)


@every_role
def test_only_writer_and_loader_stay_root(role: Role) -> None:
    assert (role.uid == 0) == (role.kind in ("actuator", "deadman", "loader"))


@every_role
def test_a_oneshot_runs_for_a_role_that_there_is(role: Role) -> None:
    assert not role.oneshot_for or role.oneshot_for in {other.name for other in FIXED}


def test_no_two_share_a_name_or_a_user() -> None:
    assert len({role.name for role in ALL}) == len(ALL)
    users = [role.uid for role in ALL if role.uid]
    assert len(set(users)) == len(users)
    assert roles.GROUP not in users


def test_a_decider_has_no_privilege_and_no_publisher() -> None:
    (role,) = roles.decider_roles(["tcp_buffer"])
    assert (role.name, role.argv, role.capabilities, role.publishes) == ("decider-tcp", ("tcp_buffer",), (), False)
    assert role.uid


def test_deciders_of_ours_share_a_few_processes_and_the_guard_has_its_own() -> None:
    found = {role.name: role.argv for role in roles.decider_roles([*BUILT_IN_DECIDERS, "others"])}
    assert found.keys() == {"decider-guard", "decider-tcp", "decider-network", "decider-others"}
    assert (found["decider-guard"], found["decider-others"]) == (("guard",), ("others",))
    assert sorted(name for names in found.values() for name in names) == sorted([*BUILT_IN_DECIDERS, "others"])


def test_a_process_none_of_whose_deciders_is_enabled_is_not_started() -> None:
    assert [role.name for role in roles.decider_roles(["neigh_table"])] == ["decider-network"]


def test_every_built_in_decider_names_a_process() -> None:
    assert {built_in.process for built_in in BUILT_IN_DECIDERS.values()} == roles.PROCESSES.keys()


OTHERS = [f"tuner_{number}" for number in range(300)]


def users(deciders: Iterable[str], installed: Iterable[str] = ()) -> dict[str, int]:
    return {name: role.uid for role in roles.decider_roles(deciders, installed) for name in role.argv}


def test_a_decider_keeps_its_user_whichever_others_are_enabled() -> None:
    installed = [*BUILT_IN_DECIDERS, *OTHERS]
    every = users(installed, installed)
    for name in installed:
        assert users([name], installed) == {name: every[name]}
    others = [every[name] for name in OTHERS]
    assert len(set(others)) == len(others)
    assert not set(others) & {every[name] for name in BUILT_IN_DECIDERS}


def test_the_users_of_our_own_deciders_are_these_for_good() -> None:
    # Tapes on the disks of hosts belong to them.
    assert users(["guard", "neigh_table", "tcp_buffer"]) == {
        "guard": 2_046_820_452,
        "tcp_buffer": 2_046_820_453,
        "neigh_table": 2_046_820_454,
    }


def test_a_third_partys_decider_keeps_its_user_when_others_are_installed() -> None:
    assert users(["queue_length"]) == {"queue_length": 2_046_820_352 + 1000 + zlib.crc32(b"queue_length") % 65000}
    assert users(["queue_length"], OTHERS) == users(["queue_length"])


def test_where_two_names_meet_the_later_one_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "THIRD_PARTIES", range(1000, 1003))
    found = roles.third_party_offsets(["c", "a", "b"])
    assert sorted(found[name] for name in "abc") == [1000, 1001, 1002]
    assert found == roles.third_party_offsets(["b", "c", "a"])
    assert found["a"] == roles.third_party_offsets(["a"])["a"]


def test_deciders_and_nobody_else_are_known_by_their_user() -> None:
    assert all(roles.is_decider(uid) for uid in users([*BUILT_IN_DECIDERS, *OTHERS]).values())
    assert not any(roles.is_decider(role.uid) for role in FIXED)
    assert not any(roles.is_decider(uid) for uid in (0, 1000, 65534, 2**32 - 2))


@every_role
def test_deciders_alone_have_no_network(role: Role) -> None:
    assert role.network == (role.kind != "decider")


def test_the_dead_man_starts_first_then_the_writer_and_deciders_last() -> None:
    assert [role.name for role in ALL[:2]] == ["deadman", "actuator"]
    kinds = [role.kind for role in ALL]
    assert kinds == [*(kind for kind in kinds if kind != "decider"), *["decider"] * len(roles.PROCESSES)]


def test_everyone_who_publishes_is_listened_to() -> None:
    assert roles.publishers() == tuple(role.name for role in ALL if role.publishes)
    assert set(roles.publishers()) == {"actuator", "collector-bpf", "collector-proc", "collector-netlink"}


def test_every_socket_is_in_a_folder_of_its_own_and_fits_in_the_default_place() -> None:
    longest = "d" * 32  # the longest name that bus.plugins lets a decider have
    paths = [roles.events_path(RUN_DIR, name) for name in roles.publishers()]
    paths += [roles.wish_path(RUN_DIR, longest), roles.control_path(RUN_DIR), roles.probes_path(RUN_DIR)]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert path.is_relative_to(RUN_DIR)
        assert path.parent != RUN_DIR
        assert len(str(path)) <= PATH_MAX
    assert roles.events_path(RUN_DIR, "collector-bpf").parent == roles.probes_path(RUN_DIR).parent
