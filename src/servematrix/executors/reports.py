"""How the run of one cell tells of its tests: pytest's own reports, one JSON object a line.

A plugin of pytest that the run on a node is given. pytest-xdist sends reports in the same form.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from servematrix.resume import Earlier
from servematrix.verdicts import shown_as_failed, shown_as_skipped

FILE = "SERVEMATRIX_REPORTS"
"""The variable that names the file."""


class WrittenReports:
    """Hooks that write every report of a test to a file."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Append a report, after all others have added to it."""
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(data, default=str) + "\n")


def of_failure(item: pytest.Item, failure: Earlier, rule: str) -> pytest.TestReport:
    """The report of a test whose recorded failure is all that is known of it."""
    told: str | tuple[str, int, str] = shown_as_failed(failure.verdict, failure.reason, rule)
    if failure.waived:
        told = shown_as_skipped(item, f"fail: {failure.reason}")
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="skipped" if failure.waived else "failed",
        longrepr=told,
        when="call",
        user_properties=list(asdict(failure).items()),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Write reports where the variable says."""
    config.pluginmanager.register(WrittenReports(config, Path(os.environ[FILE])))
