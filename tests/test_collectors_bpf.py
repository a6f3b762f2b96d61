"""The BPF source as the collector's loop drives it, with loaders that die, lie, repeat themselves or never come."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import PROBES
from bpf.libbpf import BPF_F_MMAPABLE, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF, Libbpf
from bus import roles, schema
from bus.codec import decode, encode
from bus.schema import AnyEvent, Batch
from collectors import bpf
from collectors.bpf import AT_WORK_NS, PATIENCE_NS, REPUBLISH_NS, BpfSource

NAMES = [probe.name for probe in PROBES]
START_NS = 1_000_000_000_000


@pytest.fixture
def source(tmp_path: Path) -> Iterator[BpfSource]:
    (tmp_path / "collector-bpf").mkdir()
    made = BpfSource(tmp_path)
    yield made
    made.close()


def collect(source: BpfSource, t_ns: int = START_NS, wait_s: float = 0.0) -> list[AnyEvent]:
    poll = select.poll()
    for fd in source.descriptors():
        poll.register(fd, select.POLLIN)
    return source.collect(t_ns, frozenset(fd for fd, _ in poll.poll(wait_s * 1000)))


def call(tmp_path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.connect(str(roles.probes_path(tmp_path)))
    return caller


def packet(reason: str) -> bytes:
    return json.dumps({"version": 1, "probes": [{"name": n, "road": "", "reason": reason} for n in NAMES]}).encode()


def probes(events: list[AnyEvent]) -> dict[str, tuple[str, str]]:
    return {event.name: (event.road, event.reason) for event in events if isinstance(event, schema.Probe)}


def test_until_a_loader_comes_it_is_not_ready_and_complains_of_nothing(source: BpfSource) -> None:
    events = collect(source)
    assert not source.ready
    assert source.status().missing == []
    assert probes(events) == dict.fromkeys(NAMES, ("", "no loader has come"))


def test_when_no_loader_comes_in_time_it_goes_on_without_and_says_what_is_lost(source: BpfSource) -> None:
    collect(source)
    collect(source, START_NS + PATIENCE_NS)
    assert not source.ready
    collect(source, START_NS + PATIENCE_NS + 1)
    assert source.ready
    assert source.status().watched == []
    assert source.status().missing == [f"{probe.name}: no loader has come; {probe.without}" for probe in PROBES]


def test_while_a_loader_is_at_work_it_is_not_ready_but_not_for_ever(source: BpfSource, tmp_path: Path) -> None:
    collect(source)
    with call(tmp_path):
        collect(source)
        collect(source, START_NS + AT_WORK_NS)
        assert not source.ready
        told = probes(collect(source, START_NS + AT_WORK_NS + 1))
        assert source.ready
        assert told == dict.fromkeys(NAMES, ("", "the loader is still at work"))


def test_the_roads_are_told_at_once_when_they_change_and_again_every_few_seconds(
    source: BpfSource, tmp_path: Path
) -> None:
    assert probes(collect(source))
    assert not collect(source, START_NS + 1)
    with call(tmp_path) as caller:
        caller.send(packet("no BTF"))
        collect(source, START_NS + 2)
        assert probes(collect(source, START_NS + 3)) == dict.fromkeys(NAMES, ("", "no BTF"))
    assert source.ready
    assert source.due_ns == START_NS + 3 + REPUBLISH_NS
    assert not collect(source, START_NS + 4)
    assert probes(collect(source, source.due_ns)) == dict.fromkeys(NAMES, ("", "no BTF"))
    assert source.status().missing == [f"{probe.name}: no BTF; {probe.without}" for probe in PROBES]


def test_a_loader_that_aborts_is_told_and_the_source_lives_on(source: BpfSource, tmp_path: Path) -> None:
    script = f"import os, socket; s = socket.socket(1, 5); s.connect({str(roles.probes_path(tmp_path))!r}); os.abort()"
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode < 0
    collect(source)
    assert probes(collect(source, START_NS + 1)) == dict.fromkeys(NAMES, ("", "the loader ended without a word"))
    assert source.ready
    with call(tmp_path) as caller:
        caller.send(packet("second try"))
        collect(source, START_NS + 2)
        assert probes(collect(source, START_NS + 3)) == dict.fromkeys(NAMES, ("", "second try"))


def test_nonsense_from_a_loader_is_one_line_per_probe(source: BpfSource, tmp_path: Path) -> None:
    with call(tmp_path) as caller:
        caller.send(b"\x00\xff")
        collect(source)
        told = probes(collect(source, START_NS + 1))
    assert all(reason.startswith("the loader's packet is malformed: ") for _, reason in told.values())


def test_callers_who_say_nothing_neither_keep_the_loop_awake_nor_the_loader_out(
    source: BpfSource, tmp_path: Path
) -> None:
    silent = []
    for _ in range(bpf.CALLERS + 2):
        silent.append(call(tmp_path))
        collect(source)
    poll = select.poll()
    for fd in source.descriptors():
        poll.register(fd, select.POLLIN)
    assert poll.poll(0) == []
    assert [caller.recv(1) for caller in silent[:2]] == [b"", b""], "the first two made way"
    with call(tmp_path) as caller:
        caller.send(packet("late"))
        collect(source, START_NS + 1)
        assert set(probes(collect(source, START_NS + 2)).values()) == {("", "late")}
    for caller in silent:
        caller.close()


def test_closing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "collector-bpf").mkdir()
    source = BpfSource(tmp_path)
    with call(tmp_path):
        collect(source)
        source.close()
    assert len(os.listdir("/proc/self/fd")) == before


@given(st.binary(max_size=200))
def test_whatever_the_bytes_of_a_name_or_a_value_they_are_fit_to_be_shown_and_sent(raw: bytes) -> None:
    event = bpf.sysctl_write(1, 2, 3, 4, 5, raw[:16], raw[:128], raw[:128], raw[:128])
    assert decode(Batch, encode(Batch(1, "collector-bpf", 1, 0, [event]))).events == [event]
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in event.comm + event.name)
    assert not any(ord(character) < 32 and character not in "\t\n" for character in event.old)
    assert not event.new.endswith("\n")
    assert "\0" not in event.comm + event.name + event.old


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_record_becomes_an_event_that_passes_the_strict_decoder(probe: bpf.Probe) -> None:
    for byte in (b"\x00", b"\x01"):
        event = bpf.maker(probe, {})(*probe.record.unpack(byte * probe.record.size))
        assert type(event).__name__ == probe.topic
        assert decode(Batch, encode(Batch(1, "collector-bpf", 1, 0, [event]))).events == [event]
        assert event.t_ns == int.from_bytes(byte * 8, "little")


@pytest.fixture
def maps() -> Iterator[list[int]]:
    """A ring for each probe and something in a link's place, and the counters, as a loader would make them."""
    lib = Libbpf()
    fds = []
    for probe in PROBES:
        fds += [lib.map_create(BPF_MAP_TYPE_RINGBUF, probe.name[:15], 0, probe.ring_bytes), os.eventfd(0)]
    fds.append(lib.map_create(BPF_MAP_TYPE_ARRAY, "drops", 8, len(PROBES), BPF_F_MMAPABLE))
    yield fds
    for fd in fds:
        os.close(fd)


