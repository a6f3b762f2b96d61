"""The terminal plot, line by line."""

from __future__ import annotations

import pytest

from trimtab.plot import Section, plot


def lines(*sections: Section, width: int = 28, height: int = 4, plain: bool = True) -> list[str]:
    return [line.plain for line in plot(sections, "Mbit/s", width, height, plain=plain)]


def ramp(title: str, *values: float, marks: tuple[float, ...] = ()) -> Section:
    return Section(title, float(len(values)), [(n + 0.5, value) for n, value in enumerate(values)], marks)


def test_bars_rise_with_the_values_and_marks_stand_below_their_time() -> None:
    before = ramp("before", *[10] * 10)
    after = ramp("after", 10, 10, 20, 20, 30, 30, 40, 40, 40, 40, marks=(2.0, 4.5, 10.0))
    assert lines(before, after) == [
        " Mbit/s",
        "     40|                ####",
        "       |              ######",
        "     20|            ########",
        "       |####################",
        "       +---------+---------+",
        "                    ^ ^    ^",
        "        before    after     ",
    ]


def test_a_terminal_gets_eighths_of_a_character() -> None:
    assert lines(ramp("", 1, 2, 3, 4, 5, 6, 7, 8), width=16, height=1, plain=False)[1] == "      8│▁▂▃▄▅▆▇█"


def test_a_column_without_a_sample_shows_the_one_before() -> None:
    assert lines(Section("", 4, [(0.5, 2), (3.5, 1)]), width=12, height=2)[1:3] == ["      2|### ", "      1|####"]


def test_a_bar_ends_where_the_scale_does() -> None:
    shown = [line.plain for line in plot([ramp("", 50, 900)], "Mbit/s", 10, 2, top=100, plain=True)]
    assert shown[1:3] == ["    100| #", "     50|##"]


def test_a_column_shows_the_mean_of_its_samples() -> None:
    assert lines(Section("", 2, [(0.2, 4), (1.2, 1), (1.4, 3)]), width=10, height=4)[1:5] == [
        "      4|# ",
        "       |# ",
        "      2|##",
        "       |##",
    ]


@pytest.mark.parametrize(
    ("most", "scale"),
    [(0.0, "1"), (0.7, "0.8"), (399.0, "400"), (401.0, "400"), (405.0, "500"), (9.1, "10"), (33, "40")],
)
def test_the_scale_ends_at_the_next_round_number(most: float, scale: str) -> None:
    assert lines(ramp("", most))[1].split("|")[0].strip() == scale


@pytest.mark.parametrize("width", [20, 41, 80, 200])
def test_no_line_is_wider_than_asked_for(width: int) -> None:
    sections = [ramp("a rather long title", 1, 2, 3, marks=(0.0, 3.0)), ramp("b", *range(9)), Section("c", 2, [])]
    assert max(map(len, lines(*sections, width=width))) <= width
