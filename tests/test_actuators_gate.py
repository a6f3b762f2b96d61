"""The gate, check by check, and that nothing it grants is out of bounds whatever it is shown."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators import gate
from actuators.gate import Grant, Refused, View
from bus import tunables
from bus.schema import Wish
from bus.tunables import INT_MAX, Bounds, Tunable

NOW_NS = 10**15
SECOND_NS = 10**9
ROW = tunables.Tunable(
    name="net.ipv4.tcp_rmem[2]",
    low=65536,
    high=1 << 29,
    step=0.5,
    cooldown_s=0.2,
    per_hour=3,
    unit="bytes",
    scope="netns",
    decider="tcp_buffer",
    at_least=("net.ipv4.tcp_rmem[1]",),
    at_most=("net.core.rmem_max",),
    summary="",
)
HOST = msgspec.structs.replace(ROW, scope="host", at_least=(), at_most=())
BOUNDS = Bounds(65536, 1 << 24)
RELATED = {"net.ipv4.tcp_rmem[1]": 131072, "net.core.rmem_max": 1 << 23}
VIEW = View(value=1_000_000, original=600_000, related=RELATED)
WISH = Wish(1, NOW_NS, SECOND_NS, ROW.name, 7, 0, 1_000_000, 1_500_000, "7 drops at a limit of 1000000", {"drops": 7})


def admit(
    row: Tunable | None = ROW, asker: str = "tcp_buffer", view: dict[str, Any] | None = None, **wish: Any
) -> Grant | Refused:
    replaced = msgspec.structs.replace
    return gate.admit(row, BOUNDS, replace_wish(**wish), asker, replaced(VIEW, **(view or {})), NOW_NS)


def replace_wish(**changes: Any) -> Wish:
    return msgspec.structs.replace(WISH, **changes)


def kind(answer: Grant | Refused) -> str:
    return answer.kind if isinstance(answer, Refused) else "granted"


def test_a_sound_wish_is_granted_as_it_stands() -> None:
    assert admit() == Grant(ROW.name, 7, 1_000_000, 1_500_000)


def test_a_host_tunable_is_granted_without_a_namespace() -> None:
    assert kind(admit(HOST, netns=0)) == "granted"


def test_what_is_for_people_to_set_is_never_written() -> None:
    replaced = msgspec.structs.replace
    answer = admit(replaced(ROW, risk="manual"))
    assert answer == Refused("manual", f"{ROW.name} is for people to set: trimtab only advises on it")
    assert kind(admit(replaced(ROW, risk="careful"))) == "granted"


def test_a_tunable_without_a_row_is_refused() -> None:
    assert kind(admit(None)) == "unknown"


def test_a_row_of_another_name_than_the_wish_is_refused() -> None:
    assert kind(admit(tunable="net.ipv4.tcp_wmem[2]")) == "unknown"


def test_only_the_row_s_decider_may_ask() -> None:
    assert kind(admit(asker="neigh_table")) == "owner"


def test_a_host_tunable_is_refused_for_a_namespace_and_the_reverse() -> None:
    assert kind(admit(HOST, netns=7)) == "scope"
    assert kind(admit(ROW, netns=0)) == "scope"


@pytest.mark.parametrize(("fence", "netns", "expected"), [((7, 9), 7, "granted"), ((9,), 7, "fence")])
def test_a_fence_keeps_all_but_its_namespaces_out(fence: tuple[int, ...], netns: int, expected: str) -> None:
    assert kind(admit(view={"fence": fence}, netns=netns)) == expected


def test_a_fence_keeps_the_host_out() -> None:
    answer = admit(HOST, view={"fence": (9,)}, netns=0)
    assert answer == Refused("fence", "the host as a whole lies outside the namespaces that the configuration names")


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "two\nlines", "\u202edesrever", "nul\0", "   "])
def test_a_reason_that_could_fool_a_terminal_is_refused(text: str) -> None:
    assert kind(admit(why=text)) == "text"


@pytest.mark.parametrize("evidence", [{"a\x07": 1}, {"event": "x\r"}])
def test_evidence_that_could_fool_a_terminal_is_refused(evidence: dict[str, int | str]) -> None:
    assert kind(admit(evidence=evidence)) == "text"


@pytest.mark.parametrize(
    ("t_ns", "expected"),
    [
        (NOW_NS + gate.FUTURE_NS, "granted"),
        (NOW_NS + gate.FUTURE_NS + 1, "future"),
        (NOW_NS - SECOND_NS, "granted"),
        (NOW_NS - SECOND_NS - 1, "stale"),
        (0, "stale"),
    ],
)
def test_a_wish_counts_from_its_date_until_it_expires(t_ns: int, expected: str) -> None:
    assert kind(admit(t_ns=t_ns)) == expected


def test_a_refusal_for_age_tells_how_old_how_valid_and_how_far_ahead() -> None:
    stale = admit(t_ns=NOW_NS - 3 * SECOND_NS)
    assert stale == Refused("stale", "the wish is 3000 ms old and was valid for 1000 ms")
    assert admit(t_ns=NOW_NS + 3 * SECOND_NS) == Refused("future", "the wish is dated 3000 ms ahead")


def test_the_slack_is_100_ms_and_the_hour_an_hour() -> None:
    assert (gate.FUTURE_NS, gate.HOUR_NS) == (SECOND_NS // 10, 3600 * SECOND_NS)


def test_a_held_key_is_refused_with_the_reason_it_is_held_for() -> None:
    assert admit(view={"held": "held by root"}) == Refused("held", f"hands off {ROW.name}: held by root")


def test_a_wrong_belief_is_refused_with_the_value_that_stands() -> None:
    assert admit(believed=999_999) == Refused("believed", "1000000 stands there, not 999999")


@pytest.mark.parametrize("want", [INT_MAX + 1, -INT_MAX - 2, 2**63])
def test_what_does_not_fit_an_int_is_refused(want: int) -> None:
    assert kind(admit(want=want)) == "range"


def test_an_int_s_ends_are_in_its_range() -> None:
    wide = Bounds(-INT_MAX - 1, INT_MAX)
    for value, want in ((INT_MAX - 1, INT_MAX), (-INT_MAX, -INT_MAX - 1)):
        wish = replace_wish(believed=value, want=want)
        bare = msgspec.structs.replace(ROW, at_least=(), at_most=())
        assert kind(gate.admit(bare, wide, wish, "tcp_buffer", View(value, 0), NOW_NS)) == "granted"


@pytest.mark.parametrize("want", [BOUNDS.low - 1, BOUNDS.high + 1, -1])
def test_what_lies_outside_the_bounds_is_refused(want: int) -> None:
    assert kind(admit(want=want)) == "bounds"


@pytest.mark.parametrize(("value", "want"), [(BOUNDS.high - 1, BOUNDS.high), (BOUNDS.low + 1, BOUNDS.low)])
def test_the_bounds_themselves_may_be_reached(value: int, want: int) -> None:
    wish = replace_wish(believed=value, want=want)
    bare = msgspec.structs.replace(ROW, at_least=(), at_most=())
    assert kind(gate.admit(bare, BOUNDS, wish, "tcp_buffer", View(value, 0), NOW_NS)) == "granted"


def test_what_stands_there_already_is_refused() -> None:
    assert kind(admit(want=1_000_000)) == "nothing"


@pytest.mark.parametrize(("band", "edge"), [(ROW.dead_band, 1_000_000 // 128), (0.25, 250_000), (0.0, 1)])
def test_a_change_too_small_to_matter_is_refused(band: float, edge: int) -> None:
    row = msgspec.structs.replace(ROW, dead_band=band)
    for sign in (1, -1):
        small = "dead-band" if band else "nothing"
        assert kind(admit(row, want=1_000_000 + sign * (edge - 1))) == small
        assert kind(admit(row, want=1_000_000 + sign * edge)) == "granted"


def test_a_refusal_for_smallness_tells_the_row_s_share() -> None:
    answer = admit(msgspec.structs.replace(ROW, dead_band=0.25), want=1_000_007)
    assert answer == Refused("dead-band", "a change by 7 is less than 0.25 of 1000000")


def test_the_way_back_to_the_original_is_never_too_small() -> None:
    assert kind(admit(view={"original": 1_000_001}, want=1_000_001)) == "granted"


@pytest.mark.parametrize(
    ("want", "expected"), [(1_500_000, "granted"), (1_500_001, "step"), (500_000, "granted"), (499_999, "step")]
)
def test_a_step_is_at_most_the_row_s_share_of_the_value(want: int, expected: str) -> None:
    assert kind(admit(want=want)) == expected


@pytest.mark.parametrize(
    ("value", "want", "expected"),
    [(1, 2, "granted"), (0, 1, "granted"), (1, 3, "step"), (0, 2, "step"), (-10, -5, "granted"), (-10, -4, "step")],
)
def test_a_step_of_one_is_always_allowed(value: int, want: int, expected: str) -> None:
    bare = msgspec.structs.replace(ROW, at_least=(), at_most=())
    wish = replace_wish(believed=value, want=want)
    answer = gate.admit(bare, Bounds(-100, 100), wish, "tcp_buffer", View(value, value), NOW_NS)
    assert kind(answer) == expected


TWIN = msgspec.structs.replace(ROW, at_least=(), at_most=(), twin="net.ipv4.other")


@pytest.mark.parametrize(
    ("value", "want", "expected"),
    [(0, 70_000, "granted"), (0, 2**23, "granted"), (1, 70_000, "step"), (100_000, 150_001, "step")],
)
def test_from_a_0_beside_its_twin_there_is_no_step_to_measure(value: int, want: int, expected: str) -> None:
    view = {"value": value, "related": {TWIN.twin: 20}}
    assert kind(admit(TWIN, view=view, believed=value, want=want)) == expected
    plain = msgspec.structs.replace(TWIN, twin="")
    assert kind(admit(plain, view=view, believed=value, want=want)) == "step"


def test_a_grant_tells_what_the_twin_is() -> None:
    view = {"value": 0, "related": {TWIN.twin: 20}}
    assert admit(TWIN, view=view, believed=0, want=70_000) == Grant(ROW.name, 7, 0, 70_000, 20)
    assert admit() == Grant(ROW.name, 7, 1_000_000, 1_500_000, 0)


def test_a_twin_that_is_ours_or_not_known_refuses() -> None:
    ours = admit(TWIN, view={"related": {TWIN.twin: 20}, "twin_ours": True})
    assert ours == Refused("twin", f"a value of trimtab's stands in {TWIN.twin}, the twin of {ROW.name}")
    assert kind(admit(TWIN, view={"related": {}})) == "relation"
    assert kind(admit(TWIN, view={"related": {TWIN.twin: 20}})) == "granted"


@pytest.mark.parametrize(
    ("ago_ns", "expected"), [(SECOND_NS // 5, "granted"), (SECOND_NS // 5 - 1, "cool-down"), (-5, "cool-down")]
)
def test_two_changes_lie_a_cool_down_apart(ago_ns: int, expected: str) -> None:
    assert kind(admit(view={"changed_ns": (NOW_NS - ago_ns,)})) == expected


def test_a_refusal_for_a_cool_down_tells_how_long_ago_the_last_change_was() -> None:
    answer = admit(view={"changed_ns": (NOW_NS - 9 * SECOND_NS, NOW_NS - SECOND_NS // 20)})
    assert answer == Refused("cool-down", "last changed 50 ms ago, at most once in 0.2 s")


def test_an_hour_holds_only_so_many_changes() -> None:
    at = [NOW_NS - gate.HOUR_NS, NOW_NS - gate.HOUR_NS + 1, NOW_NS - SECOND_NS, NOW_NS - SECOND_NS]
    assert kind(admit(view={"changed_ns": tuple(at[:3])})) == "granted"
    assert kind(admit(view={"changed_ns": tuple(at)})) == "per-hour"


@pytest.mark.parametrize(
    ("related", "expected"),
    [
        ({"net.ipv4.tcp_rmem[1]": 1_500_000, "net.core.rmem_max": 1_500_000}, "granted"),
        ({"net.ipv4.tcp_rmem[1]": 1_500_001, "net.core.rmem_max": 1_500_001}, "relation"),
        ({"net.ipv4.tcp_rmem[1]": 1, "net.core.rmem_max": 1_499_999}, "relation"),
        ({"net.ipv4.tcp_rmem[1]": 1}, "relation"),
        ({"net.core.rmem_max": 1 << 23}, "relation"),
    ],
)
def test_a_value_stays_between_its_relations_and_those_must_be_known(related: dict[str, int], expected: str) -> None:
    assert kind(admit(view={"related": related})) == expected


def test_the_screen_lets_pass_what_only_a_reading_of_the_kernel_can_refuse() -> None:
    assert gate.screen(ROW, WISH, "tcp_buffer", (), NOW_NS) is None
    assert gate.screen(None, WISH, "tcp_buffer", (), NOW_NS) == gate.admit(
        None, BOUNDS, WISH, "tcp_buffer", VIEW, NOW_NS
    )


ints = st.one_of(st.integers(), st.integers(0, 1 << 25), st.sampled_from([0, 65535, 65536, 1 << 24, INT_MAX]))


@settings(max_examples=400)
@given(
    bounds=st.tuples(ints, ints).map(lambda pair: Bounds(*sorted(pair))),
    step=st.floats(0.001, 1),
    value=ints,
    want=ints,
    original=ints,
    related=st.tuples(ints, ints),
    asker=st.sampled_from(["tcp_buffer", "other"]),
    held=st.sampled_from(["", "held"]),
    ago=st.lists(st.integers(0, 2 * gate.HOUR_NS), max_size=4),
    age=st.integers(-gate.FUTURE_NS * 2, 2 * SECOND_NS),
)
def test_nothing_granted_breaks_any_promise(
    bounds: Bounds,
    step: float,
    value: int,
    want: int,
    original: int,
    related: tuple[int, int],
    asker: str,
    held: str,
    ago: list[int],
    age: int,
) -> None:
    row = msgspec.structs.replace(ROW, step=step)
    wish = replace_wish(believed=value, want=want, t_ns=NOW_NS - age)
    changed = tuple(sorted(NOW_NS - one for one in ago))
    view = View(value, original, held, dict(zip(RELATED, related, strict=True)), changed)
    answer = gate.admit(row, bounds, wish, asker, view, NOW_NS)
    if isinstance(answer, Refused):
        assert answer.reason
        assert len(answer.kind) < 20
        return
    assert bounds.low <= answer.new <= bounds.high
    assert -INT_MAX - 1 <= answer.new <= INT_MAX
    assert answer.old == value != answer.new == want
    assert abs(want - value) <= max(1, step * abs(value))
    assert related[0] <= want <= related[1]
    assert asker == "tcp_buffer"
    assert not held
    assert sum(NOW_NS - one < gate.HOUR_NS for one in changed) < row.per_hour
    assert -gate.FUTURE_NS <= age <= SECOND_NS


@given(value=st.integers(65536, 1 << 24), share=st.floats(-0.49, 0.49))
def test_a_modest_wish_within_the_bounds_is_granted_or_too_small(value: int, share: float) -> None:
    want = min(BOUNDS.high, max(BOUNDS.low, int(value * (1 + share))))
    bare = msgspec.structs.replace(ROW, at_least=(), at_most=())
    answer = gate.admit(bare, BOUNDS, replace_wish(believed=value, want=want), "tcp_buffer", View(value, 1), NOW_NS)
    assert kind(answer) in ("granted", "nothing", "dead-band")
    assert (kind(answer) == "granted") or abs(want - value) < value // 128 or want == value


@pytest.mark.parametrize(
    ("turns", "rising", "want", "expected"),
    [
        (2, True, 900_000, "turns"),
        (2, False, 1_100_000, "turns"),
        (3, False, 1_100_000, "turns"),
        (1, True, 900_000, "granted"),
        (2, True, 1_100_000, "granted"),
        (2, False, 900_000, "granted"),
        (2, None, 900_000, "granted"),
    ],
)
def test_a_key_that_has_turned_round_twice_goes_on_but_not_back(
    turns: int, rising: bool | None, want: int, expected: str
) -> None:
    assert kind(admit(want=want, view={"turns": turns, "rising": rising})) == expected


def test_a_refusal_for_turns_tells_which_way_and_which_turn_it_would_be() -> None:
    down = admit(want=900_000, view={"turns": 2, "rising": True})
    assert down == Refused("turns", "down again would be turn 3 within the hour, at most 2")
    up = admit(want=1_100_000, view={"turns": 2, "rising": False})
    assert up == Refused("turns", "up again would be turn 3 within the hour, at most 2")


@pytest.mark.parametrize(
    ("asked", "all_asked", "expected"),
    [
        (3599, 7199, "granted"),
        (3600, 3600, "decider-per-hour"),
        (3599, 7200, "host-per-hour"),
        (9999, 9999, "decider-per-hour"),
    ],
)
def test_an_hour_holds_only_so_many_changes_of_one_decider_and_of_all(
    asked: int, all_asked: int, expected: str
) -> None:
    assert kind(admit(view={"asked": asked, "all_asked": all_asked})) == expected


# --- what is set per destination

KEY = "route.initcwnd@10.1.2.0/24"
AMOUNT = msgspec.structs.replace(tunables.table()["route.initcwnd"], name=KEY, cooldown_s=5.0)
WORD = msgspec.structs.replace(tunables.table()["route.congctl"], name="route.congctl@10.1.2.0/24")


def ask(row: Tunable, value: int, want: int, netns: int = 7, **view: Any) -> Grant | Refused:
    wish = replace_wish(tunable=row.name, netns=netns, believed=value, want=want)
    return gate.admit(row, Bounds(row.low, row.high), wish, row.decider, View(value, 0, **view), NOW_NS)


def test_a_destination_s_key_is_granted_under_its_whole_name() -> None:
    assert ask(AMOUNT, 0, 20) == Grant(KEY, 7, 0, 20)
    assert ask(WORD, 0, 3) == Grant(WORD.name, 7, 0, 3)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "0.0.0.0/0",
        "127.0.0.0/8",
        "10.1.2.3/24",
        "10.1.2.0/24@10.1.2.0/24",
        "../../x",
        "fe80::/64",
        "x\n",
        "default",
    ],
)
def test_a_destination_that_is_none_is_refused_with_how_a_key_is_written(prefix: str) -> None:
    answer = ask(msgspec.structs.replace(AMOUNT, name=f"route.initcwnd@{prefix}"), 0, 20)
    assert isinstance(answer, Refused)
    assert answer.kind == "prefix"
    assert answer.reason.startswith("route.initcwnd is set as route.initcwnd@PREFIX: ")
    assert answer.reason.isprintable()


def test_the_row_itself_is_no_key() -> None:
    row = msgspec.structs.replace(AMOUNT, name="route.initcwnd")
    assert kind(ask(row, 0, 20)) == "prefix"


def test_a_destination_is_of_a_namespace() -> None:
    assert kind(ask(AMOUNT, 0, 20, netns=0)) == "scope"


@pytest.mark.parametrize(
    ("value", "want", "expected"),
    [
        (0, 4, "granted"),
        (0, 64, "granted"),
        (0, 3, "bounds"),
        (0, 65, "bounds"),
        (0, -1, "bounds"),
        (0, 0, "nothing"),
        (64, 0, "granted"),
        (20, 40, "granted"),
        (20, 41, "step"),
        (20, 4, "granted"),
        (3, 0, "granted"),
    ],
)
def test_to_nothing_and_from_nothing_no_step_is_measured(value: int, want: int, expected: str) -> None:
    assert kind(ask(AMOUNT, value, want)) == expected
    tight = msgspec.structs.replace(AMOUNT, step=0.01, dead_band=0.0)
    assert kind(ask(tight, value, want)) == ("step" if value and want else expected)


@pytest.mark.parametrize(
    ("value", "want", "expected"),
    [(1, 3, "granted"), (3, 1, "granted"), (1, len(WORD.words), "bounds"), (1, -1, "bounds"), (2, 2, "nothing")],
)
def test_between_words_there_is_no_step(value: int, want: int, expected: str) -> None:
    tight = msgspec.structs.replace(WORD, step=0.01, dead_band=0.5)
    assert kind(ask(tight, value, want)) == expected
    plain = msgspec.structs.replace(tight, instances=0, backend="sysctl", words=WORD.words)
    assert kind(ask(plain, value, want)) == expected
    assert kind(ask(plain, 0, 3)) == "granted"


def test_refusals_of_words_are_in_words() -> None:
    believed = replace_wish(tunable=WORD.name, believed=2, want=1)
    answer = gate.admit(WORD, Bounds(0, 3), believed, "congestion", View(3, 0), NOW_NS)
    assert answer == Refused("believed", "bbr stands there, not cubic")
    assert ask(WORD, 3, 3) == Refused("nothing", "bbr stands there already")
    narrow = gate.admit(WORD, Bounds(0, 2), replace_wish(tunable=WORD.name, believed=0, want=3), "congestion",
                        View(0, 0), NOW_NS)  # fmt: skip
    assert narrow == Refused("bounds", "bbr lies outside none to cubic")


LATE: list[tuple[dict[str, Any], str]] = [
    ({"changed_ns": (NOW_NS - SECOND_NS,)}, "cool-down"),
    ({"changed_ns": tuple(NOW_NS - 60 * SECOND_NS - n for n in range(12))[::-1]}, "per-hour"),
    ({"turns": 2, "rising": True}, "turns"),
    ({"turns": 2, "rising": False}, "turns"),
    ({"asked": 3600}, "decider-per-hour"),
    ({"all_asked": 7200}, "host-per-hour"),
    ({"others": 64}, "instances"),
]


@pytest.mark.parametrize(("view", "expected"), LATE)
def test_to_let_go_of_a_destination_it_is_never_too_soon(view: dict[str, Any], expected: str) -> None:
    up = not view.get("rising")
    assert kind(ask(AMOUNT, 20, 30 if up else 15, **view)) == expected
    assert kind(ask(AMOUNT, 20, 0, **view)) == "granted"


def test_only_a_destination_is_let_go_of_at_any_time() -> None:
    view = {"changed_ns": (NOW_NS - 1,), "value": 1, "related": {}}
    bare = msgspec.structs.replace(ROW, at_least=(), at_most=(), low=0)
    assert kind(gate.admit(bare, Bounds(0, 9), replace_wish(believed=1, want=0), "tcp_buffer",
                           View(1, 1, changed_ns=view["changed_ns"]), NOW_NS)) == "cool-down"  # fmt: skip


def test_what_is_held_is_not_let_go_of_either() -> None:
    assert kind(ask(AMOUNT, 20, 0, held="held by root")) == "held"


@pytest.mark.parametrize(("others", "expected"), [(63, "granted"), (64, "instances"), (65, "instances")])
def test_a_namespace_has_only_so_many_destinations(others: int, expected: str) -> None:
    assert kind(ask(AMOUNT, 0, 20, others=others)) == expected


def test_a_refusal_for_a_crowd_tells_how_many_and_where() -> None:
    assert ask(AMOUNT, 0, 20, others=64) == Refused("instances", "64 other destinations of 7 have one, at most 64")
    assert kind(admit(view={"others": 1000})) == "granted"


prefixes = st.one_of(
    st.ip_addresses().map(lambda address: f"{address}/{24 if address.version == 4 else 48}"),
    st.tuples(st.ip_addresses(v=4), st.integers(-1, 40)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.integers(0, 2**24 - 1).map(lambda net: f"{net >> 16}.{net >> 8 & 255}.{net & 255}.0/24"),
    st.text(max_size=30),
)


@settings(max_examples=300)
@given(prefix=prefixes, word=st.booleans(), value=ints, want=ints, others=st.integers(0, 200), held=st.booleans())
def test_nothing_granted_to_a_destination_breaks_any_promise(
    prefix: str, word: bool, value: int, want: int, others: int, held: bool
) -> None:
    row = msgspec.structs.replace(WORD if word else AMOUNT, name=f"route.x@{prefix}")
    answer = ask(row, value, want, others=others, held="held" if held else "")
    if isinstance(answer, Refused):
        assert answer.reason
        return
    network = ipaddress.ip_network(prefix)
    assert str(network) == prefix
    assert network.prefixlen >= (8 if network.version == 4 else 16)
    assert not any((network.is_loopback, network.is_multicast, network.is_link_local, network.is_unspecified))
    assert answer.new == want != value
    assert want == 0 or row.low <= want <= row.high
    assert others < 64 or want == 0
    assert not held
    if not word and value and want:
        assert abs(want - value) <= max(1, value)


def test_a_key_of_which_nothing_is_known_has_not_moved() -> None:
    fresh = View(1, 1)
    assert fresh.others == 0
    assert (fresh.turns, fresh.rising, fresh.asked, fresh.all_asked, fresh.held) == (0, None, 0, 0, "")
