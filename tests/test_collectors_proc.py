"""Counters, host facts and the tick: pure parsers against texts, the source against fake roots and the real /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import decode, encode
from bus.netns import cookie_here
from bus.schema import VERSION, AnyEvent, Batch, Counters, Host, Tick
from collectors import counters, host
from collectors.counters import FILES, File
from collectors.proc import HOST_NS, RETRY_NS, TICK_NS, ProcSource

BY_NAME = {file.name: file for file in FILES}
NONE: frozenset[int] = frozenset()
SECOND = 1_000_000_000

TEXTS: dict[str, tuple[str, dict[str, int]]] = {
    "net/netstat": (
        "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 0 7\nIpExt: InOctets\nIpExt: 18446744073709551615\n",
        {"TcpExt.SyncookiesSent": 0, "TcpExt.ListenOverflows": 7, "IpExt.InOctets": 2**64 - 1},
    ),
    "net/snmp": ("Tcp: MaxConn RetransSegs\nTcp: -1 3\n", {"Tcp.MaxConn": -1, "Tcp.RetransSegs": 3}),
    "net/snmp6": (
        "Ip6InReceives                   \t5\nUdp6RcvbufErrors\t6\n",
        {"Ip6InReceives": 5, "Udp6RcvbufErrors": 6},
    ),
    "net/sockstat": (
        "sockets: used 16\nTCP: inuse 1 orphan 0 mem 253\n",
        {"sockets.used": 16, "TCP.inuse": 1, "TCP.orphan": 0, "TCP.mem": 253},
    ),
    "net/sockstat6": ("FRAG6: inuse 0 memory 4\n", {"FRAG6.inuse": 0, "FRAG6.memory": 4}),
    "net/softnet_stat": (
        "000000ff 00000001 00000002 0 0 0 0 0 0 00000003 00000004 00000005 00000000 00000005 00000000\n"
        "00000001 00000001 00000001 0 0 0 0 0 0 00000001 00000001 00000001 00000001 00000001 00000000\n",
        {"processed": 256, "dropped": 2, "time_squeeze": 3, "received_rps": 4, "flow_limit": 5, "backlog": 6},
    ),
    "net/stat/nf_conntrack": (
        "entries  clashres insert_failed drop early_drop\n0000000a  00000000 00000001 0000000f 00000000\n"
        "0000000a  00000002 00000001 00000001 00000003\n",
        {"entries": 10, "clashres": 2, "insert_failed": 2, "drop": 16, "early_drop": 3},
    ),
    "net/stat/arp_cache": (
        "entries  allocs   res_failed\n00000010 00041809 00005586\n00000010 00000001 00000001\n",
        {"entries": 16, "allocs": 0x4180A, "res_failed": 0x5587},
    ),
    "net/stat/ndisc_cache": ("entries  allocs\n00000010 00000002\n", {"entries": 16, "allocs": 2}),
    "vmstat": ("nr_free_pages 9\nnr_dirty 3\noom_kill 0\n", {"nr_dirty": 3, "oom_kill": 0}),
    "meminfo": ("MemTotal:       24684096 kB\nHugePages_Total:       0\n", {"MemTotal": 24684096}),
    "pressure/memory": (
        "some avg10=0.09 avg60=0.54 avg300=1.16 total=16188442\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
        {"some.total_us": 16188442, "full.total_us": 1},
    ),
    "pressure/cpu": ("some avg10=0.09 avg60=0.54 avg300=1.16 total=7\n", {"some.total_us": 7}),
    "pressure/io": ("some avg10=0.09 avg60=0.54 avg300=1.16 total=7\n", {"some.total_us": 7}),
}


def test_every_file_has_a_text_here() -> None:
    assert set(TEXTS) == set(BY_NAME)


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_as_the_kernel_writes_it_is_understood(name: str) -> None:
    text, values = TEXTS[name]
    hosts = ("net/softnet_stat", "net/stat/arp_cache", "net/stat/ndisc_cache")
    netns = 42 if name.startswith("net/") and name not in hosts else 0
    assert counters.read(BY_NAME[name], text.encode(), 5, 42) == Counters(5, netns, name, values)


ODD: dict[str, tuple[str, str]] = {
    "a line of names without its numbers": ("net/netstat", "TcpExt: A B\nTcpExt: 1 2\nIpExt: A\n"),
    "fewer numbers than names": ("net/netstat", "TcpExt: A B\nTcpExt: 1\n"),
    "more numbers than names": ("net/netstat", "TcpExt: A\nTcpExt: 1 2\n"),
    "groups that do not match": ("net/netstat", "TcpExt: A\nIpExt: 1\n"),
    "a group without its colon": ("net/snmp", "Tcp A\nTcp 1\n"),
    "a word for a number": ("net/snmp", "Tcp: A\nTcp: many\n"),
    "an empty line": ("net/snmp", "\n\n"),
    "more than 64 bits": ("net/snmp", "Tcp: A\nTcp: 18446744073709551616\n"),
    "far below zero": ("net/snmp", "Tcp: A\nTcp: -9223372036854775809\n"),
    "a name alone": ("net/snmp6", "Ip6InReceives\n"),
    "three words": ("net/snmp6", "Ip6InReceives 1 2\n"),
    "cut in the middle": ("net/sockstat", "TCP: inuse 1 orphan"),
    "no hexadecimal": ("net/softnet_stat", "xyz 0 0\n"),
    "an empty CPU": ("net/softnet_stat", "1 2 3\n\n"),
    "a selected line cut": ("vmstat", "nr_dirty\n"),
    "nothing that is wanted": ("vmstat", "a 1\n"),
    "no total": ("pressure/memory", "some avg10=0.09\n"),
    "no value": ("pressure/memory", "some avg10 total=1\n"),
    "a fraction": ("pressure/memory", "some total=1.5\n"),
    "nothing": ("meminfo", ""),
}


@pytest.mark.parametrize("what", ODD)
def test_a_file_that_is_not_as_it_should_be_is_a_value_error(what: str) -> None:
    name, text = ODD[what]
    with pytest.raises(ValueError, match=r"."):
        counters.read(BY_NAME[name], text.encode(), 1, 1)


@pytest.mark.parametrize("name", BY_NAME)
@settings(deadline=None)
@given(raw=st.binary(max_size=300) | st.text("ab:0-9 =.\n\t-x", max_size=200).map(str.encode))
def test_whatever_stands_in_a_file_it_is_an_event_or_a_value_error(name: str, raw: bytes) -> None:
    try:
        event = counters.read(BY_NAME[name], raw, 1, 1)
    except ValueError:
        return
    assert decode(Batch, encode(Batch(VERSION, "p", 1, 0, [event]))).events == [event]


@pytest.mark.parametrize("name", TEXTS)
@settings(deadline=None)
@given(cut=st.integers(0, 300))
def test_a_file_cut_anywhere_is_an_event_or_a_value_error(name: str, cut: int) -> None:
    try:
        event = counters.read(BY_NAME[name], TEXTS[name][0].encode()[:cut], 1, 1)
    except ValueError:
        return
    assert event.values


def test_columns_that_an_older_kernel_lacks_are_not_there() -> None:
    found = counters.read(BY_NAME["net/softnet_stat"], b"10 1 2 0 0 0 0 0 0 3 4\n", 1, 1)
    assert found.values == {"processed": 16, "dropped": 1, "time_squeeze": 2, "received_rps": 3, "flow_limit": 4}


def test_a_file_of_more_than_one_read_is_read_whole(tmp_path: Path) -> None:
    text = "".join(f"Name{number} {number}\n" for number in range(10_000))
    assert len(text) > counters.READ_BYTES
    (tmp_path / "x").write_text(text)
    opened = counters.OpenFile(tmp_path, File("x", counters.columns))
    assert len(opened.read(1, 1).values) == len(opened.read(2, 1).values) == 10_000
    opened.close()


# --- host facts ---------------------------------------------------------------------------------------------------


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


FACTS = {
    "sys/kernel/random/boot_id": "0f0f-1\n",
    "sys/kernel/osrelease": "6.1.0-test\n",
    "meminfo": "MemTotal:  2048 kB\nMemFree: 7 kB\n",
}


def test_facts_come_from_the_root_that_is_given(tmp_path: Path) -> None:
    put(tmp_path, FACTS)
    facts = host.read(tmp_path, 3)
    assert (facts.t_ns, facts.boot_id, facts.release, facts.mem_bytes) == (3, "0f0f-1", "6.1.0-test", 2 << 20)
    assert facts.machine == os.uname().machine
    assert (facts.cpus, facts.page_bytes) == (os.cpu_count(), os.sysconf("SC_PAGE_SIZE"))


def test_a_name_on_the_wire_is_never_too_long(tmp_path: Path) -> None:
    put(tmp_path, FACTS | {"sys/kernel/osrelease": "6" * 500})
    event = host.read(tmp_path, 3)
    assert decode(Batch, encode(Batch(VERSION, "p", 1, 0, [event]))).events == [event]


@pytest.mark.parametrize("text", ["", "MemTotal: 2048\n", "MemTotal: 2048 MB\n", "MemTotal: x kB\n", "MemFree: 1 kB\n"])
def test_memory_that_is_not_said_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        host.mem_bytes(text)


def test_tai_is_as_far_from_utc_as_the_kernel_says() -> None:
    tai_s, utc_s = time.clock_gettime(time.CLOCK_TAI), time.time()
    assert abs(tai_s - utc_s - host.tai_offset_s()) < 0.9


# --- the source ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, {name: text for name, (text, _) in TEXTS.items()} | FACTS)
    return tmp_path


def kinds(events: list[AnyEvent]) -> list[str]:
    return [event.source if isinstance(event, Counters) else type(event).__name__ for event in events]


def seconds(source: ProcSource, count: int, start: int = 100 * SECOND) -> list[list[AnyEvent]]:
    return [source.collect(start + second * SECOND, NONE) for second in range(count)]


def test_each_second_says_everything_and_the_tick_comes_last(root: Path) -> None:
    source = ProcSource(root)
    first, second, *_, sixth = seconds(source, 6)
    assert kinds(first) == ["Host", *BY_NAME, "Tick"]
    assert kinds(second) == [*BY_NAME, "Tick"]
    assert kinds(sixth) == ["Host", *BY_NAME, "Tick"]
    assert {event.t_ns for event in second} == {101 * SECOND}
    assert source.status().missing == []
    assert source.status().watched == ["tick", "host facts", *BY_NAME]
    source.close()


def test_ticks_are_numbered_without_holes(root: Path) -> None:
    source = ProcSource(root)
    ticks = [event.seq for events in seconds(source, 4) for event in events if isinstance(event, Tick)]
    assert ticks == [0, 1, 2, 3]
    source.close()


def test_nothing_is_said_before_it_is_due(root: Path) -> None:
    source = ProcSource(root)
    source.collect(100 * SECOND, NONE)
    assert source.due_ns == 101 * SECOND
    assert source.collect(101 * SECOND - 1, NONE) == []
    source.close()


def test_a_late_tick_does_not_shift_the_next_and_a_long_stop_is_not_made_up_for(root: Path) -> None:
    source = ProcSource(root)
    source.collect(100 * SECOND, NONE)
    assert kinds(source.collect(101 * SECOND + 7000, NONE))[-1] == "Tick"
    assert source.due_ns == 102 * SECOND
    assert kinds(source.collect(500 * SECOND, NONE)).count("Tick") == 1
    assert source.due_ns == 501 * SECOND
    source.close()


def test_what_changes_is_seen_through_the_same_descriptor(root: Path) -> None:
    source = ProcSource(root, (BY_NAME["net/snmp6"],))
    before = source.collect(100 * SECOND, NONE)
    (root / "net/snmp6").write_text("Ip6InReceives 6\n")
    after = source.collect(101 * SECOND, NONE)
    assert [event.values["Ip6InReceives"] for event in (*before, *after) if isinstance(event, Counters)] == [5, 6]
    source.close()


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: path.write_text("garbage\n")], ids=["gone", "garbage"])
def test_a_file_that_fails_is_missing_with_its_reason_and_comes_back(
    root: Path, break_it: Callable[[Path], object]
) -> None:
    good = (root / "net/snmp6").read_text()
    break_it(root / "net/snmp6")
    source = ProcSource(root)
    first, second = seconds(source, 2)
    rest = [name for name in BY_NAME if name != "net/snmp6"]
    assert kinds(first) == ["Host", *rest, "Tick"]
    assert kinds(second) == [*rest, "Tick"]
    (missing,) = source.status().missing
    assert missing.startswith("net/snmp6: ")
    assert "net/snmp6" not in source.status().watched
    (root / "net/snmp6").write_text(good)
    assert "net/snmp6" not in kinds(source.collect(102 * SECOND, NONE))
    assert "net/snmp6" in kinds(source.collect(100 * SECOND + RETRY_NS, NONE))
    assert source.status().missing == []
    source.close()


def test_a_file_that_turns_bad_later_is_missing_from_then_on(root: Path) -> None:
    source = ProcSource(root)
    source.collect(100 * SECOND, NONE)
    (root / "vmstat").write_text("")
    assert "vmstat" not in kinds(source.collect(101 * SECOND, NONE))
    assert source.status().missing == ["vmstat: holds no numbers"]
    source.close()


def test_on_a_root_with_nothing_in_it_time_still_passes(tmp_path: Path) -> None:
    source = ProcSource(tmp_path)
    assert kinds(source.collect(100 * SECOND, NONE)) == ["Tick"]
    assert len(source.status().missing) == len([file for file in FILES if not file.optional]) + 1
    assert "host facts: No such file or directory" in source.status().missing
    put(tmp_path, FACTS)
    assert kinds(source.collect(100 * SECOND + HOST_NS, NONE)) == ["Host", "Tick"]
    source.close()


def test_no_descriptor_is_left_after_the_end(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    (root / "vmstat").write_text("garbage")
    source = ProcSource(root)
    seconds(source, 3)
    source.close()
    assert os.listdir("/proc/self/fd") == before


def readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


@pytest.mark.system
def test_the_running_kernel_is_understood() -> None:
    source = ProcSource()
    first = source.collect(time.monotonic_ns(), NONE)
    found = {event.source: event for event in first if isinstance(event, Counters)}
    there = {name for name in BY_NAME if readable(Path("/proc") / name)}
    assert set(found) == there
    assert len(source.status().missing) == len(set(BY_NAME) - there)
    assert found["net/netstat"].netns == cookie_here()
    assert found["net/softnet_stat"].netns == 0
    assert {"TcpExt.ListenOverflows", "TcpExt.TCPMemoryPressures", "IpExt.InOctets"} <= found[
        "net/netstat"
    ].values.keys()
    assert {"Tcp.RetransSegs", "Udp.RcvbufErrors"} <= found["net/snmp"].values.keys()
    assert found["net/softnet_stat"].values["processed"] > 0
    assert found["meminfo"].values["MemTotal"] > 0
    (facts,) = [event for event in first if isinstance(event, Host)]
    assert facts.release == os.uname().release
    assert facts.mem_bytes == found["meminfo"].values["MemTotal"] * 1024
    assert decode(Batch, encode(Batch(VERSION, "p", 1, 0, first))).events == first
    assert 0 < source.due_ns - first[-1].t_ns <= TICK_NS
    assert source.due_ns % TICK_NS == 0, "at a whole second, when the other roles wake, too"
    source.close()
