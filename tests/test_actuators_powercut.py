"""Power cuts: at every sync of the actuator's files, what a disk may hold then, and what the next start makes of it.

A real process makes a scripted series of changes under strace, which stops it (SIGSTOP) after each fsync and fdatasync.
Stopped there, it is looked at: of each file the content now, and the content at its own last sync. A disk that loses
power holds of each file anything between the two.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from actuator_world import RMEM, THRESH, WEB, Namespaces, World

from actuators import history, parts, store
from actuators.records import Spot

DEADLINE_S = 60.0
SECTOR = 512
SCRIPT = """
import os, sys
from pathlib import Path
from actuator_world import RMEM, THRESH, WEB, World
from actuators import originals
from actuators.trials import Trials
from actuators.watch import Watch
from bus.schema import Ask



class InTurn:
    # In place of the thread that syncs originals.log while the journal is synced: the two orders in which they may
    # end, one time this and one time that.

    def __init__(self, *_):
        self.late = False
        self.due = []

    def submit(self, sync):
        self.late = not self.late
        self.due.append(sync)
        if not self.late:
            self.exception()
        return self

    def exception(self):
        while self.due:
            self.due.pop()()

    def result(self):
        pass

    def shutdown(self):
        pass


originals.ThreadPoolExecutor = InTurn
base = Path(sys.argv[1])
(base / "pid").write_text(str(os.getpid()))
world = World(base)
orders = world.parts.orders


def wish(want, key, netns=WEB):
    assert world.wish(want, key, netns).verdict == "written", (want, key)


def order(verb, **fields):
    assert getattr(orders, verb)(Ask(verb, **fields)).ok, (verb, fields)


def short_log():
    originals.SIZE_MAX = 1
    world.modes.tend()


STEPS = [
    lambda: wish(300000, RMEM),
    lambda: wish(400000, RMEM),
    lambda: wish(2048, THRESH[2]),
    lambda: wish(1024, THRESH[1]),
    lambda: order("confirm", change=2),
    lambda: wish(350000, RMEM, 1),
    lambda: order("confirm", change=5),
    lambda: (world.foreign(4000, THRESH[2], 0), Watch(world.parts).level()),
    lambda: order("rollback", change=2),
    lambda: order("hold", tunable=RMEM, netns=1),
    lambda: world.modes.tend(),
    lambda: order("release", tunable=THRESH[0]),
    lambda: wish(200, THRESH[0]),
    lambda: Trials(world.parts, False).tend(),
    short_log,
    lambda: wish(250, THRESH[0]),
    lambda: world.modes.stop(),
    lambda: world.close(),
]
for number, step in enumerate(STEPS):
    (base / "done").write_text(str(number))
    step()
