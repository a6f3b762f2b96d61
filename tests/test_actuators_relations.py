"""Tied tunables: who is family, and an order of putting values back that breaks no relation at any instant."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actuators.records import Spot
from actuators.relations import Relations, Target, ordered
from bus import tunables
from bus.tunables import Tunable

ROWS = tunables.table()
THRESH = [f"net.ipv4.neigh.default.gc_thresh{level}" for level in (1, 2, 3)]


def test_the_neighbour_thresholds_of_one_table_are_one_family() -> None:
    assert Relations(ROWS).family(THRESH[0]) == THRESH
    assert Relations(ROWS).family(THRESH[2]) == THRESH


def test_a_relation_without_a_row_is_no_family() -> None:
    assert Relations(ROWS).family("net.ipv4.tcp_rmem[2]") == ["net.ipv4.tcp_rmem[1]", "net.ipv4.tcp_rmem[2]"]
    assert Relations(ROWS).of("net.ipv4.tcp_rmem[1]") == {"net.ipv4.tcp_rmem[0]", "net.ipv4.tcp_rmem[2]"}


def test_a_tunable_that_no_row_names_is_its_own_family() -> None:
    assert Relations(ROWS).family("vm.swappiness") == ["vm.swappiness"]


def test_a_relation_that_only_one_row_states_holds_for_both() -> None:
    one_sided = {name: msgspec.structs.replace(ROWS[name], at_least=()) for name in THRESH}
    relations = Relations(one_sided)
    assert not relations.fits(THRESH[2], 5, lambda name: 6)
    assert relations.fits(THRESH[2], 6, lambda name: 6)


def test_a_value_that_is_not_known_does_not_count() -> None:
    assert Relations(ROWS).fits(THRESH[0], 10**9, lambda name: None)


def rise(values: tuple[int, ...]) -> bool:
    return all(low <= high for low, high in itertools.pairwise(values))


triples = st.lists(st.integers(0, 50), min_size=3, max_size=3).map(lambda found: tuple(sorted(found)))


@given(now=triples, target=triples, ages=st.permutations([1, 2, 3]), netns=st.sampled_from([0, 7]))
def test_thresholds_rise_at_every_instant_of_putting_them_back(
    now: tuple[int, ...], target: tuple[int, ...], ages: list[int], netns: int
) -> None:
    spots = [Spot(name, netns) for name in THRESH]
    values = dict(zip(spots, now, strict=True))
    moves = [Target(spot, to, age) for spot, to, age in zip(spots, target, ages, strict=True)]
    for move in ordered(moves, Relations(ROWS), values):
        values[move.spot] = move.target
        assert rise(tuple(values[spot] for spot in spots))
    assert tuple(values.values()) == target


@given(now=triples, target=triples, moved=st.sets(st.integers(0, 2)))
def test_every_move_comes_out_once_even_where_no_order_fits(
    now: tuple[int, ...], target: tuple[int, ...], moved: set[int]
) -> None:
    values = {Spot(name, 0): value for name, value in zip(THRESH, now, strict=True)}
    moves = [Target(Spot(THRESH[level], 0), target[level], level) for level in moved]
    found = ordered(moves, Relations(ROWS), values)
    assert sorted(move.newest for move in found) == sorted(moved)


def test_what_was_changed_last_is_put_back_first_where_nothing_ties() -> None:
    rows: dict[str, Tunable] = {}
    moves = [Target(Spot("a.b", 0), 1, 3), Target(Spot("a.c", 0), 1, 9), Target(Spot("a.d", 0), 1, 5)]
    assert [move.newest for move in ordered(moves, Relations(rows), {})] == [9, 5, 3]


def test_namespaces_do_not_tie_each_other() -> None:
    moves = [Target(Spot(THRESH[2], 1), 10, 1)]
    assert ordered(moves, Relations(ROWS), {Spot(THRESH[1], 2): 99}) == moves
