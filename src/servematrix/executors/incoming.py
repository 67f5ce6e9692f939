"""What a node tells of the cell that it runs: into the records of the run, and into reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from servematrix import outside, provenance
from servematrix import records as record_files
from servematrix.executors import reports
from servematrix.executors.part import Part
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError, Run
from servematrix.resume import Kept, earlier
from servematrix.served import answers

Event = Mapping[str, Any]


class Incoming:
    """Takes the events of `attempt.run`, one at a time."""

    def __init__(self, config: pytest.Config, records: Run, kept: Kept) -> None:
        """`kept` is what stands of the run's earlier parts."""
        self._config = config
        self._records = records
        self._kept = kept
        self._takers: Mapping[str, Callable[[Part, Event], str | None]] = {
            "began": self._began,
            "another": self._another,
            "record": self._record,
            "report": self._report,
            "log": self._log,
            "ended": self._ended,
        }

    def take(self, part: Part, event: Event) -> str | None:
        """Take one event of a cell; returns what to tell of it. RecordsError, also for one that is
        no event: then a node runs something else.
        """
        try:
            return self._takers[event["what"]](part, event)
        except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            raise RecordsError(
                f"{part.planned.id}: {part.place} tells what is not understood: "
                f"{type(error).__name__}: {error}"
            ) from error

    def keep_failed(self, part: Part) -> None:
        """Report the failed gates of a lost attempt whose own reports were lost with its node.

        A failed gate is never tried again until it passes.
        """
        for item in part.missing():
            record = part.judged.get(item.nodeid)
            if record is not None and record["verdict"] == "fail":
                failure = earlier(record, part.served, ())
                self._keep(part, reports.of_failure(item, failure, record["rule"]))

    def give(self, part: Part) -> None:
        """Give pytest the reports of the tests that have a verdict, in the order of the tests."""
        missing = part.missing()
        for item in part.items:
            if item in missing or item.nodeid not in part.reports:
                continue
            hook = item.ihook
            hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            for report in part.reports[item.nodeid]:
                hook.pytest_runtest_logreport(report=report)
            hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _began(self, part: Part, event: Event) -> str:
        part.host, part.node = str(event["host"]), str(event["node"])
        part.node_id, part.assigned = str(event["node_id"]), str(event["assigned"])
        gpus = f", GPU {part.assigned}" if part.assigned else ""
        count = f", attempt {part.attempt}" if part.attempt > 1 else ""
        return f"on {part.place}{gpus}{count}"

    def _another(self, part: Part, event: Event) -> None:
        pytest.exit(
            f"{part.place} has servematrix {event['source']}, and this is {provenance.source()}; "
            "install the same on every node of the Ray cluster",
            returncode=Exit.USAGE,
        )

    def _record(self, part: Part, event: Event) -> str | None:
        record = record_files.parsed(event["line"], Path(part.node, record_files.FILE), 0)
        kind = record.pop("kind")
        # the clock of this machine puts the records of all nodes in order
        del record["time"]
        if kind == "run":
            self._place(part, record)
        elif kind != "end":
            record |= {"node": part.place}
            if kind == "cell":
                self._check_kept(part, record)
                record |= {"in_place_of": list(part.planned.cell.in_place_of)}
                record |= {"attempt": part.attempt}
                part.served = record
            elif kind == "verdict" and part.has(record["nodeid"]):
                part.judged[record["nodeid"]] = record
            if event["file"] is not None:
                payload = json.loads(outside.unpacked(event["file"]))
                record["path"] = self._records.attach(Path(record["path"]).stem, payload)
            self._records.write(kind, **record)
        return None

    def _place(self, part: Part, run: Mapping[str, Any]) -> None:
        """Record where an attempt runs, from the first record of its run."""
        self._records.write(
            "node",
            cell=part.planned.id,
            attempt=part.attempt,
            node=part.node,
            host=part.host,
            node_id=part.node_id,
            assigned=part.assigned,
            gpus=run["gpus"],
            server=run["server"],
            versions=run["versions"],
            platform=run["platform"],
        )
        part.gpus = [str(gpu["name"]) for gpu in run["gpus"]]

    def _check_kept(self, part: Part, cell: Mapping[str, Any]) -> None:
        found = self._kept.another(part.planned.id, answers(cell["versions"], cell["model"]))
        if found:
            pytest.exit(found, returncode=Exit.USAGE)

    def _report(self, part: Part, event: Event) -> None:
        found: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
            config=self._config, data=event["report"]
        )
        if part.has(found.nodeid):
            _with_tuples(found)
            self._keep(part, found)

    @staticmethod
    def _keep(part: Part, report: pytest.TestReport) -> None:
        report.user_properties += [("node", part.place), *(("gpu", name) for name in part.gpus)]
        part.reports.setdefault(report.nodeid, []).append(report)

    def _log(self, part: Part, event: Event) -> None:
        path = self._records.unused(part.planned.slug, ".log")
        path.write_text(event["text"], encoding="utf-8", errors="backslashreplace")

    def _ended(self, part: Part, event: Event) -> None:
        part.ended = f"it ended ({event['how']}); the end of its output:\n{event['output']}"


def _with_tuples(report: pytest.TestReport) -> None:
    """Make tuples again of those that JSON made lists of."""
    if isinstance(report.longrepr, list):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, reason)
    path, line, name = report.location
    report.location = (path, line, name)
    report.sections = [(name, text) for name, text in report.sections]
    report.user_properties = [(str(name), at) for name, at in report.user_properties]
