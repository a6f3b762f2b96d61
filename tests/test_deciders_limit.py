"""What is known of one tunable: when a change of it is one."""

from __future__ import annotations

import pytest

from bus.schema import FragMemory, NeighEntries, Value
from deciders import ip_frag, neigh_table
from deciders.limit import Limit, bounds, of_row, worth

RMEM = "net.ipv4.tcp_rmem[2]"
SEC = 1_000_000_000
LOW_PORT = "net.ipv4.ip_local_port_range[0]"


def limit(tunable: str, value: int) -> Limit:
    made = Limit(value=value)
    bounds(made, Value(7, tunable, 1, 1, value, 100_000, 65_536, 1 << 20, False))
    return made


@pytest.mark.parametrize(
    ("value", "want", "is_one"),
    [
        (128_000, 128_999, False),
        (128_000, 129_000, True),
        (128_000, 127_001, False),
        (128_000, 127_000, True),
        (128_000, 128_000, False),
        # To a bound, or back.
        (1_048_000, 1 << 20, True),
        (65_600, 65_536, True),
        (100_001, 100_000, True),
        (65_536, 65_536, False),
    ],
)
def test_a_change_leads_out_of_the_dead_band_or_to_an_end(value: int, want: int, is_one: bool) -> None:
    assert worth(limit(RMEM, value), want) is is_one


def test_the_dead_band_is_the_rows_own_and_a_usual_one_until_its_name_is_known() -> None:
    assert worth(limit(LOW_PORT, 90_000), 90_001)
    assert not worth(Limit(value=90_000), 90_001)
    assert not worth(limit("somebody.elses", 90_000), 90_001)


def test_before_its_bounds_are_told_nothing_is_asked_for_below_its_rows() -> None:
    """The probe may be heard of first, and what the actuator says may be lost."""
    assert of_row(RMEM).low == 65_536
    assert worth(of_row(LOW_PORT), 1)
    for limit_bytes, wants in ((30_000, []), (40_000, [80_000])):
        crowded = FragMemory(SEC, 1, 1, 2, limit_bytes, limit_bytes, 3)
        assert [wish.want for wish in ip_frag.step(ip_frag.start(ip_frag.Policy()), crowded)[1]] == wants
    full = NeighEntries(SEC, 2, 5, 5, 1, 2, 6, 7, 7, 3, 0)
    assert neigh_table.step(neigh_table.start(neigh_table.Policy()), full)[1] == ()
