"""What all tests share: under CI a skip is a failure, so that no missing need hides behind one; how many processes they
run in, in what order; and the host, which a test shares with the others that run, or has to itself."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

KERNEL = "kernel: "
"""A skip whose reason starts so names what the running kernel cannot do; that alone no set-up can supply."""

MOST_PROCESSES = 8
LOCKS = "/run/lock/trimtab-tests"
HELD = pytest.StashKey[ExitStack]()
ALONE = pytest.StashKey[bool]()
"""That the last test had the host to itself and hands it on."""


def pytest_configure() -> None:
    """A shell starts what it puts in the background deaf to SIGINT, and all whom that starts inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(KERNEL):
            report.outcome, report.longrepr = "failed", f"skipped under CI: {reason}"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs in two processes per processor, as its tests wait half of their time; files that are named
    on the command line run in this one."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    return min(2 * len(os.sched_getaffinity(0)), MOST_PROCESSES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes: first what must run alone, while there is least to wait for, then the other files with
    system tests, which take longest; the small ones fill up."""
    if not hasattr(config, "workerinput"):
        return
    paths = {item.path: number for number, item in enumerate(items)}
    lonely = {item.path for item in items if _is_alone(item)}
    system = {item.path for item in items if item.get_closest_marker("system")}
    items.sort(
        key=lambda item: (item.path not in lonely, item.path not in system, paths[item.path], not _is_alone(item))
    )


@pytest.fixture
def the_host() -> None:
    """For tests that change what is the whole host's and put it back, or that time alone decides: such a test runs
    alone, also of several runs at once (see `pytest_runtest_protocol`)."""


def _is_alone(item: pytest.Item) -> bool:
    return "the_host" in getattr(item, "fixturenames", ())


def _needs_host(item: pytest.Item) -> bool:
    """Of several processes all do, since what runs alone may count on the processors too. The long ones are left out:
    they run tests themselves, and would wait for what they hold."""
    if item.get_closest_marker("long") or item.get_closest_marker("fleet"):
        return False
    return hasattr(item.config, "workerinput") or _is_alone(item) or bool(item.get_closest_marker("system"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Around all else of a test, so that its time limit does not count the wait."""
    held = item.config.stash.setdefault(HELD, ExitStack())
    if _needs_host(item) and not item.config.stash.get(ALONE, False):
        held.enter_context(holding_host(_is_alone(item)))
    # Kept from one to the next: others who came between the two would have to be waited for.
    item.config.stash[ALONE] = stays = _is_alone(item) and nextitem is not None and _is_alone(nextitem)
    try:
        return (yield)
    finally:
        if not stays:
            held.close()


@contextmanager
def holding_host(alone: bool) -> Iterator[None]:
    """Through a turnstile, that a stream of those who share does not keep out one who wants to be alone."""
    with _locked("turnstile", fcntl.LOCK_EX) as turnstile, _locked("host", fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


@contextmanager
def _locked(name: str, how: int) -> Iterator[int]:
    """Of a file that any user may open, and let go by word: a child that was forked meanwhile would keep it."""
    try:
        lock = os.open(f"{LOCKS}-{name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        lock = os.open(f"{LOCKS}-{name}.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, how)
        yield lock
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
