"""Sockets whose programs set a buffer too small for their path: told of with what that costs, and never changed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bus.schema import AnyEvent, Counters, Netns, Owner, TcpRcvBuf, TcpSndBuf
from deciders import tcp_buffer
from deciders.tcp_buffer import Policy, advice

SEC = 1_000_000_000
NETNS = 7
LIMIT = 6 << 20


def receiver(t_ns: int, rate: float, **known: Any) -> TcpRcvBuf:
    """A socket with 16 KiB of receive buffer, 8 KiB of which are the window, on a path of 40 ms."""
    row: dict[str, Any] = {
        "t_ns": t_ns, "netns": NETNS, "netns_ino": 8, "socket": 5, "family": 2, "sport": 40000, "dport": 5201,
        "rcvbuf_bytes": 16384, "limit_bytes": LIMIT, "locked": True, "rcv_wnd_bytes": 8192, "window_clamp_bytes": 8192,
        "wscale": 0, "copied_per_rtt_bytes": 8192, "rcv_rtt_us": 40_000, "srtt_us": 40_000,
        "received_bytes": int(rate * t_ns / SEC),
    }  # fmt: skip
    return TcpRcvBuf(**(row | known))


def sender(t_ns: int, rate: float, **known: Any) -> TcpSndBuf:
    """One with 16 KiB of send buffer, all of it under way."""
    row: dict[str, Any] = {
        "t_ns": t_ns, "netns": NETNS, "netns_ino": 8, "socket": 6, "family": 2, "sport": 5201, "dport": 40000,
        "sndbuf_bytes": 16384, "limit_bytes": LIMIT, "locked": True, "srtt_us": 40_000, "min_rtt_us": 40_000,
        "cwnd_packets": 100, "mss_bytes": 1448, "in_flight_packets": 6, "snd_wnd_bytes": 1 << 20,
        "queued_bytes": 12_000, "acked_bytes": int(rate * t_ns / SEC), "delivered_packets": 6, "delivered_us": 40_000,
        "limited_by": 3, "retransmits": 0,
    }  # fmt: skip
    return TcpSndBuf(**(row | known))


def told(*events: AnyEvent) -> list[str]:
    state = tcp_buffer.start(Policy())
    for event in events:
        state, wishes = tcp_buffer.step(state, event)
        assert not wishes
    return advice(state)


FULL = 8192 / 0.04
"""A window each round trip."""


def test_a_window_that_is_too_small_is_told_of_with_port_program_and_loss() -> None:
    (line,) = told(receiver(10 * SEC, FULL), Owner(11 * SEC, NETNS, 40000, 42, "fetch", 6, 5), receiver(15 * SEC, FULL))
    assert line == (
        "netns 7: TCP port 40000 (fetch, pid 42) to port 5201 has 204800 bytes/s at 40.0 ms with the 8192 bytes of"
        " receive buffer that its program set (SO_RCVBUF); the 6291456 of tcp_rmem[2] would carry up to 78643200, so"
        " 78438400 bytes/s are lost: leave the size to the kernel"
    )


def test_a_send_buffer_that_is_too_small_is_told_of_too() -> None:
    (line,) = told(sender(10 * SEC, 300_000), sender(15 * SEC, 300_000))
    assert line.startswith(
        "netns 7: TCP port 5201 to port 40000 has 300000 bytes/s at 40.0 ms with the 8192 bytes of send"
    )
    assert "(SO_SNDBUF); the 6291456 of tcp_wmem[2]" in line


def test_no_more_is_promised_than_another_flow_has_shown_the_path_to_carry() -> None:
    others = [
        receiver(
            (9 + n) * SEC, 2_000_000, socket=9, locked=False, rcvbuf_bytes=LIMIT // 2, rcv_wnd_bytes=LIMIT // 4,
            window_clamp_bytes=LIMIT // 4,
        )
        for n in range(6)
    ]  # fmt: skip
    (line,) = told(*others, receiver(10 * SEC, FULL), receiver(15 * SEC, FULL))
    assert "would carry up to 2000000, so 1795200 bytes/s are lost" in line


@pytest.mark.parametrize(
    "known",
    [
        {"rcv_wnd_bytes": 2000},  # a slow reader
        {"rcv_rtt_us": 300, "srtt_us": 300},  # near: the processor is the limit
        {"rcvbuf_bytes": LIMIT},  # more than the kernel would give
        {"locked": False},
    ],
)
def test_a_socket_that_its_buffer_does_not_hold_back_is_not_spoken_of(known: dict[str, Any]) -> None:
    assert told(receiver(10 * SEC, FULL, **known), receiver(15 * SEC, FULL, **known)) == []


def test_neither_is_one_that_has_little_to_do() -> None:
    assert told(receiver(10 * SEC, FULL / 3), receiver(15 * SEC, FULL / 3)) == []
    idle = {"queued_bytes": 100, "limited_by": 1, "in_flight_packets": 0}
    assert told(sender(10 * SEC, 1000, **idle), sender(15 * SEC, 1000, **idle)) == []


def test_a_queue_on_the_path_is_no_fault_of_the_buffers() -> None:
    assert told(*(sender(n * SEC, 100_000, srtt_us=120_000) for n in (10, 15))) == []


def test_one_event_is_no_rate_and_another_socket_of_that_name_begins_anew() -> None:
    assert told(receiver(10 * SEC, FULL)) == []
    assert told(receiver(10 * SEC, FULL), receiver(15 * SEC, FULL, received_bytes=10)) == []


def test_of_many_connections_of_one_service_the_worst_speaks_for_all() -> None:
    events = [receiver(t * SEC, FULL * (10 + n) / 20, socket=n, sport=40000 + n) for t in (10, 15) for n in range(10)]
    lines = told(*events)
    assert len(lines) == 1
    (loss,) = re.findall(r"so (\d+) bytes", lines[0])
    assert int(loss) > 70_000_000


def test_after_an_hour_or_with_its_namespace_it_is_forgotten() -> None:
    events = (receiver(10 * SEC, FULL), receiver(15 * SEC, FULL))
    assert told(*events, Counters(3000 * SEC, 1, "meminfo", {}))
    assert not told(*events, Counters(4000 * SEC, 1, "meminfo", {}))
    assert not told(*events, Netns(16 * SEC, NETNS, 8, "", False))


def test_however_many_there_are_the_memory_is_bounded() -> None:
    state = tcp_buffer.start(Policy())
    for number in range(2000):
        state, _ = tcp_buffer.step(state, receiver((10 + number) * SEC, FULL, socket=number))
        state, _ = tcp_buffer.step(state, Owner((10 + number) * SEC, NETNS, 40000, 42, "fetch", 6, number))
    assert len(state.locked.held) == len(state.locked.owners) == 256
