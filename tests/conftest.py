"""What all tests share: under CI a skip is a failure, so that no missing need hides behind one; and the host's lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator

import pytest

KERNEL = "kernel: "
"""A skip whose reason starts so names what the running kernel cannot do; that alone no set-up can supply."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(KERNEL):
            report.outcome, report.longrepr = "failed", f"skipped under CI: {reason}"
    return report


@pytest.fixture
def the_host() -> Iterator[None]:
    """For tests that change what is the whole host's and put it back: one at a time, also of several runs at once."""
    with open("/run/lock/trimtab-tests.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
