"""The collection without a host: TOML, rows and tables, what Ansible knows of it, and the archive that Galaxy takes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

PLAYS = Path(__file__).resolve().parent.parent / "playbooks"
BIN = Path(sys.executable).parent
NAMES = sorted(path.name for path in PLAYS.glob("*.yml") if path.name not in ("galaxy.yml", "inventory.example.yml"))


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, PLAYS / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FLEET = loaded("plugins/filter/fleet.py")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)
PLAIN = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), TEXT, st.floats(allow_nan=False, allow_infinity=False))
DOCUMENT = st.recursive(
    st.dictionaries(TEXT, PLAIN | st.lists(st.integers(0, 9), max_size=3), max_size=4),
    lambda below: st.dictionaries(TEXT, PLAIN | below, max_size=4),
    max_leaves=8,
)


@given(DOCUMENT)
def test_a_configuration_is_written_as_the_toml_that_says_the_same(document: dict[str, Any]) -> None:
    assert tomllib.loads(FLEET.to_toml(document)) == document


CHANGE = {"state": "trial"}
FINE = {"mode": "advise", "ready": True, "standing": [CHANGE, CHANGE], "held": [1]}


@pytest.mark.parametrize(
    ("seen", "state", "reason"),
    [
        ({"trimtab": FINE}, "fine", ""),
        ({"trimtab": {**FINE, "ready": False, "problem": "not running: actuator"}}, "sick", "not running: actuator"),
        ({"trimtab": {}, "problem": "trimtab does not work here"}, "sick", "trimtab does not work here"),
        ({"trimtab": {}}, "absent", "not installed"),
        ({"unreachable": True, "msg": "no route\nto host"}, "unreachable", "no route to host"),
        ({"failed": True, "msg": "no python"}, "failed", "no python"),
    ],
)
def test_a_host_is_a_row_with_its_reason(seen: dict[str, Any], state: str, reason: str) -> None:
    row = FLEET.health(seen)
    assert (row["state"], row["reason"]) == (state, reason)


def test_the_table_has_a_line_for_each_host_and_the_sum() -> None:
    rows = {"b": FLEET.health({"trimtab": FINE}), "a": {"state": "unreachable", "reason": "down"}}
    lines = FLEET.table(rows)
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "unreachable"], ["b", "fine"]]
    assert lines[2].split()[2:] == ["advise", "2", "0", "1"]
    assert lines[-1] == "2 hosts: 1 fine, 1 unreachable"


def ansible(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PLAYS / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(PLAYS / "collections")
    return subprocess.run([str(BIN / program), *words], capture_output=True, text=True, env=environment)


def test_each_play_reads_and_is_in_the_collection_too() -> None:
    assert (
        ansible("ansible-playbook", "-i", "h,", "--syntax-check", *(str(PLAYS / name) for name in NAMES)).returncode
        == 0
    )
    for name in NAMES:
        assert (PLAYS / "playbooks" / name).resolve() == PLAYS / name


def test_each_module_is_documented_with_all_its_options() -> None:
    names = [f"trimtab.fleet.{path.stem}" for path in sorted(PLAYS.glob("plugins/modules/*.py"))]
    done = ansible("ansible-doc", "-t", "module", "--json", *names)
    found = yaml.safe_load(done.stdout)
    assert sorted(found) == names
    for name, module in found.items():
        source = (PLAYS / "plugins/modules" / f"{name.rpartition('.')[2]}.py").read_text()
        assert module["doc"]["attributes"]["check_mode"]["support"] == "full"
        assert module["examples"]
        assert all(f'"{option}":' in source for option in module["doc"]["options"] or {})


def test_the_role_says_of_each_variable_what_it_is() -> None:
    role = PLAYS / "roles/trimtab"
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(defaults) == set(options)
    assert {
        name: option["default"] for name, option in options.items() if "default" in option
    }.items() <= defaults.items()


def test_galaxy_takes_it(tmp_path: Path) -> None:
    done = ansible("ansible-galaxy", "collection", "build", str(PLAYS), "--output-path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert {"roles/trimtab/tasks/main.yml", "playbooks/site.yml", "plugins/modules/trimtab_info.py"} <= set(names)
    assert not [name for name in names if name.startswith("collections") or name == "ansible.cfg"]
