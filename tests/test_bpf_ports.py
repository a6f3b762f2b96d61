"""The probe of local ports on the real kernel: what it tells of, and what not."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest
from test_bpf_probes import Watch

from bus import schema
from trimtab.lab import Lab, NetNs

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LISTENS = 30_000
PORTS = "net.ipv4.ip_local_port_range"


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    made = Watch(tmp_path_factory.mktemp("ports"))
    yield made
    made.source.close()


@pytest.fixture
def netns() -> Iterator[NetNs]:
    with Lab() as lab:
        yield lab.netns("ports")


def connect(netns: NetNs, count: int, stack: contextlib.ExitStack, family: int = socket.AF_INET) -> list[int]:
    """So many connections within a namespace, closed with the stack; what each led to, as errno."""

    def make() -> list[int]:
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        listener = stack.enter_context(socket.create_server((address, LISTENS), family=family, backlog=count))
        where = listener.getsockname()
        return [stack.enter_context(socket.socket(family)).connect_ex(where) for _ in range(count)]

    return netns.run(make)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connect_that_finds_no_port_is_told_with_the_range_and_each_is_counted(
    watch: Watch, netns: NetNs, family: int
) -> None:
    netns.sysctl(PORTS, "40000 40019")
    with contextlib.ExitStack() as stack:
        results = connect(netns, 30, stack, family)
        assert results == [0] * 20 + [99] * 10
        event = watch.first(schema.Ports, netns.cookie)
        assert (event.low, event.high, event.netns_ino, event.exhausted) == (40_000, 40_019, netns.inode, 1)
        assert (event.tw_reuse, event.timestamps, event.tw_full) == (2, 1, 0)
        assert event.tw_max == int(netns.sysctl("net.ipv4.tcp_max_tw_buckets"))
        time.sleep(0.15)
        address = ("127.0.0.1" if family == socket.AF_INET else "::1", LISTENS)
        netns.run(lambda: stack.enter_context(socket.socket(family)).connect_ex(address))
        watch.wait(lambda: watch.events(schema.Ports, netns.cookie)[-1].exhausted == 11)
    assert len(watch.events(schema.Ports, netns.cookie)) == 2


def test_other_failures_are_not_told_of(watch: Watch, netns: NetNs) -> None:
    def fail() -> list[int]:
        found = []
        with socket.socket() as refused, socket.socket() as bound, socket.socket() as again:
            found.append(refused.connect_ex(("127.0.0.1", 1)))
            with socket.create_server(("127.0.0.1", LISTENS)) as listener:
                for sock in (bound, again):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", 45_000))
                # The second finds the port that it was bound to in use towards this very peer.
                found += [sock.connect_ex(listener.getsockname()) for sock in (bound, again)]
        return found

    assert netns.run(fail) == [111, 0, 99]
    watch.drain(0.2)
    assert watch.events(schema.Ports, netns.cookie) == []


def test_time_waits_near_their_limit_are_told_and_those_that_find_no_room_counted(watch: Watch, netns: NetNs) -> None:
    netns.sysctl("net.ipv4.tcp_max_tw_buckets", 20)

    def close_one() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server = listener.accept()[0]
            client.close()
            server.close()

    def close(count: int) -> None:
        for _ in range(count):
            netns.run(close_one)

    close(14)
    watch.drain(0.1)
    assert watch.events(schema.Ports, netns.cookie) == []
    close(1)
    event = watch.first(schema.Ports, netns.cookie)
    assert (event.tw, event.tw_max, event.tw_full, event.exhausted) == (15, 20, 0, 0)
    close(20)
    time.sleep(0.11)
    close(1)
    watch.wait(lambda: watch.events(schema.Ports, netns.cookie)[-1].tw_full > 10)
    assert watch.events(schema.Ports, netns.cookie)[-1].tw == 20
