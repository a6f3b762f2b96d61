"""The gate and the leases, mutated: their tests must notice every change of an operator, a constant, a condition."""

from __future__ import annotations

import ast
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
TREE = Path(__file__).resolve().parent.parent
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
EQUIVALENT: dict[str, set[str]] = {
    # What is wished is not what stands: `_step` has refused that by then.
    "actuators/gate.py": {"view, rises = (case.view, case.wish.want >= case.view.value)"},
    # The next save comes a moment earlier or later; the file is there for nobody's clock.
    "actuators/leases.py": {
        "if now_ns() - self._saved_ns <= SAVE_NS:",
        "if now_ns() + self._saved_ns < SAVE_NS:",
        "SAVE_NS = 1000000001",
        "self._saved_ns = 1",
    },
}
TARGETS = {
    "actuators/gate.py": ["tests/test_actuators_gate.py"],
    "actuators/leases.py": ["tests/test_actuators_trials.py", "-k", "lease or beats or earlier_process"],
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(the line as mutated, the whole file as mutated), one change each."""
    tree = ast.parse(source)
    places = [node for node in ast.walk(tree) if not _in_docstring(node)]
    for number, node in enumerate(places):
        for changed in _changes(node):
            mutated = copy.deepcopy(tree)
            twin = [each for each in ast.walk(mutated) if not _in_docstring(each)][number]
            _assign(twin, changed)
            text = ast.unparse(ast.fix_missing_locations(mutated))
            before = set(ast.unparse(tree).splitlines())
            line = next((line.strip() for line in text.splitlines() if line not in before), "")
            yield line, text


def _in_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in SWAPS:
            yield ast.Compare(left, [SWAPS[type(op)]()], [right])
        case ast.Compare(left=left, ops=[one, two], comparators=both):
            yield ast.Compare(left, [SWAPS[type(one)](), two], both)
            yield ast.Compare(left, [one, SWAPS[type(two)]()], both)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPS:
            yield ast.BinOp(left, SWAPS[type(op)](), right)  # type: ignore[arg-type]
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(SWAPS[type(op)](), values)  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            yield ast.Constant(value + 1)


def _assign(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = other.__class__
    node.__dict__.update(copy.deepcopy(other).__dict__)


def survives(target: str, text: str, folder: Path) -> bool:
    """Whether the tests of a file pass although it is this one."""
    shutil.copytree(TREE / "actuators", folder / "actuators", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TREE / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / target).write_text(text)
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", str(TREE / "pyproject.toml")]
    # Whether a test fails is all that counts; what its assertion saw would cost a third of the time.
    argv += ["--assert=plain", "--rootdir", str(folder), *TARGETS[target]]
    paths = [folder, folder / "tests", TREE]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(argv, cwd=folder, env=env, capture_output=True, timeout=300)
    shutil.rmtree(folder)
    assert ran.returncode in (0, 1, 2), ran.stdout.decode()[-500:]
    return ran.returncode == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_tests_notice_every_mutant(target: str, tmp_path: Path) -> None:
    source = (TREE / target).read_text()
    assert survives(target, source, tmp_path / "whole"), "the tests must pass on what is not mutated"
    made = [(line, text) for line, text in mutants(source) if line not in EQUIVALENT[target]]
    assert len(made) > 5
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(lambda each: survives(target, each[1][1], tmp_path / str(each[0])), enumerate(made))
        survivors = [line for (line, _), alive in zip(made, results, strict=True) if alive]
    assert not survivors, f"{len(survivors)} of {len(made)} mutants survive"
