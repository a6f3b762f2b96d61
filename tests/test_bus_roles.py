"""The table of processes: users, capabilities, places."""

from __future__ import annotations

import importlib.util
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
    role = roles.decider_role("tcp_buffer", 3)
    assert (role.name, role.argv, role.capabilities, role.publishes) == (
        "decider-tcp_buffer",
        ("tcp_buffer",),
        (),
        False,
    )
    assert role.uid


def test_the_dead_man_starts_first_then_the_writer_and_deciders_last() -> None:
    assert [role.name for role in ALL[:2]] == ["deadman", "actuator"]
    assert [role.kind for role in ALL[-len(BUILT_IN_DECIDERS) :]] == ["decider"] * len(BUILT_IN_DECIDERS)


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
