"""Congestion control and other metrics per destination, by routes of the real kernel in namespaces of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from route_world import BBR, CUBIC, RENO, ROWS, TO4, TO6, Live, Net, net

from actuators import offline, trials
from actuators.records import Spot, stamp
from bus.netns import NamespaceGoneError, find, inside
from bus.roles import GUARD
from bus.schema import Ask, Outcome, Trial, Verdict

pytestmark = pytest.mark.system
CONGCTL, INITCWND, RTO_MIN = (f"route.{name}@{TO4}" for name in ("congctl", "initcwnd", "rto_min"))
CONGCTL6 = f"route.congctl@{TO6}"
Start = Callable[..., Live]


@pytest.fixture(scope="module")
def shared() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture
def place(shared: Net) -> Iterator[Net]:
    """The same for all, as it was."""
    before = shared.all()
    yield shared
    assert shared.ours() == []
    assert shared.all() == before


@pytest.fixture
def own() -> Iterator[Net]:
    """One to break."""
    with net() as made:
        yield made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(place: Net, **more: Any) -> Live:
            made = Live(tmp_path, place, **more)
            stack.callback(made.close)
            return made

        yield begin


# --- what is made -----------------------------------------------------------------------------------------------------


def test_a_metric_is_a_copy_of_the_route_that_leads_there(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    assert place.route() == f"{TO4} via 10.9.0.2 dev v0 proto 116 metric 50 mtu 1400 advmss 1200 congctl bbr"
    assert live.lines[-1].startswith(f"set {CONGCTL} none -> bbr in netns {place.here}")
    assert live.modes.stop() == 0


def test_an_ipv6_route_is_copied_with_its_locks(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL6, RENO)
    assert place.route(TO6) == f"{TO6} via fd09::2 dev v0 proto 116 metric 1024 mtu lock 1350 congctl reno pref medium"
    live.modes.stop()


def test_keys_of_a_destination_share_its_route_which_goes_with_the_last(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    live.gets(RTO_MIN, 50)
    # The kernel heeds no least timeout that is not locked.
    assert place.route().endswith("initcwnd 20 rto_min lock 50ms congctl bbr")
    live.gets(CONGCTL, CUBIC, believed=BBR)
    live.gets(INITCWND, 0, believed=20)
    assert live.lines[-1].startswith(f"lowered {INITCWND} 20 -> none in netns {place.here}")
    assert place.route().endswith("advmss 1200 rto_min lock 50ms congctl cubic")
    live.gets(RTO_MIN, 0, believed=50)
    assert place.route().endswith("advmss 1200 congctl cubic")
    live.gets(CONGCTL, 0, believed=CUBIC)
    assert place.route() == ""
    assert live.parts.kernel.routes.ears.netns == []
    live.modes.stop()


@pytest.mark.parametrize(("key", "server"), [(CONGCTL, "203.0.113.5"), (CONGCTL6, "2001:db8:7::5")])
def test_new_connections_to_the_destination_use_it_and_no_others_do(
    start: Start, place: Net, key: str, server: str
) -> None:
    live = start(place)
    usual = algorithm(place, "198.51.100.5")
    assert algorithm(place, server) == usual
    other = RENO if usual != "reno" else CUBIC
    live.gets(key, other)
    assert algorithm(place, server) == ("reno" if other == RENO else "cubic")
    assert algorithm(place, "198.51.100.5") == usual
    live.modes.stop()
    assert algorithm(place, server) == usual


def test_a_connection_begins_with_the_window_that_is_set(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(INITCWND, 40)
    assert " cwnd:40 " in shown(place, "203.0.113.5")
    assert " cwnd:10 " in shown(place, "198.51.100.5")
    live.modes.stop()


def algorithm(place: Net, server: str) -> str:
    return shown(place, server).split()[0]


def shown(place: Net, server: str) -> str:
    """What ss(8) says of a new connection."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET

    def listening() -> socket.socket:
        made = socket.create_server((server, 0), family=family)
        made.settimeout(20)
        return made

    with inside(f"/run/netns/{place.there}", listening) as listener:
        port = listener.getsockname()[1]
        with inside(place.path, lambda: socket.create_connection((server, port), timeout=20)):
            argv = ["ip", "netns", "exec", place.here, "ss", "-Htin", "dport", "=", f":{port}"]
            lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    return lines[1] + " "


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(live: Live, key: str, want: int = BBR) -> str:
    outcome = live.wish(key, want)
    assert outcome.verdict == "refused"
    assert live.states() == []
    return outcome.reason


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("route.congctl@10.9.0.128/25", "10.9.0.0/24 (proto kernel) has no gateway"),
        ("route.congctl@10.9.0.0/24", "there is a route to 10.9.0.0/24 itself, proto kernel"),
        ("route.congctl@10.0.0.0/8", "10.9.0.0/24 (proto kernel) lies inside 10.0.0.0/8"),
        ("route.congctl@fd09::/64", "there is a route to fd09::/64 itself"),
        ("route.congctl@127.0.0.0/8", "loopback"),
        ("route.congctl@203.0.113.5/24", "has host bits set"),
        ("route.congctl@0.0.0.0/0", "not between /8 and /32"),
        ("route.congctl", "set as route.congctl@PREFIX"),
    ],
)
def test_a_destination_that_has_no_route_to_copy_is_refused(start: Start, place: Net, key: str, why: str) -> None:
    assert why in refused(start(place), key)


