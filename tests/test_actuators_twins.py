"""Two names of one knob, as vm.dirty_ratio and vm.dirty_bytes: on a fake of the kernel's code, and on the real one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from actuator_world import FakeKernel, Namespaces, World

from actuators import deadman, history, leases, offline, originals, others, store
from actuators import parts as parts_module
from actuators.foreign import Foreign
from actuators.journal import Journal
from actuators.records import Site, Spot, Swap, Twin
from actuators.state_dir import JournalError
from actuators.sysctl import Sysctl
from actuators.undo import Ending
from actuators.watch import Watch
from bus import tunables
from bus.schema import Ask, Outcome, SysctlWrite
from bus.tunables import Tunable

RATIO, BYTES = "vm.dirty_ratio", "vm.dirty_bytes"
BG_RATIO, BG_BYTES = "vm.dirty_background_ratio", "vm.dirty_background_bytes"
MIB = 1 << 20
REVERT = Ending("reverted", "test")


def row(name: str, twin: str, **more: Any) -> Tunable:
    low, high = (1, 60) if name.endswith("ratio") else (MIB, 1 << 30)
    return Tunable(
        name=name, twin=twin, low=low, high=high, step=1.0, cooldown_s=0, per_hour=100, unit="", scope="host",
        decider="vm", summary="", **more,
    )  # fmt: skip


ROWS = {
    one.name: one
    for one in (
        row(BYTES, RATIO, at_least=(BG_BYTES,)),
        row(RATIO, BYTES),
        row(BG_BYTES, BG_RATIO, at_most=(BYTES,)),
        row(BG_RATIO, BG_BYTES),
    )
}


class DirtySysctl(Sysctl):
    """Does to the files what dirty_*_handler do to the variables."""

    def _write(self, fd: int, values: list[int]) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return write(path, values[0])


def write(path: Path, value: int) -> str:
    """The kernel's error, or nothing."""
    low, high = (0, 100) if path.name.endswith("ratio") else (1 if "background" in path.name else 8192, 1 << 40)
    if not low <= value <= high:
        return "Invalid argument"
    if "background" in path.name or int(path.read_text()) != value:
        name = (
            path.name.replace("ratio", "bytes") if path.name.endswith("ratio") else path.name.replace("bytes", "ratio")
        )
        path.with_name(name).write_text("0\n")
    path.write_text(f"{value}\n")
    return ""


class FakeVm(Namespaces):
    """Files."""

    sysctl = DirtySysctl

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        (base / "1/vm").mkdir()
        for key in ROWS:
            self.file(key, 0).write_text("0\n")

    def write(self, key: str, value: int) -> None:
        assert not write(self.file(key, 0), value)