def full(road: str, drops: int = 2 * len(PROBES)) -> bytes:
    rows = [
        {"name": name, "road": road, "reason": "", "ring": 2 * place, "link": 2 * place + 1}
        for place, name in enumerate(NAMES)
    ]
    return json.dumps({"version": 1, "probes": rows, "drops": drops}).encode()


@pytest.mark.system
def test_a_second_loader_takes_the_firsts_place_and_a_bad_one_does_not(
    source: BpfSource, tmp_path: Path, maps: list[int]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for road in ("first", "second"):
        with call(tmp_path) as caller:
            socket.send_fds(caller, [full(road)], maps)
            collect(source)
            assert probes(collect(source)) == dict.fromkeys(NAMES, (road, ""))
        # Each descriptor as it came and, of rings and counters, once or twice more as mapped.
        taken = len(os.listdir("/proc/self/fd")) - before
        assert taken == len(maps) + 2 * len(PROBES) + 1
    with call(tmp_path) as caller:
        caller.send(b"{")
        collect(source)
        collect(source)
    assert source.status().watched == [f"{name} (second)" for name in NAMES]
    assert source.status().missing[0].startswith("a second loader: the loader's packet is malformed")
    assert len(os.listdir("/proc/self/fd")) - before == taken


@pytest.mark.system
def test_maps_of_the_wrong_kind_or_size_are_refused_whole(source: BpfSource, tmp_path: Path, maps: list[int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    lib = Libbpf()
    small = lib.map_create(BPF_MAP_TYPE_RINGBUF, "small", 0, 4096)
    plain = lib.map_create(BPF_MAP_TYPE_ARRAY, "plain", 8, len(PROBES))
    for bad in ([*maps[:2], small, *maps[3:]], [*maps[:-1], plain], [*maps[:-1], os.dup(maps[1])]):
        with call(tmp_path) as caller:
            socket.send_fds(caller, [full("raw tracepoint")], bad)
            collect(source)
            told = probes(collect(source))
        assert all(reason.startswith("what the loader sent does not map: ") for _, reason in told.values()), told
        for fd in set(bad) - set(maps):
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


LOOP = """
import sys
sys.path.insert(0, sys.argv[1])
from collectors.__main__ import main
sys.exit(main(["bpf", "--run-dir", sys.argv[2]]))
"""


@pytest.mark.system
def test_the_role_as_it_ships_tells_the_service_manager_when_it_is_ready(tmp_path: Path) -> None:
    (tmp_path / "collector-bpf").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify.sock"))
        manager.settimeout(60)
        root = str(Path(bpf.__file__).parents[1])
        role = subprocess.Popen(
            [sys.executable, "-c", LOOP, root, str(tmp_path)],
            env={"NOTIFY_SOCKET": str(tmp_path / "notify.sock"), "PATH": os.environ["PATH"]},
        )
        try:
            deadline_s = time.monotonic() + 60
            while not roles.probes_path(tmp_path).exists():
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            loader = Path(bpf.__file__).with_name("loader.py")
            subprocess.run(["/usr/bin/python3", "-I", loader, str(roles.probes_path(tmp_path))], check=True)
            while not (said := manager.recv(65536).decode()).startswith("READY=1"):
                assert time.monotonic() < deadline_s
            status = msgspec.json.decode(
                next(x for x in said.splitlines() if x.startswith("STATUS=")).partition("=")[2]
            )
            assert [line.partition(" ")[0] for line in status["watched"]] == NAMES
            assert status["missing"] == []
            assert status["ring_drops"] == 0
        finally:
            role.terminate()
            assert role.wait(20) == 0
