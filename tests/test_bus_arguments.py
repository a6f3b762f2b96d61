"""A role's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.arguments import RoleParser, UsageError
from bus.config import RUN_DIR, STATE_DIR


def test_every_role_knows_where_things_are_without_being_told() -> None:
    options = RoleParser("x", "does x").parse_args([])
    assert (options.run_dir, options.state_dir, options.config) == (RUN_DIR, STATE_DIR, None)


def test_it_can_be_told_where_things_are() -> None:
    options = RoleParser("x", "does x").parse_args(["--run-dir", "/a", "--state-dir", "/b", "--config", "/c"])
    assert (options.run_dir, options.state_dir, options.config) == (Path("/a"), Path("/b"), Path("/c"))


@pytest.mark.parametrize("argv", [["--nonsense"], ["stray"], ["--run-dir"]])
def test_a_mistake_is_an_error_that_names_it_and_ends_nothing(argv: list[str]) -> None:
    with pytest.raises(UsageError, match=argv[0]):
        RoleParser("x", "does x").parse_args(argv)
