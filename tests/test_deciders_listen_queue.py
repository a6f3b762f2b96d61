"""The decider of the queues for connections, on made-up events and worlds."""

from __future__ import annotations

from typing import Any

import pytest

from bus.config import Config
from bus.schema import AnyEvent, Listener, ListenQueues, Netns, Outcome, Value, Wish
from deciders import listen_queue
from deciders.listen_queue import SOMAXCONN, SYN_BACKLOG, Policy, advice
from trimtab.testing.loop import Loop
from trimtab.testing.waves import burst, constant, step
from trimtab.testing.worlds_listen import Server

SECOND_NS = 1_000_000_000
NETNS = 7
NAMES = ("overflows", "drops", "full_cookies", "full_drops", "cookies_sent", "cookies_valid", "cookies_failed",
         "opened")  # fmt: skip


class Host:
    """The decider, and what it is told."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.state = listen_queue.start(policy or Policy())
        self.t_ns = SECOND_NS
        self.standing = {SOMAXCONN: 128, SYN_BACKLOG: 256}
        self.totals = dict.fromkeys(NAMES, 0)
        self.dropped = 0
        self.wishes: list[Wish] = []
        self.tell(self.queues())

    def tell(self, event: AnyEvent) -> list[Wish]:
        self.state, wishes = listen_queue.step(self.state, event)
        self.wishes += wishes
        return list(wishes)

    def queues(self) -> ListenQueues:
        counts = [self.totals[name] for name in NAMES]
        return ListenQueues(self.t_ns, NETNS, 3, *counts, *self.standing.values())

    def second(self, backlog: int = 128, **more: int) -> list[Wish]:
        """One goes by in which so much more was counted; overflows and full_drops are the socket's."""
        self.t_ns += SECOND_NS
        for name, count in more.items():
            self.totals[name] += count
        # The kernel counts these as drops, too (tcp_listendrop).
        self.totals["drops"] += more.get("overflows", 0) + more.get("full_drops", 0)
        self.dropped += more.get("overflows", 0) + more.get("full_drops", 0)
        told = self.tell(self.queues())
        return told + self.tell(Listener(self.t_ns, NETNS, 3, 5, 8080, backlog, 0, self.dropped, 42, "nginx"))

    def grant(self) -> list[Wish]:
        """The last wish comes true."""
        wish = self.wishes[-1]
        self.standing[wish.tunable] = wish.want
        self.t_ns += SECOND_NS // 5
        asked = (wish.tunable, NETNS, wish.believed, wish.want)
        return self.tell(Outcome(self.t_ns, "listen_queue", *asked, "written", "", wish.want, 1))

    def value(self, tunable: str, original: int, **fields: Any) -> list[Wish]:
        high, held = fields.get("high", 65535), fields.get("held", False)
        return self.tell(Value(self.t_ns, tunable, NETNS, 3, self.standing[tunable], original, 16, high, held))


def test_a_rush_to_a_socket_that_was_cut_down_to_somaxconn_makes_it_grow_to_what_was_missing() -> None:
    host = Host()
    (wish,) = host.second(overflows=900, opened=129)
    assert (wish.tunable, wish.netns, wish.netns_ino, wish.believed, wish.want) == (SOMAXCONN, NETNS, 3, 128, 256)
    assert "port 8080: 900 connections found its queue full at 128" in wish.why
    assert "nginx" not in wish.why
    wants = [wish.want]
    while more := host.grant():
        wants += [wish.want for wish in more]
    assert wants == [256, 512, 1024, 2048]


def test_a_socket_whose_program_asked_for_less_is_left_to_it_and_the_advice_says_so() -> None:
    host = Host()
    assert host.second(backlog=64, overflows=900, opened=65) == []
    assert advice(host.state) == [
        "netns 7: port 8080 (nginx, pid 42) listens with a backlog of 64, 900 connections found it full; somaxconn is"
        " 128: raise the program's own"
    ]


def test_after_somaxconn_has_grown_the_socket_is_no_reason_to_go_on_until_it_listens_anew() -> None:
    host = Host()
    host.second(overflows=100, opened=129)
    assert host.grant() == []
    for _ in range(20):
        assert host.second(overflows=100, opened=129) == []
    (line,) = advice(host.state)
    assert "was cut down to a backlog of 128" in line
    assert "somaxconn is 256 now" in line
    assert [wish.want for wish in host.second(backlog=256, overflows=100, opened=257)] == [512]


def test_a_flood_of_syns_is_no_reason_to_grow() -> None:
    host = Host()
    for _ in range(30):
        assert host.second(full_cookies=5000, cookies_sent=5000, opened=3, cookies_valid=1) == []


def test_nor_is_a_rush_in_a_flood_nor_for_a_while_after_it() -> None:
    host = Host(Policy(calm_s=20))
    for _ in range(5):
        host.second(full_cookies=5000, cookies_sent=5000)
    assert host.second(overflows=500, opened=129, cookies_sent=5000) == []
    for _ in range(20):
        assert host.second(overflows=500, opened=129) == []
    while not (wishes := host.second(overflows=500, opened=129)):
        assert host.t_ns < 60 * SECOND_NS
    assert wishes[0].want == 256


def test_cookies_that_come_back_are_a_rush() -> None:
    host = Host()
    host.second()
    (wish,) = host.second(full_cookies=300, cookies_sent=300, cookies_valid=290, opened=300)
    assert (wish.tunable, wish.want) == (SOMAXCONN, 256)
    assert "300 connections found a SYN queue full and got a cookie, 290 came back with it" in wish.why


