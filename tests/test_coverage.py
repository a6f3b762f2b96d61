"""What grants a write, and what ends a trial: every branch of them is taken by their own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
TREE = Path(__file__).resolve().parent.parent
TESTS = {
    "actuators/gate.py": ["tests/test_actuators_gate.py"],
    "actuators/leases.py": ["tests/test_actuators_trials.py"],
}


@pytest.mark.parametrize("target", TESTS)
def test_its_own_tests_take_every_branch(target: str, tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "report.json"
    coverage = [sys.executable, "-m", "coverage"]
    json_of = [*coverage, "json", f"--data-file={data}", "-o", str(report)]
    argv = [*coverage, "run", "--branch", f"--data-file={data}", f"--include={TREE / target}"]
    # One process: what a helper of pytest's runs would not be counted.
    argv += ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run([*argv, *TESTS[target]], cwd=TREE, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-1000:]
    subprocess.run(json_of, cwd=TREE, check=True, capture_output=True)
    [found] = json.loads(report.read_text())["files"].values()
    assert not found["missing_lines"]
    assert not found["missing_branches"]
    assert found["summary"]["num_branches"] > 0
    assert found["summary"]["percent_covered"] == 100
