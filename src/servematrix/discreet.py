"""pytest's reports and its terminal without secrets.

Reports go to every plugin: the terminal, JUnit files, the process that a worker of pytest-xdist
works for. What pytest prints of its own (warnings, internal errors, reasons to exit) is redacted as
it is written.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

from servematrix.ci.commands import original, unobeyed
from servematrix.redaction import Secrets

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


class DiscreetReports:
    """Hooks that take secrets out of what pytest shows."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Put a stream that redacts before the terminal, ahead of its first line."""
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            # pytest has no other way to reach the stream that its terminal writes to
            reporter._tw._file = unobeyed(DiscreetStream(reporter._tw._file, self._secrets))
        if getattr(session.config.option, "capture", "no") == "no":
            # what tests print is not captured, but goes where pytest writes
            sys.stdout, sys.stderr = unobeyed(sys.stdout), unobeyed(sys.stderr)

    def pytest_unconfigure(self) -> None:
        """Give back the streams of a session that captures nothing."""
        sys.stdout, sys.stderr = original(sys.stdout), original(sys.stderr)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Redact the report of a test, after everybody else has added to it."""
        report = yield
        report.user_properties = [
            (self._name(name), self._secrets.redact(value) if isinstance(value, str) else value)
            for name, value in report.user_properties
        ]
        return self._redacted(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Redact the report of a file that was collected."""
        report = yield
        return self._redacted(report)

    def _name(self, name: str) -> str:
        """The name of a property; words of ours, by which reports are read, stay as they are."""
        return name if name.isidentifier() else self._secrets.redact(name)

    def _redacted(self, report: Report) -> Report:
        redact = self._secrets.redact
        report.sections = [(redact(name), redact(text)) for name, text in report.sections]
        shown = report.longrepr
        if isinstance(shown, tuple):
            path, line, reason = shown
            report.longrepr = (path, line, redact(reason))
        elif shown is not None and redact(str(shown)) != str(shown):
            # colours and the line for the summary are lost with the object that has them
            report.longrepr = redact(str(shown))
        return report


class DiscreetStream:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: Any, secrets: Secrets) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write a text without secrets."""
        written: int = self._stream.write(self._secrets.redact(text))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
