"""The table of tunables: every row is sane, is there in this kernel, and has its decider."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import prefix
from bus.roles import BUILT_IN_DECIDERS, GUARD
from bus.tunables import ALGORITHMS, INT_MAX, TUNABLES, Tunable, base, resolve, row_of, table

ROWS = {row.name: row for row in TUNABLES}
every_row = pytest.mark.parametrize("row", TUNABLES, ids=list(ROWS))
SYSCTLS = [row for row in TUNABLES if row.backend != "route"]
ROUTES = [row for row in TUNABLES if row.backend == "route"]
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
@pytest.mark.parametrize("row", SYSCTLS, ids=[row.name for row in SYSCTLS])
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


# --- keys of a destination


@pytest.mark.parametrize("row", ROUTES, ids=[row.name for row in ROUTES])
def test_what_is_set_per_destination_is_careful_leased_and_limited(row: Tunable) -> None:
    assert (row.scope, row.risk, row.decider) == ("netns", "careful", "congestion")
    assert row.instances == 64
    assert row.life_s == 3600


def test_a_key_of_a_destination_has_its_rows_limits_under_its_own_name() -> None:
    key = row_of(ROWS, "route.congctl@10.1.2.0/24")
    assert key == msgspec.structs.replace(ROWS["route.congctl"], name="route.congctl@10.1.2.0/24")
    assert key.prefix == "10.1.2.0/24"
    assert base(key.name) == "route.congctl"
    assert row_of(ROWS, "route.congctl") is ROWS["route.congctl"]
    assert ROWS["route.congctl"].prefix == ""


@pytest.mark.parametrize("key", ["net.core.somaxconn@10.1.2.0/24", "route.nothing@10.1.2.0/24", "@10.1.2.0/24", ""])
def test_only_what_is_set_per_destination_has_such_keys(key: str) -> None:
    assert row_of(ROWS, key) is None


def test_values_that_are_words_are_shown_as_such() -> None:
    congctl, initcwnd = ROWS["route.congctl"], ROWS["route.initcwnd"]
    assert [congctl.shown(value) for value in (0, 1, 3)] == ["none", "reno", "bbr"]
    assert congctl.shown(len(ALGORITHMS)) == f"unknown ({len(ALGORITHMS)})"
    assert congctl.shown(-1) == "unknown (-1)"
    assert (initcwnd.shown(0), initcwnd.shown(16)) == ("none", "16")
    assert (congctl.after, initcwnd.after) == ("", " segments")
    assert ROWS["net.core.somaxconn"].shown(0) == "0"


def test_the_words_keep_their_numbers_for_those_that_recorded_them() -> None:
    assert ALGORITHMS[:9] == ("none", "reno", "cubic", "bbr", "dctcp", "htcp", "vegas", "westwood", "illinois")
    assert len(set(ALGORITHMS)) == len(ALGORITHMS)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "net.core.x", "backend": "sysctl"}, "instances are for the route backend"),
        ({"instances": 0}, "instances are for the route backend"),
        ({"words": ("a", "b"), "low": 0, "high": 2}, "0 to 2 have no 2 words"),
        ({"words": ("a", "b"), "low": -1, "high": 1}, "-1 to 1 have no 2 words"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        table([msgspec.structs.replace(ROWS["route.initcwnd"], **{"name": "route.other", **changes})])


PREFIXES = [
    "10.0.0.0/8", "10.1.2.0/24", "10.1.2.3/32", "203.0.113.0/24", "100.64.0.0/10", "2001:db8::/32", "2001:db8:1::/48",
    "2001:db8::1/128", "fd00::/16",
]  # fmt: skip
NO_PREFIXES = [
    "", "/", "10.1.2.0", "10.1.2.0/", "10.1.2.3/24", "10.1.2.0/024", "010.1.2.0/24", "10.1.2/24", "10.1.2.0/33",
    "10.1.2.0/-1", "10.1.2.0/24 ", " 10.1.2.0/24", "10.1.2.0/24\n", "10.1.2.0/255.255.255.0", "10.1.2.0/0.0.0.255",
    "10.1.2.0/24/24", "10.1.2.0/24@", "10.1.2.0/24%eth0", "١٠.1.2.0/24", "0.0.0.0/0", "10.0.0.0/7", "::/0",
    "127.0.0.0/8", "127.0.0.1/32", "0.0.0.0/8", "169.254.1.0/24", "169.0.0.0/8", "224.0.0.0/8", "239.1.2.3/32",
    "255.255.255.255/32", "240.0.0.0/8", "2000::/3", "2001::/15", "2001:DB8::/32", "2001:0db8::/32", "2001:db8::1/64",
    "2001:db8:0::/48", "::1/128", "::/16", "::ffff:10.1.2.0/120", "::ffff:a01:200/120", "fe80::/64", "fe80::/16",
    "fe80::%eth0/64", "ff02::/16", "ff02::1/128", "default", "x" * 200, "10.1.2.0/24\x00", "../../etc",
]  # fmt: skip


@pytest.mark.parametrize("text", PREFIXES)
def test_a_prefix_elsewhere_may_be_had(text: str) -> None:
    assert prefix.fault(text) == ""
    assert str(prefix.network(text)) == text


@pytest.mark.parametrize("text", NO_PREFIXES)
def test_a_prefix_written_otherwise_or_not_elsewhere_may_not_be_had_and_is_told_why(text: str) -> None:
    why = prefix.fault(text)
    assert why
    assert why.isprintable()
    with pytest.raises(ValueError, match=re.escape(why)):
        prefix.network(text)


@given(st.text(max_size=50) | st.from_regex(r"[0-9a-f.:]{1,20}/[0-9]{1,3}", fullmatch=True))
def test_whatever_is_taken_for_a_prefix_is_written_in_the_one_way(text: str) -> None:
    if not prefix.fault(text):
        found = prefix.network(text)
        assert str(found) == text
        assert found.prefixlen >= prefix.LENGTHS[found.version][0]
        assert not any((found.is_loopback, found.is_multicast, found.is_link_local, found.is_unspecified))
