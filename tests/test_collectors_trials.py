"""Counters of the namespaces in which a change is on trial, against real namespaces."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import roles
from bus.link import Publisher
from bus.netns import cookie_here
from bus.schema import AnyEvent, Counters, Outcome, Trial
from collectors import trials
from collectors.namespaces import Census
from collectors.several import Several
from collectors.source import Status
from collectors.trials import LINGER_NS, PLACES_MAX, RETRY_NS, SECOND_NS, TrialsSource
from trimtab.lab import Lab, NetNs

PATIENCE_S = 10.0
GONE = 987654321


@pytest.fixture
def actuator(tmp_path: Path) -> Iterator[Publisher]:
    path = roles.events_path(tmp_path, "actuator")
    path.parent.mkdir(parents=True)
    publisher = Publisher(path, "actuator")
    yield publisher
    publisher.close()


@pytest.fixture
def source(tmp_path: Path, actuator: Publisher) -> Iterator[TrialsSource]:
    source = TrialsSource(tmp_path, cookie_here())
    yield source
    source.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def trial(netns: int, inode: int = 0) -> Trial:
    return Trial(1, 1, "tcp_buffer", "net.ipv4.tcp_rmem[2]", netns, inode, 1, 2, 1)


def outcome(netns: int, verdict: str = "written") -> Outcome:
    return Outcome(1, "tcp_buffer", "net.ipv4.tcp_rmem[2]", netns, 1, 2, verdict, "", 2, 1)  # type: ignore[arg-type]


def heard(actuator: Publisher, source: TrialsSource, *events: AnyEvent) -> list[AnyEvent]:
    """Say it, and what the source makes of it as soon as it wakes."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        actuator.publish(events)
        if select.select(source.descriptors(), [], [], 0.05)[0] and (found := source.collect(1, frozenset())):
            return found
    raise AssertionError("nothing was made of it")


def kinds(events: list[AnyEvent]) -> list[tuple[int, str]]:
    return [(event.netns, event.source) for event in events if isinstance(event, Counters)]


def both(netns: NetNs) -> list[tuple[int, str]]:
    return [(netns.cookie, "net/netstat"), (netns.cookie, "net/snmp")]


@pytest.mark.system
def test_a_namespace_is_read_at_once_and_each_second_until_a_while_after_its_last_trial(
    lab: Lab, actuator: Publisher, source: TrialsSource
) -> None:
    a = lab.netns()
    found = heard(actuator, source, trial(a.cookie, a.inode))
    assert kinds(found) == both(a)
    assert all(isinstance(event, Counters) and event.values for event in found)
    begun = source.due_ns
    assert source.collect(begun - 1, frozenset()) == []
    for second in range(3):
        assert kinds(source.collect(begun + second * SECOND_NS, frozenset())) == both(a)
    assert source.status().watched == ["TCP counters of 1 namespaces with a change on trial"]
    assert source.collect(begun + LINGER_NS + SECOND_NS, frozenset()) == []
    assert source.status() == Status([], [])


@pytest.mark.system
def test_the_counters_are_those_of_the_namespace_and_not_our_own(
    lab: Lab, actuator: Publisher, source: TrialsSource
) -> None:
    a = lab.netns()
    events = heard(actuator, source, outcome(a.cookie))
    netstat = next(event for event in events if isinstance(event, Counters) and event.source == "net/netstat")
    assert netstat.values["TcpExt.TCPOFOQueue"] == netstat.values["IpExt.InOctets"] == 0


@pytest.mark.system
def test_the_host_our_own_namespace_and_what_was_not_written_are_not_read(
    lab: Lab, actuator: Publisher, source: TrialsSource
) -> None:
    a, b = lab.netns(), lab.netns()
    events = [trial(0), trial(cookie_here()), outcome(b.cookie, "refused"), trial(a.cookie)]
    assert kinds(heard(actuator, source, *events)) == both(a)


@pytest.mark.system
def test_where_the_change_is_of_ipv6_its_counters_are_read_too_at_once(
    lab: Lab, actuator: Publisher, source: TrialsSource
) -> None:
    a, b = lab.netns(), lab.netns()
    change = Trial(1, 2, "ip_frag", "net.ipv6.ip6frag_high_thresh", a.cookie, a.inode, 1, 2, 1)
    assert kinds(heard(actuator, source, trial(a.cookie), trial(b.cookie))) == both(a) + both(b)
    six = (a.cookie, "net/snmp6")
    assert kinds(heard(actuator, source, change)) == [*both(a), six]
    assert sorted(kinds(source.collect(source.due_ns, frozenset()))) == sorted([*both(a), six, *both(b)])


