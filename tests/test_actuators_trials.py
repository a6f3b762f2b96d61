"""Trials and how they end: by lease, verdict, operator, dead-man, foreign write; what is confirmed stays."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from actuator_world import RMEM, ROWS, THRESH, WEB, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actuators import deadman, holds, leases, others, records, restore
from actuators import parts as parts_module
from actuators.foreign import Foreign
from actuators.records import Spot
from actuators.state_dir import LOCK
from actuators.trials import Trials
from actuators.watch import Watch
from bus.link import LinkError, Lock
from bus.roles import GUARD
from bus.schema import Ask, SysctlWrite, Trial, Verdict

FIRST, SECOND, THIRD = 300000, 400000, 500000
ORIGINAL = 262144


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def boottime(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves CLOCK_BOOTTIME on, as the leases read it."""
    ahead_ns = 0

    def move(seconds: float) -> None:
        nonlocal ahead_ns
        ahead_ns += int(seconds * 1e9)

    monkeypatch.setattr(leases, "now_ns", lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ahead_ns)
    return move


def trials(world: World, guarded: bool = False) -> Trials:
    return Trials(world.parts, guarded)


def verdict(change: int, confirm: bool, late_ns: int = 0) -> Verdict:
    return Verdict(1, time.monotonic_ns() - late_ns, 10**9, change, confirm, "retransmits 0.1 % -> 3.2 %", {})


def rising(written: list[tuple[str, int]]) -> None:
    """The thresholds rise at every instant of these writes."""
    stands = dict(zip(THRESH, (128, 512, 1024), strict=True))
    for name, value in written:
        stands |= {name: value} if name in stands else {}
        assert stands[THRESH[0]] <= stands[THRESH[1]] <= stands[THRESH[2]]


# --- leases


def test_a_trial_whose_decider_falls_silent_is_put_back_at_the_end_of_its_lease(
    world: World, boottime: Callable[[float], None]
) -> None:
    judge = trials(world)
    world.wish(FIRST)
    boottime(29.5)
    judge.tend()
    assert world.value() == FIRST
    boottime(1.0)
    judge.tend()
    assert world.value() == ORIGINAL
    assert world.states() == ["reverted"]
    assert "tcp_buffer has not been heard for 30 s" in world.changes()[0].detail


def test_beats_keep_a_trial_and_those_of_another_decider_do_not(
    world: World, boottime: Callable[[float], None]
) -> None:
    judge = trials(world)
    world.wish(FIRST)
    for _ in range(5):
        boottime(20.0)
        judge.beat("tcp_buffer")
        judge.tend()
    assert world.value() == FIRST
    for _ in range(2):
        boottime(20.0)
        judge.beat("neigh_table")
        judge.tend()
    assert world.value() == ORIGINAL


def test_thresholds_whose_lease_ran_out_go_back_in_order(world: World, boottime: Callable[[float], None]) -> None:
    for key, want in zip(reversed(THRESH), (2048, 1024, 256), strict=True):
        assert world.wish(want, key).verdict == "written"
    boottime(31.0)
    trials(world).tend()
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]
    rising(world.kernel.written)


def test_a_trial_that_nobody_judges_goes_back_when_the_guard_is_silent(
    world: World, boottime: Callable[[float], None]
) -> None:
    judge = trials(world, guarded=True)
    world.wish(FIRST)
    for guard_too in (True, True, False):
        judge.beat("tcp_buffer")
        if guard_too:
            judge.beat(GUARD)
        judge.tend()
        assert world.value() == FIRST
        boottime(15.5)
    judge.beat("tcp_buffer")
    judge.tend()
    assert world.value() == ORIGINAL
    assert "guard has not been heard for 30 s" in world.changes()[0].detail


# --- confirmed


def test_a_confirmed_change_outlives_a_stop_a_crash_and_silence(
    world: World, tmp_path: Path, boottime: Callable[[float], None]
) -> None:
    world.wish(FIRST)
    assert world.parts.orders.confirm(Ask("confirm", change=1, who="root")).ok
    assert world.modes.stop() == 0
    assert world.value() == FIRST
    crashed = world.next_run(tmp_path)
    boottime(60.0)
    trials(crashed).tend()
    assert crashed.value() == FIRST
    assert crashed.states() == ["confirmed"]
    assert crashed.parts.orders.rollback(Ask("rollback", change=1, who="root")).ok
    assert crashed.value() == ORIGINAL
    crashed.close()


