"""The report of a run, written as the run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from servematrix.redaction import Secrets
from servematrix.report import command


class ReportAtEnd:
    """Hooks that write `report.html` beside the records, for the process that has the outcome."""

    def __init__(self, folder: Path, hidden: Secrets) -> None:
        self._folder = folder
        self._hidden = hidden
        self._told = ""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write it, once the records have their end."""
        missing = command.write_beside(self._folder, self._hidden)
        self._told = missing or f"report in {self._folder / command.FILE}"

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Say where it is, or why there is none, before the last line of the run."""
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if self._told and reporter is not None:
            reporter.write_line(f"servematrix: {self._told}")
