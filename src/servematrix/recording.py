"""Where a session writes: a new run, one that is taken up, or, in a worker, its controller's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from servematrix import provenance, resume
from servematrix.ci.outputs import WorkflowOutputs
from servematrix.interrupts import end_workers_too
from servematrix.outcome import Outcome
from servematrix.records import Run
from servematrix.redaction import Secrets
from servematrix.report.ending import ReportAtEnd
from servematrix.resume import Kept, KeptTests
from servematrix.run import Plan
from servematrix.waivers import Waivers


class Recording:
    """The records of a session, and what stands of the run's earlier parts.

    `records` is None where nothing is run. EnvironmentProblem where a run cannot be taken up,
    RecordsError where the disk refuses.
    """

    def __init__(
        self,
        config: pytest.Config,
        plan: Plan,
        held_to: Mapping[str, Mapping[str, str]],
        hidden: Secrets,
        waivers: Waivers,
        executor: Mapping[str, Any] | None = None,
    ) -> None:
        """`held_to` are the baselines of the cells, `hidden` the secrets.

        `executor` is what runs the cells where that is not this process.
        """
        self._waivers = waivers
        self.records: Run | None = None
        self.kept = Kept()
        worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        if worker is not None:
            self.records = Run(Path(worker["servematrix_run"]), hidden)
            self.kept = Kept(nodeids=worker["servematrix_kept"], answered=worker["servematrix_by"])
        else:
            self._open(config, plan, held_to, hidden, executor)
        config.pluginmanager.register(KeptTests(self.kept.nodeids))

    def _open(
        self,
        config: pytest.Config,
        plan: Plan,
        held_to: Mapping[str, Mapping[str, str]],
        hidden: Secrets,
        executor: Mapping[str, Any] | None,
    ) -> None:
        header = provenance.header(plan, config.rootpath, provenance.command_line())
        header |= {"baselines": dict(held_to), "selection": provenance.selection(config)}
        header |= {"executor": dict(executor or {"name": "local"})}
        root, named = Path(config.option.results), config.option.resume
        folder = None if named is None else resume.find(root, named)
        if config.option.collectonly:
            if folder is not None:
                self.kept = resume.read(folder, header, hidden)
            return
        if folder is None:
            self.records = Run.create(root, "+".join(plan.options.selections), hidden)
            self.records.begin("run", **header)
        else:
            self.records, self.kept = resume.take_up(folder, header, hidden)
        # pytest's own --strict
        outcome = Outcome(self.records, plan, self._waivers, strict=bool(config.getini("strict")))
        outcome.count_earlier(self.kept.verdicts)
        config.pluginmanager.register(outcome)
        config.pluginmanager.register(WorkflowOutputs(self.records.folder, plan))
        if not config.option.no_report:
            config.pluginmanager.register(ReportAtEnd(self.records.folder, hidden))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker which run it works for, and what of it stands."""
        assert self.records is not None, "nothing is run"
        end_workers_too()
        node.workerinput |= {
            "servematrix_run": str(self.records.folder.resolve()),
            "servematrix_controller": os.getpid(),
            "servematrix_kept": list(self.kept.nodeids),
            "servematrix_by": dict(self.kept.answered),
        }

    def pytest_report_header(self, config: pytest.Config) -> list[str]:
        """Say what was cleaned up after other runs, and what of this one stands."""
        removed = self.records.removed if self.records else ()
        told = [f"servematrix: removed what a killed run left: {path}" for path in removed]
        if config.option.resume is not None:
            told.append(f"servematrix: {self.kept.told()}")
        return told
