"""What drops most: of Drops events as the probe tells them, the rows in the collector's STATUS."""

from __future__ import annotations

import msgspec

from bus.notify import SYSTEMD_BYTES
from bus.schema import Drops, Tick
from collectors.drops import KINDS_MAX, MOST, Tally

SEC = 1_000_000_000
INODE = 4026531840


def drops(t_s: float, dropped: int, reason: str = "CPU_BACKLOG", netns: int = 7, ifindex: int = 2) -> Drops:
    return Drops(int(t_s * SEC), netns, INODE, ifindex, reason, dropped)


def test_each_kind_has_a_row_with_its_rate_and_its_total() -> None:
    tally = Tally()
    assert tally.most(100 * SEC) == []
    for second in range(101, 111):
        tally.take([drops(second, 50 * (second - 100)), Tick(second * SEC, second), drops(second, 7, "NO_SOCKET")])
        rows = tally.most(second * SEC)
    assert rows == [(7, INODE, 2, "CPU_BACKLOG", 50.0, 500), (7, INODE, 2, "NO_SOCKET", 0.7, 7)]


def test_the_rate_falls_to_nothing_when_it_is_over_and_the_total_stays() -> None:
    tally = Tally()
    tally.most(100 * SEC)
    tally.take([drops(101, 1000)])
    rates = [tally.most(second * SEC)[0][4] for second in range(101, 120)]
    assert rates[0] == 1000.0
    assert rates[-1] == 0.0
    assert rates == sorted(rates, reverse=True)
    assert tally.most(121 * SEC)[0][5] == 1000


def test_a_probe_that_counts_from_the_beginning_again_takes_nothing_away() -> None:
    tally = Tally()
    tally.take([drops(1, 1000), drops(2, 1), drops(3, 4)])
    assert tally.most(3 * SEC)[0][5] == 1004


def test_those_that_drop_now_come_first_and_the_status_stays_small() -> None:
    tally = Tally()
    tally.most(100 * SEC)
    huge = 2**40
    tally.take([drops(101, huge + number, "TCP_INVALID_ACK_SEQUENCE", 2**48 + number, 2**24) for number in range(50)])
    for second in range(102, 120):
        tally.most(second * SEC)
    tally.take([drops(120, 5, "XDP")])
    rows = tally.most(120 * SEC)
    assert len(rows) == MOST
    assert rows[0][3] == "XDP"
    assert [row[5] for row in rows[1:]] == [huge + number for number in range(49, 50 - MOST, -1)]
    assert len(msgspec.json.encode(rows)) < SYSTEMD_BYTES // 3


def test_what_is_no_loss_hides_none_that_is() -> None:
    tally = Tally()
    tally.most(100 * SEC)
    tally.take([drops(101, 1000 + number, "QUEUE_PURGE", netns=number) for number in range(2 * MOST)])
    tally.take([drops(101, 1, "IP_CSUM", netns=5)])
    rows = tally.most(102 * SEC)
    assert rows[0][:4] == (5, INODE, 2, "IP_CSUM")
    assert {row[3] for row in rows[1:]} == {"QUEUE_PURGE"}


def test_kinds_without_end_take_no_more_memory() -> None:
    tally = Tally()
    for number in range(KINDS_MAX + 100):
        tally.take([drops(1 + number / 1000, 1, netns=number), drops(1 + number / 1000, number + 1, netns=0)])
    assert len(tally._counts) == KINDS_MAX
    # The one that goes on stays, of the others those that came last.
    assert sorted(netns for netns, _, _ in tally._counts)[:2] == [0, 101]
