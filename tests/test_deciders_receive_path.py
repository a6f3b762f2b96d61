"""receive_path in a closed loop with a made-up processor (trimtab.testing.worlds.ReceivePath), and event by event."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.config import Config
from bus.schema import AnyEvent, Counters, Drops, Host, Outcome, Value, Wish
from deciders import receive_path
from deciders.engine import Decider
from deciders.receive_backlog import FLOOR_CEILING, PLACES_MAX
from deciders.receive_policy import Policy
from trimtab.testing.loop import Loop
from trimtab.testing.waves import Wave, burst, constant, step
from trimtab.testing.worlds import BACKLOG, PACKETS, TIME, ReceivePath

SEC = 1_000_000_000
MS = 1_000_000
few = settings(max_examples=15, deadline=None)
either = pytest.mark.parametrize("probe", [True, False], ids=["bpf", "proc"])


def loop(world: ReceivePath, **policy: Any) -> Loop:
    return Loop(["receive_path"], [world], Config(policy={"receive_path": policy}))


def values(ran: Loop, tunable: str) -> list[int]:
    """What stood there, one after the other."""
    changes = ran.of(tunable)
    return [changes[0].old, *(change.new for change in changes)] if changes else []


def whys(ran: Loop, tunable: str) -> list[str]:
    return [wish.why for wish in ran.wishes if isinstance(wish, Wish) and wish.tunable == tunable]


# --- the backlog ---------------------------------------------------------------------------------------------------


@either
def test_a_backlog_that_is_full_is_doubled_until_bursts_fit_in(probe: bool) -> None:
    world = ReceivePath(constant(5000), probe=probe)
    ran = loop(world).run(20)
    assert values(ran, BACKLOG) == [1000, 2000, 4000, 8000]
    assert world.lately == 0
    assert ran.refused == []
    assert "found a CPU's queue of 1000 full" in whys(ran, BACKLOG)[0]


@few
@given(st.integers(1, 16), st.sampled_from((64, 300, 1000)), st.booleans())
def test_bursts_of_up_to_sixteen_times_the_backlog_fit_in_within_ten_seconds_and_no_more_room_than_twice_is_made(
    times: int, backlog: int, probe: bool
) -> None:
    world = ReceivePath(constant(times * backlog), per_s=1e6, limits=(backlog, 300, 8000), probe=probe)
    ran = loop(world).run(10)
    assert world.lately == 0
    assert ran.peak(BACKLOG) <= max(backlog, 2 * times * backlog)
    before = ran.final(BACKLOG)
    assert ran.run(60).final(BACKLOG) == before


@either
@pytest.mark.parametrize("quiet_s", [0.0, 9.5])
def test_bursts_far_larger_than_the_backlog_fit_in_soon_however_long_it_was_quiet_before(
    probe: bool, quiet_s: float
) -> None:
    """Seen: what was dropped after nine quiet seconds was taken for a tenth of it each second, so that no growth seemed
    to help."""
    world = ReceivePath(step(quiet_s, 1600), per_s=1e6, limits=(64, 300, 8000), probe=probe)
    ran = loop(world).run(quiet_s + 12)
    assert values(ran, BACKLOG) == [64, 128, 256, 512, 1024, 2048]
    assert world.lately == 0


@either
def test_a_processor_that_cannot_keep_up_gets_no_longer_queue(probe: bool) -> None:
    world = ReceivePath(constant(50_000), per_s=100_000, probe=probe)
    ran = loop(world).run(120)
    assert values(ran, BACKLOG) == [1000, 2000, 4000, 8000, 16000, 8000, 4000, 2000, 1000]
    assert world.lately > 0
    assert "a longer one only delays" in whys(ran, BACKLOG)[-1]
    assert ran.reversals(BACKLOG) == 1


def test_what_did_not_help_is_tried_again_after_the_rest() -> None:
    ran = loop(ReceivePath(constant(50_000), per_s=100_000), rest_s=30).run(60)
    # Up, back, and up once more; the third turn within an hour would have the key parked.
    assert ran.reversals(BACKLOG) == 2
    assert ran.refused == []


@either
def test_a_few_packets_in_ten_seconds_are_no_reason(probe: bool) -> None:
    trickle = Wave(lambda seconds: 1008.0 if round(seconds * 10) % 110 == 0 else 0.0)
    world = ReceivePath(trickle, probe=probe)
    assert loop(world).run(100).changes == []
    assert world.dropped > 50


def test_after_a_long_quiet_it_goes_halfway_back_and_again_until_it_is_as_it_was() -> None:
    ran = loop(ReceivePath(constant(5000).until(5.0)), idle_s=100).run(400)
    assert values(ran, BACKLOG) == [1000, 2000, 4000, 8000, 4000, 2000, 1000]
    down = [change.seconds for change in ran.of(BACKLOG) if change.new < change.old]
    assert down[0] == pytest.approx(105, abs=3)
    assert [later - sooner for sooner, later in pairwise(down)] == pytest.approx([25, 25], abs=2)
    assert "back towards 1000" in whys(ran, BACKLOG)[-1]


def test_bursts_that_come_back_every_quarter_of_an_hour_have_the_key_turn_round_twice_and_then_stay() -> None:
    often = Wave(lambda seconds: 5000.0 if seconds % 900 < 5 else 0.0)
    ran = loop(ReceivePath(often)).run(3500)
    assert ran.reversals(BACKLOG) == 2
    assert ran.final(BACKLOG) == 8000
    assert ran.refused == []


# --- event by event ------------------------------------------------------------------------------------------------


class Spoken:
    """A decider, and the actuator's and the collectors' words to it."""

    def __init__(self, value: int = 1000, mem_bytes: int = 8 << 30, cpus: int = 2, **policy: Any) -> None:
        self.decider = Decider(receive_path, Policy(**policy))  # type: ignore[arg-type]
        self.t_ns = 100 * SEC
        self.dropped = self.flow_limit = 0
        self.tell(Host(self.t_ns, "b", "6", "m", cpus, mem_bytes, 4096, 37))
        self.value(value)
        self.softnet()

    def tell(self, event: AnyEvent) -> list[Wish]:
        self.decider.state, wishes = self.decider.fold(self.decider.state, event)
        return list(wishes)

    def later(self, ms: int) -> Spoken:
        self.t_ns += ms * MS
        return self

    def value(self, value: int, held: bool = False, original: int = 1000) -> None:
        self.tell(Value(self.t_ns, BACKLOG, 0, 0, value, original, 64, 65536, held))

    def drops(self, count: int, netns: int = 7, ifindex: int = 3, reason: str = "CPU_BACKLOG") -> list[Wish]:
        return self.tell(Drops(self.t_ns, netns, 1, ifindex, reason, count))

    def softnet(self, dropped: int = 0, flow_limit: int = 0) -> list[Wish]:
        """So many more since the last time."""
        self.dropped += dropped
        self.flow_limit += flow_limit
        values = {"processed": 1000, "dropped": self.dropped, "time_squeeze": 0, "flow_limit": self.flow_limit}
        return self.tell(Counters(self.t_ns, 0, "net/softnet_stat", values))


def test_the_probe_is_answered_at_once() -> None:
    host = Spoken()
    assert host.later(100).drops(1) == []
    (wish,) = host.later(100).drops(622)
    assert (wish.tunable, wish.netns, wish.believed, wish.want) == (BACKLOG, 0, 1000, 2000)
    assert wish.why == "622 packets found a CPU's queue of 1000 full"
    assert (wish.evidence["event"], wish.evidence["dropped"]) == (f"Drops@{host.t_ns}", 622)


def test_what_the_probe_has_told_softnet_stat_does_not_tell_again() -> None:
    host = Spoken()
    host.later(100).drops(1)
    assert host.later(100).drops(9) == []
    assert host.later(100).softnet(dropped=9) == []
    assert host.later(100).softnet(dropped=1)


def test_drops_for_other_reasons_are_others_business() -> None:
    host = Spoken()
    host.later(100).drops(1, reason="SOCKET_RCVBUFF")
    assert host.later(100).drops(10_000, reason="SOCKET_RCVBUFF") == []


def test_the_first_that_is_heard_of_a_place_may_be_the_sum_of_days() -> None:
    host = Spoken()
    assert host.later(100).drops(1_000_000) == []
    assert host.later(100).drops(1_000_005) == []
    assert host.later(100).drops(1_000_009)


def test_a_probe_that_counts_anew_takes_nothing_away() -> None:
    host = Spoken(dropped=3)
    host.later(100).drops(500)
    assert host.later(100).drops(1) == []
    assert host.later(100).drops(2)


def test_packets_that_the_flow_limit_dropped_are_no_reason() -> None:
    host = Spoken()
    assert host.later(1000).softnet(dropped=500, flow_limit=400) == []
    assert host.later(1000).softnet(dropped=500, flow_limit=100)


def test_counters_that_began_anew_are_no_drops() -> None:
    host = Spoken()
    host.later(1000).softnet(dropped=5)
    host.dropped = 0
    assert host.later(1000).softnet() == []
    assert host.later(1000).softnet(dropped=4) == []


def test_hands_off_what_is_held_and_nothing_is_asked_before_the_value_is_known() -> None:
    host = Spoken()
    host.value(1000, held=True)
    assert host.later(1000).softnet(dropped=500) == []
    unknown = Decider(receive_path, Policy())  # type: ignore[arg-type]
    for second in range(1, 5):
        values = {"processed": 1, "dropped": 1000 * second, "time_squeeze": 500 * second, "flow_limit": 0}
        unknown.state, wishes = unknown.fold(unknown.state, Counters(second * SEC, 0, "net/softnet_stat", values))
        assert wishes == ()


@pytest.mark.parametrize(("mem_gib", "cpus", "most"), [(8, 2, 32768), (8, 256, FLOOR_CEILING), (512, 64, 65536)])
def test_all_queues_together_may_take_a_share_of_memory(mem_gib: int, cpus: int, most: int) -> None:
    host = Spoken(mem_bytes=mem_gib << 30, cpus=cpus, backlog_patience=16)
    value, asked = 1000, []
    for _ in range(20):
        for wish in host.later(2000).softnet(dropped=5000):
            value = wish.want
            asked.append(value)
            host.later(5).value(value)
    assert asked[-1] == max(asked) == most


def test_drops_that_once_became_fewer_must_go_on_doing_so() -> None:
    host = Spoken(value=64)
    value, asked = 64, []
    for dropped in (1000, 450, *[400] * 8):
        for wish in host.later(1500).softnet(dropped=dropped):
            value = wish.want
            asked.append(value)
            host.later(5).value(value, original=64)
    # Half as many after the first step; then four that changed nothing.
    assert asked[:6] == [128, 256, 512, 1024, 2048, 1024]


def test_in_mode_advise_the_same_advice_comes_again_and_no_other() -> None:
    host = Spoken()
    wants = []
    for _ in range(30):
        for wish in host.later(1000).softnet(dropped=100):
            wants.append(wish.want)
            host.tell(Outcome(host.t_ns, "receive_path", BACKLOG, 0, 1000, 2000, "advised", "", 1000, 0))
    assert 3 <= len(wants) <= 8
    assert set(wants) == {2000}


def test_what_the_guard_put_back_is_not_asked_for_at_once() -> None:
    host = Spoken()
    (wish,) = host.later(1000).softnet(dropped=100)
    host.later(5).value(wish.want)
    host.later(5000).tell(Outcome(host.t_ns, "receive_path", BACKLOG, 0, 1000, 2000, "reverted", "guard", 1000, 1))
    assert not any(host.later(1000).softnet(dropped=100) for _ in range(50))


def test_places_without_end_take_no_more_memory() -> None:
    host = Spoken()
    for netns in range(PLACES_MAX + 50):
        host.later(20_000).drops(1, netns=netns)
    assert len(host.decider.state.backlog.places) == PLACES_MAX


# --- the budgets ---------------------------------------------------------------------------------------------------


def squeezed(
    wait: Wave | None = None, per_s: float = 40_000.0, limits: tuple[int, int, int] = (65_536, 300, 8000)
) -> ReceivePath:
    """A processor that is busy with packets all the time."""
    return ReceivePath(constant(per_s / 10), per_s=per_s, wait=wait or constant(0.0), limits=limits)


def test_squeezes_raise_the_packets_of_a_run_while_fewer_packets_do_not_end_it() -> None:
    ran = loop(squeezed()).run(30)
    assert values(ran, PACKETS)[:2] == [300, 450]
    assert ran.of(TIME) == [] or ran.of(TIME)[0].seconds > ran.of(PACKETS)[0].seconds
    assert "times a second a run of the receive softirq ended with work left" in whys(ran, PACKETS)[0]


def test_where_fewer_packets_than_the_budget_end_a_run_time_does() -> None:
    # 8 ms of 10,000 packets/s are 80 packets.
    ran = loop(squeezed(per_s=10_000.0), squeezes_per_s=50).run(12)
    assert [change.spot.tunable for change in ran.changes][:1] == [TIME]


def test_a_budget_that_does_not_help_goes_back_and_says_so() -> None:
    # Here packets alone end a run.
    world = squeezed(limits=(65_536, 64, 20_000), per_s=2e6)
    ran = loop(world, budget_helps=0.05).run(60)
    assert values(ran, PACKETS) == [64, 96, 144, 72, 64]
    assert "more does not help; back to 64" in whys(ran, PACKETS)[-1]
    assert ran.refused == []


def test_one_budget_does_not_grow_while_the_other_comes_down() -> None:
    ran = loop(squeezed(limits=(65_536, 64, 8000), per_s=2e6), budget_helps=0.05).run(60)
    assert values(ran, PACKETS)[-1] == 64
    assert ran.of(TIME)[0].seconds > ran.of(PACKETS)[-1].seconds


@pytest.mark.parametrize(("gap_s", "squeezes", "grows"), [(6, 600, True), (100, 10_000, False), (6, -600, False)])
def test_totals_that_are_far_apart_or_began_anew_are_no_rate(gap_s: int, squeezes: int, grows: bool) -> None:
    host = Spoken()
    host.tell(Value(host.t_ns, PACKETS, 0, 0, 300, 300, 64, 2400, False))
    host.tell(Value(host.t_ns, TIME, 0, 0, 8000, 8000, 1000, 20_000, False))
    for total, processed in ((1000, 10**6), (1000 + squeezes, 2 * 10**6)):
        values = {"processed": processed, "dropped": 0, "time_squeeze": total}
        wishes = host.later(gap_s * 1000).tell(Counters(host.t_ns, 0, "net/softnet_stat", values))
    assert bool(wishes) == grows


def test_few_squeezes_are_no_reason() -> None:
    assert loop(squeezed(), squeezes_per_s=1000).run(60).changes == []


def test_tasks_that_wait_for_a_processor_since_the_budgets_grew_bring_them_down() -> None:
    ran = loop(squeezed(wait=constant(0.3) + step(40, 0.6), per_s=200_000.0)).run(90)
    for tunable in {change.spot.tunable for change in ran.changes}:
        assert ran.peak(tunable) > ran.final(tunable) == values(ran, tunable)[0]
        assert "some task waited for a CPU 90% of the time" in whys(ran, tunable)[-1]
    assert ran.changes


def test_tasks_that_waited_as_long_before_are_no_reason() -> None:
    ran = loop(squeezed(wait=constant(0.9), per_s=200_000.0)).run(60)
    assert all(change.new > change.old for change in ran.of(PACKETS)[:3])
    assert not any("waited for a CPU" in why for why in whys(ran, PACKETS))


def test_without_psi_the_budgets_still_come_down_after_a_long_quiet() -> None:
    world = ReceivePath(burst(0, 30, 20_000), per_s=200_000.0, limits=(65_536, 300, 8000))
    kept = Loop(["receive_path"], [world], Config(policy={"receive_path": {"idle_s": 100}}), faults=_without_psi)
    kept.run(600)
    assert kept.peak(PACKETS) > 300
    assert kept.final(PACKETS) == 300
    assert kept.final(TIME) == 8000


def _without_psi(event: AnyEvent) -> tuple[AnyEvent, ...]:
    return () if isinstance(event, Counters) and event.source.startswith("pressure") else (event,)
