"""The decider of the room for datagrams, on made-up events and worlds."""

from __future__ import annotations

from typing import Any

import pytest

from bus.config import Config
from bus.schema import AnyEvent, Counters, Netns, Outcome, Owner, UdpDrop, Value, Wish
from deciders import udp_buffer
from deciders.udp_buffer import DEFAULT, MOST, Policy, advice
from trimtab.testing.loop import Loop
from trimtab.testing.waves import burst, constant, square
from trimtab.testing.worlds_udp import UDP_MEM, Datagrams

SECOND_NS = 1_000_000_000
MS = 1_000_000
NETNS = 7


class Host:
    """The decider, and what it is told."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.state = udp_buffer.start(policy or Policy())
        self.t_ns = SECOND_NS
        self.standing = {DEFAULT: 212_992, MOST: 4_194_304} | dict(zip(UDP_MEM, (3000, 4000, 6000), strict=True))
        self.originals = dict(self.standing)
        self.wishes: list[Wish] = []
        for tunable in self.standing:
            self.value(tunable)

    def tell(self, event: AnyEvent) -> list[Wish]:
        self.state, wishes = udp_buffer.step(self.state, event)
        self.wishes += wishes
        return list(wishes)

    def value(self, tunable: str, high: int = 1 << 30, held: bool = False) -> list[Wish]:
        now, original = self.standing[tunable], self.originals[tunable]
        return self.tell(Value(self.t_ns, tunable, 0, 0, now, original, 96, high, held))

    def drop(self, size: int = 212_992, locked: bool = False, dropped: int = 1, **more: Any) -> list[Wish]:
        self.t_ns += 100 * MS
        reason = more.get("reason", "SOCKET_RCVBUFF")
        return self.tell(UdpDrop(self.t_ns, NETNS, 3, 5, 2, 514, size, locked, reason, dropped))

    def memory(self, pages: int) -> list[Wish]:
        self.t_ns += SECOND_NS
        return self.tell(Counters(self.t_ns, 1, "net/sockstat", {"UDP.mem": pages}))

    def grant(self) -> list[Wish]:
        wish = self.wishes[-1]
        self.standing[wish.tunable] = wish.want
        self.t_ns += 10 * MS
        asked = (wish.tunable, 0, wish.believed, wish.want)
        return self.tell(Outcome(self.t_ns, "udp_buffer", *asked, "written", "", wish.want, 1))

    def grant_all(self) -> None:
        while self.grant():
            pass


def test_the_first_datagram_that_a_default_buffer_drops_doubles_the_default() -> None:
    host = Host()
    (wish,) = host.drop()
    assert (wish.tunable, wish.netns, wish.believed, wish.want) == (DEFAULT, 0, 212_992, 425_984)
    assert "UDP port 514: one datagram or more dropped with a buffer of 212992 bytes, the default" in wish.why


def test_a_burst_is_given_the_room_that_it_lacked_and_no_more_for_the_same_socket() -> None:
    host = Host()
    host.drop()
    host.grant_all()
    host.drop(dropped=500)
    host.grant_all()
    assert host.standing[DEFAULT] == 212_992 * 8 > 212_992 + 500 * 2304 > 212_992 * 4
    for number in range(50):
        host.t_ns += 2 * SECOND_NS
        assert host.drop(dropped=500 + 100 * number) == []


def test_a_socket_is_no_reason_for_more_than_sixteen_times_its_buffer() -> None:
    host = Host()
    host.drop()
    host.grant_all()
    host.drop(dropped=10**6)
    host.grant_all()
    assert host.standing[DEFAULT] == 16 * 212_992


def test_a_socket_that_was_cut_down_to_rmem_max_makes_that_grow_and_not_the_default() -> None:
    host = Host()
    (wish,) = host.drop(2 * 4_194_304, locked=True)
    assert (wish.tunable, wish.believed, wish.want) == (MOST, 4_194_304, 8_388_608)
    host.grant_all()
    assert host.standing[DEFAULT] == 212_992


def test_a_socket_whose_program_set_less_is_left_to_it_and_the_advice_says_so() -> None:
    host = Host()
    assert host.drop(100_000, locked=True, dropped=40) == []
    assert advice(host.state) == [
        "netns 7: UDP port 514 has dropped 40 datagrams with the 50000 bytes that its program set; rmem_max is 4194304:"
        " raise the program's own"
    ]
    host.tell(Owner(host.t_ns, NETNS, 514, 42, "rsyslogd"))
    assert "UDP port 514 (rsyslogd, pid 42) has dropped 40 datagrams" in advice(host.state)[0]


def test_a_socket_that_is_older_than_the_change_is_told_of() -> None:
    host = Host()
    host.drop()
    host.grant_all()
    host.drop(dropped=9)
    (line,) = advice(host.state)
    assert line.endswith(
        "has dropped 9 datagrams: it has 212992 bytes, rmem_default is 425984 now: restart its program"
    )


def test_of_one_port_only_the_newest_socket_is_told_of() -> None:
    host = Host()
    for size in (212_992, 425_984, 851_968):
        host.drop(size)
        host.grant_all()
        host.drop(size, dropped=2)
        host.grant_all()
    (line,) = advice(host.state)
    assert "has dropped 2 datagrams: it has 851968 bytes" in line


def test_at_the_bound_it_is_the_program_that_reads_too_slowly() -> None:
    host = Host()
    host.value(DEFAULT, high=212_992)
    assert host.drop(dropped=3) == []
    (line,) = advice(host.state)
    assert line.endswith("3 datagrams with 212992 bytes, all that rmem_default may be: its program reads too slowly")


def test_growing_ends_where_new_sockets_drop_as_much_as_old_ones() -> None:
    host = Host(Policy(patience=3))
    dropped = 0
    for _ in range(200):
        dropped += 1000
        host.drop(host.standing[DEFAULT], dropped=dropped)
        if host.wishes and host.wishes[-1].believed == host.standing[DEFAULT]:
            host.grant()
    assert host.standing[DEFAULT] < 212_992 << 8
    asked = len(host.wishes)
    for _ in range(50):
        host.t_ns += SECOND_NS
        host.drop(host.standing[DEFAULT], dropped=dropped)
    assert len(host.wishes) == asked


def test_bursts_of_which_only_the_first_drop_is_told_go_on_to_find_more_room() -> None:
    # Shorter than the 100 ms after which the probe tells again: how many there were, only the next one says.
    host = Host()
    told: dict[int, int] = {}
    for _ in range(40):
        size = host.standing[DEFAULT]
        lost = max(0, 40_000 - size // 2304)
        if lost:
            host.t_ns += 2 * SECOND_NS
            host.drop(size, dropped=told.get(size, 0) + 1)
            told[size] = told.get(size, 0) + lost
            host.grant_all()
    assert host.standing[DEFAULT] >= 40_000 * 2304


def test_what_no_size_helps_is_told_of_and_the_size_goes_back_until_an_hour_later() -> None:
    host = Host()
    dropped: dict[int, int] = {}
    for tenth in range(3000):
        # The program begins anew every half a minute, reads nothing, and gets 1000 a second.
        if tenth % 300 == 0:
            host.t_ns += 30 * SECOND_NS
            size = host.standing[DEFAULT]
        dropped[size] = dropped.get(size, 0) + 100
        if host.drop(size, dropped=dropped[size]):
            host.grant_all()
        host.value(DEFAULT)
    host.tell(Owner(host.t_ns, NETNS, 514, 42, "rsyslogd"))
    assert host.standing[DEFAULT] == 212_992
    assert max(wish.want for wish in host.wishes) <= 212_992 << 7
    (line, *_) = advice(host.state)
    assert line.startswith("netns 7: UDP port 514 (rsyslogd, pid 42): 1000 datagrams/s are dropped with a buffer")
    assert line.endswith("its program reads too slowly")
    host.t_ns += 3600 * SECOND_NS
    assert [wish.want for wish in host.drop(size, dropped=dropped[size] + 1)] == [2 * 212_992]
    assert not any("reads too slowly" in line for line in advice(host.state))


def test_memory_that_is_nearly_all_held_grows_from_the_top_in_good_order() -> None:
    host = Host()
    assert host.memory(2000) == []
    host.memory(2300)
    host.grant_all()
    assert [(wish.tunable[-2], wish.want) for wish in host.wishes] == [("1", 6000), ("0", 4500)]
    assert "UDP sockets hold 2300 pages of 3000" in host.wishes[0].why
    host.memory(4000)
    host.grant_all()
    assert [(wish.tunable[-2], wish.want) for wish in host.wishes[2:]] == [("2", 9000), ("1", 9000), ("0", 6750)]


def test_memory_that_was_refused_grows_by_one_step_each_time_it_is_refused_again() -> None:
    host = Host()
    host.drop(reason="PROTO_MEM", dropped=7)
    host.grant_all()
    assert host.standing[UDP_MEM[0]] == 4500
    assert "7 datagrams refused for want of memory" in host.wishes[-1].why
    assert host.standing[DEFAULT] == 212_992
    host.memory(100)
    assert host.standing[UDP_MEM[0]] == 4500
    host.drop(reason="PROTO_MEM", dropped=9)
    host.grant_all()
    assert host.standing[UDP_MEM[0]] == 6750


def test_nothing_grows_while_the_host_itself_lacks_memory() -> None:
    host = Host()
    host.tell(Counters(host.t_ns, 0, "meminfo", {"MemTotal": 1000, "MemAvailable": 50}))
    assert host.drop() == host.memory(2999) == host.drop(reason="PROTO_MEM") == []


def test_the_bounds_hold_and_what_is_held_is_left_alone() -> None:
    host = Host()
    host.value(DEFAULT, high=300_000)
    host.drop(dropped=1000)
    host.grant_all()
    assert host.standing[DEFAULT] == 300_000
    host.value(MOST, held=True)
    assert host.drop(2 * 4_194_304, locked=True) == []


def test_after_a_long_quiet_all_goes_back_to_where_it_was() -> None:
    host = Host()
    host.drop(dropped=200)
    host.grant_all()
    host.memory(4000)
    host.grant_all()
    for _ in range(100):
        host.t_ns += 900 * SECOND_NS
        for wish in host.memory(10):
            host.grant()
            assert wish.want < wish.believed
        low, middle, high = (host.standing[name] for name in UDP_MEM)
        assert low <= middle <= high
        for tunable in host.standing:
            if host.value(tunable):
                host.grant()
    assert host.standing == host.originals


def test_a_namespace_that_has_gone_is_forgotten() -> None:
    host = Host()
    host.drop(100_000, locked=True)
    host.tell(Owner(host.t_ns, NETNS, 514, 42, "rsyslogd"))
    host.tell(Netns(host.t_ns, NETNS, 3, "", False))
    assert host.state.owners == {}
    assert advice(host.state) == []


def test_a_namespace_that_nobody_has_seen_for_a_minute_is_not_told_of() -> None:
    host = Host()
    host.drop(100_000, locked=True)
    for _ in range(30):
        host.t_ns += 5 * SECOND_NS
        host.tell(Netns(host.t_ns, NETNS, 3, "", True))
    assert advice(host.state)
    host.t_ns += 61 * SECOND_NS
    host.memory(1)
    assert advice(host.state) == []


# --- worlds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [120, 500, 3000])
def test_bursts_soon_find_room(count: int) -> None:
    world = Datagrams(constant(float(count)))
    loop = Loop(["udp_buffer"], [world]).run(30)
    assert loop.refused == []
    dropped = world.dropped
    assert count * 2304 <= loop.final(DEFAULT) <= 16 * count * 2304
    loop.run(60)
    assert world.dropped == dropped
    assert loop.of(MOST) == []


def test_a_program_that_asks_for_much_soon_gets_it() -> None:
    world = Datagrams(constant(3000.0), asks=64 << 20)
    loop = Loop(["udp_buffer"], [world]).run(30)
    assert loop.refused == []
    dropped = world.dropped
    loop.run(60)
    assert world.dropped == dropped
    assert loop.of(DEFAULT) == []


def test_a_program_that_reads_too_slowly_is_given_some_and_then_no_more() -> None:
    world = Datagrams(constant(1000.0), reads=500.0, anew_s=2.0)
    loop = Loop(["udp_buffer"], [world]).run(120)
    ended = loop.final(DEFAULT)
    loop.run(600)
    assert loop.final(DEFAULT) == ended
    assert loop.refused == []


def test_bursts_of_one_day_leave_nothing_behind_the_next() -> None:
    world = Datagrams(square(10, 500.0, 0.3) * burst(5, 60, 1.0), others=burst(5, 60, 4000.0))
    config = Config(policy={"udp_buffer": {"idle_s": 600.0}})
    loop = Loop(["udp_buffer"], [world], config).run(6000)
    assert loop.peak(DEFAULT) > 1_000_000
    assert loop.peak(UDP_MEM[0]) >= 4500
    assert loop.final(DEFAULT) == 212_992
    assert [loop.final(name) for name in UDP_MEM] == [3000, 4000, 6000]
    assert loop.refused == []