def test_cookies_that_come_back_a_round_trip_later_are_a_rush_all_the_same() -> None:
    host = Host()
    host.second()
    assert host.second(full_cookies=300, cookies_sent=300, cookies_valid=2, opened=30) == []
    assert host.second(full_cookies=10, cookies_sent=10, cookies_valid=290, opened=300)


def test_connections_that_nobody_opens_are_no_rush() -> None:
    """A program that has stopped accepting: no queue is long enough for it."""
    host = Host()
    host.second(opened=129)
    for _ in range(10):
        host.second()
    for _ in range(20):
        assert host.second(overflows=50) == []


def test_without_cookies_a_rush_makes_the_syn_backlog_grow_and_nothing_else() -> None:
    host = Host()
    (wish,) = host.second(backlog=4096, drops=400, opened=193)
    assert (wish.tunable, wish.believed, wish.want) == (SYN_BACKLOG, 256, 512)
    assert "400 SYNs found no room in a backlog of 256, while 193 connections were opened" in wish.why
    assert [wish.want for wish in host.grant()] == [1024]
    assert host.grant() == []


def test_without_cookies_a_flood_does_not() -> None:
    host = Host()
    for _ in range(20):
        assert host.second(backlog=4096, drops=5000, opened=2) == []


def test_where_the_sockets_own_queue_was_full_the_syn_backlog_is_left_alone() -> None:
    host = Host()
    wishes = host.second(full_drops=271, opened=129)
    assert [(wish.tunable, wish.want) for wish in wishes] == [(SOMAXCONN, 256)]


def test_growth_that_does_not_help_ends() -> None:
    host = Host(Policy(patience=3))
    host.second(overflows=200, opened=129)
    for _ in range(60):
        host.grant()
        host.second(backlog=host.standing[SOMAXCONN], overflows=host.standing[SOMAXCONN] * 2, opened=100)
    assert host.standing[SOMAXCONN] <= 16 * 128


def test_it_stops_at_the_bound_of_the_row_and_at_that_of_the_policy() -> None:
    host = Host(Policy(most=1024))
    host.second(overflows=20_000, opened=129)
    while host.grant():
        pass
    assert host.standing[SOMAXCONN] == 1024
    host = Host()
    host.value(SOMAXCONN, 128, high=300)
    host.second(overflows=20_000, opened=129)
    while host.grant():
        pass
    assert host.standing[SOMAXCONN] == 300


def test_hands_off_what_is_held() -> None:
    host = Host()
    host.value(SOMAXCONN, 128, held=True)
    assert host.second(overflows=900, opened=129) == []


def test_after_an_hour_with_room_it_comes_back_by_halves_and_a_rush_ends_that() -> None:
    host = Host()
    host.second(overflows=900, opened=129)
    while host.grant():
        pass
    wants: list[int] = []
    for _ in range(12):
        host.t_ns += 900 * SECOND_NS
        wants += [wish.want for wish in host.value(SOMAXCONN, 128)]
        host.standing[SOMAXCONN] = wants[-1] if wants else host.standing[SOMAXCONN]
        host.value(SOMAXCONN, 128)
    assert wants == [1024, 512, 256, 128]
    assert host.t_ns - 8 * 900 * SECOND_NS < 4 * 3600 * SECOND_NS


def test_a_namespace_that_has_gone_is_forgotten() -> None:
    host = Host()
    host.second(overflows=10, opened=129)
    host.tell(Netns(host.t_ns, NETNS, 3, "", False))
    assert host.state.places == {}


def test_late_and_doubled_news_change_nothing() -> None:
    host = Host()
    early = host.queues()
    host.second(overflows=100, opened=129)
    before = host.state.places[NETNS].fresh
    host.tell(early)
    host.tell(host.queues())
    assert host.state.places[NETNS].fresh == before


# --- worlds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crowd", [200, 1000, 4000])
def test_a_crowd_that_comes_each_second_soon_finds_room_for_all(crowd: int) -> None:
    server = Server(constant(float(crowd)))
    loop = Loop(["listen_queue"], [server]).run(60)
    assert loop.refused == []
    refused = server.refused
    assert crowd <= loop.final(SOMAXCONN) <= 4 * crowd
    loop.run(60)
    assert server.refused == refused
    assert loop.of(SYN_BACKLOG) == []


def test_a_flood_beside_it_changes_nothing_at_all() -> None:
    server = Server(constant(100.0), flood=step(5, 20_000.0))
    assert Loop(["listen_queue"], [server]).run(120).changes == []


def test_without_cookies_the_backlog_of_syns_finds_its_size_and_a_flood_changes_nothing() -> None:
    server = Server(constant(1000.0), cookies=False, asked=4096, first=(4096, 128))
    loop = Loop(["listen_queue"], [server]).run(60)
    assert loop.of(SOMAXCONN) == []
    assert 1000 * 4 / 3 <= loop.final(SYN_BACKLOG) <= 4096
    flooded = Server(constant(10.0), flood=step(1, 20_000.0), cookies=False, first=(4096, 128))
    assert Loop(["listen_queue"], [flooded]).run(120).changes == []


def test_a_rush_of_a_minute_is_over_after_some_hours() -> None:
    server = Server(burst(10, 60, 2000.0))
    config = Config(policy={"listen_queue": {"idle_s": 600.0}})
    loop = Loop(["listen_queue"], [server], config).run(6000)
    assert loop.peak(SOMAXCONN) >= 2000
    assert loop.final(SOMAXCONN) == 128
    assert loop.refused == []