def test_a_trial_on_top_of_a_confirmed_change_goes_back_to_what_is_confirmed(world: World, tmp_path: Path) -> None:
    for want in (FIRST, SECOND):
        world.wish(want)
    world.parts.orders.confirm(Ask("confirm", change=2))
    world.wish(THIRD)
    assert world.states() == ["confirmed", "confirmed", "trial"]
    after = world.next_run(tmp_path)
    assert after.value() == SECOND
    assert after.states() == ["confirmed", "confirmed", "reverted"]
    assert after.parts.orders.rollback(Ask("rollback")).ok
    assert after.value() == ORIGINAL
    after.close()


def test_what_is_not_on_trial_cannot_be_confirmed(world: World) -> None:
    world.wish(FIRST)
    assert world.parts.orders.revert(Ask("revert", change=1)).ok
    for change in (1, 7):
        answer = world.parts.orders.confirm(Ask("confirm", change=change))
        assert not answer.ok
        assert f"change {change} is not on trial" in answer.lines[0]


# --- the guard


def test_the_guards_word_confirms_or_reverts_and_parks(world: World) -> None:
    judge = trials(world)
    world.wish(FIRST)
    judge.judge(verdict(1, confirm=True), GUARD, time.monotonic_ns())
    assert world.states() == ["confirmed"]
    world.wish(SECOND)
    judge.judge(verdict(2, confirm=False), GUARD, time.monotonic_ns())
    assert world.states() == ["confirmed", "reverted"]
    assert world.value() == FIRST
    assert "retransmits 0.1 % -> 3.2 %" in world.changes()[1].detail
    refused = world.wish(SECOND)
    assert refused.verdict == "refused"
    assert "parked: guard: retransmits" in refused.reason


@pytest.mark.parametrize(
    ("change", "late_ns", "lane"),
    [(1, 0, "tcp_buffer"), (2, 0, GUARD), (1, 10**10, GUARD), (1, -(10**10), GUARD)],
    ids=["from another lane", "of no change", "too late", "from the future"],
)
def test_a_verdict_that_does_not_count_changes_nothing(world: World, change: int, late_ns: int, lane: str) -> None:
    judge = trials(world)
    world.wish(FIRST)
    # Made here, not as a parameter: its time would be that of the collection, minutes ago in a long run.
    word = verdict(change, confirm=False, late_ns=late_ns)
    judge.judge(word, lane, time.monotonic_ns())
    assert world.states() == ["trial"]
    assert judge.late == 1


def test_what_is_on_trial_is_told_with_its_guards(world: World) -> None:
    for want in (FIRST, SECOND):
        world.wish(want)
    world.parts.orders.confirm(Ask("confirm", change=1))
    told: list[Trial] = []
    trials(world).tell(told.append, dict(ROWS))  # type: ignore[arg-type]
    assert [(one.change, one.old, one.new, one.guards) for one in told] == [(2, FIRST, SECOND, ROWS[RMEM].guards)]


# --- the dead-man


def looks(man: deadman.Deadman) -> None:
    """So many that one of them opens the journal."""
    for _ in range(deadman.SELDOM):
        man.look()


def test_the_dead_man_waits_for_the_lease_and_then_puts_back(world: World, boottime: Callable[[float], None]) -> None:
    world.wish(FIRST)
    world.close()
    man = deadman.Deadman(world.state)
    acted: list[str] = []
    ended = [0]

    def end_trials(folder: Path, lapsed: object, why: str) -> list[str]:
        ended[0] += 1
        acted.append(why)
        return []

    patched = pytest.MonkeyPatch()
    patched.setattr(deadman.offline, "end_trials", end_trials)
    try:
        looks(man)
        assert ended == [0]
        boottime(30.5)
        man.look()
        assert ended == [1]
        assert acted == ["dead-man: no sign of life for 30 s"]
    finally:
        patched.undo()


def test_the_dead_man_sleeps_no_longer_than_to_the_end_of_a_lease(
    world: World, boottime: Callable[[float], None]
) -> None:
    man = deadman.Deadman(world.state)
    man.look()
    assert man.pause_ns() == deadman.LOOK_NS, "nothing is on trial"
    world.wish(FIRST)
    looks(man)
    assert man.pause_ns() == deadman.LOOK_NS, "30 s are left"
    boottime(29.6)
    assert 0 < man.pause_ns() < 0.4e9, "also of a trial that only the journal knows"
    boottime(1.0)
    assert man.pause_ns() == deadman.AGAIN_NS