(base / "done").write_text(str(len(STEPS)))
"""
HOST, OWN, AWAY = [Spot(name, 0) for name in THRESH], Spot(RMEM, 1), Spot(RMEM, WEB)
FIRST = {AWAY: 262144, OWN: 262144, **dict(zip(HOST, (128, 512, 1024), strict=True))}
CONFIRMED, OWN_CONFIRMED, CEDED, ROLLED_BACK, HELD, RELEASED = 5, 7, 8, 9, 10, 12
"""After so many steps."""


def after(steps: int) -> tuple[dict[Spot, int], set[Spot]]:
    """What the next start in the same boot must leave, and what it must hold, when so many steps are done."""
    values, holds = dict(FIRST), set[Spot]()
    if steps >= CONFIRMED:
        values[AWAY] = 300000 if steps >= ROLLED_BACK else 400000
    if steps >= OWN_CONFIRMED:
        values[OWN] = 350000
    if steps >= CEDED:
        values[HOST[2]] = 4000
        holds |= set() if steps >= RELEASED else set(HOST)
    holds |= {AWAY} if steps >= ROLLED_BACK else set()
    holds |= {OWN} if steps >= HELD else set()
    return values, holds


def after_reboot(steps: int) -> tuple[dict[Spot, int], set[Spot]]:
    """The same in another boot, in which every value is what it was at first."""
    values, holds = dict(FIRST), after(steps)[1] - {AWAY}
    if OWN_CONFIRMED <= steps < HELD:
        values[OWN] = 350000
    return values, holds


Files = dict[str, bytes]


@dataclass
class Cut:
    """The process just after one sync."""

    synced: str
    now: Files
    before: Files
    """Of each file what was synced before this sync; a file that never was is not there."""
    kernel: dict[str, bytes]
    done: int

    @property
    def after(self) -> Files:
        """Of each file what was synced with this sync. That of the directory settles which names there are."""
        if self.synced in self.now:
            return {**self.before, self.synced: self.now[self.synced]}
        return {name: content for name, content in self.before.items() if name in self.now}

    def disks(self) -> Iterator[Files]:
        """What the disk may hold: nothing that was not synced, everything, and all of one file alone."""
        yield self.before
        yield self.after
        yield self.now
        for name in (store.NAME, f"{store.NAME}-wal", "originals.log"):
            if name in self.now:
                yield {**self.before, name: self.now[name]}


@pytest.fixture
def again() -> Iterator[Path]:
    """Where the next start is made; in memory, since that one's syncs cost only time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name) / "again"


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[Cut]:
    """One for each sync of the script."""
    base = tmp_path_factory.mktemp("cut")
    trace = base / "trace"
    trace.touch()
    argv = ["strace", "-qq", "-y", "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync"]
    argv += ["-e", "inject=fsync,fdatasync:signal=SIGSTOP", sys.executable, "-c", SCRIPT, str(base)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    found: list[Cut] = []
    synced: Files = {}
    with subprocess.Popen(argv, env=env) as process, trace.open() as lines:
        deadline_s = time.monotonic() + DEADLINE_S
        line = last = ""
        while process.poll() is None:
            assert time.monotonic() < deadline_s, f"{len(found)} cuts; {trace.read_text()[-500:]}"
            line = lines.readline() if line.endswith("\n") else line + lines.readline()
            called = re.search(r"f(?:data)?sync\(\d+<(.+)>\)", line)
            last = Path(called[1]).name if called else last
            if "stopped by SIGSTOP" in line:
                found.append(look(base, last, synced))
                synced = found[-1].after
                os.kill(int((base / "pid").read_text()), signal.SIGCONT)
            elif not line.endswith("\n"):
                time.sleep(0.001)
    assert process.returncode == 0
    assert (base / "done").read_text() == str(SCRIPT.count("    lambda") + 1)
    assert len(found) > 20
    return found


def look(base: Path, synced: str, before: Files) -> Cut:
    """The process is stopped: its files are what they are."""
    now = {path.name: path.read_bytes() for path in (base / "state").iterdir()}
    files = [path for place in ("1", "7") for path in (base / place).rglob("*") if path.is_file()]
    kernel = {str(path.relative_to(base)): path.read_bytes() for path in files}
    done = base / "done"
    return Cut(synced, now, before, kernel, int(done.read_text()) if done.exists() else 0)


class There(Namespaces):
    """The namespaces as they stood at the cut."""

    def __init__(self, base: Path, kernel: dict[str, bytes]) -> None:
        super().__init__(base)
        for name, content in kernel.items():
            (base / name).write_bytes(content)


def recovered(base: Path, disk: Files, kernel: dict[str, bytes]) -> tuple[dict[Spot, int], set[Spot], World]:
    """What stands and what is held after the next start from this disk, and its (closed) world."""
    shutil.rmtree(base, ignore_errors=True)
    (base / "state").mkdir(parents=True, mode=0o700)
    for name, content in disk.items():
        (base / "state" / name).write_bytes(content)
        (base / "state" / name).chmod(0o600)
    world = World(base, "enforce", There(base, kernel))
    values = {spot: world.value(spot.tunable, spot.netns) for spot in FIRST}
    holds = {spot for spot in FIRST if world.parts.keeper.held(spot)}
    assert not world.parts.keeper.trouble
    world.close()
    return values, holds, world


def fits(found: tuple[dict[Spot, int], set[Spot], World], *either: tuple[dict[Spot, int], set[Spot]]) -> None:
    """Each value and each hold is as it is before the step, or as it is after it."""
    values, holds, world = found
    for spot in FIRST:
        assert values[spot] in {wanted[spot] for wanted, _ in either}, (spot, world.lines)
        assert (spot in holds) in {spot in wanted for _, wanted in either}, (spot, world.lines)
    assert not any("corrupt" in line for line in world.lines)
    trials = [change for change in history.history(world.state) if change.state in ("intent", "trial")]
    assert not trials


def test_a_change_waits_for_one_sync_of_each_file_and_only_a_key_s_first_for_that_of_the_log(cuts: list[Cut]) -> None:
    of_step = [sorted(cut.synced for cut in cuts if cut.done == step) for step in (1, 2)]
    assert of_step == [[f"{store.NAME}-wal"], [f"{store.NAME}-wal", "originals.log"]]


def test_a_cut_at_any_sync_leaves_what_the_next_start_puts_in_order(cuts: list[Cut], again: Path) -> None:
    logs = {"originals.log", "originals.new"}
    assert {cut.synced for cut in cuts} >= {store.NAME, f"{store.NAME}-wal", "state", *logs}
    for cut in cuts:
        for disk in cut.disks():
            fits(recovered(again, disk, cut.kernel), after(cut.done), after(cut.done + 1))


def test_after_a_cut_and_a_reboot_what_was_confirmed_and_held_is_so_again(
    cuts: list[Cut], again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(parts, "BOOT_ID", tmp_path / "boot_id")
    for cut in cuts:
        for disk in cut.disks():
            found = recovered(again, disk, {})
            fits(found, after_reboot(cut.done), after_reboot(cut.done + 1))


def torn(cut: Cut, first: int, every: int) -> Iterator[Files]:
    """The WAL cut off, or no longer written, or with a hole, at so many of the sectors that this sync was to fill."""
    name = f"{store.NAME}-wal"
    new, old = cut.now[name], cut.before.get(name, b"")
    begins = next((at for at, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), len(old))
    # A sector is written as a whole or not at all, as SQLite takes it (SQLITE_POWERSAFE_OVERWRITE).
    for at in range((-(-begins // SECTOR) + first) * SECTOR, len(new), every * SECTOR):
        yield {**cut.before, name: new[:at]}
        yield {**cut.before, name: new[:at] + old[at:]}
        yield {**cut.before, name: new[:at] + bytes(SECTOR) + new[at + SECTOR :]}


def tear(cuts: list[Cut], folder: Path, every: int = 1) -> None:
    assert cuts
    for number, cut in enumerate(cuts):
        for disk in torn(cut, number % every, every):
            fits(recovered(folder, disk, cut.kernel), after(cut.done), after(cut.done + 1))


def commits(cuts: list[Cut]) -> list[Cut]:
    return [cut for cut in cuts if cut.synced.endswith("-wal") and store.NAME in cut.before]


def test_a_torn_tail_of_the_wal_is_as_if_its_transaction_had_not_been(cuts: list[Cut], again: Path) -> None:
    # An intent, the outcome of one, and the end of a change.
    tear([next(cut for cut in reversed(commits(cuts)) if cut.done == done) for done in (0, 4, 8)], again)


@pytest.mark.parametrize("every", [pytest.param(4, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.search)])
@pytest.mark.timeout(900)
def test_no_commits_torn_tail_is_more_than_its_transaction(cuts: list[Cut], again: Path, every: int) -> None:
    """At every sector by hand; else at each fourth, which one being another from commit to commit."""
    tear(commits(cuts), again, every)
