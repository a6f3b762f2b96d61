"""Tuners of third parties: found by entry point, read as data, and only from where others cannot write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus import plugins
from bus.config import ConfigError

ROWS = """
[[tunable]]
name = "net.core.xfrm_acq_expires"
low = 128
high = 65535
step = 0.5
cooldown_s = 1.0
per_hour = 10
unit = "connections"
scope = "netns"
decider = "accept_queue"
summary = "longest accept queue"
"""
Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_settled", [])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return folder


@pytest.fixture
def install(site: Path) -> Iterator[Install]:
    """Installs a distribution with one tuner; returns its package's folder. umask as of a package manager."""
    before = os.umask(0o022)

    def make(
        name: str = "accept_queue",
        module: str = "trimtab_accept.decider",
        rows: str | None = ROWS,
        distribution: str = "trimtab_accept",
    ) -> Path:
        info = site / f"{distribution}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {module}\n")
        package = site / distribution
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "decider.py").write_text("raise RuntimeError('nobody may run this here')\n")
        if rows is not None:
            (package / plugins.ROWS).write_text(rows)
        return package

    yield make
    os.umask(before)


def test_without_any_there_are_none() -> None:
    assert plugins.tuners() == ()


@pytest.mark.parametrize("module", ["trimtab_accept.decider", "trimtab_accept.decider:step", "trimtab_accept"])
def test_a_tuner_brings_its_rows_as_data_and_its_code_is_not_run(install: Install, module: str) -> None:
    install(module=module)
    (tuner,) = plugins.tuners()
    assert (tuner.name, tuner.module, tuner.distribution) == ("accept_queue", module, "trimtab_accept")
    (row,) = tuner.rows
    assert (row.name, row.low, row.high, row.decider, row.backend) == (
        "net.core.xfrm_acq_expires",
        128,
        65535,
        "accept_queue",
        "sysctl",
    )
    assert "trimtab_accept" not in sys.modules


def test_several_come_in_the_order_of_their_names(install: Install) -> None:
    install(name="zz", module="pz.decider", distribution="pz", rows=ROWS.replace("accept_queue", "zz"))
    install(
        name="aa",
        module="pa.decider",
        distribution="pa",
        rows=ROWS.replace("accept_queue", "aa").replace("xfrm_acq_expires", "optmem_max"),
    )
    assert [tuner.name for tuner in plugins.tuners()] == ["aa", "zz"]


def test_what_was_settled_holds_although_it_cannot_be_looked_at_any_more(install: Install) -> None:
    package = install()
    plugins.settle()
    (package / plugins.ROWS).unlink()
    assert [tuner.name for tuner in plugins.tuners()] == ["accept_queue"]


def test_what_cannot_be_trusted_settles_nothing(install: Install) -> None:
    rows = install() / plugins.ROWS
    rows.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written"):
        plugins.settle()
    rows.chmod(0o644)
    assert len(plugins.tuners()) == 1


WRONG_ROWS = {
    "not TOML": ("= 1", "Invalid"),
    "unknown field": (ROWS + 'root = "yes"\n', "unknown field `root`"),
    "unknown table": (ROWS + "[extra]\n", "unknown field `extra`"),
    "field missing": (ROWS.replace("low = 128\n", ""), "missing required field `low`"),
    "wrong type": (ROWS.replace("low = 128", 'low = "128"'), "got `str`"),
    "path in the name": (ROWS.replace("net.core.xfrm_acq_expires", "../../etc/passwd"), "name"),
    "step of nothing": (ROWS.replace("step = 0.5", "step = 0.0"), "step"),
    "for another decider": (ROWS.replace('"accept_queue"', '"tcp_buffer"'), "names the decider 'tcp_buffer'"),
    "another backend": (ROWS + 'backend = "neightbl"\n', "only the sysctl backend"),
    "one of ours": (ROWS.replace("net.core.xfrm_acq_expires", "net.ipv4.tcp_rmem[2]"), r"tcp_rmem\[2\] has two rows"),
    "upside down": (ROWS.replace("low = 128", "low = 65536"), "low 65536 is above high 65535"),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_rows_that_cannot_be_are_refused_in_one_line_that_names_the_tuner(install: Install, what: str) -> None:
    rows, reason = WRONG_ROWS[what]
    install(rows=rows)
    with pytest.raises(ConfigError, match=rf"accept_queue: .*{reason}") as caught:
        plugins.tuners()
    assert "\n" not in str(caught.value)


def test_without_rows_a_tuner_is_refused(install: Install) -> None:
    install(rows=None)
    with pytest.raises(ConfigError, match=r"accept_queue: .*tunables\.toml"):
        plugins.tuners()


@pytest.mark.parametrize("name", ["tcp_buffer", "neigh_table"])
def test_a_name_of_ours_is_taken(install: Install, name: str) -> None:
    install(name=name, rows=ROWS.replace("accept_queue", name))
    with pytest.raises(ConfigError, match="taken twice"):
        plugins.tuners()


def test_a_name_that_two_have_is_taken(install: Install) -> None:
    install(module="pa.decider", distribution="pa")
    install(module="pb.decider", distribution="pb", rows=ROWS.replace("xfrm_acq_expires", "optmem_max"))
    with pytest.raises(ConfigError, match="taken twice"):
        plugins.tuners()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "A", "1a", "a-b", "a" * 33, "a.b"])