def test_the_dead_man_kills_an_actuator_that_holds_the_lock_and_does_not_act(
    world: World, boottime: Callable[[float], None]
) -> None:
    world.wish(FIRST)
    world.close()
    held = subprocess.Popen(
        [sys.executable, "-c", f"import time\nfrom bus.link import Lock\nfrom pathlib import Path\n"
         f"lock = Lock(Path({str(world.state / LOCK)!r}), 'x')\nprint('held', flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert held.stdout
        held.stdout.readline()
        held.send_signal(signal.SIGSTOP)
        man = deadman.Deadman(world.state)
        boottime(30.2)
        looks(man)
        assert held.poll() is None, "it has a moment to act by itself"
        boottime(1.0)
        looks(man)
        assert held.wait(10) == -signal.SIGKILL
    finally:
        held.kill()
        held.communicate()


def test_an_actuator_that_lets_go_just_before_it_is_killed_does_not_end_the_dead_man(
    world: World, boottime: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.wish(FIRST)
    world.close()
    tries = 0

    def held(folder: Path, lapsed: object, why: str) -> list[str]:
        nonlocal tries
        tries += 1
        raise LinkError("the actuator is already running here")

    monkeypatch.setattr(deadman.offline, "end_trials", held)
    man = deadman.Deadman(world.state)
    boottime(32.0)
    looks(man)
    man.look()
    assert tries == 2


def test_a_lease_that_is_kept_is_seen_at_the_first_look(world: World, boottime: Callable[[float], None]) -> None:
    world.wish(FIRST)
    trials(world).tend()
    world.close()
    man = deadman.Deadman(world.state)
    man.look()
    assert world.value() == FIRST
    boottime(31.0)
    assert leases.read(world.state).keys() == {"tcp_buffer"}
    acted: list[str] = []
    patched = pytest.MonkeyPatch()
    patched.setattr(deadman.offline, "end_trials", lambda folder, lapsed, why: acted.append(why) or [])
    man.look()
    patched.undo()
    assert acted


def test_the_dead_man_harms_nobody_who_merely_wrote_a_pid_into_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(f"{os.getpid()}\n")
    assert deadman.offline.holder(path) == 0
    lock = Lock(path, "x")
    assert deadman.offline.holder(path) == os.getpid()
    lock.close()


@pytest.mark.system
def test_nobody_is_taken_for_the_holder_of_a_lock_on_another_file_system(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    try:
        for place in (ours, other):
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "trimtab-test", place], check=True)
            (place / "lock").touch()
        assert (ours / "lock").stat().st_ino == (other / "lock").stat().st_ino
        lock = Lock(other / "lock", "x")
        assert deadman.offline.holder(ours / "lock") == 0
        assert deadman.offline.holder(other / "lock") == os.getpid()
        lock.close()
    finally:
        for place in (ours, other):
            subprocess.run(["umount", place], check=True)


# --- what the guard cannot have


def test_a_verdict_takes_back_what_was_changed_since_and_stands_in_the_way(world: World) -> None:
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1024), (THRESH[1], 1500), (THRESH[0], 250)):
        assert world.wish(want, key).verdict == "written"
    world.kernel.written.clear()
    trials(world).judge(verdict(1, False), GUARD, time.monotonic_ns())
    # The lowest threshold may stay beside the originals of the others.
    assert [world.value(key, 0) for key in THRESH] == [250, 512, 1024]
    # In an order in which they rise at every instant.
    assert world.kernel.written == [(THRESH[1], 512), (THRESH[2], 1024)]
    assert world.states() == ["reverted", "reverted", "reverted", "trial"]


def test_a_verdict_leaves_what_was_changed_since_and_is_not_in_the_way(world: World) -> None:
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1000)):
        assert world.wish(want, key).verdict == "written"
    trials(world).judge(verdict(1, False), GUARD, time.monotonic_ns())
    assert [world.value(key, 0) for key in THRESH] == [128, 1000, 1024]


def test_a_verdict_takes_nothing_back_where_a_value_that_is_not_ours_stands_in_the_way(world: World) -> None:
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1000), (THRESH[1], 1500)):
        assert world.wish(want, key).verdict == "written"
    world.foreign(1200, THRESH[0], 0)
    trials(world).judge(verdict(1, False), GUARD, time.monotonic_ns())
    assert [world.value(key, 0) for key in THRESH] == [1200, 1500, 2048]
    assert world.states() == ["trial", "trial", "trial"]


