"""How the run of one cell tells of its tests: pytest's own reports, one JSON object a line.

A plugin of pytest that the run on a node is given. pytest-xdist sends reports in the same form.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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


def pytest_configure(config: pytest.Config) -> None:
    """Write reports where the variable says."""
    config.pluginmanager.register(WrittenReports(config, Path(os.environ[FILE])))
