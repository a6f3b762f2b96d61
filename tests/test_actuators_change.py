"""One wish from the gate to the kernel and back again, on a fake /proc/sys whose faults can be chosen."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from actuator_world import RMEM, ROWS, THRESH, WEB, World

from actuators import history, originals, store
from actuators.change import REFUSALS_TOLD
from actuators.state_dir import LOCK, JournalError
from actuators.undo import LEFT_BEHIND, STOPPED, Ending, UndoError
from actuators.watch import Watch
from bus.link import Lock
from bus.schema import AnyEvent, Ask, Outcome, Value, Wish


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(World(tmp_path)) as made:
        yield made


# --- granted ----------------------------------------------------------------------------------------------------------


def test_a_granted_wish_is_written_journaled_told_and_said(world: World) -> None:
    outcome = world.wish(393216)
    assert world.namespaces.file(RMEM, WEB).read_text().split() == ["4096", "131072", "393216"]
    assert (outcome.verdict, outcome.value, outcome.change, outcome.decider) == ("written", 393216, 1, "tcp_buffer")
    [change] = world.changes()
    assert (change.state, change.old, change.new, change.netns_name) == ("trial", 262144, 393216, "web")
    assert world.lines == [
        f"raised {RMEM} 262144 -> 393216 bytes in netns web (4026532007): 7 drops  [change 1, undo: trimtab rollback 1]"
    ]
    assert world.value(netns=1) == 262144


def test_the_intent_and_the_original_are_on_disk_before_the_kernel_is_touched(world: World) -> None:
    seen: list[tuple[list[str], int, int]] = []
    world.kernel.before = lambda: seen.append((world.states(), history.keys(world.state)[0].original, world.value()))
    world.wish(393216)
    assert seen == [(["intent"], 262144, 262144)]
    assert originals.read(world.state, history.standing(world.state)[0].boot_id).writes[0].original == 262144


def test_a_host_s_threshold_is_written_without_a_namespace(world: World) -> None:
    assert world.wish(2048, THRESH[2]).verdict == "written"
    assert world.value(THRESH[2], 0) == 2048
    assert world.lines[-1].startswith(f"raised {THRESH[2]} 1024 -> 2048 entries: 7 drops")


def test_pace_is_kept_over_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = msgspec.structs.replace(ROWS[RMEM], per_hour=2)
    for want in (300000, 350000):
        world.wish(want)
    world.modes.stop()
    world = world.next_run(tmp_path)
    world.writer._rows = {RMEM: slow}
    assert (world.wish(300000).verdict, dict(world.writer.refused)) == ("refused", {"per-hour": 1})
    world.close()


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_refused_wish_changes_and_journals_nothing_and_tells_the_value_that_stands(world: World) -> None:
    outcome = world.wish(2**30)
    assert (outcome.verdict, outcome.value, outcome.change) == ("refused", 262144, 0)
    assert world.value() == 262144
    assert world.changes() == []
    assert world.writer.refused == {"bounds": 1}


def test_a_flood_of_refusals_is_said_once_told_a_hundred_times_and_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: at)
    for _ in range(REFUSALS_TOLD + 50):
        with contextlib.suppress(IndexError):
            world.wish(2**30)
    assert world.writer.refused == {"bounds": REFUSALS_TOLD + 50}
    assert len(world.events) == REFUSALS_TOLD
    assert len(world.lines) == 1
    at += 10**9
    assert world.wish(2**30).verdict == "refused"


def test_a_namespace_that_is_not_there_is_refused(world: World) -> None:
    assert world.wish(393216, netns=99).verdict == "refused"
    assert world.writer.refused == {"gone": 1}


def test_a_sysctl_that_this_kernel_lacks_is_refused(world: World) -> None:
    world.namespaces.file(RMEM, WEB).unlink()
    wish = Wish(1, time.monotonic_ns(), 10**9, RMEM, WEB, 0, 262144, 393216, "why", {})
    world.writer.handle(wish, "tcp_buffer")
    assert world.writer.refused == {"unreadable": 1}


def test_a_lie_about_the_namespace_of_a_host_tunable_reads_nothing(world: World) -> None:
    wish = Wish(1, time.monotonic_ns(), 10**9, THRESH[0], WEB, 0, 128, 256, "why", {})
    world.writer.handle(wish, "neigh_table")
    assert world.writer.refused == {"scope": 1}


def test_thresholds_out_of_order_are_refused(world: World) -> None:
    assert world.wish(1024, THRESH[1]).verdict == "written"
    assert world.wish(1100, THRESH[1]).reason == f"1100 would pass {THRESH[2]}, which is 1024"
    assert world.wish(900, THRESH[2]).reason == f"900 would fall below {THRESH[1]}, which is 1024"


# --- the administrator ------------------------------------------------------------------------------------------------


def test_a_value_that_is_not_ours_any_more_is_ceded_and_stays_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(393216)
    world.foreign(300000)
    outcomes = len(world.events)
    assert world.wish(393216).verdict == "refused"
    assert [event.verdict for event in world.events[outcomes:] if isinstance(event, Outcome)] == ["ceded", "refused"]
    assert world.states() == ["ceded"]
    world.modes.stop()
    assert world.value() == 300000
    world = world.next_run(tmp_path)
    assert world.value() == 300000
    assert world.wish(393216).verdict == "refused"
    assert world.writer.refused == {"held": 1}
    assert world.parts.orders.release(Ask("release", tunable=RMEM, netns=WEB)).ok
    assert world.wish(393216).verdict == "written"
    world.close()


def test_a_write_between_our_look_and_our_write_is_not_overwritten(world: World) -> None:
    world.kernel.before = lambda: world.foreign(300000)
    assert world.wish(393216).verdict == "ceded"
    assert world.value() == 300000
    assert world.kernel.written == []
    assert world.states() == ["ceded"]
    assert "wrote 300000 in place of 262144" in world.changes()[0].detail


def test_a_write_between_our_write_and_our_second_look_is_not_overwritten(world: World) -> None:
    world.kernel.after = lambda: world.foreign(300000)
    assert world.wish(393216).verdict == "ceded"
    assert world.value() == 300000
    assert "wrote 300000 in place of 393216" in world.changes()[0].detail


def test_ceding_one_threshold_holds_its_family_and_leaves_what_is_ours_there_undoable(world: World) -> None:
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1024)):
        assert world.wish(want, key).verdict == "written"
    world.foreign(4096, THRESH[2], 0)
    assert world.wish(256, THRESH[0]).verdict == "written"
    Watch(world.parts).level()
    for key in THRESH:
        assert world.wish(world.value(key, 0) + 1, key, believed=world.value(key, 0)).verdict == "refused"
    assert world.writer.refused == {"held": 3}
    world.modes.stop()
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 4096]


def test_what_was_written_in_one_namespace_holds_nobody_elsewhere(world: World) -> None:
    world.wish(393216)
    world.foreign(300000)
    world.wish(393216)
    assert world.wish(393216, netns=1).verdict == "written"


# --- faults of the kernel ---------------------------------------------------------------------------------------------


def test_a_write_that_the_kernel_refuses_leaves_nothing_of_ours(world: World) -> None:
    world.kernel.error = "Invalid argument"
    outcome = world.wish(393216)
    assert (outcome.verdict, outcome.reason, outcome.value) == ("failed", "Invalid argument", 262144)
    assert world.states() == ["failed"]
    assert history.keys(world.state) == []
    assert world.parts.keeper.standing == {}


def test_a_failed_write_on_top_of_ours_leaves_the_earlier_one_standing(world: World) -> None:
    world.wish(393216)
    world.kernel.error = "Invalid argument"
    assert world.wish(450000).verdict == "failed"
    world.kernel.error = ""
    assert world.states() == ["trial", "failed"]
    world.modes.stop()
    assert world.value() == 262144


def test_a_namespace_that_goes_in_the_middle_of_a_write_is_lost_and_nothing_crashes(world: World) -> None:
    def vanish() -> None:
        world.namespaces.alive.discard(WEB)
        world.kernel._sysctl.close()

    world.kernel.before = vanish
    assert world.wish(393216).verdict == "failed"
    assert world.states() == ["lost"]
    assert world.parts.keeper.standing == {}


def test_a_write_whose_result_cannot_be_read_is_taken_for_ours(world: World) -> None:
    def unreadable() -> None:
        raise OSError(errno.EIO, "Input/output error")

    world.kernel.after = unreadable
    assert world.wish(393216).verdict == "failed"
    world.kernel.after = lambda: None
    assert world.states() == ["intent"]
    world.modes.stop()
    assert world.value() == 262144


# --- undo -------------------------------------------------------------------------------------------------------------


def test_a_stop_puts_every_original_back_and_keeps_thresholds_in_order(world: World) -> None:
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1024), (THRESH[0], 256), (THRESH[2], 4096), (RMEM, 393216)):
        assert world.wish(want, key).verdict == "written"
    world.kernel.written.clear()

    def in_order() -> None:
        values = [world.value(key, 0) for key in THRESH]
        assert values == sorted(values)

    world.kernel.after = in_order
    world.kernel.before = in_order
    assert world.modes.stop() == 0
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]
    assert world.value() == 262144
    assert len(world.kernel.written) == 4
    assert set(world.states()) == {"reverted"}
    assert history.keys(world.state) == []


def test_one_change_is_undone_with_those_that_came_after_it_on_its_key(world: World) -> None:
    for want in (300000, 350000, 400000):
        world.wish(want)
    answer = world.parts.orders.rollback(Ask("rollback", change=2, who="root"))
    assert (answer.ok, answer.data) == (True, {"undone": 1, "left": 0})
    assert world.value() == 300000
    assert world.states() == ["trial", "rolled_back", "rolled_back"]
    assert world.wish(350000).verdict == "refused"
    assert world.writer.refused == {"held": 1}
    world.modes.stop()
    assert (world.value(), world.states()[0]) == (262144, "reverted")


def test_a_rollback_of_all_holds_every_key_until_release(world: World) -> None:
    world.wish(300000)
    assert world.parts.orders.rollback(Ask("rollback")).data == {"undone": 1, "left": 0}
    assert world.wish(300000).verdict == "refused"
    assert world.parts.orders.release(Ask("release", tunable=RMEM)).ok
    assert world.wish(300000).verdict == "written"


def test_a_change_back_to_the_original_is_undone_without_a_write(world: World) -> None:
    world.wish(300000)
    world.wish(262144)
    world.kernel.written.clear()
    world.modes.stop()
    assert world.kernel.written == []
    assert world.states() == ["reverted", "reverted"]


def test_a_change_that_does_not_stand_cannot_be_undone(world: World) -> None:
    answer = world.parts.orders.rollback(Ask("rollback", change=5))
    assert (answer.ok, answer.lines) == (False, ["change 5 does not stand (any more); `trimtab history` lists them"])


def test_undoing_one_change_must_not_break_the_order_of_thresholds(world: World) -> None:
    world.wish(2048, THRESH[2])
    world.wish(1024, THRESH[1])
    world.wish(1500, THRESH[1])
    with pytest.raises(UndoError, match="undo those first"):
        world.parts.undo.one(1, Ending("rolled_back", "by a test"))
    assert world.value(THRESH[2], 0) == 2048


def test_a_value_that_cannot_be_put_back_is_said_and_stays_known(world: World) -> None:
    world.wish(393216)
    world.kernel.error = "Operation not permitted"
    assert world.modes.stop() == 1
    assert "CANNOT put back" in world.lines[-1]
    world.kernel.error = ""
    assert world.modes.stop() == 0
    assert world.value() == 262144


def test_a_namespace_that_has_gone_is_lost_at_the_stop(world: World) -> None:
    world.wish(393216)
    world.namespaces.alive.discard(WEB)
    world.kernel._sysctl.close()
    assert world.modes.stop() == 0
    assert world.states() == ["lost"]


# --- death at any point -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What SIGKILL would be, in a place of our choosing."""