def test_a_verdict_that_a_relation_forbids_is_said_once_with_the_reason(world: World) -> None:
    assert world.wish(2048, THRESH[2]).verdict == "written"
    # Not by us, so not ours to take back.
    world.foreign(1500, THRESH[1], 0)
    judge = trials(world)
    for _ in range(3):
        judge.judge(verdict(1, False), GUARD, time.monotonic_ns())
        judge.tell(lambda event: None, ROWS)
    told = [line for line in world.lines if line.startswith("not put back as the guard asks")]
    assert len(told) == 1
    assert f"{THRESH[2]} cannot go back to 1024 alone, as {THRESH[1]} is 1500" in told[0]
    assert judge.late == 0
    world.foreign(512, THRESH[1], 0)
    judge.judge(verdict(1, False), GUARD, time.monotonic_ns())
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]


def test_what_was_said_of_a_change_is_forgotten_with_it(world: World) -> None:
    world.wish(FIRST)
    world.kernel.error = "Invalid argument"
    judge = trials(world)
    judge.judge(verdict(1, False), GUARD, time.monotonic_ns())
    assert any("not put back as the guard asks" in line and "1 could not be" in line for line in world.lines)
    assert judge._told == {1}
    world.kernel.error = ""
    judge.judge(verdict(1, False), GUARD, time.monotonic_ns())
    judge.tell(lambda event: None, ROWS)
    assert judge._told == set()


# --- foreign writes


def write(world: World, new: str, **more: object) -> None:
    fields = {"pid": 1, "uid": 0, "comm": "sysctl", "netns": WEB, "name": "net/ipv4/tcp_rmem", **more}
    foreign = Foreign(world.parts)
    foreign.written(SysctlWrite(t_ns=time.monotonic_ns(), netns_ino=7, old="", new=new, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [FIRST, 350000], ids=["of the value that stands", "of another"])
def test_a_foreign_write_takes_the_key_at_once_and_is_told_with_who(world: World, value: int) -> None:
    world.wish(FIRST)
    world.foreign(value)
    write(world, f"4096 131072 {value}")
    assert world.states() == ["ceded"]
    assert world.value() == value
    assert "sysctl (pid 1, uid 0" in world.changes()[0].detail
    assert world.wish(SECOND).verdict == "refused"
    assert world.modes.stop() == 0
    assert world.value() == value


@pytest.mark.parametrize(
    "more",
    [
        {"pid": os.getpid()},
        {"comm": "systemd-sysctl"},
        {"netns": WEB + 1},
        {"name": "net/ipv4/tcp_wmem"},
    ],
    ids=["of our own", "udev's re-run of systemd-sysctl", "in another namespace", "of another key"],
)
def test_a_write_that_is_no_override_takes_nothing(world: World, more: dict[str, object]) -> None:
    world.wish(FIRST)
    write(world, f"4096 131072 {FIRST}", **more)
    assert world.states() == ["trial"]


def test_systemd_sysctl_with_another_value_is_an_override(world: World) -> None:
    world.wish(FIRST)
    write(world, f"4096 131072 {SECOND}", comm="systemd-sysctl")
    assert world.states() == ["ceded"]


def test_what_was_written_before_the_key_was_ours_does_not_count(world: World) -> None:
    write(world, f"4096 131072 {FIRST}")
    assert world.wish(FIRST).verdict == "written"


# --- pace


def test_a_third_turn_parks_the_key(world: World) -> None:
    wants = [FIRST, ORIGINAL, FIRST, ORIGINAL]
    verdicts = [world.wish(want).verdict for want in wants]
    assert verdicts == ["written", "written", "written", "refused"]
    assert any("parked: down again would be turn 3" in line for line in world.lines)
    assert "parked" in world.wish(SECOND).reason


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(200_000, 400_000), min_size=4, max_size=30))
def test_whatever_is_wished_a_key_turns_round_no_more_than_twice(tmp_path_factory: pytest.TempPathFactory,
                                                                 wants: list[int]) -> None:  # fmt: skip
    world = World(tmp_path_factory.mktemp("turns"))
    for want in wants:
        world.wish(want)
    values = [ORIGINAL, *(value for _, value in world.kernel.written)]
    ways = [after > before for before, after in itertools.pairwise(values)]
    assert sum(one != after for one, after in itertools.pairwise(ways)) <= 2
    world.close()


# --- what others set


