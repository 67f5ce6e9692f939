"""Hooks that tell a workflow of GitHub Actions how a run ended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from servematrix import records
from servematrix.ci import ANNOTATED, SUMMARY, annotating, summary
from servematrix.ci.commands import ours
from servematrix.records import RecordsError
from servematrix.run import Plan
from servematrix.settings import Kits
from servematrix.terminal import line
from servematrix.waivers import clause


class WorkflowOutputs:
    """Appends to the step's summary, and prints annotations; for the process that has the outcome.

    Both are drawn from the records, which hold no secret.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._problem: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Append to the summary, once the records have their end."""
        named = os.environ.get(SUMMARY)
        if not named:
            return
        try:
            text = summary.document(self._folder)
            # what another step wrote may lack its last line break
            with Path(named).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"\n{text}\n")
        except (RecordsError, OSError) as error:
            self._problem = f"no summary of the step was written ({SUMMARY}): {error}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the annotations, and what kept a summary from being written."""
        if self._problem is not None:
            terminalreporter.write_line(f"servematrix: {line(self._problem)}")
        if os.environ.get(ANNOTATED) != "true":
            return
        try:
            with records.as_written(self._folder):
                found = list(self._annotations())
        except RecordsError as error:
            terminalreporter.write_line(f"servematrix: no annotations: {line(str(error))}")
            return
        with ours():
            for one in found:
                terminalreporter.write_line(one)

    def _annotations(self) -> Iterator[str]:
        """One a failure; a reason that many tests of a cell share comes once."""
        told: set[tuple[str, str]] = set()
        for one in records.standing(records.read(self._folder)):
            if one["kind"] != "verdict" or one["verdict"] not in ("fail", "error"):
                continue
            if (one["cell"], one["reason"]) not in told:
                told.add((one["cell"], one["reason"]))
                yield self._annotation(one)

    def _annotation(self, verdict: Mapping[str, Any]) -> str:
        file, at = self._place(str(verdict["cell"]), str(verdict["kit"]), str(verdict["rule"]))
        reason = f"{verdict['verdict']}: {verdict['reason']}"
        waived = verdict.get("waived")
        if waived:
            reason = f"{reason}; {clause(waived)}"
        title = f"{verdict['cell']}: {verdict['kit']}.{verdict['test']}"
        kind = "notice" if waived else "error"
        return annotating.command(kind, reason, file=_from_root(file), at=at, title=title)

    def _place(self, cell: str, kit: str, rule: str) -> tuple[Path, int]:
        """File and line of the configuration that a verdict of a kit is about."""
        directory = self._plan.options.configs_directory
        # KeyError, which is a fault of the records, for a cell that this run has not
        planned = {one.id: one for one in self._plan.cells}[cell]
        file = directory / f"{planned.config.name}.toml"
        # a kit of a project's own has its limits among its other settings
        section = "gates" if kit in Kits.model_fields else "kits"
        limits = getattr(planned.config, section).model_dump(exclude_none=True).get(kit, {})
        return file, annotating.limit_line(file, kit, limits, rule, section=section)


def _from_root(file: Path) -> str:
    """A file as GitHub names it: from the root of what was checked out."""
    return os.path.relpath(file, os.environ.get("GITHUB_WORKSPACE") or Path.cwd())
