"""What decides about a wave and about a preview, without a host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILTERS = Path(__file__).resolve().parent.parent / "playbooks/plugins/filter"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FILTERS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROLLOUT, PREVIEW = loaded("rollout"), loaded("preview")


def wave(**states: str) -> dict[str, dict[str, str]]:
    return {
        host: {"state": state, "reason": "down" if state in ("sick", "left out") else ""}
        for host, state in states.items()
    }


@pytest.mark.parametrize(
    ("rows", "canary", "tolerated", "stops"),
    [
        (wave(a="trying"), True, 0, False),
        (wave(a="sick"), True, 0, True),
        (wave(a="sick"), True, "100%", True),
        # Nothing was proven: the canary was not tried.
        (wave(a="left out"), True, 0, True),
        (wave(a="already"), True, 0, False),
        (wave(a="left out", b="trying"), True, 0, False),
        # Of another wave, who was down before is no witness against the candidate.
        (wave(a="left out", b="left out"), False, 0, False),
        (wave(a="trying", b="sick"), False, 0, True),
        (wave(a="trying", b="sick"), False, 1, False),
        (wave(a="sick", b="sick"), False, 1, True),
        # A limit is reached, not exceeded: half of two is one.
        (wave(a="trying", b="sick"), False, "50%", False),
        (wave(a="trying", b="sick"), False, "49%", True),
        # A share of those that were touched.
        (wave(a="sick", b="left out", c="left out", d="already"), False, "99%", True),
    ],
)
def test_a_wave_stays_unless_more_are_sick_than_are_tolerated(
    rows: dict[str, dict[str, str]], canary: bool, tolerated: object, stops: bool
) -> None:
    found = ROLLOUT.gate(rows, canary, tolerated)
    assert bool(found["stop"]) == stops
    if stops:
        assert "down" in found["stop"]


@pytest.mark.parametrize(
    ("noted", "steps", "state", "reason"),
    [
        ({"memo": {"state": "trying"}}, [{}, {"changed": True}], "trying", ""),
        ({"memo": {"state": "accepted"}}, [{}], "already", ""),
        ({"sick": "not fine before: not running"}, [{}], "left out", "not fine before: not running"),
        ({"unreachable": True, "msg": "no\nroute"}, [{}], "left out", "unreachable: no route"),
        ({"memo": {"state": "trying"}}, [{}, {"failed": True, "msg": "refused"}], "sick", "refused"),
        ({"memo": {"state": "trying"}}, [{"unreachable": True, "msg": "gone"}], "sick", "unreachable: gone"),
        ({"memo": {"state": "trying"}}, [{"failed": True}], "sick", "failed without a word"),
    ],
)
def test_a_host_that_was_not_touched_is_left_out_and_one_that_was_is_sick(
    noted: dict[str, Any], steps: list[dict[str, Any]], state: str, reason: str
) -> None:
    assert ROLLOUT.tried(noted, steps) == {"state": state, "reason": reason}


def test_the_end_of_a_rollout_counts_hosts_by_what_became_of_them() -> None:
    lines = ROLLOUT.outcome(wave(a="done", b="returned", c="sick", d="untouched", e="done"))
    assert lines[-1] == "5 hosts: 2 rolled out, 1 returned, 1 SICK, NOT RETURNED, 1 untouched"


SIDE = {"changes": 0, "peak": 0, "final": 0, "reverted": 0, "reversals": 0}
KEY = "net.ipv4.tcp_rmem[2]"


def host(changes: int = 0, peak: int = 0, segments: int = 3) -> dict[str, Any]:
    """What came back of a host, which would differ where it has changes."""
    row = {"tunable": KEY, "namespace": "", "recorded": SIDE, "candidate": {**SIDE, "changes": changes, "peak": peak}}
    sums = {"changes": changes, "reverted": 0}
    return {
        "segments": segments, "events": 9, "rows": [row] if changes else [], "words": [],
        "recorded": {"changes": 0, "reverted": 0}, "candidate": sums,
    }  # fmt: skip


SEEN = {
    "a": host(10, 700), "b": host(4, 900), "c": host(), "d": host(segments=0),
    "e": {"unreachable": True, "msg": "no route"},
}  # fmt: skip


def test_a_preview_says_how_much_where_and_how_high_and_who_has_not_spoken() -> None:
    *_, without, lost, sentence = PREVIEW.preview(SEEN)["lines"]
    assert sentence == (
        f"2 of 5 hosts would differ: 14 changes (were 0), by recordings of 3 of 5 hosts; none above {KEY} 900 (was 0)"
    )
    assert without == "without recordings of these hours: d"
    assert lost == "not previewed: e: unreachable: no route"


@pytest.mark.parametrize(
    ("limits", "over"),
    [
        ({}, False),
        ({"hosts": 2}, False),
        ({"hosts": 1}, True),
        ({"hosts": "40%"}, False),
        ({"hosts": "39%"}, True),
        ({"changes": 14}, False),
        ({"changes": 13}, True),
        ({"highest": {KEY: 900}}, False),
        ({"highest": {KEY: 899}}, True),
        ({"highest": {"net.other": 1}}, False),
        ({"recorded": 3}, False),
        ({"recorded": "80%"}, True),
        ({"hosts": "", "changes": "", "recorded": "", "reverted": 0}, False),
    ],
)
def test_a_preview_is_over_a_limit_that_it_exceeds(limits: dict[str, Any], over: bool) -> None:
    assert bool(PREVIEW.preview(SEEN, limits)["over"]) == over


def test_a_policy_that_a_host_refuses_is_over_every_limit() -> None:
    seen = {**SEEN, "f": {"failed": True, "msg": "the policy cannot be used: no"}, "g": {"failed": True, "msg": "full"}}
    assert PREVIEW.preview(seen)["over"] == ["refused by f: the policy cannot be used: no"]


def test_a_preview_of_many_stays_short() -> None:
    found = PREVIEW.preview({f"h{number}": host(1, 5) for number in range(500)})
    assert len(found["lines"]) < 50
    assert "and 460 more" in found["lines"]
