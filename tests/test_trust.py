"""docs/trust.md: each promise names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROWS = [line for line in (TESTS.parent / "docs/trust.md").read_text().splitlines() if line.startswith("| ")][1:]


def test_each_promise_names_a_test_that_is_there() -> None:
    source = "\n".join(path.read_text() for path in TESTS.glob("test_*.py"))
    there = set(re.findall(r"^ *def (test_\w+)\(", source, re.MULTILINE))
    assert len(ROWS) > 20
    for row in ROWS:
        promise, held = row.strip("| ").rsplit(" | ", 1)
        names = re.findall(r"`([^`]+)`", held)
        assert names, promise
        for name in names:
            assert name in there or (TESTS.parent / name).is_file(), f"{promise}: {name}"


def test_what_is_said_to_be_long_is() -> None:
    for name in re.findall(r"`(test_\w+)` \(long\)", "\n".join(ROWS)):
        [source] = [text for path in TESTS.glob("test_*.py") if f"def {name}(" in (text := path.read_text())]
        before = source.partition(f"def {name}(")[0]
        decorators = before.rpartition("\n\n\n")[2]
        assert "mark.long" in decorators or re.search(r"^pytestmark = .*mark\.long", source, re.MULTILINE), name
