"""Tables and sentences on a terminal: nothing is cut, and words stay whole, however narrow it is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from trimtab import show
from trimtab.grid import LEAST, grid, wrapped

HEAD = ("tunable", "value", "why")
ROWS = [
    ("net.ipv4.tcp_rmem[2]", "33554432", "the window is the limit"),
    ("net.core.somaxconn", "4096", ""),
]
NUMERIC = (False, True, False)


def lines(width: int | None) -> list[str]:
    return [line for row in grid(HEAD, ROWS, NUMERIC, width) for line in row]


def test_columns_stand_below_one_another_and_amounts_to_the_right() -> None:
    assert lines(None) == [
        "tunable                  value  why",
        "net.ipv4.tcp_rmem[2]  33554432  the window is the limit",
        "net.core.somaxconn        4096",
    ]
    assert lines(55) == lines(None)


def test_a_row_that_is_too_wide_goes_on_in_the_next_line_and_so_does_the_head() -> None:
    assert lines(54) == [
        "tunable                  value",
        "    why",
        "net.ipv4.tcp_rmem[2]  33554432",
        "    the window is the limit",
        "net.core.somaxconn        4096",
    ]


def test_a_sentence_that_is_too_wide_for_a_line_breaks_between_words() -> None:
    assert lines(24)[3:7] == ["net.ipv4.tcp_rmem[2]", "    33554432", "    the window is the", "    limit"]


@pytest.mark.parametrize("width", [1, 10, 20, 30, 40, 60, 80])
def test_no_word_is_lost_or_broken_at_any_width(width: int) -> None:
    said = lines(width)
    assert " ".join(said).split() == " ".join(cell for row in (HEAD, *ROWS) for cell in row).split()
    assert max(map(len, said)) <= max(width, LEAST)


def test_wide_characters_take_two_cells() -> None:
    assert lines_of("名前", "x") == ["a     b", "名前  1", "x     2"]


def lines_of(*names: str) -> list[str]:
    rows = [(name, str(number)) for number, name in enumerate(names, 1)]
    return [line for row in grid(("a", "b"), rows, (False, True), None) for line in row]


def test_what_goes_on_is_indented_as_its_line_is() -> None:
    said = wrapped("  why  one two three four five six\nshort", 24, hang=5)
    assert said == ["  why  one two three", "       four five six", "short"]


def test_a_word_longer_than_the_line_stays_whole() -> None:
    assert wrapped(f"see {'/long' * 9} now", 24) == ["see", "/long" * 9, "now"]


@pytest.mark.parametrize("cell", ["12", "-3", "4.5 MiB", "50%"])
def test_amounts_go_to_the_right(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["how much there is"], [[cell], [None]])
    assert capsys.readouterr().out == f"how much there is\n{cell:>17}\n\n"


@pytest.mark.parametrize("cell", ["1.2.3.4", "2026-11-21", "host"])
def test_words_go_to_the_left_and_numbers_among_them(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["how much there is"], [[cell], [12]])
    assert capsys.readouterr().out == f"how much there is\n{cell}\n12\n"


def test_no_terminal_obeys_what_is_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["name"], [["\x1b[31mred\n"]])
    assert capsys.readouterr().out == "name\n?[31mred?\n"


@pytest.mark.parametrize(("term", "head"), [("xterm", "\x1b[1mname\x1b[0m"), ("dumb", "name")])
def test_the_head_is_bold_on_a_terminal_and_lines_are_as_wide_as_it(term: str, head: str) -> None:
    code = "from trimtab import show; show.table(['name'], [['word ' * 9]]); show.say('word ' * 9)"
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "30"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, env=environment) as child:
        os.close(slave)
        said = b""
        try:
            while piece := os.read(master, 4096):
                said += piece
        except OSError:
            pass  # EIO: the other side is closed
        os.close(master)
    assert child.returncode == 0
    text = ["word word word word word word", "word word word"]
    assert said.decode().split("\r\n") == [head, *text, *text, ""]
