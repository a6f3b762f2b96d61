"""The page that `trimtab report` makes, looked at in a real browser; and what is put on it, from recordings."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import msgspec
import pytest
import report_world
from report_world import SECOND, WMEM, Story, Writer

from bus.schema import NeighTable, Outcome, Tick, Trial, Verdict, Wish
from bus.tape import TapeError
from trimtab import exits, report
from trimtab.report_page import plot, story, view
from trimtab.report_page.changes import Change, Ledger
from trimtab.report_page.gather import gather, lead
from trimtab.report_page.host import Host
from trimtab.report_page.series import BINS_MAX, Series, Spans, Steps

TOTAL = 3600
HOSTILE = '</script><script>console.error("owned")</script>'
SCREENS = [(1280, 900, "light"), (1280, 900, "dark"), (375, 812, "light"), (375, 812, "dark")]


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tapes")
    for made in report_world.STORIES:
        made(TOTAL).write(folder, report_world.DECIDERS)
    return folder


@pytest.fixture(scope="module")
def page(tapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "report.html"
    assert report.write([tapes], made) == exits.FINE
    return made


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    if chromium.find() is None:
        pytest.skip("needs chromium (the distribution's package)")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def hosts_of(*paths: Path) -> dict[str, Host]:
    return {host.machine.name: host for host in gather(sorted(paths[0].rglob("*.tape"))).hosts}


def changes_of(path: Path) -> list[Change]:
    return [change for host in hosts_of(path).values() for change in host.changes]


# --- in a browser -----------------------------------------------------------------------------------------------------

PLOTS = """[...document.querySelectorAll('.plot')].map(plot => {
  const area = plot.getBoundingClientRect(), lines = [...plot.querySelectorAll('polyline')];
  return {main: plot.parentElement.classList.contains('main'), wide: area.width, left: area.left, high: area.height,
    top: area.top + scrollY, right: area.right,
    lines: lines.map(line => { const box = line.getBoundingClientRect(); return {points: line.points.length,
      inside: box.left >= area.left - 3 && box.right <= area.right + 3 && box.top >= area.top - 3
        && box.bottom <= area.bottom + 3, size: box.width + box.height}; })};
})"""


@pytest.mark.parametrize(("wide", "high", "scheme"), SCREENS)
def test_the_plots_are_there_on_every_screen(tab: chromium.Tab, page: Path, wide: int, high: int, scheme: str) -> None:
    tab.open(page, wide, high, scheme)
    plots: list[Any] = tab.run(PLOTS)
    assert len(plots) >= 10
    assert sum(plot["main"] for plot in plots) == 5
    for plot_ in plots:
        assert plot_["wide"] > 150
        assert 0 <= plot_["left"] < plot_["right"] <= wide
        assert plot_["lines"]
        assert all(line["points"] >= 2 and line["inside"] and line["size"] > 5 for line in plot_["lines"]), plot_
    assert tab.run("document.documentElement.scrollWidth") <= wide
    assert tab.complaints == []
    assert tab.requests == [page.as_uri()]


@pytest.mark.parametrize(("wide", "high", "scheme"), SCREENS)
def test_the_picture_shows_lines_where_the_plots_are(
    tab: chromium.Tab, page: Path, wide: int, high: int, scheme: str
) -> None:
    tab.open(page, wide, high, scheme)
    place = next(plot for plot in tab.run(PLOTS) if plot["main"])
    ink = tab.run("getComputedStyle(document.querySelector('.main .step')).stroke")
    paper = tab.run("getComputedStyle(document.querySelector('.card')).backgroundColor")
    colours = [tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (ink, paper)]
    rows = chromium.pixels(tab.picture((place["left"], place["top"], place["wide"], place["high"])))
    each = len(rows[0]) // round(place["wide"])
    seen = [row[start : start + 3] for row in rows for start in range(0, len(row) - each + 1, each)]
    lines, empty = (sum(pixel == bytes(colour) for pixel in seen) for colour in colours)
    assert lines > place["wide"] / 2, f"{lines} pixels of the line's colour {ink}"
    assert empty > len(seen) / 2, "most of a plot is paper"
    assert tab.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert (sum(colours[1]) < 200) == (scheme == "dark")


def test_every_state_has_its_own_shape_and_colour(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 1280, 900)
    found = tab.run("""[...document.querySelectorAll('.legend .shape')].map(shape => [getComputedStyle(shape).color,
        document.querySelector(shape.firstElementChild.getAttribute('href')).innerHTML])""")
    assert len(found) == len(story.STATES)
    assert len({colour for colour, _ in found} | {"-"}) >= len(found) - 1
    assert len({drawn for _, drawn in found}) == len(found)
    marks = tab.run("[...document.querySelectorAll('.mark .shape')].map(shape => shape.classList[1].slice(2))")
    assert set(marks) == set(story.STATES)


CONTRAST = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const c = [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * c[0] + .7152 * c[1] + .0722 * c[2]; };
  const behind = node => { for (; node; node = node.parentElement) {
    const found = parse(getComputedStyle(node).backgroundColor); if (found.length < 4 || found[3] > 0) return found; }
    return [255, 255, 255]; };
  const ratio = (node, colour) => { const a = light(parse(colour)), b = light(behind(node));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); };
  const texts = [...document.querySelectorAll('h1,h2,h3,p,li,td,th button,.ys span,.axis span,.legend span')];
  const drawn = [...document.querySelectorAll('.mark .shape')], lines = [...document.querySelectorAll('.step,.curve')];
  return {text: Math.min(...texts.map(node => ratio(node, getComputedStyle(node).color))),
    mark: Math.min(...drawn.map(node => ratio(node.closest('.card'), getComputedStyle(node).color))),
    line: Math.min(...lines.filter(node => !node.matches('.t2'))
      .map(node => ratio(node.closest('.card'), getComputedStyle(node).stroke)))};
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_marks_and_lines_stand_out_enough(tab: chromium.Tab, page: Path, scheme: str) -> None:
    # WCAG 2.2: 1.4.3 asks 4.5 of text, 1.4.11 asks 3 of what is drawn.
    tab.open(page, 1280, 900, scheme)
    found = tab.run(CONTRAST)
    assert found["text"] >= 4.5, found
    assert min(found["mark"], found["line"]) >= 3, found


def test_a_click_shows_the_whole_story_and_escape_hides_it(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 1280, 900)
    where = """(() => { const mark = [...document.querySelectorAll('.mark:not(.small)')]
        .find(mark => mark.querySelector('.s-reverted'));
        mark.scrollIntoView({block: 'center'}); const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    tab.click(*tab.run(where))
    text = tab.run("document.getElementById('detail').innerText")
    told = ("30.38 → 45.56 MiB", "web-01, shop", "tcp_buffer", "send buffer of port 443 full", "41000")
    for part in (*told, "granted, written, read back", "reverted after 15 s: retransmit_share got worse"):
        assert part in text
    assert tab.run("document.activeElement.id") == "detail"
    tab.press("Escape")
    assert tab.run("document.getElementById('detail').hidden")
    assert tab.run("document.activeElement.className").startswith("mark")
    assert tab.complaints == []


def test_hovering_shows_it_and_the_keyboard_walks_the_marks(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 1280, 900)
    x, y = tab.run("""(() => { const mark = document.querySelector('.mark'); mark.scrollIntoView({block: 'center'});
        const box = mark.getBoundingClientRect(); return [box.x + 13, box.y + 13]; })()""")
    tab.move(x, y)
    assert not tab.run("document.getElementById('detail').hidden")
    tab.move(2, 2)
    assert tab.run("document.getElementById('detail').hidden")
    tab.run("document.querySelectorAll('.mark')[0].focus()")
    tab.press("ArrowRight")
    assert tab.run("[...document.querySelectorAll('.mark')].indexOf(document.activeElement)") == 1
    tab.press("Enter")
    assert not tab.run("document.getElementById('detail').hidden")


def test_a_confirmed_change_tells_how_to_undo_it(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 375, 812)
    tab.run("document.querySelector('tr[data-state=confirmed] .open').click()")
    assert re.fullmatch(r"trimtab rollback \d+", tab.run("document.querySelector('#detail code').innerText"))
    box = tab.run(
        "(() => { const b = document.getElementById('detail').getBoundingClientRect(); return [b.left, b.right] })()"
    )
    assert 0 <= box[0] < box[1] <= 375


def test_the_table_sorts_and_filters(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 1280, 900)
    column = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(row => row.cells[%d].innerText)"
    everything = tab.run(column % 1)
    assert tab.run("document.getElementById('shown').innerText") == f"{len(everything)} of {len(everything)}"
    tab.run("document.querySelectorAll('th button')[1].click()")
    assert tab.run(column % 1) == sorted(everything)
    tab.run("document.querySelectorAll('th button')[1].click()")
    assert tab.run(column % 1) == sorted(everything, reverse=True)
    assert tab.run("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "descending"
    tab.run("document.querySelector('.chips [data-state=confirmed]').click()")
    assert "confirmed" not in {state.strip() for state in tab.run(column % 5)}
    tab.run(
        "(f => { f.value = 'GW-01 thresh3'; f.dispatchEvent(new Event('input')) })(document.getElementById('filter'))"
    )
    assert set(tab.run(column % 1)) == {"gw-01"}
    assert len(tab.run(column % 1)) == 3


def test_nothing_from_a_tape_becomes_part_of_the_page(tab: chromium.Tab, tmp_path: Path) -> None:
    made = Story(HOSTILE.replace("/", "|"), 120, seed=1)
    made.begin(WMEM, 7, 4 << 20)
    made.levels()
    made.host({7: HOSTILE})
    number = made.grow(30, "tcp_buffer", WMEM, 7, 6 << 20, f"because {HOSTILE}")
    made.judge(60, "tcp_buffer", WMEM, 7, number, None)
    made.wish(70, f"x{HOSTILE[9:]}", WMEM, 7, 9 << 20, f"{HOSTILE}<img src=http://192.0.2.1/x.png>", **{HOSTILE: 1})
    made.outcome(70.1, f"x{HOSTILE[9:]}", WMEM, 7, 6 << 20, 9 << 20, "failed", f"'\"{HOSTILE}", 6 << 20, 99)
    made.write(tmp_path, ["tcp_buffer"])
    page = tmp_path / "report.html"
    assert report.write([tmp_path], page) == exits.FINE
    tab.open(page, 1280, 900)
    tab.run("document.querySelectorAll('tbody .open').forEach(button => button.click())")
    assert tab.complaints == []
    assert tab.requests == [page.as_uri()]
    assert tab.run("document.scripts.length") == 2
    assert HOSTILE in tab.run("document.querySelector('td[data-label=namespace]').innerText")
    assert page.read_text().count("<script") == 2


def test_another_script_would_not_run(tab: chromium.Tab, page: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    more = (
        "<script>document.title = 'owned'</script><img src=http://192.0.2.1/x.png onerror=\"document.title='owned'\">"
    )
    spoiled.write_text(page.read_text().replace("<footer>", f"{more}<footer>"))
    tab.open(spoiled, 1280, 900)
    assert tab.run("document.title").startswith("trimtab: ")
    assert [text for text in tab.complaints if "Content Security Policy" in text]
    assert tab.requests == [spoiled.as_uri()]


# --- what is on it ----------------------------------------------------------------------------------------------------


def test_a_link_or_a_pipe_stays_what_it_is(tapes: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "page")
    os.mkfifo(pipe)
    assert report.write([tapes], link) == exits.FINE
    with (tmp_path / "read").open("wb") as read, subprocess.Popen(["cat", str(pipe)], stdout=read):
        assert report.write([tapes], pipe) == exits.FINE
    assert (tmp_path / "read").read_bytes() == (tmp_path / "page").read_bytes()
    assert link.is_symlink()
    assert pipe.is_fifo()


def test_the_head_line_says_what_happened(tapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.write([tapes], tmp_path / "report.html") == exits.FINE
    said = capsys.readouterr().out
    head = "3 hosts, 1 h: 19 changes, 12 confirmed, 1 reverted, 3 ceded, 1 on trial, 2 gone with a namespace"
    assert said == f"{tmp_path / 'report.html'}: {head}\n"
    assert f"<title>trimtab: {head}</title>" in (tmp_path / "report.html").read_text()
    assert "asked for and not written: 1 advised, 1 failed, 12 refused" in (tmp_path / "report.html").read_text()


def test_events_that_several_deciders_recorded_count_once(tapes: Path) -> None:
    alone = {path.name: hosts_of(path / "tcp_buffer") for path in tapes.iterdir()}
    for name, host in hosts_of(tapes).items():
        single = alone[name][name]
        assert {key: series.points() for key, series in host.series.items()} == {
            key: series.points() for key, series in single.series.items()
        }
        assert [change.id for change in host.changes] == [change.id for change in single.changes]


def test_what_one_decider_has_lost_another_may_have(tmp_path: Path) -> None:
    for decider, lost in (("a", False), ("b", True)):
        writer = Writer(tmp_path / decider, decider, "h")
        for second in range(100):
            if lost and second == 40:
                writer.lose("collector-netlink", 10)
            if not (lost and 40 <= second < 50):
                t_ns = report_world.BOOTED_NS + second * SECOND
                writer.say("collector-netlink", NeighTable(t_ns, 2, second, 1, 2, 3, 0, 0, 0, 0))
                writer.flush()
        writer.close(report_world.BOOTED_NS + 100 * SECOND)
    for folder, count in ((tmp_path, 100), (tmp_path / "a", 100), (tmp_path / "b", 90)):
        host = hosts_of(folder)["h"]
        assert sum(one.of for _, one in host.series["entries_2", 0].points()) == count
    marks = hosts_of(tmp_path)["h"].marks
    assert [(mark.what, mark.why) for mark in marks] == [("10 events lost", "of collector-netlink, on the way to b")]
    assert marks[0].to_ns - marks[0].from_ns == 11 * SECOND


def test_gaps_restarts_and_pauses_are_shaded(tapes: Path) -> None:
    hosts = hosts_of(tapes)
    marks = {mark.what: mark for mark in hosts["gw-01"].marks}
    assert set(marks) == {"120 events lost", "actuator began anew"}
    assert len(hosts["gw-01"].marks) == 2, "what three deciders have lost alike is drawn once"
    assert marks["120 events lost"].why == "of collector-netlink, on the way to guard, neigh_table, tcp_buffer"
    said = {mark.what for mark in hosts["db-01"].marks}
    assert {"not recorded", "guard began anew", "tcp_buffer began anew"} <= said
    pause = next(mark for mark in hosts["db-01"].marks if mark.what == "not recorded")
    assert (pause.to_ns - pause.from_ns) / SECOND == pytest.approx(0.06 * TOTAL, abs=5)


def test_gaps_and_restarts_are_to_be_seen(tab: chromium.Tab, page: Path) -> None:
    tab.open(page, 1280, 900)
    x, y, wide, high = tab.run("""(() => { const plot = document.querySelectorAll('.host')[1].querySelector('.plot');
        const box = plot.getBoundingClientRect(); return [box.x, box.y + scrollY, box.width, box.height]; })()""")
    row = chromium.pixels(tab.picture((x, y + high - 8, wide, 2)))[0]
    each = len(row) // round(wide)
    shaded = [place for place in range(round(wide)) if row[place * each] - row[place * each + 2] > 12]
    assert {round(place / wide, 1) for place in shaded} >= {0.5, 0.8}, "the gap, and before the restart"
    assert "120 events lost" in tab.run("document.querySelectorAll('.gaps')[1].textContent")


def test_lines_end_with_their_namespace_and_show_each_value(tapes: Path) -> None:
    host = hosts_of(tapes)["db-01"]
    values = [value >> 20 for _, value in host.lines[WMEM, 777].steps.points()]
    assert values == [4, 6, 9]
    drawn = next(card for card in view.page([host]).hosts[0].cards if card.where == "jobs").panels[-1].steps[0]
    last = float(drawn.points.split()[-1].partition(",")[0])
    assert last == pytest.approx(210, abs=1)
    assert drawn.moved == "4 → 9 MiB"


def outcome(t_ns: int, verdict: str, value: int, change: int, believed: int = 0, why: str = "why") -> Outcome:
    return Outcome(t_ns, "d", "k", 5, believed, value, verdict, why, value, change)  # type: ignore[arg-type]


def ledger(*events: Outcome) -> Ledger:
    made = Ledger()
    for event in events:
        made.outcome(event.t_ns, event)
    return made


def states(made: Ledger) -> list[tuple[int, str]]:
    return [(change.id, change.state) for change in made.settle()]


def test_a_revert_ends_what_stands_above_the_value_that_it_goes_back_to() -> None:
    grown = [outcome(10, "written", 2, 1, 1), outcome(20, "written", 3, 2, 2), outcome(30, "written", 4, 3, 3)]
    back = ledger(*grown, outcome(40, "reverted", 2, 3))
    assert states(back) == [(1, "trial"), (2, "reverted"), (3, "reverted")]
    assert states(ledger(*grown, outcome(40, "reverted", 1, 3))) == [(1, "reverted"), (2, "reverted"), (3, "reverted")]
    assert states(ledger(*grown[:2], outcome(25, "reverted", 1, 2), grown[2])) == [
        (1, "reverted"), (2, "reverted"), (3, "trial"),
    ]  # fmt: skip


def test_a_confirmation_means_the_change_of_the_verdict_and_those_before_it() -> None:
    grown = [outcome(10 * number, "written", number + 1, number, number) for number in (1, 2, 3)]
    made = ledger(*grown, outcome(50, "confirmed", 4, 3, why="not worse in 30 s"))
    assert states(made) == [(1, "confirmed"), (2, "trial"), (3, "trial")]
    made.asked(49, "guard", Verdict(1, 49, 1, 2, True, "not worse in 30 s", {"soaked_s": 30}))
    assert states(made) == [(1, "confirmed"), (2, "confirmed"), (3, "trial")]
    assert made.settle()[1].end_evidence == {"soaked_s": 30}


def test_somebody_elses_write_cedes_all_that_stands() -> None:
    made = ledger(outcome(10, "written", 2, 1, 1), outcome(20, "confirmed", 2, 1), outcome(30, "ceded", 9, 1))
    assert states(made) == [(1, "ceded")]
    assert (made.settle()[0].after, made.settle()[0].ended_ns) == (9, 30)


def test_a_trial_that_began_before_the_recording_is_a_change() -> None:
    made = Ledger()
    made.trial(5, Trial(100, 8, "d", "k", 5, 0, 1, 2, 5, ()))
    made.outcome(200, outcome(200, "reverted", 1, 8))
    change = made.settle()[0]
    assert (change.id, change.t_ns, change.old, change.new, change.state) == (8, 5, 1, 2, "reverted")


def test_refusals_of_one_kind_are_one_line() -> None:
    made = ledger(*(outcome(number, "refused", 7, 0, why=f"last changed {number} ms ago") for number in range(1000)))
    (change,) = made.settle()
    assert (change.times, change.t_ns, change.ended_ns) == (1000, 0, 999)
    assert story.summary([change]) == "no changes; 1,000 refused"


def test_the_wish_gives_why_and_evidence() -> None:
    made = ledger(outcome(100, "written", 2, 1, 1, why="it was full"), outcome(200, "failed", 3, 2, 2, why="EPERM"))
    for t_ns, want, why in ((99, 2, "it was full"), (100, 2, "later"), (199, 3, "full again")):
        made.asked(t_ns, "d", Wish(1, t_ns, 1, "k", 5, 0, 1, want, why, {"of": why}))
    assert [(change.why, change.evidence) for change in made.settle()] == [
        ("it was full", {"of": "it was full"}), ("full again", {"of": "full again"}),
    ]  # fmt: skip


def test_a_series_keeps_the_extremes_and_the_mean_in_bounded_memory() -> None:
    series = Series()
    for second in range(100_000):
        series.add(second * SECOND, 1000.0 if second == 54_321 else second % 2, 1.0)
    assert len(series.bins) <= BINS_MAX
    points = series.points()
    assert max(one.high for _, one in points) == 1000
    assert min(one.low for _, one in points) == 0
    assert sum(one.of for _, one in points) == 100_000
    assert points[0][1].mean == pytest.approx(0.5, abs=0.01)


def test_steps_and_spans_take_what_comes_late() -> None:
    steps, spans = Steps(), Spans()
    for t_ns, value in ((10, 1), (20, 1), (30, 2), (28, 2), (15, 1), (5, 7), (40, 2)):
        steps.add(t_ns, value)
    assert steps.points() == [(5, 7), (10, 1), (28, 2)]
    for start, end in ((0, 10), (10, 20), (40, 50), (20, 40), (60, 70)):
        spans.add(start, end)
    assert spans.all == [(0, 50), (60, 70)]
    assert [spans.holds(place) for place in (0, 49, 50, 60, 70)] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(6 << 20, "bytes", "6 MiB"), (0, "bytes", "0 bytes"), (1.5e9, "bit/s", "1.5 Gbit/s"), (41_000, "us", "41 ms"),
     (0.041, "%", "4.1 %"), (16384, "entries", "16,384 entries"), (0.25, "/s", "0.25/s"), (8123.4, "/s", "8,123/s")],
)  # fmt: skip
def test_numbers_have_units(value: float, unit: str, text: str) -> None:
    assert plot.number(value, unit) == text


def test_times_are_utc_by_the_offset_of_the_tape() -> None:
    # 2016-12-31 23:59:59 UTC, TAI - UTC = 36 s.
    assert plot.clock((1_483_228_799 + 36) * SECOND, 36) == "2016-12-31 23:59:59"
    assert plot.duration(7_800 * SECOND) == "2 h 10 min"
    assert plot.duration(0) == "0 s"


def test_scales_hold_what_they_show_and_ticks_are_round() -> None:
    assert plot.scale([100, 1024, 16384]).log
    assert not plot.scale([100, 1024, 16384], even=True).log
    assert plot.scale([0, 0]).high == 1
    for size in (plot.scale([1, 1e9]), plot.scale([3.7]), plot.scale([0.001], least=0.5)):
        for mark in plot.marks(size, binary=False):
            assert size.holds(mark)
    assert plot.marks(plot.scale([6 << 20, 9 << 20]), binary=True)[:2] == [8 << 20, 4 << 20]


def test_hosts_share_an_axis_only_where_they_were_recorded_together(tapes: Path, tmp_path: Path) -> None:
    axes = {host.axis for host in view.page(list(hosts_of(tapes).values())).hosts}
    assert len(axes) == 1
    for number, later in enumerate((0, 90_000)):
        began_ns = report_world.BOOTED_NS + later * SECOND
        writer = Writer(tmp_path / str(number), "guard", f"h{number}", began_ns=began_ns)
        writer.say("collector-proc", Tick(began_ns, 1))
        writer.close(began_ns + 60 * SECOND)
    axes = {host.axis for host in view.page(list(hosts_of(tmp_path).values())).hosts}
    assert len(axes) == 2
    assert {axis.to_ns - axis.from_ns for axis in axes} == {60 * SECOND}


# --- tapes that are none, and files -----------------------------------------------------------------------------------


def run(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(report.__file__).parent.parent)}
    command = [sys.executable, "-m", "trimtab", "report", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def test_a_torn_tape_is_drawn_and_said_to_be_torn(tapes: Path, tmp_path: Path) -> None:
    tape = next((tapes / "web-01/tcp_buffer").iterdir())
    torn = tmp_path / "torn.tape"
    torn.write_bytes(tape.read_bytes()[:-4000])
    ran = run("torn.tape", "-o", "out.html", folder=tmp_path)
    assert ran.returncode == exits.DEGRADED
    assert "torn off in the middle of a frame" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "segments of its tapes are damaged" in (tmp_path / "out.html").read_text()


def test_a_tape_without_an_end_is_told_of_and_no_fault(tapes: Path, tmp_path: Path) -> None:
    tape = next((tapes / "web-01/tcp_buffer").iterdir())
    raw = tape.read_bytes()
    (tmp_path / "unended.tape").write_bytes(raw[: raw.rindex(b"\x95\xa3end")])
    ran = run("unended.tape", "-o", "out.html", folder=tmp_path)
    assert ran.returncode == exits.FINE
    assert "the segment has no end" in ran.stderr


def test_a_place_where_no_page_can_be_written_is_named(tapes: Path, tmp_path: Path) -> None:
    ran = run(str(tapes), "-o", "none/out.html", folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (exits.ERROR, "trimtab: none/out.html: No such file or directory\n")


def test_no_damage_of_a_tape_is_more_than_a_word(tapes: Path, tmp_path: Path) -> None:
    raw = next((tapes / "web-01/guard").iterdir()).read_bytes()
    chance = random.Random(7)
    damaged = 0
    for number in range(40):
        spoiled = bytearray(raw)
        for _ in range(chance.randrange(1, 4)):
            spoiled[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.tape"
        path.write_bytes(spoiled[: chance.randrange(len(raw) // 2, len(raw) + 1)])
        with contextlib.suppress(TapeError):
            found = gather([path])
            damaged += bool(found.damage)
            view.page(found.hosts)
    assert damaged > 30


@pytest.mark.parametrize("raw", [b"", b"\xc0", b"\x95\x01", msgspec.msgpack.encode([1, "p", True, 0, []]),
                                 msgspec.msgpack.encode([2, "p", 1, 0, []]), msgspec.msgpack.encode([1, 7, 1, 0, []]),
                                 msgspec.msgpack.encode([1, "p" * 300, 1, 0, []])])  # fmt: skip
def test_what_is_no_batch_is_damage(raw: bytes) -> None:
    with pytest.raises(TapeError):
        lead(raw)


def test_a_bar_shows_how_far_it_is_on_a_terminal(tapes: Path, tmp_path: Path) -> None:
    mine, theirs = pty.openpty()
    argv = [sys.executable, "-m", "trimtab", "report", str(tapes), "-o", "out.html"]
    env = {**os.environ, "PYTHONPATH": str(Path(report.__file__).parent.parent), "TERM": "xterm"}
    try:
        ran = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=env)
    finally:
        os.close(theirs)
    shown = os.read(mine, 1 << 16).decode()
    os.close(mine)
    assert ran.returncode == 0
    assert "reading tapes" in shown
    assert re.search(r"\d+/12\b", shown)


def test_what_is_no_tape_is_said_in_one_line_and_the_old_page_stays(tmp_path: Path) -> None:
    (tmp_path / "no.tape").write_text("hello")
    (tmp_path / "out.html").write_text("before")
    ran = run("no.tape", "-o", "out.html", folder=tmp_path)
    assert ran.returncode == exits.ERROR
    assert ran.stderr.splitlines() == ["trimtab: no.tape: not a tape of trimtab's"]
    assert (tmp_path / "out.html").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.tape", "out.html"]


def test_a_tape_is_never_overwritten(tapes: Path, tmp_path: Path) -> None:
    tape = tmp_path / "a.tape"
    before = next((tapes / "gw-01/guard").iterdir()).read_bytes()
    tape.write_bytes(before)
    with pytest.raises(TapeError, match="that is one of the tapes"):
        report.write([tmp_path], tape)
    assert tape.read_bytes() == before


def test_a_page_that_cannot_be_written_is_an_error_in_one_line(tapes: Path, tmp_path: Path) -> None:
    ran = run(str(tapes / "gw-01"), "-o", str(tmp_path / "nowhere/out.html"), folder=tmp_path)
    assert ran.returncode == exits.ERROR
    assert len(ran.stderr.splitlines()) == 1
    assert "No such file or directory" in ran.stderr


def test_a_recording_of_nothing_makes_a_page_that_says_so(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "guard", "h")
    writer.say("collector-proc", Tick(report_world.BOOTED_NS + SECOND, 1))
    writer.close(report_world.BOOTED_NS + 2 * SECOND)
    assert report.write([tmp_path], tmp_path / "out.html") == exits.FINE
    text = (tmp_path / "out.html").read_text()
    assert "1 host, 2 s: no changes" in text
    assert "No change was made, and none was asked for." in text


def test_events_that_are_dated_far_away_do_not_stretch_the_page(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "guard", "h")
    for t_ns in (report_world.BOOTED_NS + SECOND, 2**62, 0):
        writer.say("collector-netlink", NeighTable(t_ns, 2, 5, 1, 2, 3, 0, 0, 0, 0))
    writer.close(report_world.BOOTED_NS + 2 * SECOND)
    host = hosts_of(tmp_path)["h"]
    assert host.astray == 1
    assert host.recorded.all[-1][1] - host.recorded.all[0][0] == 2 * SECOND


def test_without_jinja2_it_says_what_to_install(
    tapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report.write([tapes], tmp_path / "out.html") == exits.ERROR
    assert capsys.readouterr().err == "trimtab report needs jinja2; install it with: pip install 'trimtab[report]'\n"
    assert not (tmp_path / "out.html").exists()
