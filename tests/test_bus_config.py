"""Configuration: strict, merged in order, and never wider than the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import config
from bus.config import Config, ConfigError, Narrow, load, narrowed
from bus.tunables import TUNABLES, table

RMEM = "net.ipv4.tcp_rmem[2]"


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "trimtab.toml"
    path.write_text('mode = "advise"\nnetns = [7]\n[deciders]\ntcp_buffer = false\n')
    return path


def fragment(main: Path, name: str, text: str) -> None:
    folder = main.parent / "conf.d"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_a_file_says_what_it_says_and_the_rest_has_defaults(main: Path) -> None:
    assert load(main) == Config(mode="advise", netns=[7], deciders={"tcp_buffer": False})


def test_without_a_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "trimtab.toml")
    assert load() == Config()
    fragment(tmp_path / "trimtab.toml", "1.toml", 'mode = "observe"')
    assert load().mode == "observe"


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: no such file"):
        load(tmp_path / "no.toml")


def test_fragments_come_after_in_the_order_of_their_names_and_tables_are_merged(main: Path) -> None:
    fragment(main, "20-b.toml", 'mode = "enforce"\n[tunables."net.ipv4.tcp_rmem[2]"]\nhigh = 200000')
    fragment(main, "10-a.toml", 'mode = "observe"\n[deciders]\nneigh_table = false')
    fragment(main, "30-c.toml", '[tunables."net.ipv4.tcp_rmem[2]"]\nlow = 100000')
    fragment(main, "40-d.toml.off", "mode = 7")
    assert load(main) == Config(
        mode="enforce",
        netns=[7],
        deciders={"tcp_buffer": False, "neigh_table": False},
        tunables={RMEM: Narrow(low=100000, high=200000)},
    )


def test_the_effective_configuration_as_json_reads_back_the_same(main: Path, tmp_path: Path) -> None:
    fragment(main, "1.toml", f'[tunables."{RMEM}"]\nstep = 0.25\n[policy.tcp_buffer]\nx = 1')
    effective = tmp_path / "config.json"
    effective.write_bytes(msgspec.json.encode(load(main)))
    fragment(effective, "9.toml", 'mode = "observe"')
    assert load(effective) == load(tmp_path / "config.json")
    assert load(effective).tunables == {RMEM: Narrow(step=0.25)}
    assert load(effective).mode == "advise"


WRONG = {
    'mod = "advise"': r"unknown field `mod`",
    'mode = "off"': r"'off' - at `\$\.mode`",
    "mode = 1": r"Expected `str`, got `int` - at `\$\.mode`",
    "netns = [0]": r">= 1 - at `\$\.netns\[0\]`",
    'netns = ["a"]': r"at `\$\.netns\[0\]`",
    "netns = [true]": r"got `bool`",
    "[deciders]\nx = 1": r"Expected `bool`",
    "deciders = []": r"at `\$\.deciders`",
    '[tunables."a.b"]\nhihg = 1': r"unknown field `hihg`",
    '[tunables."a.b"]\nhigh = 1.5': r"got `float`.*\.high",
    '[tunables."a.b"]\nhigh = "1"': r"got `str`",
    '[tunables."a.b"]\nstep = nan': r"tunables: a\.b: step: nan is no number of 64 bits",
    '[tunables."a.b"]\ncooldown_s = inf': r"tunables: a\.b: cooldown_s: inf is no number",
    "netns = [99999999999999999999]": r"netns: 9+ is no number of 64 bits",
    "policy = 3": r"at `\$\.policy`",
    "mode = ": r"Invalid value",
    "mode = 'a'\nmode = 'b'": r"overwrite",
    "a = " + "[" * 5000: r"recursion",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_cannot_be_understood_names_the_file_and_the_key(main: Path, text: str) -> None:
    fragment(main, "50-x.toml", text)
    with pytest.raises(ConfigError, match=r"conf\.d/50-x\.toml: .*" + WRONG[text]) as caught:
        load(main)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "raw"),
    [("a.toml", b"\xff"), ("a.json", b"\xff"), ("a.json", b"[1]"), ("a.json", b""), ("a.json", b'{"a":' * 5000)],
)
def test_a_file_that_is_no_document_is_named(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError, match=name):
        load(tmp_path / name)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Path) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"trimtab\.toml: Permission denied"):
        load(main)


# --- narrowing ----------------------------------------------------------------------------------------------------

ROWS = table()
NAMES = [row.name for row in TUNABLES]
# Per field of Narrow: what narrows a row's value, and what would widen it.
NARROWER = {"low": 1, "high": -1, "step": -0.01, "cooldown_s": 1.0, "per_hour": -1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", Narrow.__struct_fields__)
def test_every_field_of_every_row_can_be_narrowed_and_not_widened(name: str, field: str) -> None:
    ours, by = getattr(ROWS[name], field), NARROWER[field]
    narrow = narrowed(ROWS, Config(tunables={name: Narrow(**{field: ours + by})}))
    assert narrow[name] == msgspec.structs.replace(ROWS[name], **{field: ours + by})
    assert {other: row for other, row in narrow.items() if other != name} == {
        other: row for other, row in ROWS.items() if other != name
    }
    with pytest.raises(ConfigError, match=rf"{field}: .* would widen the built-in"):
        narrowed(ROWS, Config(tunables={name: Narrow(**{field: ours - by})}))


@pytest.mark.parametrize("field", ["step", "cooldown_s"])
def test_not_a_number_narrows_nothing(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        narrowed(ROWS, Config(tunables={RMEM: Narrow(**{field: float("nan")})}))


@pytest.mark.parametrize(
    ("narrow", "reason"),
    [
        (Narrow(low=2_000_000, high=1_000_000), "nothing is left between low 2000000 and high 1000000"),
        (Narrow(high=1), "nothing is left"),
        (Narrow(step=0.0), r"step of 0.*tcp_buffer = false"),
        (Narrow(step=-0.1), "step of 0"),
        (Narrow(per_hour=0), "0 changes per hour"),
    ],
)
def test_a_row_that_allows_nothing_is_refused_with_a_way_out(narrow: Narrow, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        narrowed(ROWS, Config(tunables={RMEM: narrow}))


def test_a_tunable_that_is_not_in_the_table_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tunables\.net\.ipv4\.tcp_rmem: no such tunable"):
        narrowed(ROWS, Config(tunables={"net.ipv4.tcp_rmem": Narrow(high=1)}))


NUMBERS: st.SearchStrategy[Any] = st.none() | st.integers(-(2**63), 2**63)
FRACTIONS: st.SearchStrategy[Any] = st.none() | st.floats()


@given(
    st.sampled_from(NAMES),
    st.builds(Narrow, low=NUMBERS, high=NUMBERS, step=FRACTIONS, cooldown_s=FRACTIONS, per_hour=NUMBERS),
)
def test_whatever_is_configured_a_row_never_gets_wider(name: str, narrow: Narrow) -> None:
    try:
        row = narrowed(ROWS, Config(tunables={name: narrow}))[name]
    except ConfigError:
        return
    ours = ROWS[name]
    assert ours.low <= row.low <= row.high <= ours.high
    assert 0 < row.step <= ours.step
    assert row.cooldown_s >= ours.cooldown_s
    assert 1 <= row.per_hour <= ours.per_hour