def test_a_name_that_could_lead_a_path_astray_is_refused(install: Install, name: str) -> None:
    install(name=name, rows=ROWS.replace("accept_queue", name))
    with pytest.raises(ConfigError, match="lower-case letters"):
        plugins.tuners()


# --- who can write there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o022, 0o002, 0o020], ids=oct)
@pytest.mark.parametrize("what", ["tunables.toml", "decider.py", "__pycache__", ".", ".."])
def test_nothing_is_loaded_from_where_others_can_write(install: Install, what: str, mode: int) -> None:
    package = install()
    (package / "__pycache__").mkdir()
    place = (package / what).resolve()
    place.chmod(place.stat().st_mode | mode)
    with pytest.raises(ConfigError, match=rf"accept_queue: {place} can be written by others"):
        plugins.tuners()


@pytest.mark.system
@pytest.mark.parametrize("what", ["tunables.toml", "decider.py", ".", ".."])
def test_nothing_is_loaded_that_others_own(install: Install, what: str) -> None:
    place = (install() / what).resolve()
    os.chown(place, 65534, 65534)
    with pytest.raises(ConfigError, match=rf"accept_queue: {place} can be written by others"):
        plugins.tuners()


def test_a_sticky_folder_is_harmless_above_the_package_but_not_as_the_package(install: Install, site: Path) -> None:
    package = install()
    site.chmod(0o1777)
    assert len(plugins.tuners()) == 1
    package.chmod(0o1777)
    with pytest.raises(ConfigError, match=f"{package} can be written"):
        plugins.tuners()


def test_a_sticky_bit_does_not_make_a_file_safe(install: Install) -> None:
    rows = install() / plugins.ROWS
    rows.chmod(0o1666)
    with pytest.raises(ConfigError, match="can be written"):
        plugins.tuners()


def test_a_link_is_judged_where_it_lies_and_where_it_leads(install: Install, tmp_path: Path) -> None:
    package = install()
    real = tmp_path / "elsewhere" / "real"
    real.parent.mkdir()
    package.rename(real)
    package.symlink_to(real)
    assert len(plugins.tuners()) == 1
    real.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{real.parent} can be written"):
        plugins.tuners()
    real.parent.chmod(0o755)
    package.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{package.parent} can be written"):
        plugins.tuners()


def test_a_package_that_is_not_there_is_named(install: Install) -> None:
    install(module="elsewhere.decider")
    with pytest.raises(ConfigError, match=r"accept_queue: .*elsewhere.*No such file"):
        plugins.tuners()


def test_a_loop_of_links_is_an_error_and_no_crash(install: Install) -> None:
    package = install()
    (package / "loop").symlink_to(package / "loop")
    with pytest.raises(ConfigError, match=r"accept_queue: .*loop"):
        plugins.tuners()


def test_what_is_settled_holds_where_nobody_can_look_any_more(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_settled", [])
    package = install()
    plugins.settle()
    (package / plugins.ROWS).unlink()
    assert [tuner.name for tuner in plugins.tuners()] == ["accept_queue"]
