"""Keys of destinations, and values that are words, as the operator reads them: history, explain, tunables, report."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from actuators.history import Filter, history
from actuators.journal import Journal
from actuators.parts import BOOT_ID
from actuators.records import Hold, Intent, Site, Spot, stamp
from bus.tunables import ALGORITHMS, row_of, table
from trimtab import explain, tables
from trimtab.report_page import cards, story
from trimtab.report_page.plot import scale
from trimtab.tape.compare_view import _shown

KEY, OTHER = "route.congctl@203.0.113.0/24", "route.congctl@2001:db8:7::/48"
SOMAXCONN = "net.core.somaxconn"
BBR = ALGORITHMS.index("bbr")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A journal with a change of each of two destinations, and one of a sysctl."""
    with contextlib.closing(Journal(tmp_path / "state", BOOT_ID.read_text().strip())) as journal:
        for tunable, old, new in ((KEY, 0, BBR), (OTHER, 0, 2), (SOMAXCONN, 0, 128)):
            spot = Spot(tunable, 7)
            number = journal.intend(Intent(spot, Site(4026532007, "web"), "congestion", old, new, "lossy", {}, old))
            journal.settle(spot, (number,), "trial", "", new)
        journal.hold(Hold(Spot("route.congctl", 0), "held by root", stamp().tai_ns))
    return tmp_path / "state"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_history_shows_words(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_history(state, None, 0, False)
    shown = lines(capsys)
    assert f"{KEY} web none bbr trial congestion lossy" in shown[1]
    assert f"{OTHER} web none cubic trial" in shown[2]
    assert f"{SOMAXCONN} web 0 128 trial" in shown[3]


@pytest.mark.parametrize(
    ("asked", "found"),
    [(KEY, [KEY]), ("route.congctl", [KEY, OTHER]), ("route.cong", []), (SOMAXCONN, [SOMAXCONN]), ("route", [])],
)
def test_the_history_of_a_row_is_that_of_all_its_destinations(state: Path, asked: str, found: list[str]) -> None:
    assert [change.tunable for change in history(state, Filter(tunable=asked))] == found


def test_a_key_is_explained_by_its_whole_name(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain.show_explanation(tmp_path / "run", state, KEY, False)
    text = lines(capsys)
    assert text[0].startswith(f"{KEY}: congestion control of new TCP connections")
    assert "stands at none" in text
    assert any(line.startswith("bounds one of none, reno, cubic, bbr") for line in text)
    assert "leased never confirmed; stands while congestion asks for it, 3600 s at most" in text
    assert "hands off everywhere: held by root; trimtab release route.congctl" in text
    assert any(line.startswith(f"change 1 of {KEY}") and "none -> bbr (web)" in line for line in text)
    assert not any("change 2" in line for line in text)


def test_where_nothing_stands_there_is_no_unit(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain.show_explanation(tmp_path / "run", state, "route.initcwnd@203.0.113.0/24", False)
    assert "stands at none" in lines(capsys)


def test_a_row_is_explained_with_all_its_destinations(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain.show_explanation(tmp_path / "run", state, "route.congctl", False)
    text = lines(capsys)
    assert "stands at route.congctl@PREFIX, by destination" in text
    assert sum(line.startswith("change ") for line in text) == 2


@pytest.mark.parametrize("key", ["route.congctl@203.0.113.7/24", "route.congctl@default"])
def test_a_key_that_is_none_is_not_explained(state: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(tables.UnknownError, match="no key"):
        explain.show_explanation(tmp_path / "run", state, key, False)


def test_the_list_says_that_there_is_one_for_each_destination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.show_tunables(tmp_path / "run", False)
    text = lines(capsys)
    assert "route.congctl@PREFIX algorithm 5 s 12 netns careful congestion" in text
    assert "route.initcwnd@PREFIX 4 64 segments 100% 5 s 12 netns careful congestion" in text


def test_the_list_for_programs_has_the_words(tmp_path: Path) -> None:
    row = next(row for row in tables.rows(tmp_path / "run") if row.name == "route.congctl")
    assert row.words == ALGORITHMS
    assert (row.value, row.instances, row.life_s) == (None, 64, 3600)


def test_the_report_and_the_comparison_of_policies_show_words() -> None:
    row, amount = row_of(table(), KEY), table()["net.ipv4.tcp_rmem[2]"]
    assert row
    assert story.move(row, 0, BBR) == "none → bbr"
    assert story.move(amount, 1 << 20, 2 << 20) == "1 → 2 MiB"
    assert story.move(None, 1, 2) == "1 → 2"
    assert (story.value(row, 1.0), story.value(row, 1.5), story.value(amount, 1024)) == ("reno", "", "1 KiB")
    assert {text for _, text in cards._ticks(scale([0.0, 3.0]), "algorithm", row)} <= {"", *ALGORITHMS}
    assert [_shown(row, name, BBR) for name in ("peak", "final", "reverted")] == ["bbr", "bbr", BBR]
    assert _shown(None, "peak", 3) == 3