@pytest.mark.parametrize(
    ("setup", "why"),
    [
        ("route add {to} via 10.9.0.2 proto bird", "there is a route to {to} itself, proto bird"),
        ("route add 203.0.113.64/26 via 10.9.0.2", "203.0.113.64/26 (proto boot) lies inside {to}"),
        ("route add blackhole 203.0.112.0/20", "203.0.112.0/20 (proto boot) is blackhole"),
        ("route add 203.0.112.0/20 nexthop via 10.9.0.2 nexthop via 10.9.0.3", "has several next hops"),
        ("nexthop add id 7 via 10.9.0.2 dev v0; ip route add 203.0.112.0/20 nhid 7", "has a next hop object"),
        ("route add 203.0.112.0/20 via 10.9.0.2 initcwnd 12", "sets initcwnd itself: that is its maker's choice"),
        ("route add 203.0.112.0/20 via 10.9.0.2 congctl reno", "sets congctl itself"),
        ("route add 203.0.112.0/20 dev v0 scope link", "203.0.112.0/20 (proto boot) has no gateway"),
        ("route add 203.0.112.0/20 tos 8 via 10.9.0.2", "routes by TOS stand at 203.0.112.0/20"),
        ("route add default via 10.9.0.2 table 7; ip rule add to {to} lookup 7", "{to} is routed by table 7"),
        ("rule add lookup main suppress_prefixlength 0", "a rule suppresses short prefixes"),
        ("route del default", "no route of the main table leads to {to}"),
        ("link set v0 down", "no route of the main table leads to {to}"),
    ],
)
def test_a_route_that_is_not_copied_whole_is_refused_with_what_it_has(
    start: Start, own: Net, setup: str, why: str
) -> None:
    live = start(own)
    live.gets(f"route.congctl@{TO6}", BBR)
    live.modes.stop()
    own.ip(setup.format(to=TO4).replace("; ip ", f"; ip -n {own.here} "))
    outcome = live.wish(CONGCTL, BBR)
    assert outcome.verdict == "refused"
    assert why.format(to=TO4) in outcome.reason
    assert own.ours() == []


rows = st.sampled_from(["route.congctl", "route.initcwnd", "route.rto_min", "route", "net.core.somaxconn", ""])
texts = st.one_of(
    st.text(max_size=60),
    st.from_regex(r"[0-9a-f.:]{0,20}/[0-9]{0,3}", fullmatch=True),
    st.sampled_from(["0.0.0.0/0", "::/0", "10.9.0.1/32", "fd09::1/128", "../../proto 116", "203.0.113.0/24@", "lo"]),
    st.ip_addresses(v=4).map(lambda address: f"{address}/24").filter(lambda text: not text.endswith(".0/24")),
)


