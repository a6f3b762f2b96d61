"""What keeps operators out of each other's way, and what they read when something is wrong: without a host."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PLAYS = Path(__file__).resolve().parent.parent / "playbooks"
BIN = Path(sys.executable).parent


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PLAYS / "plugins/filter" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK, FLEET, PREVIEW = loaded("lock"), loaded("fleet"), loaded("preview")


@pytest.fixture(scope="module")
def collection() -> Iterator[str]:
    """Our collection's Python, as Ansible has it on a host."""
    sys.path.insert(0, str(PLAYS / "collections"))
    yield "ansible_collections.trimtab.fleet.plugins"
    sys.path.remove(str(PLAYS / "collections"))


@pytest.fixture
def lock(collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module(f"{collection}.module_utils.lock")
    monkeypatch.setattr(module, "LOCK", str(tmp_path / "trimtab.lock"))
    return module


ALICE = {"who": "alice at ctl1", "what": "rollout.yml", "run": "ctl1/1/2"}
BOB = {"who": "bob at ctl2", "what": "site.yml", "run": "ctl2/3/4"}


def test_a_host_is_locked_for_one_run_and_says_for_whom(lock: ModuleType) -> None:
    assert [lock.take(ALICE, 600, False) for _ in range(2)] == [{}, {}]
    with pytest.raises(Exception, match=r"locked by alice at ctl1 for rollout.yml since .*trimtab_force_lock=true"):
        lock.take(BOB, 600, False)
    assert lock.release(BOB["run"])["who"] == ALICE["who"]
    lock.insist(ALICE["run"])
    lock.release(ALICE["run"])
    assert lock.take(BOB, 600, False) == {}


def test_a_lock_that_is_broken_stops_whose_it_was(lock: ModuleType) -> None:
    lock.take(ALICE, 600, False)
    assert lock.take(BOB, 600, True)["run"] == ALICE["run"]
    with pytest.raises(Exception, match=r"not locked for this any more: it is locked by bob at ctl2"):
        lock.insist(ALICE["run"])
    lock.release("")
    with pytest.raises(Exception, match=r"it was taken away"):
        lock.insist(BOB["run"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "x"}', '{"run": "x", "until_s": "soon"}'])
def test_a_lock_that_is_past_its_limit_or_damaged_keeps_nobody_out(lock: ModuleType, text: str) -> None:
    lock.take(ALICE, 0, False)
    assert lock.take(BOB, 600, False) == {}
    Path(lock.LOCK).write_text(text)
    assert lock.take(ALICE, 600, False) == {}


def test_a_run_of_this_controller_that_is_gone_is_known_as_such() -> None:
    mine = LOCK.run("rollout.yml")
    assert not LOCK.ended(mine)
    with subprocess.Popen(["sleep", "60"]) as process:
        other = {**mine, "pid": process.pid}
        other["run"] = "{controller}/{pid}/".format(**other) + LOCK._began(process.pid)
        assert not LOCK.ended(other)
        process.kill()
    assert LOCK.ended(other)
    # Of another controller nothing can be told.
    assert not LOCK.ended({**other, "controller": "elsewhere"})


def test_who_works_where_is_told_of_hosts_that_answer() -> None:
    results = {"h1": [{}, {"skipped": True}], "h2": [{"msg": "locked by alice"}, {"skipped": True}]}
    results["h3"] = [{"unreachable": True, "msg": "no route"}, {"skipped": True}]
    results["h4"] = [{"msg": "locked by me"}, {"lock": {}}]
    assert LOCK.taken(results) == "h2 is locked by alice"


OFF = {"trimtab": {"ready": False, "problem": "not running", "roles": {}}, "off": "since then by alice"}


@pytest.mark.parametrize(
    ("seen", "state", "reason"),
    [
        (OFF, "off", "since then by alice"),
        # It was started by hand since, and does not do well.
        ({**OFF, "trimtab": {**OFF["trimtab"], "roles": {"actuator": "failed"}}}, "sick", "not running"),  # type: ignore[dict-item]
        ({"failed": True, "msg": "unreachable: no route"}, "unreachable", "no route"),
        (
            {"failed": True, "msg": "no json", "module_stderr": "python: not\nfound"},
            "failed",
            "no json: python: not found",
        ),
    ],
)
def test_what_a_host_is_and_why_is_in_its_row(seen: dict[str, Any], state: str, reason: str) -> None:
    row = FLEET.health(seen)
    assert (row["state"], row["reason"]) == (state, reason)


def test_hosts_are_in_the_order_of_their_numbers() -> None:
    lines = FLEET.table({f"h{number}": {"state": "fine"} for number in (10, 9, 2, 1)})
    assert [line.split()[0] for line in lines[1:-1]] == ["h1", "h2", "h9", "h10"]


KEY = "net.ipv4.tcp_rmem[2]"


def previewed(now: int, then: int, *words: str) -> dict[str, Any]:
    """What came back of a host on which a tunable would go to THEN and went to NOW."""
    side = {"changes": 1, "final": 0, "reverted": 0, "reversals": 0}
    row = {"tunable": KEY, "namespace": "", "recorded": {**side, "peak": now}, "candidate": {**side, "peak": then}}
    sums = {"changes": 1, "reverted": 0}
    return {"segments": 1, "events": 9, "rows": [row], "words": list(words), "recorded": sums, "candidate": sums}


def test_a_preview_warns_of_a_bound_below_what_was_needed() -> None:
    seen = {"a": previewed(900, 300), "b": previewed(700, 200), "c": previewed(100, 400)}
    found = PREVIEW.preview(seen)
    assert f"LESS THAN WAS NEEDED: {KEY} would not get above 300, and was taken to 900 on a, b" in found["lines"]
    assert found["over"] == []
    assert PREVIEW.preview(seen, {"less": 2})["over"] == []
    assert PREVIEW.preview(seen, {"less": "34%"})["over"] == ["less than was needed on a, b; the limit is 34% hosts"]


def test_a_policy_that_a_decider_does_not_take_is_not_called_harmless() -> None:
    word = "tuner cannot be compared: policy.tuner: Object contains unknown field `must`"
    seen = {host: previewed(1, 1, f"{host}: {word}") for host in ("a", "b")}
    found = PREVIEW.preview(seen)
    assert found["over"] == [f"cannot be told for a, b: {word}"]
    assert f"on a, b: {word}" in found["lines"]


class FakeModule:
    check_mode = False

    def __init__(self, **params: Any) -> None:
        self.params = params


class Starting:
    """An installation that comes up as it is told: how many roles are up at each look, and then for ever."""

    release = "r"

    def __init__(self, *up: int) -> None:
        self.up = list(up)

    def facts(self) -> dict[str, Any]:
        now = self.up.pop(0) if len(self.up) > 1 else self.up[0]
        roles = {str(number): "running" if number < now else "starting" for number in range(3)}
        return {"ready": now == 3, "problem": "not running: some", "roles": roles}


class Clock:
    """Goes on when somebody sleeps."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("up", "alive", "limit", "words"),
    [
        # Slow, but it comes: it takes longer in all than its patience, of 10 s.
        ([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3], True, 99, ""),
        ([0, 1], True, 99, "no nearer to it for .*: not running: some"),
        # Up and down by turns is no progress.
        ([1, 0] * 50, True, 50, "no nearer"),
        ([0, 1, 1, 2], True, 5, "not ready within"),
        ([0], False, 99, "did not start: it said nothing"),
    ],
)
def test_a_start_is_waited_for_as_long_as_it_comes_nearer(
    collection: str, monkeypatch: pytest.MonkeyPatch, up: list[int], alive: bool, limit: int, words: str
) -> None:
    module = importlib.import_module(f"{collection}.modules.trimtab_service")
    monkeypatch.setattr(module, "time", Clock())
    monkeypatch.setattr(module, "LOG", "/nowhere")
    service = module.Service(FakeModule(patience=10, limit=limit), Starting(*up), False)
    monkeypatch.setattr(service, "holder", lambda: 0)
    with subprocess.Popen(["sleep", "60"] if alive else ["true"]) as service.child:
        if not alive:
            service.child.wait()
        try:
            if words:
                with pytest.raises(Exception, match=words):
                    service.wait()
            else:
                assert service.wait()["ready"]
                assert module.time.now_s > 10
        finally:
            service.child.kill()


def played(tmp_path: Path, play: str, *words: str, **variables: Any) -> str:
    """A play on two names for this machine, which it must not get to."""
    hosts = tmp_path / "hosts.ini"
    hosts.write_text("h1 ansible_connection=local\nh2 ansible_connection=local\n")
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PLAYS / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(PLAYS / "collections")
    argv = [str(BIN / "ansible-playbook"), "-i", str(hosts), str(PLAYS / play), "-e", json.dumps(variables), *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode
    return done.stdout + done.stderr


def test_without_an_archive_one_line_says_why_and_no_host_is_looked_at(tmp_path: Path) -> None:
    said = played(tmp_path, "site.yml", "--check", trimtab_source=str(tmp_path), trimtab_cache=str(tmp_path))
    assert [line.split(": ")[0] for line in said.splitlines() if "FAILED!" in line] == ["fatal"]
    assert f"{tmp_path} is neither a clone of trimtab nor its wheel" in said
    assert "undefined" not in said
    assert "Look at the host" not in said


@pytest.mark.parametrize("play", ["preview.yml", "rollout.yml"])
def test_a_policy_that_is_not_there_is_one_line(tmp_path: Path, play: str) -> None:
    said = played(tmp_path, play, "--check", trimtab_policy_file="nowhere.toml")
    assert "nothing was done: there is no file nowhere.toml on the controller" in said
    assert said.count("FAILED!") == 1


class RpmModule(FakeModule):
    """rpm -q, as it answers where one of two packages is there."""

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        return 1, "python3\npackage python3-bcc is not installed\n", ""


def test_packages_that_a_red_hat_like_host_lacks_are_known(collection: str) -> None:
    module = importlib.import_module(f"{collection}.modules.trimtab_info")
    assert module.missing(RpmModule(), ["python3", "python3-bcc"], "redhat") == ["python3-bcc"]


def test_a_wheel_is_a_release_too(collection: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"{collection}.modules.trimtab_bundle")
    wheel = tmp_path / "trimtab-1.2.3-py3-none-any.whl"
    names = set()
    for content in (b"one", b"other"):
        wheel.write_bytes(content)
        names |= {module.release_of_wheel(str(wheel), fits) for fits in ("3.11x86_64", "3.12x86_64")}
    assert len(names) == 4
    assert {name.rpartition("-")[0] for name in names} == {"1.2.3"}