class RealVm(Namespaces):
    """The kernel's own."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.root = Path("/proc/sys")

    def enter(self, cookie: int, inode: int, do: Any) -> Any:
        return do()

    def file(self, key: str, netns: int) -> Path:
        return self.root / key.replace(".", "/")

    def write(self, key: str, value: int) -> None:
        self.file(key, 0).write_text(f"{value}\n")


class Host(World):
    """A World of the dirty limits. `foreign` writes as an administrator does."""

    namespaces: FakeVm | RealVm

    def foreign(self, value: int, key: str = RATIO, netns: int = 0) -> None:
        self.namespaces.write(key, value)

    def change(self, key: str, want: int) -> Outcome:
        return self.wish(want, key, 0)

    def now(self, *keys: str) -> list[int]:
        return [self.value(key, 0) for key in keys]

    def again(self, base: Path) -> Host:
        self.close()
        return Host(base, namespaces=self.namespaces, rows=self.rows)


def made(tmp_path: Path, vm: FakeVm | RealVm) -> Host:
    """20 % and 10 %, as after a boot."""
    vm.write(RATIO, 20)
    vm.write(BG_RATIO, 10)
    return Host(tmp_path, namespaces=vm, rows=ROWS)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with contextlib.closing(made(tmp_path, FakeVm(tmp_path))) as host:
        yield host


@pytest.fixture
def real(the_host: None, tmp_path: Path) -> Iterator[Host]:
    """The same on the running kernel."""
    vm = RealVm(tmp_path)
    before = {key: int(vm.file(key, 0).read_text()) for key in ROWS}
    try:
        with contextlib.closing(made(tmp_path, vm)) as host:
            yield host
    finally:
        for key, value in before.items():
            if value:
                vm.write(key, value)


KNOBS = pytest.mark.parametrize(
    ("key", "twin", "stood", "wants"),
    [
        (BYTES, RATIO, 20, (200 * MIB, 300 * MIB)),
        (RATIO, BYTES, 100 * MIB, (30, 40)),
        (BG_BYTES, BG_RATIO, 10, (20 * MIB, 30 * MIB)),
        (BG_RATIO, BG_BYTES, 50 * MIB, (5, 8)),
    ],
    ids=["bytes", "ratio", "background bytes", "background ratio"],
)


def in_force(host: Host, twin: str, stood: int) -> None:
    """The twin counts; and the limit of background bytes has one above it."""
    if twin == BG_RATIO:
        host.foreign(500 * MIB, BYTES)
    host.foreign(stood, twin)


@KNOBS
def test_a_0_goes_back_through_the_twin(host: Host, key: str, twin: str, stood: int, wants: tuple[int, int]) -> None:
    in_force(host, twin, stood)
    for want in wants:
        assert host.change(key, want).verdict == "written"
        assert host.now(key, twin) == [want, 0]
    assert [(change.twin, change.twin_value) for change in host.changes()] == [(twin, stood)] * 2
    host.parts.undo.one(2, REVERT)
    assert host.now(key, twin) == [wants[0], 0]
    host.parts.undo.all(REVERT)
    assert host.now(key, twin) == [0, stood]
    assert host.lines[0].startswith(f"raised {key} 0 ({twin} {stood}) -> {wants[0]}: 7 drops")
    assert host.lines[-1] == f"put back {key} {wants[0]} -> 0 ({twin} {stood}): test"
    assert host.states() == ["reverted"] * 2


@KNOBS
def test_what_was_no_0_goes_back_by_itself(host: Host, key: str, twin: str, stood: int, wants: tuple[int, int]) -> None:
    in_force(host, twin, stood)
    host.foreign(wants[0], key)
    assert host.change(key, wants[1]).verdict == "written"
    assert host.changes()[0].twin == ""
    assert host.modes.stop() == 0
    assert host.now(key, twin) == [wants[0], 0]


def test_a_run_that_died_an_order_without_an_actuator_and_the_dead_man_do_the_same(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "Kernel", lambda rows, namespaces: host.kernel)
    host.change(BYTES, 200 * MIB)
    host = host.again(tmp_path)
    assert host.now(BYTES, RATIO) == [0, 20]

    host.change(BYTES, 200 * MIB)
    host.close()
    assert offline.order(host.state, Ask("rollback", change=2)).ok
    assert host.now(BYTES, RATIO) == [0, 20]

    host = host.again(tmp_path)
    host.parts.orders.release(Ask("release", tunable=RATIO))
    host.change(BYTES, 200 * MIB)
    host.close()
    later_ns = leases.now_ns() + 60_000_000_000
    monkeypatch.setattr(leases, "now_ns", lambda: later_ns)
    man = deadman.Deadman(host.state)
    for _ in range(deadman.SELDOM):
        man.look()
    assert host.now(BYTES, RATIO) == [0, 20]


def test_without_its_row_and_its_journal_it_still_goes_back(host: Host, tmp_path: Path) -> None:
    host.change(BYTES, 200 * MIB)
    host.close()
    for file in host.state.glob(f"{store.NAME}*"):
        file.unlink()
    again = World(tmp_path, namespaces=host.namespaces, rows={})
    assert host.now(BYTES, RATIO) == [0, 20]
    again.close()


def test_with_originals_log_alone_it_goes_back(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.change(BYTES, 200 * MIB)

    def full(*_: object) -> None:
        raise JournalError("no space left")

    monkeypatch.setattr(Journal, "__init__", full)
    host.again(tmp_path).close()
    assert host.now(BYTES, RATIO) == [0, 20]


def test_a_death_between_the_journal_and_the_write_leaves_an_administrator_s_twin_alone(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> Swap:
        raise KeyboardInterrupt

    monkeypatch.setattr(host.kernel, "swap", dies)
    with pytest.raises(KeyboardInterrupt):
        host.change(BYTES, 200 * MIB)
    host.foreign(25, RATIO)
    host = host.again(tmp_path)
    assert host.now(BYTES, RATIO) == [0, 25]
    assert host.states() == ["ceded"]
    assert host.changes()[0].detail == f"somebody else wrote 25 to {RATIO}, its twin"
    host.close()


def test_a_death_between_the_journal_and_the_write_is_no_change(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.kernel, "swap", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        host.change(BYTES, 200 * MIB)
    host = host.again(tmp_path)
    assert (host.now(BYTES, RATIO), host.states()) == ([0, 20], ["failed"])
    host.close()


def test_a_death_between_the_way_back_and_the_journal_is_a_way_back(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.change(BYTES, 200 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(host.parts.keeper, "settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            host.modes.stop()
    host = host.again(tmp_path)
    assert (host.now(BYTES, RATIO), host.states()) == ([0, 20], ["reverted"])
    host.close()


# --- the administrator


def test_whoever_writes_the_twin_takes_both(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    host.foreign(30, RATIO)
    Watch(host.parts).level()
    assert host.states() == ["ceded"]
    assert host.changes()[0].detail == f"somebody else wrote 30 to {RATIO}, its twin"
    assert [host.change(key, 50 * MIB if key == BYTES else 35).verdict for key in (BYTES, RATIO)] == ["refused"] * 2
    assert host.writer.refused == {"held": 2}
    assert host.now(BYTES, RATIO) == [0, 30]
    assert {hold.spot.tunable for hold in history.holds(host.state)} >= {BYTES, RATIO}


def written(host: Host, name: str, value: int, **more: Any) -> None:
    fields = {"pid": 1, "uid": 0, "comm": "sysctl", "netns": 1, "netns_ino": 7, "old": "", **more}
    Foreign(host.parts).written(
        SysctlWrite(t_ns=time.monotonic_ns(), name=name.replace(".", "/"), new=str(value), **fields)
    )


def test_a_write_of_the_twin_that_is_seen_at_once_takes_the_key_also_where_all_stands_as_before(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    host.foreign(30, RATIO)
    host.foreign(200 * MIB, BYTES)
    written(host, RATIO, 30)
    assert host.states() == ["ceded"]
    assert host.changes()[0].detail.startswith("sysctl (pid 1, uid 0")
    assert host.changes()[0].detail.endswith(f"wrote 30 to {RATIO}, its twin")


@pytest.mark.parametrize("value", [20, 200 * MIB], ids=["as before", "the very number that stands in ours"])
def test_systemd_sysctl_that_sets_the_twin_again_takes_the_key(host: Host, value: int) -> None:
    host.change(BYTES, 200 * MIB)
    written(host, RATIO, value, comm="systemd-sysctl")
    assert host.states() == ["ceded"]


def test_both_made_0_is_told_as_it_stands(host: Host) -> None:
    host.foreign(100 * MIB, BYTES)
    host.change(BG_BYTES, 20 * MIB)
    host.foreign(0, BG_RATIO)
    Watch(host.parts).level()
    assert host.changes()[0].detail == f"somebody else wrote 0 in place of {20 * MIB}"


def test_a_write_of_the_twin_that_ours_has_made_0_is_put_back(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    written(host, RATIO, 35)
    assert host.now(BYTES, RATIO) == [200 * MIB, 0], "seen later than ours, it is none that we have written over"
    host.parts.orders.release(Ask("release", tunable=BYTES))
    began_ns = time.monotonic_ns()
    host.change(BYTES, 250 * MIB)
    # It was on its way when ours was written, and came before it.
    event = SysctlWrite(began_ns, 1, 7, 1, 0, "sysctl", RATIO.replace(".", "/"), "20", "35")
    Foreign(host.parts).written(event)
    assert host.now(BYTES, RATIO) == [0, 35]
    assert host.states()[-1] == "ceded"


def test_a_twin_that_was_written_since_our_look_is_not_overwritten(host: Host) -> None:
    host.kernel.before = lambda: host.foreign(33, RATIO)
    host.change(BYTES, 200 * MIB)
    assert host.now(BYTES, RATIO) == [0, 33]
    assert host.states() == ["ceded"]


def test_a_twin_that_was_written_since_is_not_overwritten_by_an_undo(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    host.kernel.before = lambda: host.foreign(33, RATIO)
    host.parts.undo.all(REVERT)
    assert host.now(BYTES, RATIO) == [0, 33]
    assert host.states() == ["ceded"]


@pytest.mark.parametrize("undo", [False, True], ids=["change", "undo"])
def test_a_twin_that_is_written_right_after_us_is_seen_in_the_read_back(host: Host, undo: bool) -> None:
    if undo:
        host.change(BYTES, 200 * MIB)
    real = host.kernel._sysctl.swap

    def swap(*arguments: Any) -> Swap:
        result = real(*arguments)
        host.foreign(33, RATIO)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.kernel._sysctl, "swap", swap)
        host.parts.undo.all(REVERT) if undo else host.change(BYTES, 200 * MIB)
    assert host.now(BYTES, RATIO) == [0, 33]
    assert host.states() == ["ceded"]


def between(host: Host, do: Callable[[], None]) -> pytest.MonkeyPatch:
    """Acts right before the write, when all has been looked at."""
    real = host.kernel._sysctl.swap

    def swap(*arguments: Any) -> Swap:
        do()
        return real(*arguments)

    patch = pytest.MonkeyPatch()
    patch.setattr(host.kernel._sysctl, "swap", swap)
    return patch


def test_who_writes_our_very_value_before_us_has_the_key(host: Host) -> None:
    patch = between(host, lambda: host.foreign(200 * MIB, BYTES))
    host.change(BYTES, 200 * MIB)
    patch.undo()
    assert (host.now(BYTES, RATIO), host.states()) == ([200 * MIB, 0], ["ceded"])


def test_who_put_the_original_back_by_hand_has_undone_it(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    host.foreign(20, RATIO)
    assert host.modes.stop() == 0
    assert host.states() == ["reverted"]
    assert host.now(BYTES, RATIO) == [0, 20]


def test_a_hold_covers_the_twin_and_so_does_its_release(host: Host) -> None:
    assert len(host.parts.orders.hold(Ask("hold", tunable=RATIO)).lines) == 4, "and what is tied to the twin"
    assert host.change(BYTES, 200 * MIB).verdict == "refused"
    assert host.parts.orders.release(Ask("release", tunable=BYTES)).ok
    assert host.change(BYTES, 200 * MIB).verdict == "written"


def test_a_key_is_released_by_the_name_of_a_twin_that_has_no_row(host: Host, tmp_path: Path) -> None:
    host.rows = {BYTES: row(BYTES, RATIO)}
    host = host.again(tmp_path)
    host.change(BYTES, 200 * MIB)
    host.foreign(30, RATIO)
    assert host.change(BYTES, 100 * MIB).verdict == "refused"
    assert host.parts.orders.release(Ask("release", tunable=RATIO)).ok
    assert host.change(BYTES, 100 * MIB).verdict == "written"
    host.close()


def test_a_twin_in_which_a_value_of_ours_stands_is_not_written(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    assert host.change(RATIO, 30).verdict == "refused"
    assert host.writer.refused == {"twin": 1}


def test_what_sysctl_d_or_tuned_sets_by_the_twin_is_ceded(tmp_path: Path) -> None:
    files = {
        "etc/sysctl.d/90.conf": "vm.dirty_ratio = 30\n",
        "proc/7/comm": "tuned\n",
        "etc/tuned/active_profile": "mine\n",
        "etc/tuned/mine/tuned.conf": "[sysctl]\nvm.dirty_background_ratio = 5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert others.ceded(tmp_path, ROWS, ["sysctl.d"]).keys() == {BYTES, RATIO}
    assert others.ceded(tmp_path, ROWS, ["tuned"]).keys() == {BG_BYTES, BG_RATIO}


# --- several at once, and after a reboot


def test_all_go_back_whatever_their_order(host: Host) -> None:
    assert host.change(BYTES, 200 * MIB).verdict == "written"
    assert host.change(BG_BYTES, 100 * MIB).verdict == "written"
    assert host.modes.stop() == 0
    assert host.now(BYTES, RATIO, BG_BYTES, BG_RATIO) == [0, 20, 0, 10]


def test_a_bound_that_counts_by_its_twin_does_not_keep_a_revert_back(host: Host) -> None:
    host.change(BYTES, 200 * MIB)
    host.change(BG_BYTES, 100 * MIB)
    assert host.parts.orders.revert_change(1, "worse").ok
    assert host.now(BYTES, RATIO) == [0, 20]


@pytest.mark.parametrize(("stands", "expected"), [(20, [200 * MIB, 0]), (25, [0, 25])], ids=["as before", "changed"])
def test_after_a_reboot_it_is_applied_again_only_beside_the_same_twin(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands: int, expected: list[int]
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(parts_module, "BOOT_ID", boot)
    boot.write_text("one\n")
    host = host.again(tmp_path)
    host.change(BYTES, 200 * MIB)
    host.parts.orders.confirm_change(1, "well")
    assert host.modes.stop() == 0
    host.foreign(25, RATIO)
    host.foreign(stands, RATIO)
    boot.write_text("two\n")
    host = host.again(tmp_path)
    assert host.now(BYTES, RATIO) == expected
    assert any(f"{RATIO}, its twin, is 25, not 20" in line for line in host.lines) == (stands == 25)
    host.parts.undo.all(REVERT)
    assert host.now(BYTES, RATIO) == [0, stands]
    host.close()


@pytest.mark.parametrize(
    ("where", "key", "value", "expected"),
    [(FakeKernel, RATIO, 33, [0, 33]), (DirtySysctl, BYTES, 200 * MIB, [200 * MIB, 0])],
    ids=["the twin", "our very value"],
)
def test_what_is_written_while_it_is_applied_again_is_not_ours(
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: type[FakeKernel | DirtySysctl],
    key: str,
    value: int,
    expected: list[int],
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(parts_module, "BOOT_ID", boot)
    boot.write_text("one\n")
    host = host.again(tmp_path)
    host.change(BYTES, 200 * MIB)
    host.parts.orders.confirm_change(1, "well")
    host.close()
    host.foreign(20, RATIO)
    boot.write_text("two\n")
    real = where.swap

    def swap(*arguments: Any) -> Swap:
        host.foreign(value, key)
        return real(*arguments)

    monkeypatch.setattr(where, "swap", swap)
    host = host.again(tmp_path)
    assert host.states() == ["lost", "failed"]
    assert host.now(BYTES, RATIO) == expected
    host.close()


# --- so does the running kernel


@pytest.mark.system
@KNOBS
def test_the_running_kernel_takes_a_0_back_through_the_twin(
    real: Host, key: str, twin: str, stood: int, wants: tuple[int, int]
) -> None:
    test_a_0_goes_back_through_the_twin(real, key, twin, stood, wants)


@pytest.mark.system
@KNOBS
def test_the_running_kernel_takes_back_what_was_no_0(
    real: Host, key: str, twin: str, stood: int, wants: tuple[int, int]
) -> None:
    test_what_was_no_0_goes_back_by_itself(real, key, twin, stood, wants)


@pytest.mark.system
@pytest.mark.parametrize(
    "promise",
    [
        test_whoever_writes_the_twin_takes_both,
        test_a_write_of_the_twin_that_is_seen_at_once_takes_the_key_also_where_all_stands_as_before,
        test_a_write_of_the_twin_that_ours_has_made_0_is_put_back,
        test_a_twin_that_was_written_since_our_look_is_not_overwritten,
        test_a_twin_that_was_written_since_is_not_overwritten_by_an_undo,
        test_who_put_the_original_back_by_hand_has_undone_it,
        test_all_go_back_whatever_their_order,
    ],
)
def test_the_promise_holds_on_the_running_kernel(real: Host, promise: Callable[[Host], None]) -> None:
    promise(real)


@pytest.mark.system
def test_a_run_that_died_and_the_dead_man_do_the_same_on_the_running_kernel(
    real: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_run_that_died_an_order_without_an_actuator_and_the_dead_man_do_the_same(real, tmp_path, monkeypatch)


@pytest.mark.system
def test_the_running_kernel_refuses_a_0_of_bytes_and_takes_one_of_a_ratio_for_no_limit_at_all(real: Host) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        real.foreign(0, BYTES)
    real.foreign(0, RATIO)
    assert real.now(BYTES, RATIO) == [0, 0]


# --- the row, the journal


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"low": 0}, "low 0 is below 1"),
        ({"twin": "a.b"}, "cannot have a.b as its twin"),
        ({"name": "a.b[1]"}, "cannot have c.d as its twin"),
    ],
)
def test_a_row_whose_twin_makes_no_sense_is_refused(more: dict[str, Any], what: str) -> None:
    bad = {"name": "a.b", "twin": "c.d", "low": 1, **more}
    fields = {name: getattr(ROWS[BYTES], name) for name in Tunable.__struct_fields__}
    with pytest.raises(ValueError, match=what):
        tunables.table([Tunable(**{**fields, "at_least": (), **bad})])


def test_twins_must_both_say_so() -> None:
    assert tunables.table(ROWS.values())
    with pytest.raises(ValueError, match="does not say so"):
        tunables.table([ROWS[BYTES], row(RATIO, "")])


def test_a_journal_from_before_there_were_twins_is_read_and_then_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with contextlib.closing(sqlite3.connect(state / store.NAME)) as db:
        db.executescript(f"{store.MIGRATIONS[0]} PRAGMA user_version = 1; PRAGMA journal_mode = WAL;")
        db.execute(
            "INSERT INTO changes (t_tai_ns, tai_known, t_ns, boot_ns, boot_id, tunable, scope, netns, netns_ino, "
            "netns_name, decider, old, new, why, evidence, state) "
            "VALUES (1, 1, 1, 1, 'b', 'a.b', 'host', 0, 0, '', 'd', 1, 2, 'why', '{}', 'confirmed')"
        )
        db.commit()
        [change] = history.history(state)
        assert (change.old, change.new, change.twin, change.twin_value) == (1, 2, "", 0)
        assert db.execute("PRAGMA user_version").fetchone() == (1,), "reading changes nothing"
    world = World(tmp_path)
    assert [change.state for change in world.changes()] == ["lost"]
    world.close()


def test_a_line_of_originals_log_from_before_there_were_twins_is_read(tmp_path: Path) -> None:
    line = (
        '{"what":"write","spot":{"tunable":"a.b","netns":0},"boot_id":"b","site":{"inode":0,"name":""},'
        '"decider":"d","original":1,"old":1,"new":2}\n'
    )
    (tmp_path / originals.NAME).write_text(line)
    [found] = originals.read(tmp_path, "b").writes
    assert found == originals.Write(Spot("a.b", 0), "b", Site(), "d", 1, 1, 2, None)


def test_the_twin_outlives_a_journal_that_is_compacted(host: Host, tmp_path: Path) -> None:
    host.change(BYTES, 200 * MIB)
    journal = host.parts.keeper._journal
    assert journal
    journal._compact()
    boot_id = host.changes()[0].boot_id
    [line] = originals.read(host.state, boot_id).writes
    assert line.twin == Twin(RATIO, 20)