def test_no_evil_destination_leaves_a_trace(start: Start, place: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actuators.change.REFUSALS_TOLD", 1 << 20)  # in a second; a quick machine refuses more
    live = start(place)

    @settings(max_examples=150, deadline=None)
    @given(row=rows, at=st.sampled_from(["@", "@@", ""]), text=texts, want=st.integers(-(2**40), 2**40))
    def lies(row: str, at: str, text: str, want: int) -> None:
        assert live.wish(f"{row}{at}{text}", want).verdict == "refused"

    lies()
    assert live.states() == []
    assert place.ours() == []
    assert all(line.isprintable() for line in live.lines)


def test_an_algorithm_that_is_not_there_is_refused_by_name_and_not_loaded(start: Start, place: Net) -> None:
    live = start(place)
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    before = available.read_text().split()
    absent = next(name for name in ROWS["route.congctl"].words[1:] if name not in before)
    why = refused(live, CONGCTL, ROWS["route.congctl"].words.index(absent))
    assert why == f"{absent} is not available here: there are {', '.join(before)}"
    assert available.read_text().split() == before


def test_a_copy_is_not_copied(start: Start, place: Net) -> None:
    live = start(place)
    live.gets("route.congctl@203.0.112.0/20", BBR)
    assert "is trimtab's own copy for a wider destination" in live.wish(CONGCTL, BBR).reason
    assert "lies inside" in live.wish("route.congctl@203.0.0.0/8", BBR).reason
    live.modes.stop()


def test_a_namespace_has_only_so_many_of_each(start: Start, place: Net) -> None:
    rows = {name: msgspec.structs.replace(row, instances=2) if row.instances else row for name, row in ROWS.items()}
    live = start(place, rows=rows)
    for third in (1, 2):
        live.gets(f"route.congctl@198.18.{third}.0/24", BBR)
    one_more = live.wish("route.congctl@198.18.3.0/24", BBR)
    assert one_more.reason == f"2 other destinations of {place.cookie} have one, at most 2"
    live.gets("route.congctl@198.18.2.0/24", RENO, believed=BBR)
    live.gets("route.initcwnd@198.18.3.0/24", 20)
    live.modes.stop()


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "route replace default via 10.9.0.3 dev v0 proto static metric 50 mtu 1400 advmss 1200",
        "route change default via 10.9.0.2 dev v0 proto static metric 50 mtu 1300 advmss 1200",
        "route del default",
        "route add default via 10.9.0.3 metric 10",
        "route add 203.0.112.0/20 via 10.9.0.3",
        "route add 203.0.113.64/26 via 10.9.0.2",
        "route add 203.0.113.0/24 via 10.9.0.3 metric 7",
        "rule add lookup main suppress_prefixlength 0",
        "rule add to 198.18.0.0/15 lookup 7; ip rule add lookup 7 suppress_prefixlength 3",
        "link set v0 down",
        "link del v0",
        "addr flush dev v0",
    ],
)
def test_when_the_route_that_it_is_a_copy_of_changes_ours_goes_at_once_and_the_key_is_free(
    start: Start, own: Net, change: str
) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    own.ip(change.replace("; ip ", f"; ip -n {own.here} "))
    assert live.hears_that(CONGCTL, "reverted").value == 0
    live.hears_that(INITCWND, "reverted")
    assert own.ours() == []
    assert live.states() == ["reverted", "reverted"]
    assert live.held() == []
    assert live.parts.kernel.routes.ears.netns == []


def test_after_a_change_of_gateway_it_can_be_asked_for_anew(start: Start, own: Net) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    own.ip("route replace default via 10.9.0.3 dev v0 proto static metric 50")
    # Not even heard of yet: a wish looks first.
    assert live.wish(CONGCTL, RENO, believed=BBR).reason == "none stands there, not bbr"
    assert live.states() == ["reverted"]
    live.gets(CONGCTL, RENO)
    assert own.route() == f"{TO4} via 10.9.0.3 dev v0 proto 116 metric 50 congctl reno"
    live.modes.stop()


