"""The journal: on disk before a method returns, readable beside its writer and without one, never silently lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators import history, originals, store
from actuators.history import Filter
from actuators.journal import KEEP_CHANGES, Journal
from actuators.originals import Originals
from actuators.records import Hold, Intent, Key, Site, Spot
from actuators.state_dir import JournalError

BOOT = "boot-1"
SPOT = Spot("net.ipv4.tcp_rmem[2]", 77)
SITE = Site(4026532201, "web")
HOST = Spot("net.ipv4.neigh.default.gc_thresh3", 0)


def intent(spot: Spot = SPOT, old: int = 100, new: int = 150, original: int = 100) -> Intent:
    return Intent(
        spot, SITE if spot.netns else Site(), "tcp_buffer", old, new, "7 drops", {"drops": 7, "event": "X@1"}, original
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal(tmp_path / "state", BOOT)) as opened:
        yield opened


# --- what is written is there -------------------------------------------------------------------------------------


def test_an_intent_is_readable_beside_the_writer_with_all_that_history_shows(journal: Journal, tmp_path: Path) -> None:
    number = journal.intend(intent())
    change = history.by_id(tmp_path / "state", number)
    assert change is not None
    assert (change.tunable, change.scope, change.netns, change.site) == (SPOT.tunable, "netns", 77, SITE)
    assert (change.decider, change.old, change.new, change.why) == ("tcp_buffer", 100, 150, "7 drops")
    assert change.evidence == {"drops": 7, "event": "X@1"}
    assert (change.state, change.detail, change.ended_tai_ns, change.boot_id) == ("intent", "", 0, BOOT)
    assert change.t_tai_ns > 1_600_000_000 * 10**9
    assert abs(change.t_ns - change.boot_ns) >= 0
    assert history.keys(tmp_path / "state") == [Key(SPOT, SITE, 100, None)]


def test_the_original_is_kept_from_the_first_change_and_forgotten_when_nothing_stands(journal: Journal) -> None:
    first = journal.intend(intent())
    journal.settle(SPOT, (first,), "trial", "", 150)
    second = journal.intend(intent(old=150, new=225))
    journal.settle(SPOT, (second,), "trial", "", 225)
    assert journal.keys() == [Key(SPOT, SITE, 100, 225)]
    journal.settle(SPOT, (), "reverted", "trimtab stops", None)
    assert journal.keys() == []
    assert journal.standing(SPOT) == []


def test_settling_some_changes_leaves_the_others_standing(journal: Journal, tmp_path: Path) -> None:
    numbers = [journal.intend(intent(old=old, new=old + 50)) for old in (100, 150, 200)]
    journal.settle(SPOT, numbers[1:], "rolled_back", "by root", 150, Hold(SPOT, "rolled back by root", 5))
    assert [stood.id for stood in journal.standing(SPOT)] == numbers[:1]
    assert [change.state for change in history.history(tmp_path / "state")] == ["intent", "rolled_back", "rolled_back"]
    assert journal.holds() == [Hold(SPOT, "rolled back by root", 5)]
    assert all(change.ended_tai_ns for change in history.history(tmp_path / "state", Filter(state="rolled_back")))


def test_history_filters_and_takes_the_newest(journal: Journal, tmp_path: Path) -> None:
    numbers = [journal.intend(intent()), journal.intend(intent(HOST)), journal.intend(intent(old=150, new=200))]
    state = tmp_path / "state"
    assert [change.id for change in history.history(state)] == numbers
    assert [change.id for change in history.history(state, Filter(tunable=HOST.tunable))] == numbers[1:2]
    assert [change.id for change in history.history(state, Filter(netns=77))] == [numbers[0], numbers[2]]
    assert [change.id for change in history.history(state, Filter(netns=0))] == numbers[1:2]
    assert [change.id for change in history.history(state, Filter(last=2))] == numbers[1:]
    assert [change.id for change in history.history(state, Filter(after_id=numbers[1]))] == numbers[2:]
    assert history.history(state, Filter(decider="nobody")) == []
    assert history.by_id(state, 99) is None
    assert [change.id for change in history.standing(state)] == numbers


def test_the_same_advice_is_one_row_that_counts_its_repeats(journal: Journal, tmp_path: Path) -> None:
    number, fresh = journal.advise(intent())
    assert fresh
    assert [journal.advise(intent()) for _ in range(3)] == [(number, False)] * 3
    other, fresh = journal.advise(intent(new=151))
    assert fresh
    assert other != number
    journal.flush()
    advice = history.by_id(tmp_path / "state", number)
    assert advice is not None
    assert (advice.state, advice.repeats, len(advice.advice)) == ("advised", 3, 12)


def test_an_advice_s_id_is_the_same_on_another_day(tmp_path: Path) -> None:
    ids = []
    for boot, cookie in (("boot-1", 77), ("boot-2", 91)):
        with contextlib.closing(Journal(tmp_path / boot, boot)) as journal:
            number, _ = journal.advise(intent(Spot(SPOT.tunable, cookie)))
            change = history.by_id(tmp_path / boot, number)
            assert change is not None
            ids.append(change.advice)
    assert ids[0] == ids[1]


def test_advice_counts_as_no_change(journal: Journal) -> None:
    journal.advise(intent())
    assert journal.moves_since(0) == []
    assert journal.keys() == []


def test_holds_last_until_released(journal: Journal, tmp_path: Path) -> None:
    journal.hold(Hold(SPOT, "held by root", 5))
    journal.hold(Hold(HOST, "held by root", 6, ever=True))
    assert history.holds(tmp_path / "state") == [Hold(HOST, "held by root", 6, True), Hold(SPOT, "held by root", 5)]
    journal.release(SPOT)
    assert journal.holds() == [Hold(HOST, "held by root", 6, ever=True)]


def test_counts_are_by_state(journal: Journal, tmp_path: Path) -> None:
    journal.advise(intent())
    journal.settle(SPOT, (journal.intend(intent()),), "trial", "", 150)
    journal.intend(intent(old=150, new=200))
    assert journal.counts() == history.counts(tmp_path / "state") == {"advised": 1, "trial": 1, "intent": 1}


# --- over restarts and reboots --------------------------------------------------------------------------------------


def test_a_reboot_loses_what_stood_and_keeps_the_host_s_holds(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        number = journal.intend(intent())
        journal.settle(SPOT, (number,), "trial", "", 150)
        journal.hold(Hold(SPOT, "theirs", 5))
        journal.hold(Hold(HOST, "theirs", 5, ever=True))
    with contextlib.closing(Journal(tmp_path, "boot-2")) as journal:
        journal.tidy()
        assert journal.keys() == []
        assert journal.holds() == [Hold(HOST, "theirs", 5, ever=True)]
    change = history.by_id(tmp_path, number)
    assert change is not None
    assert (change.state, change.detail) == ("lost", "the host has rebooted since")
    assert originals.read(tmp_path, "boot-2").writes == []


def test_ended_changes_beyond_the_newest_are_dropped_and_standing_ones_are_not(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        stands = journal.intend(intent())
        ended = journal.intend(intent(HOST))
        journal.settle(HOST, (ended,), "reverted", "", None)
        with journal._store.transaction() as db:
            db.execute("UPDATE sqlite_sequence SET seq = seq + ?", (KEEP_CHANGES,))
        last = journal.intend(intent(old=150, new=200))
        journal.tidy()
    assert [change.id for change in history.history(tmp_path)] == [stands, last]


def test_a_killed_writer_s_journal_reads_the_same(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from actuators.journal import Journal;"
        "from actuators.records import *;"
        "j = Journal(Path(sys.argv[1]), 'b');"
        "j.intend(Intent(Spot('a.b', 3), Site(), 'd', 1, 2, 'why', {}, 1)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[1])
    assert [change.tunable for change in history.history(tmp_path)] == ["a.b"]
    with contextlib.closing(Journal(tmp_path, "b")) as journal:
        assert [key.spot for key in journal.keys()] == [Spot("a.b", 3)]  # noqa: SIM118  (not a dict)


# --- whose files they are ---------------------------------------------------------------------------------------------


def test_the_files_are_the_owner_s_alone(journal: Journal, tmp_path: Path) -> None:
    journal.intend(intent())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o711


def test_a_state_directory_that_others_may_look_into_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    Journal(folder, BOOT).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.touch()
    path.symlink_to(target)


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _second_name(path: Path) -> None:
    path.touch(0o600)
    os.link(path, path.with_name("other"))


def _open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


@pytest.mark.parametrize("trap", [_link, _pipe, _second_name, _open_to_all])
@pytest.mark.parametrize("name", [store.NAME, originals.NAME])
def test_a_planted_file_is_refused(tmp_path: Path, name: str, trap: object) -> None:
    assert callable(trap)
    tmp_path.chmod(0o700)
    trap(tmp_path / name)
    with pytest.raises(JournalError, match=name):
        Journal(tmp_path, BOOT)


@pytest.mark.system
def test_a_foreign_owner_s_file_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / store.NAME).touch(0o600)
    os.chown(tmp_path / store.NAME, 12345, 12345)
    with pytest.raises(JournalError, match="belongs to user 12345"):
        Journal(tmp_path, BOOT)


def test_a_link_in_place_of_the_state_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(JournalError, match="state"):
        Journal(tmp_path / "state", BOOT)


def test_a_state_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(JournalError, match="lets others write"):
        Journal(folder, BOOT)


# --- corrupt, gone, newer ---------------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 400)


def _torn(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 6000)


def _deep(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


@pytest.mark.parametrize("harm", [_garbage, _torn, _deep])
def test_a_corrupt_journal_is_set_aside_loudly_and_no_original_or_hold_is_lost(tmp_path: Path, harm: object) -> None:
    assert callable(harm)
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        old = journal.intend(intent(original=90))
        journal.settle(SPOT, (old,), "trial", "", 150)
        journal.intend(intent(HOST, 5, 6, 5))
        journal.settle(HOST, (), "reverted", "", None)
        journal.hold(Hold(HOST, "held by root", 5, ever=True))
    harm(tmp_path / store.NAME)
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        [note] = journal.notes
        assert "corrupt" in note
        assert "1 originals and 1 holds" in note
        assert journal.keys() == [Key(SPOT, SITE, 90, None)]
        assert [(stood.old, stood.new, stood.decider) for stood in journal.standing(SPOT)] == [(100, 150, "tcp_buffer")]
        assert journal.holds() == [Hold(HOST, "held by root", 5, ever=True)]
        # `rollback 1` read off an old line must not undo another change.
        assert journal.standing(SPOT)[0].id > old + 10**6
    assert [path.name for path in tmp_path.iterdir() if "corrupt" in path.name]


def test_a_hold_that_came_with_the_end_of_a_change_outlives_a_corrupt_journal(tmp_path: Path) -> None:
    hold = Hold(SPOT, "300 stands there, not 150: somebody else wrote it", 5)
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        journal.settle(SPOT, (journal.intend(intent()),), "ceded", hold.why, None, hold)
    _garbage(tmp_path / store.NAME)
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        assert journal.holds() == [hold]


def test_a_journal_that_was_removed_begins_with_the_originals(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        journal.intend(intent())
    (tmp_path / store.NAME).unlink()
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        [note] = journal.notes
        assert "1 originals and 0 holds from originals.log" in note
        assert journal.keys() == [Key(SPOT, SITE, 100, None)]


def test_a_journal_that_has_lost_its_end_has_what_it_does_not_know_from_the_originals(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BOOT)
    journal.intend(intent())
    journal.flush()
    shutil.copy(tmp_path / store.NAME, tmp_path / "early.db")
    journal.intend(intent(spot=HOST))
    journal.close()
    (tmp_path / "early.db").rename(tmp_path / store.NAME)
    with contextlib.closing(Journal(tmp_path, BOOT)) as again:
        assert again.notes == ["the journal had lost its end; back are 1 originals and 0 holds from originals.log"]
        known = again.keys()
        assert sorted(key.spot for key in known) == sorted([SPOT, HOST])
        assert [stood.state for stood in again.standing(HOST)] == ["intent"]


def test_a_key_that_was_given_back_is_not_brought_back_by_the_log(tmp_path: Path) -> None:
    journal = Journal(tmp_path, BOOT)
    journal.intend(intent())
    journal.settle(SPOT, (), "reverted", "", None)
    journal.close()
    with contextlib.closing(Journal(tmp_path, BOOT)) as again:
        assert (again.notes, again.keys()) == ([], [])


def test_a_first_start_has_nothing_to_say(journal: Journal) -> None:
    assert journal.notes == []


def test_a_newer_trimtab_s_journal_is_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path, BOOT).close()
    with contextlib.closing(sqlite3.connect(tmp_path / store.NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="newer trimtab"):
        Journal(tmp_path, BOOT)
    with pytest.raises(JournalError, match="version 99"):
        history.history(tmp_path)


def test_an_older_journal_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        number = journal.intend(intent())
    more = "ALTER TABLE changes ADD COLUMN lease_boot_ns INTEGER NOT NULL DEFAULT 0;"
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, more))
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        assert journal.notes == []
        assert journal._store.read("SELECT id, lease_boot_ns FROM changes") == [(number, 0)]


def test_no_journal_says_so_with_the_system_s_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"journal\.db: No such file") as caught:
        history.history(tmp_path)
    assert caught.value.errno == 2


def test_numbers_that_sqlite_cannot_hold_are_a_journal_error(journal: Journal) -> None:
    with pytest.raises(JournalError, match="too large"):
        journal.intend(intent(Spot("a.b", 2**63)))
    assert journal.keys() == []


# --- originals.log --------------------------------------------------------------------------------------------------


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        journal.intend(intent())
        with (tmp_path / originals.NAME).open("a") as file:
            file.write('{"what":"write","spot":{"tun')
        journal.intend(intent(HOST, 1, 2, 1))
    assert {write.spot for write in originals.read(tmp_path, BOOT).writes} == {SPOT, HOST}


def test_a_long_log_is_written_anew_with_what_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "SIZE_MAX", 2000)
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        journal.hold(Hold(SPOT, "theirs", 3))
        for old in range(100, 120):
            journal.settle(HOST, (journal.intend(intent(HOST, old, old + 1, 100)),), "trial", "", old + 1)
        before = originals.read(tmp_path, BOOT)
        journal.flush()
        assert (tmp_path / originals.NAME).stat().st_size < 1000
        assert originals.read(tmp_path, BOOT) == before
        journal.settle(HOST, (), "reverted", "", None)
    assert originals.read(tmp_path, BOOT).writes == []


def test_the_log_is_on_disk_before_a_key_s_first_change_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(Originals, "_sync", lambda self: synced.append(True))
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        for old in (100, 150, 200):
            journal.intend(intent(old=old, new=old + 50))
        assert synced == [True]


def test_a_log_that_cannot_be_synced_keeps_the_change_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Originals) -> None:
        raise JournalError("I/O error")

    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(Originals, "_sync", fail)
            for _ in range(2):
                with pytest.raises(JournalError, match="I/O error"):
                    journal.intend(intent())
        journal.intend(intent())


def test_the_wal_is_moved_and_begun_anew_in_a_quiet_moment_so_that_no_change_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:

        def begun() -> bytes:
            return (tmp_path / f"{store.NAME}-wal").read_bytes()[:32]

        journal.flush()
        at_start = begun()
        journal.intend(intent())
        journal.flush()
        assert begun() == at_start
        journal.flush()
        anew = begun()
        assert anew != at_start
        journal.intend(intent(HOST))
        journal.flush()
        assert begun() == anew
        monkeypatch.setattr(store, "BUSY_MAX", 1)
        journal.intend(intent())
        journal.flush()
        busy = begun()
        assert busy != anew
        journal.flush()
        journal.flush()
        assert begun() == busy


def test_lines_are_json_objects(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path, BOOT)) as journal:
        journal.intend(intent())
    lines = [json.loads(line) for line in (tmp_path / originals.NAME).read_text().split("\n") if line]
    assert [(line["what"], line["original"], line["new"]) for line in lines] == [("write", 100, 150)]


# --- no space, no right to write ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


@pytest.mark.system
def test_a_full_disk_refuses_a_change_keeps_what_is_known_and_recovers(small_disk: Path) -> None:
    with contextlib.closing(Journal(small_disk, BOOT)) as journal:
        first = journal.intend(intent())
        journal.settle(SPOT, (first,), "trial", "", 150)
        journal.flush()
        filler = fill(small_disk)
        with contextlib.suppress(JournalError):
            for _ in range(100):
                journal.intend(intent(HOST, 1, 2, 1))
        with pytest.raises(JournalError, match=r"full|space"):
            journal.intend(intent(HOST, 1, 2, 1))
        before = [change for change in history.history(small_disk) if change.tunable == SPOT.tunable]
        assert [change.state for change in before] == ["trial"]
        filler.unlink()
        journal.settle(SPOT, (first,), "reverted", "", None)
        assert journal.intend(intent(HOST, 1, 2, 1))


@pytest.mark.system
def test_a_disk_that_is_full_from_the_start_is_one_clear_line(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(JournalError, match=str(small_disk)) as caught:
        Journal(small_disk, BOOT)
    assert "\n" not in str(caught.value)


@pytest.mark.system
def test_a_read_only_file_system_can_still_be_read(small_disk: Path) -> None:
    with contextlib.closing(Journal(small_disk, BOOT)) as journal:
        number = journal.intend(intent())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(JournalError, match="Read-only file system"):
        Journal(small_disk, BOOT)
    assert [change.id for change in history.history(small_disk)] == [number]
    assert [write.spot for write in originals.read(small_disk, BOOT).writes] == [SPOT]
