"""What all tests share: under CI a skip is a failure, so that no missing need hides behind one."""

from __future__ import annotations

import os
from collections.abc import Generator

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