def test_what_sysctl_d_sets_is_ceded_unless_the_configuration_says_otherwise(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "root/etc/sysctl.d"
    folder.mkdir(parents=True)
    (folder / "90-net.conf").write_text("net.ipv4.neigh.default.gc_thresh3 = 1024\n")
    watch = Watch(world.parts)
    watch.cede(tmp_path / "root", ["sysctl.d"])
    refused = world.wish(2048, THRESH[2])
    assert refused.verdict == "refused"
    assert "sysctl.d /etc/sysctl.d/90-net.conf line 1" in refused.reason
    assert world.wish(FIRST).verdict == "written"
    assert Spot(THRESH[2], 0) in world.parts.keeper.ceded
    watch.cede(tmp_path / "root", ["tuned"])
    assert world.wish(2048, THRESH[2]).verdict == "written"


def test_what_is_on_trial_goes_back_when_sysctl_d_comes_to_set_it_and_what_is_confirmed_stays(
    world: World, tmp_path: Path
) -> None:
    tried, elsewhere, kept = world.wish(FIRST, netns=1), world.wish(FIRST), world.wish(2048, THRESH[2])
    assert world.parts.orders.confirm(Ask("confirm", change=kept.change)).ok
    folder = tmp_path / "root/etc/sysctl.d"
    folder.mkdir(parents=True)
    (folder / "90-net.conf").write_text("net.ipv4.tcp_rmem = 1 2 3\nnet.ipv4.neigh.default.gc_thresh3 = 1024\n")
    Watch(world.parts).cede(tmp_path / "root", ["sysctl.d"])
    assert (tried.verdict, elsewhere.verdict) == ("written", "written")
    assert (world.value(netns=1), world.value(), world.value(THRESH[2], 0)) == (ORIGINAL, FIRST, 2048)
    assert world.states() == ["reverted", "trial", "confirmed"]
    assert any("90-net.conf line 1" in line for line in world.lines)


def test_only_those_named_are_ceded_to(tmp_path: Path) -> None:
    folder = tmp_path / "etc/sysctl.d"
    folder.mkdir(parents=True)
    (folder / "1.conf").write_text("net.ipv4.tcp_rmem = 1 2 3\n")
    assert RMEM in others.ceded(tmp_path, ROWS, ["sysctl.d"])
    assert others.ceded(tmp_path, ROWS, ["bpftune", "tuned"]) == {}


# --- after a reboot


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Gives the host another boot id."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(parts_module, "BOOT_ID", path)
    return lambda name: void(path.write_text(f"{name}\n"))


def void(_: object) -> None:
    return None


def confirmed_thresholds(tmp_path: Path, reboot: Callable[[str], None]) -> World:
    """A host that has rebooted to its own values, after all three thresholds were confirmed higher."""
    world = World(tmp_path)
    for key, want in zip(reversed(THRESH), (2048, 1024, 256), strict=True):
        world.wish(want, key)
    world.wish(FIRST)
    for change in (1, 2, 3, 4):
        assert world.parts.orders.confirm(Ask("confirm", change=change)).ok
    world.modes.stop()
    for key, default in zip(THRESH, (128, 512, 1024), strict=True):
        world.foreign(default, key, 0)
    reboot("second")
    return world


def test_what_was_confirmed_is_applied_again_after_a_reboot_in_an_order_that_fits(
    tmp_path: Path, reboot: Callable[[str], None]
) -> None:
    world = confirmed_thresholds(tmp_path, reboot).next_run(tmp_path)
    assert [world.value(key, 0) for key in THRESH] == [256, 1024, 2048]
    assert world.states() == ["lost"] * 4 + ["confirmed"] * 3
    assert {change.tunable for change in world.changes()[4:]} == set(THRESH)
    rising(world.kernel.written)
    assert world.parts.orders.rollback(Ask("rollback")).ok
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]
    world.close()


def test_it_is_applied_once(tmp_path: Path, reboot: Callable[[str], None]) -> None:
    again = confirmed_thresholds(tmp_path, reboot).next_run(tmp_path).next_run(tmp_path)
    assert again.states().count("confirmed") == 3
    assert len(again.changes()) == 7
    again.close()


