"""What connections begin with: learnt from what those before needed, in small steps, never from how large they were."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.schema import Counters, Netns, Outcome, TcpEnd, Value, Wish
from deciders import tcp_buffer
from deciders.tcp_buffer import Policy
from deciders.tcp_needs import Use, needed, record

SEC = 1_000_000_000
RMEM, WMEM = "net.ipv4.tcp_rmem[1]", "net.ipv4.tcp_wmem[1]"
NETNS = 7
LARGEST = 16 << 20
MSS = 1448
SEGMENT = 4352
"""What the kernel counts for a segment of MSS bytes: tcp_init_buffer_space makes 87040 bytes of two times ten."""


def end(t_ns: int, **known: Any) -> TcpEnd:
    """A connection that took 200 000 bytes in a round trip, and sent as much as a window of 100 packets lets it."""
    row: dict[str, Any] = {
        "t_ns": t_ns, "netns": NETNS, "netns_ino": 8, "family": 2, "sport": 5201, "dport": 40000,
        "rcvbuf_bytes": 131072, "sndbuf_bytes": 87040, "copied_per_rtt_bytes": 200_000, "cwnd_packets": 100,
        "mss_bytes": MSS, "received_bytes": 10**7, "acked_bytes": 10**7, "ended": 1, "rcvbuf_initial_bytes": 131072,
        "rcvbuf_limit_bytes": LARGEST, "sndbuf_initial_bytes": 16384, "sndbuf_limit_bytes": LARGEST,
        "rcvbuf_locked": False, "sndbuf_locked": False, "moderated": True,
    }  # fmt: skip
    return TcpEnd(**(row | known))


class Host:
    """Connections that end, and an actuator that does what is wished for."""

    def __init__(self, **policy: Any) -> None:
        self.state = tcp_buffer.start(Policy(**policy))
        self.t_ns = 1000 * SEC
        self.values = {RMEM: 131072, WMEM: 16384}
        self.first = dict(self.values)
        self.wishes: list[Wish] = []
        self.held, self.pages = 1000, 100_000

    def tell(self, event: Any) -> None:
        self.state, asked = tcp_buffer.step(self.state, event)
        for wish in asked:
            assert isinstance(wish, Wish)
            assert wish.believed == self.values[wish.tunable]
            assert abs(wish.want - wish.believed) <= wish.believed / 2
            self.wishes.append(wish)
            self.values[wish.tunable] = wish.want
            about = ("tcp_buffer", wish.tunable, NETNS, wish.believed, wish.want)
            self.tell(Outcome(self.t_ns, *about, "written", "", wish.want, 1))

    def run(self, seconds: int, **known: Any) -> Host:
        """A connection each second, unless known is empty."""
        for _ in range(seconds):
            self.t_ns += SEC
            self.tell(Counters(self.t_ns, 1, "net/sockstat", {"TCP.mem": self.held}))
            self.tell(Value(self.t_ns, "net.ipv4.tcp_mem[2]", 0, 0, self.pages, self.pages, 1, 1 << 31, False))
            for name, value in self.values.items():
                if value != self.first[name]:
                    self.tell(Value(self.t_ns, name, NETNS, 8, value, self.first[name], 4096, 4 << 20, False))
            if known:
                sizes = {"rcvbuf_initial_bytes": self.values[RMEM], "sndbuf_initial_bytes": self.values[WMEM]}
                self.tell(end(self.t_ns, **(sizes | known)))
        return self


BUSY = {"ended": 5}


def test_both_rise_by_small_steps_to_what_connections_needed_and_no_further() -> None:
    host = Host().run(300, **BUSY)
    assert host.values[RMEM] == pytest.approx(4 * 200_000, rel=0.2)
    assert host.values[WMEM] == pytest.approx(2 * 100 * SEGMENT, rel=0.2)
    assert host.values[RMEM] <= 800_000
    assert host.values[WMEM] <= 200 * SEGMENT
    times = [wish.t_ns for wish in host.wishes if wish.tunable == RMEM]
    assert all(after - before >= 30 * SEC for before, after in pairwise(times))
    asked = len(host.wishes)
    assert len(host.run(3000, **BUSY).wishes) == asked


def test_the_sentence_and_the_evidence_say_whose_need_it_is() -> None:
    wish = next(wish for wish in Host().run(10, **BUSY).wishes if wish.tunable == RMEM)
    assert wish.why.startswith("75% of ")
    assert "most of them to port 5201, needed " in wish.why
    assert wish.evidence["port"] == 5201
    assert wish.evidence["largest_bytes"] == LARGEST


def test_what_a_buffer_was_is_no_need() -> None:
    """Connections that have all that they began with, and use a little of it, ask for no more."""
    host = Host().run(
        600, rcvbuf_bytes=LARGEST, sndbuf_bytes=LARGEST, copied_per_rtt_bytes=20_000, cwnd_packets=10, **BUSY
    )
    assert host.wishes == []


def test_a_few_large_ones_among_many_small_ones_change_nothing() -> None:
    host = Host()
    for _ in range(200):
        host.run(1, ended=8, copied_per_rtt_bytes=10_000, cwnd_packets=10)
        host.run(1, ended=2, copied_per_rtt_bytes=4_000_000, cwnd_packets=5000)
    assert host.wishes == []


def test_a_handful_of_connections_says_nothing() -> None:
    assert Host().run(7, ended=1).wishes == []
    assert Host().run(9, ended=1).wishes


def test_neither_passes_its_share_of_the_largest_size() -> None:
    limits = {"rcvbuf_limit_bytes": 1 << 20, "sndbuf_limit_bytes": 1 << 20}
    host = Host().run(900, copied_per_rtt_bytes=10**7, cwnd_packets=10_000, **limits, **BUSY)
    assert host.values == {RMEM: (1 << 20) // 4, WMEM: (1 << 20) // 4}


def test_sizes_that_programs_set_count_for_nothing() -> None:
    assert Host().run(100, rcvbuf_locked=True, sndbuf_locked=True, **BUSY).wishes == []


def test_with_a_share_of_nothing_they_are_left_alone() -> None:
    assert Host(initial_share=0.0).run(100, **BUSY).wishes == []


@pytest.mark.parametrize("known", [{}, {"copied_per_rtt_bytes": 5000, "cwnd_packets": 10} | BUSY])
def test_when_the_need_has_gone_they_come_down_by_steps_to_what_was_there(known: dict[str, Any]) -> None:
    host = Host().run(300, **BUSY)
    risen, up = dict(host.values), len(host.wishes)
    host.run(590, **known)
    assert host.values == risen
    host.run(10_000, **known)
    assert host.values == host.first
    assert all(wish.want < wish.believed for wish in host.wishes[up:])


def test_while_tcp_holds_much_of_its_memory_nothing_grows_and_when_all_is_used_it_comes_down() -> None:
    host = Host()
    host.held = host.pages // 2
    assert host.run(100, **BUSY).wishes == []
    host.held = 1000
    host.run(100, **BUSY)
    risen = dict(host.values)
    assert risen != host.first
    host.held = host.pages
    host.run(600, **BUSY)
    assert host.values == host.first


def test_where_nobody_knows_how_much_memory_tcp_holds_nothing_grows() -> None:
    state = tcp_buffer.start(Policy())
    for second in range(100):
        state, asked = tcp_buffer.step(state, end(1000 * SEC + second * SEC, ended=5))
        assert not asked


def test_services_are_remembered_apart_and_bounded() -> None:
    host = Host()
    for port in range(2000):
        host.run(1, sport=port + 1, dport=60000)
    (start,) = host.state.starts.values()
    assert len(start.uses) == 16
    host.tell(Netns(host.t_ns, NETNS, 8, "", False))
    assert not host.state.starts


def test_the_administrators_switch_is_not_touched_but_spoken_of() -> None:
    host = Host().run(3, moderated=False)
    (line,) = tcp_buffer.advice(host.state)
    assert line.startswith("netns 7: net.ipv4.tcp_moderate_rcvbuf is 0, so receive buffers stay as they begin")
    assert not [wish for wish in host.run(100, moderated=False).wishes if "moderate" in wish.tunable]
    assert tcp_buffer.advice(host.run(1, moderated=True).state) == []


def test_the_past_fades() -> None:
    use = Use(0, ({}, {}))
    for second in range(100):
        record(use, end(second * SEC, copied_per_rtt_bytes=1_000_000))
    for second in range(100, 2000):
        record(use, end(second * SEC, copied_per_rtt_bytes=50_000))
    assert needed({5201: use}, 0, 0.25, 2000 * SEC).size == pytest.approx(200_000, rel=0.2)
    assert needed({5201: use}, 0, 0.25, 20_000 * SEC).connections < 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(0, 10**5), st.integers(0, 65535), st.integers(0, 10**10),
                  st.integers(1, 1000)),
        min_size=1, max_size=12,
    ),
    st.integers(0, 100_000),
)  # fmt: skip
def test_whatever_connections_do_no_size_leaves_its_bounds_and_it_turns_round_twice_at_most(
    kinds: list[tuple[int, int, int, int, int]], held: int
) -> None:
    host = Host()
    host.held = held
    for number in range(240):
        copied, cwnd, mss, moved, ended = kinds[number // 40 % len(kinds)]
        host.run(
            1, copied_per_rtt_bytes=copied, cwnd_packets=cwnd, mss_bytes=mss, received_bytes=moved, acked_bytes=moved,
            ended=ended,
        )  # fmt: skip
    for name in (RMEM, WMEM):
        assert host.first[name] <= host.values[name] <= LARGEST // 4
        ups = [wish.want > wish.believed for wish in host.wishes if wish.tunable == name]
        assert sum(one != other for one, other in pairwise(ups)) <= 2