@pytest.mark.parametrize(
    ("change", "left", "done"),
    [
        (f"route del {TO4} proto 116", "", "deleted"),
        (f"route change {TO4} via 10.9.0.2 dev v0 proto 116 metric 50 congctl reno", "congctl reno", "changed"),
        (f"route replace {TO4} via 10.9.0.3 dev v0 proto static metric 50", "proto static", "replaced"),
    ],
)
def test_who_touches_ours_has_the_destination(start: Start, own: Net, change: str, left: str, done: str) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    own.ip(change)
    assert live.hears_that(CONGCTL, "ceded").reason == f"somebody else {done} the route to {TO4}"
    live.hears_that(INITCWND, "ceded")
    stands = own.route()
    assert left in stands
    assert live.states() == ["ceded", "ceded"]
    assert live.held() == [CONGCTL, INITCWND]
    value = RENO if "congctl" in left else 0
    assert "somebody else" in live.wish(CONGCTL, CUBIC, believed=value).reason
    assert live.modes.stop() == 0
    assert own.route() == stands


def test_what_happens_elsewhere_is_nothing_to_look_at(start: Start, own: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    live.hear()
    looks: list[int] = []
    monkeypatch.setattr(live.parts.routes, "look", looks.append)
    own.ip("route add 198.18.0.0/15 via 10.9.0.3")
    own.ip("route add 203.0.113.0/24 via 10.9.0.3 table 7")
    live.hear()
    assert looks == []
    own.ip("route add 203.0.113.7/32 via 10.9.0.3")
    live.hear()
    assert looks
    monkeypatch.undo()
    live.hear()
    live.parts.routes.level()
    assert own.ours() == []


def test_an_orderly_stop_takes_it_away_and_so_does_the_next_start_after_a_crash(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    live.gets(CONGCTL6, BBR)
    assert live.modes.stop() == 0
    assert place.ours() == []
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    live.close()
    assert place.ours() == [TO4]
    following = start(place)
    assert place.ours() == []
    assert following.states() == ["reverted"] * 4
    assert following.held() == []


def test_an_order_without_an_actuator_takes_it_away(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    live.close()
    answer = offline.order(live.state, Ask("rollback", who="a test"))
    assert answer.ok, answer.lines
    assert answer.data["undone"] == 2
    assert place.ours() == []


def test_what_the_dead_man_does_takes_it_away_also_on_a_stale_route(start: Start, own: Net) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    live.gets(INITCWND, 20)
    live.close()
    own.ip("route replace default via 10.9.0.3 dev v0 proto static metric 50")
    offline.end_trials(live.state, ["congestion"], "dead-man: no sign of life for 30 s")
    assert own.ours() == []


def test_a_silent_decider_s_go_at_the_end_of_their_lease(
    start: Start, place: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    live.trials.tend()
    assert place.ours() == [TO4]
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    monkeypatch.setattr("actuators.leases.now_ns", lambda: now_ns + 30 * 10**9 + 10**9)
    live.trials.tend()
    assert place.ours() == []
    assert live.states() == ["reverted"]


def test_the_guard_finds_it_good_and_it_stays_on_its_lease_and_no_longer_than_its_time(
    start: Start, place: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start(place)
    change = live.gets(CONGCTL, BBR).change
    told: list[Any] = []
    live.trials.tell(told.append, dict(ROWS))
    assert [(trial.change, trial.guards) for trial in told] == [(change, ("retransmit_share", "srtt_us"))]
    for _ in range(2):
        now_ns = time.monotonic_ns()
        live.trials.judge(Verdict(1, now_ns, 10**10, change, True, "as before", {}), GUARD, now_ns)
    good = [event for event in live.events if isinstance(event, Outcome) and event.verdict == "confirmed"]
    assert [(event.change, event.value) for event in good] == [(change, BBR)]
    assert live.states() == ["trial"]
    told.clear()
    live.trials.tell(told.append, dict(ROWS))
    assert [trial for trial in told if isinstance(trial, Trial)] == []
    order = live.parts.orders.confirm(Ask("confirm", change=change))
    assert not order.ok
    assert "is leased" in order.lines[0]
    later = msgspec.structs.replace(stamp(), t_ns=stamp().t_ns + 3599 * 10**9)
    monkeypatch.setattr(trials, "stamp", lambda: later)
    live.trials.expire()
    assert place.ours() == [TO4]
    later = msgspec.structs.replace(later, t_ns=later.t_ns + 2 * 10**9)
    live.trials.expire()
    assert place.ours() == []
    assert live.hears_that(CONGCTL, "reverted").reason == "its time of 3600 s is over"
    monkeypatch.undo()
    live.gets(CONGCTL, BBR)
    live.modes.stop()


def test_what_the_guard_finds_bad_goes_and_is_parked(start: Start, place: Net) -> None:
    live = start(place)
    change, now_ns = live.gets(CONGCTL, BBR).change, time.monotonic_ns()
    live.trials.judge(Verdict(1, now_ns, 10**10, change, False, "more is lost", {}), GUARD, now_ns)
    assert place.ours() == []
    assert live.held() == [CONGCTL]
    live.gets(f"route.congctl@{TO6}", BBR)
    live.modes.stop()


def test_a_namespace_that_goes_is_not_kept_alive(start: Start, own: Net) -> None:
    live = start(own)
    live.gets(CONGCTL, BBR)
    live.parts.routes.tend()
    assert live.parts.kernel.routes.ears.netns == [own.cookie]
    subprocess.run(["ip", "netns", "del", own.here], check=True)
    live.parts.routes.tend()
    assert live.parts.kernel.routes.ears.netns == []
    assert live.states() == ["lost"]
    with pytest.raises(NamespaceGoneError):
        find(own.cookie, 0)
    # The kernel takes the other end of its link away, too, once nobody has it.
    deadline = time.monotonic() + 20
    while os.path.exists(f"/run/netns/{own.there}") and "v1" in _links(own.there):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _links(name: str) -> str:
    return subprocess.run(["ip", "-n", name, "link"], check=True, capture_output=True, text=True).stdout


# --- the operator -----------------------------------------------------------------------------------------------------


def test_a_hold_of_the_row_is_one_of_each_destination(start: Start, place: Net) -> None:
    live = start(place)
    orders = live.parts.orders
    held = orders.hold(Ask("hold", tunable="route.congctl", netns=place.cookie, who="root"))
    assert held.lines == ["hands off route.congctl to every destination, until `trimtab release route.congctl`"]
    assert "held by root" in live.wish(CONGCTL, BBR).reason
    assert orders.hold(Ask("hold", tunable=INITCWND, who="root")).ok
    live.gets(RTO_MIN, 50)
    assert orders.release(Ask("release", tunable="route.congctl")).ok
    live.gets(CONGCTL, BBR)
    assert "held by root" in live.wish(INITCWND, 20).reason
    assert orders.release(Ask("release", tunable="route.initcwnd")).ok
    live.gets(INITCWND, 20)
    live.modes.stop()


@pytest.mark.parametrize("key", ["route.congctl@10.1.2.3/24", "route.congctl@", "net.core.somaxconn@10.0.0.0/8"])
def test_a_key_that_is_none_is_not_held(start: Start, place: Net, key: str) -> None:
    live = start(place)
    assert not live.parts.orders.hold(Ask("hold", tunable=key, who="root")).ok
    assert live.held() == []


def test_a_value_stands_where_it_is_told(start: Start, place: Net) -> None:
    live = start(place)
    live.gets(CONGCTL, BBR)
    assert live.parts.kernel.read(Spot(CONGCTL, place.cookie), place.inode) == BBR
    assert live.parts.kernel.read(Spot(INITCWND, place.cookie), place.inode) == 0
    live.modes.stop()
