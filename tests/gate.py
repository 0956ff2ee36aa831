"""A pytest plugin for CI: a test that did not run is a failure, unless it needs a GPU.

`pytest -p tests.gate` fails if a test is skipped, expected to fail, deselected, or not collected for want of
something, so that nothing can be missing unnoticed.
"""

from typing import Any

import pytest

_not_run: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test that was skipped or failed as expected."""
    if report.skipped and "gpu" not in report.keywords:
        _not_run.append(f"{report.nodeid}: skipped or expected to fail")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a file that skipped itself."""
    if report.skipped:
        _not_run.append(f"{report.nodeid}: not collected")


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Note tests left out by an option."""
    _not_run.extend(f"{item.nodeid}: deselected" for item in items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn success into failure if anything did not run; a worker of xdist passes on what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = _not_run
    elif _not_run and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of xdist left out: it alone sees what is deselected."""
    _not_run.extend(getattr(node, "workeroutput", {}).get("not_run", []))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what did not run."""
    if _not_run:
        terminalreporter.section("tests that did not run", red=True, bold=True)
        for line in sorted(set(_not_run)):
            terminalreporter.line(line)
