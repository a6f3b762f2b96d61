"""For pytest: tests of policies on recordings (docs/replay-testing.md). Loaded by every pytest in an environment that
trimtab is installed in, so nothing of trimtab is imported before a test asks for one of the fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trimtab.testing.fixtures import Golden, Opener, Replayer

UPDATE = "--update-golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """See the help."""
    parser.getgroup("trimtab").addoption(
        UPDATE, action="store_true", help="write what the fixture `golden` finds, instead of comparing with it"
    )


@pytest.fixture
def tape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """tape("web-7.tape"): a recording beside the test's file, or a directory of them; tape(events): one of these."""
    from trimtab.testing.fixtures import Opener

    return Opener(request.path.parent, lambda: tmp_path_factory.mktemp("tape"))


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replayer:
    """replay(tape, policy="candidate.toml"): what that policy would have had written; without one, the recorded."""
    from trimtab.testing.fixtures import Replayer

    return Replayer(request.path.parent)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """golden(tape): its recorded decider still wishes what the text beside it says, TAPE with .wishes for .tape."""
    from trimtab.testing.fixtures import Golden

    return Golden(bool(request.config.getoption(UPDATE)))