@pytest.mark.system
def test_a_namespace_that_ends_is_no_trouble_and_another_handle_is_found(
    lab: Lab, actuator: Publisher, source: TrialsSource
) -> None:
    a = lab.netns()
    child = a.popen(["sleep", "60"])
    heard(actuator, source, trial(a.cookie, a.inode))
    place = next(iter(source._places.values()))
    place.handle = f"/proc/{child.pid}/ns/net"
    deadline_s = time.monotonic() + PATIENCE_S
    while Path(place.handle).stat().st_ino != a.inode and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert kinds(source.collect(source.due_ns, frozenset())) == both(a)
    child.kill()
    child.wait()
    assert source.collect(source.due_ns, frozenset()) == []
    assert kinds(source.collect(source.due_ns, frozenset())) == both(a)
    place.handle = "/proc/self/ns/net"
    assert source.collect(source.due_ns, frozenset()) == []
    assert source.status().missing == []


@pytest.mark.system
def test_one_that_is_not_there_is_looked_for_now_and_then(actuator: Publisher, source: TrialsSource) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not source._places and time.monotonic() < deadline_s:
        actuator.publish([trial(GONE)])
        source.collect(1, frozenset())
        time.sleep(0.02)
    assert source._places[GONE].retry_ns == 1 + RETRY_NS
    assert source.status().missing == []


@pytest.mark.system
def test_those_that_have_gone_are_searched_for_one_at_a_time_and_soon_let_go_of(
    lab: Lab, source: TrialsSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, searched = lab.netns(), []
    real = trials.netns.find
    monkeypatch.setattr(trials.netns, "find", lambda cookie, inode: searched.append(cookie) or real(cookie, inode))
    for cookie in (a.cookie, *range(GONE, GONE + 3)):
        source._wanted(trial(cookie, a.inode if cookie == a.cookie else 0), 1)
    counts = []
    for second in range(1, 16):
        source.collect(second * SECOND_NS, frozenset())
        counts.append(len(searched))
    assert counts[:3] == [2, 3, 4]
    assert counts[-1] == 4
    assert source._places.keys() == {a.cookie}


@pytest.mark.system
def test_one_that_the_census_knows_is_not_searched_for_unless_it_is_not_there(
    lab: Lab, tmp_path: Path, actuator: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, census, searched = lab.netns(), Census(), []
    census.scan(1)
    while not dict(census.places()).get(a.cookie):
        census.visit(1)
    real = trials.netns.find
    monkeypatch.setattr(trials.netns, "find", lambda cookie, inode: searched.append(cookie) or real(cookie, inode))
    source = TrialsSource(tmp_path, cookie_here(), census)
    try:
        source._wanted(trial(a.cookie), 1)
        assert kinds(source.collect(1, frozenset())) == both(a)
        assert searched == []
        source._places[a.cookie].handle = "/proc/self/ns/net"
        assert source.collect(SECOND_NS * 2, frozenset()) == []
        assert kinds(source.collect(SECOND_NS * 3, frozenset())) == both(a)
        assert searched == [a.cookie]
    finally:
        source.close()


def test_what_cannot_be_entered_or_understood_is_said(monkeypatch: pytest.MonkeyPatch, source: TrialsSource) -> None:
    source._wanted(trial(7), 1)

    def refuse(cookie: int, inode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(trials.netns, "find", refuse)
    assert source.collect(1, frozenset()) == []
    assert source.status() == Status([], ["counters of netns 7: Operation not permitted"])
    place = source._places[7]
    place.handle = "x"
    monkeypatch.setattr(trials.netns, "inside_each", lambda handles, do: [(7, [b"", b"rubbish"])])
    assert source.collect(SECOND_NS * 9, frozenset()) == []
    assert len(source.status().missing) == 1
    monkeypatch.setattr(trials.netns, "inside_each", lambda handles, do: [(7, [b"A: b\nA: 1\n", b"A: b\nA: 1\n"])])
    assert len(source.collect(SECOND_NS * 19, frozenset())) == 2
    assert source.status().missing == []


def test_so_many_namespaces_and_no_more(source: TrialsSource) -> None:
    wanted = [source._wanted(trial(netns), 1) for netns in range(1000, 1001 + PLACES_MAX)]
    assert wanted == [*([netns] for netns in range(1000, 1000 + PLACES_MAX)), []]


class Part:
    """A source that says one thing."""

    def __init__(self, number: int, ready: bool) -> None:
        self.number, self.ready, self.due_ns, self.closed = number, ready, number * 10, False

    def descriptors(self) -> list[int]:
        return [self.number]

    def collect(self, t_ns: int, readable: frozenset[int]) -> list[AnyEvent]:
        return [trial(self.number)]

    def status(self) -> Status:
        return Status([f"w{self.number}"], [f"m{self.number}"], {f"c{self.number}": self.number})

    def close(self) -> None:
        self.closed = True


def test_several_sources_are_one() -> None:
    parts = Part(1, True), Part(2, False)
    several = Several(*parts)
    assert (several.ready, several.due_ns, several.descriptors()) == (False, 10, [1, 2])
    assert several.collect(1, frozenset()) == [trial(1), trial(2)]
    assert several.status() == Status(["w1", "w2"], ["m1", "m2"], {"c1": 1, "c2": 2})
    several.close()
    assert all(part.closed for part in parts)
