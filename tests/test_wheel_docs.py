"""What the pages say about files and tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
DOCS = TREE / "docs"
GUIDE = (DOCS / "adding-a-tuner.md").read_text()
PAGES = [TREE / "README.md", *DOCS.glob("*.md")]


def test_the_guide_lists_and_counts_the_files_of_the_sample() -> None:
    listed = re.findall(r"^    (sample-tuner/\S+)", GUIDE, re.MULTILINE)
    there = [path.relative_to(DOCS) for path in (DOCS / "sample-tuner").rglob("*") if path.is_file()]
    assert listed == sorted(str(path) for path in there if not re.search(r"/(\.|__pycache__)", str(path)))
    assert f"| a package of your own | events that there are | {len(listed)} | none of trimtab's |" in GUIDE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    folders = "actuators|bench|bpf|bus|collectors|deciders|docs|tests|trimtab"
    named = [TREE / path for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text) if "NAME" not in path]
    missing = [str(path) for path in (*links, *named) if not path.exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    code = "".join(path.read_text() for path in (TREE / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page.read_text())
    assert not [name for name in named if f"def {name}(" not in code]