def _kill() -> None:
    raise Killed


POINTS: dict[str, Callable[[World], None]] = {
    "before the intent": lambda world: setattr(world.parts.keeper, "intend", lambda *_: _kill()),
    "before the write": lambda world: setattr(world.kernel, "before", _kill),
    "after the write": lambda world: setattr(world.kernel, "after", _kill),
    "before the outcome": lambda world: setattr(world.parts.keeper, "settle", lambda *_, **__: _kill()),
    "before it is told": lambda world: setattr(world.writer, "_tell", lambda *_: _kill()),
}


@pytest.mark.parametrize("earlier", [(), (300000,), (300000, 262144)])
@pytest.mark.parametrize("point", POINTS)
def test_after_death_at_any_point_the_next_run_restores_the_original(
    tmp_path: Path, point: str, earlier: tuple[int, ...]
) -> None:
    world = World(tmp_path)
    for want in earlier:
        world.wish(want)
    POINTS[point](world)
    with pytest.raises(Killed):
        world.wish(310000)
    allowed = {262144, 310000, *earlier}
    assert world.value() in allowed
    world = world.next_run(tmp_path)
    assert world.value() == 262144
    assert set(world.states()) <= {"reverted", "failed"}
    assert history.keys(world.state) == []
    assert history.holds(world.state) == []
    assert world.wish(310000).verdict == "written"
    world.close()


