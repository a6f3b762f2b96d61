"""The table of tunables: every row is sane, is there in this kernel, and has its decider."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.roles import BUILT_IN_DECIDERS, GUARD
from bus.tunables import INT_MAX, TUNABLES, Tunable, resolve, table

ROWS = {row.name: row for row in TUNABLES}
every_row = pytest.mark.parametrize("row", TUNABLES, ids=list(ROWS))
GIB = 1 << 30


@every_row
def test_bounds_step_and_pace_make_sense(row: Tunable) -> None:
    assert 0 <= row.low < row.high <= INT_MAX
    assert 0 < row.step <= 1
    assert row.cooldown_s >= 0
    assert row.per_hour >= 1
    assert row.risk in ("safe", "careful", "manual")
    assert row.unit
    assert row.summary
    assert row.guards


@every_row
def test_a_row_is_as_strict_as_the_type_says(row: Tunable) -> None:
    # Rows of ours are made by calls, which check nothing; those of others are decoded.
    assert msgspec.convert(msgspec.to_builtins(row), Tunable) == row


@every_row
def test_its_decider_is_one_of_ours_and_has_a_module(row: Tunable) -> None:
    assert importlib.util.find_spec(BUILT_IN_DECIDERS[row.decider].module)


@every_row
def test_its_relations_name_rows_of_the_same_scope_or_another_index_of_its_own_sysctl(row: Tunable) -> None:
    for other in (*row.at_most, *row.at_least):
        assert other != row.name
        if other in ROWS:
            assert ROWS[other].scope == row.scope
        else:
            assert other.partition("[")[0] == row.sysctl


@every_row
def test_relations_between_rows_are_said_on_both_sides(row: Tunable) -> None:
    assert all(row.name in ROWS[other].at_least for other in row.at_most if other in ROWS)
    assert all(row.name in ROWS[other].at_most for other in row.at_least if other in ROWS)


@every_row
def test_rows_that_are_related_leave_room_for_each_other(row: Tunable) -> None:
    for other in row.at_most:
        assert row.low <= ROWS[other].high


@pytest.mark.system
@every_row
def test_the_running_kernel_has_it_and_its_value_has_that_index(row: Tunable) -> None:
    words = (Path("/proc/sys") / row.path).read_text().split()
    assert int(words[row.index]) >= 0
    assert len(words) > 1 or not row.name.endswith("]")


def test_every_decider_but_the_guard_has_a_row() -> None:
    assert {row.decider for row in TUNABLES} == set(BUILT_IN_DECIDERS) - {GUARD}


@pytest.mark.parametrize(
    ("name", "sysctl", "path", "index"),
    [
        ("net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_rmem", "net/ipv4/tcp_rmem", 2),
        ("vm.swappiness", "vm.swappiness", "vm/swappiness", 0),
    ],
)
def test_a_name_says_the_sysctl_its_file_and_the_index(name: str, sysctl: str, path: str, index: int) -> None:
    row = msgspec.structs.replace(TUNABLES[0], name=name)
    assert (row.sysctl, row.path, row.index) == (sysctl, path, index)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "../etc/passwd",
        "net..x",
        ".net.x",
        "net.x.",
        "net/x",
        "net.x[4]",
        "net.x[-1]",
        "net.x[1][2]",
        "net.x y",
        "net.x\n",
    ],
)
def test_a_name_that_is_no_sysctl_is_no_row(name: str) -> None:
    row = msgspec.to_builtins(TUNABLES[0]) | {"name": name}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(row, Tunable)


@every_row
@given(mem_bytes=st.integers(0, 1 << 50))
def test_bounds_on_any_host_lie_within_the_rows_own(row: Tunable, mem_bytes: int) -> None:
    bounds = resolve(row, mem_bytes)
    assert row.low == bounds.low <= bounds.high <= row.high


def test_bounds_follow_memory() -> None:
    rmem, gc3 = ROWS["net.ipv4.tcp_rmem[2]"], ROWS["net.ipv4.neigh.default.gc_thresh3"]
    assert resolve(rmem, GIB).high == GIB // 64
    assert resolve(rmem, 4096 * GIB).high == rmem.high
    assert resolve(gc3, GIB).high == GIB // 64 // 1024
    free = msgspec.structs.replace(rmem, ram_share=0)
    assert resolve(free, GIB).high == rmem.high


def test_the_table_takes_more_rows_but_no_second_of_a_name() -> None:
    more = msgspec.structs.replace(TUNABLES[0], name="net.core.xfrm_acq_expires")
    assert list(table([more])) == [*ROWS, "net.core.xfrm_acq_expires"]
    with pytest.raises(ValueError, match=r"net\.ipv4\.tcp_rmem\[2\] has two rows"):
        table([TUNABLES[0]])
    with pytest.raises(ValueError, match=r"net\.core\.xfrm_acq_expires has two rows"):
        table([more, more])


def test_a_row_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="low 3 is above high 2"):
        table([msgspec.structs.replace(TUNABLES[0], name="a.b", low=3, high=2)])