@pytest.mark.parametrize("how", ["another kernel", "another value", "held", "narrower bounds"])
def test_what_does_not_fit_any_more_is_said_and_dropped(
    tmp_path: Path, reboot: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    world = confirmed_thresholds(tmp_path, reboot)
    if how == "another kernel":
        monkeypatch.setattr(restore, "machine", lambda: "9.9.9 other")
    elif how == "another value":
        for key in THRESH:
            world.foreign(700, key, 0)
    elif how == "held":
        for key in THRESH:
            assert world.parts.orders.hold(Ask("hold", tunable=key)).ok
    else:
        monkeypatch.setattr(restore.Restore, "_unfit", lambda self, spot, one: "the bounds are 1 to 2 now")
    before = [world.value(key, 0) for key in THRESH]
    world = world.next_run(tmp_path)
    assert [world.value(key, 0) for key in THRESH] == before
    assert set(world.states()) == {"lost"}
    assert sum("not applied again" in line for line in world.lines) == 3
    world.close()


def test_advise_leaves_what_was_confirmed_for_a_later_enforce(tmp_path: Path, reboot: Callable[[str], None]) -> None:
    world = confirmed_thresholds(tmp_path, reboot).next_run(tmp_path, "advise")
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]
    world.modes.change("enforce")
    assert [world.value(key, 0) for key in THRESH] == [256, 1024, 2048]
    world.close()


def test_what_an_earlier_process_kept_is_cleared_once_and_then_nothing_is_written_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 10**12
    monkeypatch.setattr(leases, "now_ns", lambda: now_ns)
    (tmp_path / leases.NAME).write_text('{"earlier":1}')
    made = leases.Leases(tmp_path)
    made.save([])
    assert leases.read(tmp_path) == {}
    (tmp_path / leases.NAME).unlink()
    now_ns += 2 * 10**9
    made.save([])
    assert not (tmp_path / leases.NAME).exists()
    made.begin("tcp_buffer")
    made.save(["tcp_buffer"])
    assert leases.read(tmp_path) == {"tcp_buffer": now_ns + leases.LEASE_NS}
    made.begin("neigh_table")
    made.save(["tcp_buffer", "neigh_table"])
    assert leases.read(tmp_path).keys() == {"tcp_buffer"}, "at most once a second"


def test_leases_are_to_be_looked_at_while_something_is_on_trial_and_until_the_dead_man_knows_that_nothing_is(
    world: World, boottime: Callable[[float], None]
) -> None:
    ours = trials(world)
    boottime(2)
    assert not ours.tend()
    world.wish(300000)
    boottime(2)
    assert ours.tend()
    world.modes.change("advise")
    assert ours.tend(), "what was saved a moment ago still names a lease"
    boottime(2)
    assert not ours.tend()


# --- holds that end by themselves


def test_a_hold_for_a_time_ends_by_itself_also_over_a_restart(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.parts.orders.hold(Ask("hold", tunable=RMEM, netns=WEB, seconds=60)).ok
    assert world.wish(FIRST).verdict == "refused"
    after = world.next_run(tmp_path)
    after.parts.keeper.flush()
    assert after.wish(FIRST).verdict == "refused"
    real = records.stamp
    later = lambda: msgspec.structs.replace(real(), tai_ns=real().tai_ns + 61 * 10**9)  # noqa: E731
    monkeypatch.setattr(holds, "stamp", later)
    after.parts.keeper.flush()
    assert after.wish(FIRST).verdict == "written"
    assert after.parts.keeper.holds() == []
    after.close()


# --- a slow disk


def test_a_wish_that_expires_while_the_journal_is_written_is_not_carried_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.wish(FIRST)
    intend = world.parts.keeper.intend

    def slow(intent: records.Intent) -> int:
        number = intend(intent)
        time.sleep(1.1)
        return number

    monkeypatch.setattr(world.parts.keeper, "intend", slow)
    outcome = world.wish(SECOND)
    assert outcome.verdict == "failed"
    assert "the journal was so slow that the wish expired" in outcome.reason
    assert world.value() == FIRST
    assert world.states() == ["trial", "failed"]
    monkeypatch.undo()
    assert world.modes.stop() == 0
    assert world.value() == ORIGINAL


# --- what the dead-man is told


def test_a_lease_is_30_seconds_to_the_nanosecond_and_kept_where_only_root_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 5 * 10**9
    monkeypatch.setattr(leases, "now_ns", lambda: now_ns)
    made = leases.Leases(tmp_path)
    made.begin("tcp_buffer")
    made.begin("gone")
    made.save(["tcp_buffer", "never_heard"])
    assert leases.read(tmp_path) == {"tcp_buffer": now_ns + 30 * 10**9}
    assert (tmp_path / leases.NAME).stat().st_mode & 0o777 == 0o600
    now_ns += 30 * 10**9 - 1
    assert made.lapsed(["tcp_buffer"]) == []
    now_ns += 1
    assert made.lapsed(["tcp_buffer"]) == ["tcp_buffer"]
    assert made.lapsed(["fresh"]) == []
    assert leases.read(tmp_path / "nowhere") == {}
