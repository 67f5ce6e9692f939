"""The report of a run, written as the run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from servematrix.redaction import Secrets
from servematrix.report import command
from servematrix.terminal import line


class ReportAtEnd:
    """Hooks that write `report.html` beside the records, for the process that has the outcome."""

    def __init__(self, folder: Path, hidden: Secrets) -> None:
        self._folder = folder
        self._hidden = hidden
        self._told = ""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write it, once the records have their end. A report never changes how a run ends."""
        out = self._folder / command.FILE
        try:
            command.write([self._folder], out, self._hidden)
        except Exception as error:
            # whatever it is: the verdicts stand, and are worth more than a page
            told = f"{type(error).__name__}: {error}"
            self._told = (
                f"no report was written ({line(told)}); the records are whole: "
                f"servematrix report {self._folder}"
            )
        else:
            self._told = f"report in {out}"

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Say where it is, or why there is none, before the last line of the run."""
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if self._told and reporter is not None:
            reporter.write_line(f"servematrix: {self._told}")