@pytest.mark.parametrize("point", ["before", "after"])
def test_after_death_in_the_middle_of_a_revert_the_next_run_finishes_it(tmp_path: Path, point: str) -> None:
    world = World(tmp_path)
    for key, want in ((THRESH[2], 2048), (THRESH[1], 1024), (RMEM, 300000)):
        world.wish(want, key)
    setattr(world.kernel, point, _kill)
    with pytest.raises(Killed):
        world.modes.stop()
    world = world.next_run(tmp_path)
    assert [world.value(key, 0) for key in THRESH] == [128, 512, 1024]
    assert world.value() == 262144
    assert set(world.states()) == {"reverted"}
    assert history.holds(world.state) == []
    world.close()


def test_a_change_that_died_unwritten_is_journaled_as_not_carried_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.kernel.before = _kill
    with pytest.raises(Killed):
        world.wish(310000)
    world = world.next_run(tmp_path)
    assert [(change.state, change.detail) for change in world.changes()] == [("failed", "was not carried out")]
    world.close()


def test_a_leftover_that_somebody_changed_since_is_the_administrator_s(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(310000)
    world.foreign(777777)
    world = world.next_run(tmp_path)
    assert world.value() == 777777
    assert world.states() == ["ceded"]
    assert world.wish(800000).verdict == "refused"
    world.close()


def test_a_leftover_whose_namespace_has_gone_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(310000)
    world.namespaces.alive.discard(WEB)
    world = world.next_run(tmp_path)
    assert world.states() == ["lost"]
    world.close()


def test_leftovers_are_not_touched_in_observe_but_on_an_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(310000)
    world = world.next_run(tmp_path, "observe")
    assert world.value() == 310000
    assert "1 keys may hold values that an earlier run left behind" in world.lines[0]
    answer = world.modes.with_journal(lambda: world.parts.orders.rollback(Ask("rollback")))
    assert answer.ok
    assert world.value() == 262144
    world.close()


def test_an_order_in_observe_touches_only_what_it_names_also_at_the_stop(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(310000)
    world.wish(2048, THRESH[2])
    world = world.next_run(tmp_path, "observe")
    assert world.modes.with_journal(lambda: world.parts.orders.rollback(Ask("rollback", change=1))).ok
    world.modes.stop()
    assert (world.value(), world.value(THRESH[2], 0)) == (262144, 2048)
    assert history.holds(world.state)
    world.close()


# --- no journal, no change --------------------------------------------------------------------------------------------


def broken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transaction fails from now on, and so does opening anew."""

    def fail(self: store.Store, sync: bool = True) -> Any:
        raise JournalError("disk full")

    monkeypatch.setattr(store.Store, "transaction", fail)


def test_without_a_journal_nothing_is_changed_reverts_work_and_are_journaled_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.wish(300000)
    with monkeypatch.context() as patch:
        broken(world, patch)
        outcome = world.wish(350000)
        assert (outcome.verdict, outcome.reason) == ("refused", "no journal, no change: disk full")
        assert world.value() == 300000
        world.modes.tend()
        assert world.lines[-1] == "no changes until the journal can be written: disk full"
        world.modes.tend()
        assert world.parts.undo.all(STOPPED).undone == 1
        assert world.value() == 262144
        assert world.states() == ["trial"]
        assert world.wish(350000).verdict == "refused"
    world.modes.tend()
    assert world.lines[-1] == "the journal can be written again"
    assert world.states() == ["reverted"]
    assert history.keys(world.state) == []
    assert world.wish(350000).verdict == "written"


def test_a_change_whose_outcome_could_not_be_journaled_is_ours_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        world.kernel.after = lambda: broken(world, patch)
        assert world.wish(300000).verdict == "written"
        world.kernel.after = lambda: None
        assert world.states() == ["intent"]
    world.modes.tend()
    assert world.states() == ["trial"]
    assert world.wish(350000).verdict == "written"


def test_a_start_without_a_readable_journal_undoes_what_originals_log_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.wish(300000)
    world.wish(2048, THRESH[2])
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "_check", lambda self, db: (_ for _ in ()).throw(JournalError("disk I/O error")))
        world = world.next_run(tmp_path)
        assert world.lines[0] == "no changes until the journal can be written: disk I/O error"
        assert world.value() == 262144
        assert world.value(THRESH[2], 0) == 1024
        assert world.wish(300000).verdict == "refused"
    world.modes.tend()
    assert world.states() == ["reverted", "reverted"]
    assert world.wish(300000).verdict == "written"
    world.close()


def test_a_journal_found_corrupt_at_start_loses_no_original(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(300000)
    world.close()
    (world.state / store.NAME).write_bytes(b"garbage" * 3000)
    world = world.next_run(tmp_path)
    assert "corrupt" in world.lines[0]
    assert world.value() == 262144
    world.close()


def test_a_journal_found_corrupt_while_running_is_begun_anew_and_nothing_is_lost(
    world: World,
) -> None:
    for want in (300000, 350000):
        world.wish(want)
    for end in ("-wal", ""):
        (world.state / (store.NAME + end)).write_bytes(b"garbage" * 9000)
    # What SQLite keeps in memory hides it until it is next opened.
    world.parts.keeper.trouble = "a write failed"
    world.modes.tend()
    assert any("corrupt and is now" in line for line in world.lines)
    assert world.wish(400000).verdict == "written"
    standing = history.standing(world.state)
    assert [(change.state, change.new) for change in standing] == [("trial", new) for new in (300000, 350000, 400000)]
    world.parts.orders.rollback(Ask("rollback", change=standing[2].id))
    assert world.value() == 350000
    world.modes.stop()
    assert world.value() == 262144
    assert history.keys(world.state) == []


@pytest.mark.parametrize("what", ["all", "journal.db", "originals.log", "replaced"])
def test_a_journal_that_is_removed_while_running_is_begun_anew_and_nothing_is_lost(world: World, what: str) -> None:
    world.wish(300000)
    assert world.parts.orders.confirm(Ask("confirm", change=1)).ok
    world.wish(350000)
    assert world.parts.orders.hold(Ask("hold", tunable=THRESH[2], who="eve")).ok
    match what:
        case "all":
            shutil.rmtree(world.state)
        case "replaced":
            (world.state / "fresh").touch(0o600)
            (world.state / "fresh").replace(world.state / "journal.db")
        case _:
            (world.state / what).unlink()
    assert world.wish(400000).verdict == "refused"
    assert world.value() == 350000
    assert "has been removed" in world.parts.keeper.trouble
    world.modes.tend()
    assert world.parts.keeper.trouble == ""
    assert world.wish(400000).verdict == "written"
    # As a start after a crash finds it.
    standing = history.standing(world.state)
    assert [change.new for change in standing] == [300000, 350000, 400000]
    assert history.keys(world.state)[0].original == 262144
    assert THRESH[2] in [hold.spot.tunable for hold in history.holds(world.state)]
    assert [line.original for line in originals.read(world.state, standing[-1].boot_id).writes] == [262144]
    assert [change.state for change in standing] == ["confirmed", "trial", "trial"]
    world.modes.stop()
    assert world.value() == 300000


def test_an_actuator_whose_lock_was_removed_is_alone_no_more_and_makes_no_change(world: World) -> None:
    world.wish(300000)
    shutil.rmtree(world.state)
    world.state.mkdir(0o711)
    (world.state / LOCK).touch(0o600)
    other = Lock(world.state / LOCK, "another")
    for _ in range(2):
        world.modes.tend()
        assert world.wish(350000).verdict == "refused"
    assert "already running here" in world.parts.keeper.trouble
    other.close()
    world.modes.tend()
    assert world.wish(350000).verdict == "written"


def test_what_was_put_back_while_the_journal_was_lost_does_not_stand_in_the_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.wish(300000)
    world.wish(2048, THRESH[2])
    with monkeypatch.context() as patch:
        broken(world, patch)
        assert world.parts.orders.rollback(Ask("rollback", change=1)).ok
    for end in ("-wal", ""):
        (world.state / (store.NAME + end)).write_bytes(b"garbage" * 9000)
    world.modes.tend()
    assert [(change.tunable, change.new) for change in history.standing(world.state)] == [(THRESH[2], 2048)]
    assert [key.spot.tunable for key in history.keys(world.state)] == [THRESH[2]]
    assert world.wish(300000).verdict == "refused"


# --- modes ------------------------------------------------------------------------------------------------------------


def test_observe_judges_but_does_nothing_and_opens_no_journal(tmp_path: Path) -> None:
    with contextlib.closing(World(tmp_path, "observe")) as world:
        assert world.wish(393216).reason == "mode observe: nothing is written"
        assert world.wish(2**30).verdict == "refused"
        assert world.writer.refused == {"observe": 1, "bounds": 1}
        assert world.value() == 262144
        assert sorted(path.name for path in world.state.iterdir()) == ["actuator.lock"]


def test_advise_journals_what_it_would_do_once(tmp_path: Path) -> None:
    with contextlib.closing(World(tmp_path, "advise")) as world:
        outcomes = [world.wish(393216) for _ in range(3)]
        assert [outcome.verdict for outcome in outcomes] == ["advised"] * 3
        assert {outcome.change for outcome in outcomes} == {1}
        assert world.value() == 262144
        assert len(world.lines) == 1
        assert world.lines[0].startswith(f"would raise {RMEM} 262144 -> 393216 bytes in netns web")
        world.modes.tend()
        assert [(change.state, change.repeats) for change in world.changes()] == [("advised", 2)]


def test_leaving_enforce_puts_back_what_is_on_trial(world: World) -> None:
    world.wish(393216)
    answer = world.modes.change("advise")
    assert answer.lines == ["mode advise (was enforce)", "1 put back"]
    assert world.value() == 262144
    assert world.wish(393216).verdict == "advised"
    assert world.modes.change("observe").ok
    assert world.wish(393216).verdict == "refused"
    assert world.modes.change("enforce").ok
    assert world.wish(393216).verdict == "written"
    assert world.modes.change("enforce").lines == ["mode enforce already"]


def test_enforce_is_not_entered_without_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(World(tmp_path, "observe")) as world:
        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "_check", lambda self, db: (_ for _ in ()).throw(JournalError("disk full")))
            answer = world.modes.change("enforce")
            assert (answer.ok, answer.lines) == (False, ["mode observe stays: disk full"])
        assert world.writer.mode == "observe"


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_hold_takes_the_family_everywhere_or_in_one_place_and_outlives_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.parts.orders.hold(Ask("hold", tunable=THRESH[1], who="r\x1boot")).lines == [
        f"hands off {name}, until `trimtab release {name}`" for name in THRESH
    ]
    assert world.parts.orders.hold(Ask("hold", tunable=RMEM, netns=WEB)).ok
    world = world.next_run(tmp_path)
    assert world.wish(2048, THRESH[2]).reason == f"hands off {THRESH[2]}: held by r?oot"
    assert world.wish(393216).verdict == "refused"
    assert world.wish(393216, netns=1).verdict == "written"
    assert world.parts.orders.hold(Ask("hold", tunable=RMEM)).ok
    assert world.wish(400000, netns=1).verdict == "refused"
    assert world.parts.orders.release(Ask("release", tunable=RMEM)).data == {"released": 4}
    assert world.wish(400000, netns=1).verdict == "written"
    assert world.parts.orders.release(Ask("release", tunable=THRESH[0])).data == {"released": 3}
    assert not world.parts.orders.release(Ask("release", tunable=RMEM)).ok
    world.close()


def test_orders_that_make_no_sense_are_answered(world: World) -> None:
    assert world.parts.orders.hold(Ask("hold", tunable="vm.nope")).lines == [
        "no tunable 'vm.nope'; `trimtab tunables` lists them"
    ]
    assert not world.parts.orders.hold(Ask("hold", tunable=THRESH[0], netns=WEB)).ok
    assert world.parts.orders.rollback(Ask("rollback")).lines == ["nothing of trimtab's stands"]


# --- watching ---------------------------------------------------------------------------------------------------------


def values(events: list[AnyEvent]) -> dict[tuple[str, int], Value]:
    return {(event.tunable, event.netns): event for event in events if isinstance(event, Value)}


def test_the_level_tells_the_host_the_initial_namespace_and_what_was_touched(world: World) -> None:
    watch = Watch(world.parts)
    watch.level()
    assert set(values(world.events)) == {(name, 0) for name in THRESH} | {(RMEM, 1), (RMEM.replace("2", "1"), 1)}
    world.wish(393216)
    world.events.clear()
    watch.level()
    told = values(world.events)[RMEM, WEB]
    assert (told.value, told.original, told.held, told.netns_ino) == (393216, 262144, False, 4026532007)
    assert told.low == ROWS[RMEM].low
    assert 0 < told.high <= ROWS[RMEM].high


def test_a_change_s_new_value_is_told_at_once_and_a_refusal_tells_none(world: World) -> None:
    watch = Watch(world.parts)
    watch.after([world.wish(393216)])
    assert values(world.events)[RMEM, WEB].value == 393216
    world.events.clear()
    watch.after([world.wish(2**30)])
    assert values(world.events) == {}


def test_the_level_finds_a_foreign_write_and_a_namespace_that_has_gone(world: World) -> None:
    watch = Watch(world.parts)
    world.wish(393216)
    world.wish(393216, netns=1)
    world.foreign(300000, netns=1)
    world.namespaces.alive.discard(WEB)
    world.kernel._sysctl.close()
    watch.level()
    assert [change.state for change in world.changes()] == ["lost", "ceded"]
    assert values(world.events)[RMEM, 1].held
    world.events.clear()
    watch.level()
    assert (RMEM, WEB) not in values(world.events)


def test_leftovers_are_told_as_reverted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wish(310000)
    world = world.next_run(tmp_path)
    [told] = [event for event in world.events if isinstance(event, Outcome)]
    assert (told.verdict, told.value, told.reason, told.decider) == ("reverted", 262144, LEFT_BEHIND.why, "tcp_buffer")
    world.close()
