"""What every decider keeps to, whatever a host does: tried on made-up worlds (trimtab.worlds) in a closed loop with the
engine and the gate, and on events that no host would send. A decider without a row in WORLDS fails."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_events import ANY_SIZE, stream

from bus import roles
from bus.codec import encode
from bus.schema import AnyEvent
from deciders.engine import Decider, decide
from trimtab.loop import Loop
from trimtab.waves import Wave, burst, constant, noise, ramp, sawtooth, square, step
from trimtab.worlds import CounterFile, Neighbours, Path, TcpFlow, World

RMEM, WMEM = "net.ipv4.tcp_rmem[2]", "net.ipv4.tcp_wmem[2]"
GC3 = "net.ipv4.neigh.default.gc_thresh3"
SAMPLE = "trimtab_listen_backlog.decider"
MODULES: dict[str, Any] = {
    name: importlib.import_module(built_in.module) for name, built_in in roles.BUILT_IN_DECIDERS.items()
}
ALL = MODULES | {"listen_backlog": importlib.import_module(SAMPLE)}
few = settings(max_examples=15, deadline=None)
many = settings(max_examples=100, deadline=None)


# --- worlds --------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """A world to be, and with which deciders."""

    deciders: tuple[str, ...]
    worlds: Sequence[World]
    tunables: tuple[str, ...]
    """Those that are to be looked at."""

    def loop(self, faults: Callable[[AnyEvent], Iterable[AnyEvent]] | None = None) -> Loop:
        return Loop(self.deciders, self.worlds, faults=faults)


SECONDS = st.floats(0.5, 30)
SEEDS = st.integers(0, 1 << 32)


def waves() -> st.SearchStrategy[Wave]:
    """Shapes from 0 to 1, some of them noisy."""
    one = st.one_of(
        st.builds(step, SECONDS, st.just(1.0)),
        st.builds(lambda begin, more: ramp(begin, begin + more, 1.0), SECONDS, SECONDS),
        st.builds(square, SECONDS, st.just(1.0), st.floats(0.1, 0.9)),
        st.builds(sawtooth, SECONDS, st.just(1.0)),
        st.builds(burst, SECONDS, SECONDS, st.just(1.0)),
    )
    noisy = st.builds(noise, SEEDS, st.sampled_from((0.0, 0.05, 0.2)))
    return st.builds(lambda shape, dirt: shape * dirt, one, noisy)


@st.composite
def tcp(draw: st.DrawFn) -> Made:
    """A flow that more or less is asked of, over a path that gives more or less."""
    fast = draw(st.floats(2e6, 250e6))
    path = Path(
        bandwidth=constant(fast * 0.3) + draw(waves()) * (fast * 0.7),
        demand=draw(st.sampled_from((1.0, 0.0))) * constant(1e12) + draw(waves()) * (2 * fast),
        rtt_s=draw(st.floats(0.005, 0.15)),
        queue_bytes=draw(st.sampled_from((2e5, 2e6, 2e7))),
        congestion=draw(st.sampled_from(("bbr", "fill"))),
        wscale=draw(st.sampled_from((7, 9, 14))),
    )
    limits = st.sampled_from((262_144, 30_000, 60_000, 70_000, 4 << 20))
    return Made(("tcp_buffer",), [TcpFlow(path, limits=(draw(limits), draw(limits)))], (RMEM, WMEM))


@st.composite
def neighbours(draw: st.DrawFn) -> Made:
    """Neighbours that come and go."""
    most = draw(st.floats(10, 20_000))
    third = draw(st.integers(4, 4096))
    thresholds = (draw(st.integers(1, third)), draw(st.integers(1, third)))
    table = Neighbours(draw(waves()) * most, thresholds=(min(thresholds), max(thresholds), third), every_s=0.05)
    return Made(("neigh_table",), [table], tuple(f"net.ipv4.neigh.default.gc_thresh{level}" for level in (1, 2, 3)))


@st.composite
def watched(draw: st.DrawFn) -> Made:
    """A flow that grows, with the guard at it: load comes and goes, losses now and then."""
    made = draw(tcp())
    flow = made.worlds[0]
    assert isinstance(flow, TcpFlow)
    load, loss = draw(waves()) * 30_000, draw(waves()) * draw(st.sampled_from((0.0, 0.001, 0.1)))
    segments, lost = load + 100, load * loss
    snmp = CounterFile("net/snmp", {"Tcp.OutSegs": segments, "Tcp.RetransSegs": lost}, netns=flow.sender)
    calm = {"TcpExt.TCPHPHits": segments, "TcpExt.TCPOFOQueue": lost, "TcpExt.TCPMemoryPressures": constant(0)}
    netstat = [CounterFile("net/netstat", calm, netns=netns) for netns in (flow.sender, flow.receiver)]
    sockstat = CounterFile("net/sockstat", {}, {"TCP.mem": load})
    return Made(("tcp_buffer", "guard"), [flow, snmp, *netstat, sockstat], made.tunables)


WORLDS: dict[str, st.SearchStrategy[Made]] = {"tcp_buffer": tcp(), "neigh_table": neighbours(), "guard": watched()}

each = pytest.mark.parametrize("name", roles.BUILT_IN_DECIDERS)


def test_every_decider_is_tried() -> None:
    assert WORLDS.keys() == roles.BUILT_IN_DECIDERS.keys()


# --- memory --------------------------------------------------------------------------------------------------------


def begun(name: str) -> Decider:
    return Decider(ALL[name], ALL[name].Policy())


def put_down_and_taken_up_at_every_event(name: str, events: Iterable[AnyEvent]) -> None:
    """What one cut loses may matter only later: so whatever any cut loses is missing from then on."""
    straight, again = begun(name), begun(name)
    for number, event in enumerate(events):
        other = begun(name)
        state, sent = again.remember()
        assert state
        other.recall(state, sent)
        again = other
        (_, expected), (_, found) = *decide((event,), [straight]), *decide((event,), [again])
        assert [encode(wish) for wish in found] == [encode(wish) for wish in expected], number
    ends = begun(name)
    ends.recall(*straight.remember())
    assert again.remember() == ends.remember()


@pytest.mark.parametrize("name", ALL)
@given(st.data())
@few
def test_taken_up_at_any_event_a_decider_goes_on_as_if_nothing_had_been(name: str, data: st.DataObject) -> None:
    put_down_and_taken_up_at_every_event(name, data.draw(stream(ALL[name].TOPICS)))


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
@given(st.data())
@many
def test_taken_up_at_any_event_also_with_numbers_that_no_kernel_has(name: str, data: st.DataObject) -> None:
    put_down_and_taken_up_at_every_event(name, data.draw(stream(ALL[name].TOPICS, 100, ANY_SIZE)))


@each
@given(st.data())
@few
def test_taken_up_at_any_event_of_a_host_a_decider_goes_on_as_if_nothing_had_been(
    name: str, data: st.DataObject
) -> None:
    made = data.draw(WORLDS[name])
    put_down_and_taken_up_at_every_event(name, made.loop().run(30).events)


# --- what the gate sees --------------------------------------------------------------------------------------------


def kept_to_the_rules(loop: Loop, tunables: Sequence[str]) -> None:
    """Nothing was asked for that the gate had to refuse, and no key turned round more than twice."""
    assert loop.refused == []
    assert all(loop.reversals(tunable) <= 2 for tunable in tunables), loop.changes


@each
@given(st.data())
@few
def test_no_wish_is_refused_and_no_key_turns_round_more_than_twice(name: str, data: st.DataObject) -> None:
    made = data.draw(WORLDS[name])
    kept_to_the_rules(made.loop().run(60), made.tunables)


@pytest.mark.long
@each
@given(st.data())
@many
def test_no_wish_is_refused_within_an_hour(name: str, data: st.DataObject) -> None:
    made = data.draw(WORLDS[name])
    kept_to_the_rules(made.loop().run(3600), made.tunables)
