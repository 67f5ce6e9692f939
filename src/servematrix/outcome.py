"""The outcome of a pytest session: verdicts counted, the exit status, and the last line.

Only the process that the person started has one; under pytest-xdist it sees the reports of all
workers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from servematrix.exit_codes import Exit
from servematrix.overview import Overview
from servematrix.records import RecordsError, Run
from servematrix.resume import Earlier
from servematrix.run import Plan
from servematrix.terminal import line, shown
from servematrix.verdicts import SHUTDOWN
from servematrix.waivers import Waiver, Waivers

_NEEDLESS = "all that it waives passed"


class Outcome:
    """Hooks that count verdicts and end the session.

    The last line says what the plan's servers said of themselves.
    """

    def __init__(self, records: Run, plan: Plan, waivers: Waivers, *, strict: bool) -> None:
        """`strict`: a verdict that is not applicable fails the run."""
        self._records = records
        self._plan = plan
        self._waivers = waivers
        self._needless: list[Waiver] = []
        self._outcomes: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._strict = strict
        self._answered: set[str] = set()
        self._gpus: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._overview = Overview()
        self._troubles: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._server_failed = False
        self._simulated = False
        self._exit: Exit | None = None
        self._kept = 0

    def count_earlier(self, verdicts: Sequence[Earlier]) -> None:
        """Count the verdicts of the run's earlier parts as if they were reached now."""
        for one in verdicts:
            self._count(one.nodeid, asdict(one), "reached before this run was taken up: ")
        self._kept = len(verdicts)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a verdict, and what servers left behind."""
        properties = dict(report.user_properties)
        for name, problem in report.user_properties:
            if name == SHUTDOWN:
                self._counts["error"] += 1
                self._troubles["error", str(problem)].append(SHUTDOWN)
                # between two cells it is not known of which
                self._overview.count("(any cell)", SHUTDOWN, "error", None)
        self._gpus |= {str(at) for name, at in report.user_properties if name == "gpu"}
        # a teardown tells once more of what was concluded, for pytest's JUnit file
        if isinstance(properties.get("verdict"), str) and report.when != "teardown":
            self._count(report.nodeid, properties)

    def _count(self, nodeid: str, properties: Mapping[str, object], when: str = "") -> None:
        verdict, waived = str(properties["verdict"]), str(properties["waived"])
        cell, kit, test = (str(properties[key]) for key in ("cell", "kit", "test"))
        self._outcomes[cell, kit, test].add(verdict)
        verdict = "waived" if waived else verdict
        self._counts[verdict] += 1
        seconds = properties.get("seconds")
        seconds = float(seconds) if isinstance(seconds, int | float) else None
        self._overview.count(cell, kit, verdict, seconds)
        self._server_failed |= properties["server"] == "failed"
        self._simulated |= properties["server"] == "simulated"
        self._answered |= {str(properties["answered"])} - {""}
        if verdict != "pass":
            reason = str(properties["reason"]).partition("\n")[0]
            told = f"{reason}; {waived}" if waived else reason
            self._troubles[verdict, f"{when}{told}"].append(nodeid.rsplit("::", 1)[-1])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Add our two exit statuses to pytest's, and close the records."""
        if exitstatus not in set(Exit):
            return  # somebody's own pytest.exit(); not ours to explain
        status = Exit(int(exitstatus))
        if status is Exit.NOTHING and self._kept:
            status = Exit.PASSED  # nothing is left to run
        if status is Exit.NOTHING and not self._plan.cells:
            status = Exit.PASSED  # more shards than cells are no fault of what is tested
        if status is Exit.PASSED and (self._counts["fail"] or self._counts["error"]):
            status = Exit.FAILED  # pytest knows nothing of a shutdown, nor of an earlier part
        if status in (Exit.PASSED, Exit.FAILED) and self._server_failed:
            status = Exit.SERVER
        elif not self._plan.cells:
            pass  # there is nothing to conclude from
        elif status is Exit.PASSED and self._strict and self._counts["not_applicable"]:
            status = Exit.FAILED
        elif status is Exit.PASSED and (self._counts["inconclusive"] or not self._good()):
            status = Exit.INCONCLUSIVE
        stopped = bool(session.shouldfail or session.shouldstop)
        self._needless = self._waivers.needless(self._outcomes)
        try:
            for waiver in self._needless:
                self._records.write(
                    "waiver",
                    cell=waiver.cell,
                    kit=waiver.kit,
                    test=waiver.test,
                    file=str(waiver.file),
                    entry=waiver.number,
                    waives=waiver.record(),
                    problem=_NEEDLESS,
                )
            self._records.write(
                "end", exit_code=int(status), counts=dict(self._counts), stopped=stopped
            )
        except RecordsError as error:
            status = Exit.USAGE
            self._troubles["error", str(error)].append("records")
        self._exit = status
        session.exitstatus = status

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A table, and every verdict that is not a pass, with its reason.

        One reason for many tests is told once.
        """
        writer = terminalreporter._tw
        table = self._overview.drawn(
            width=writer.fullwidth,
            colours=writer.hasmarkup,
            encoding=getattr(writer._file, "encoding", None) or "utf-8",
        )
        if table:
            terminalreporter.section("cells and kits")
            terminalreporter.write_line(table)
        if self._troubles:
            terminalreporter.section("verdicts that are not a pass")
        for (verdict, reason), tests in self._troubles.items():
            named = tests[0] if len(tests) == 1 else f"{len(tests)} tests, {tests[0]} first"
            first = line(reason.partition("\n")[0])
            terminalreporter.write_line(f"{verdict}: {named}: {first}")
        if self._needless:
            terminalreporter.section("waivers to be removed")
        for waiver in self._needless:
            told = line(f"{waiver.where}: {waiver.what}: {_NEEDLESS} ({waiver.link})")
            terminalreporter.write_line(f"waiver to be removed: {told}")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Print the last line: the status and its meaning, what answered, where the records are."""
        if self._exit is None:
            return
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self._counts.items()))
        kept = f" ({self._kept} of them kept from before it was taken up)" if self._kept else ""
        told = shown(
            f"servematrix: exit {int(self._exit)} ({self._meaning()}): "
            f"{counts or 'no verdicts'}{kept}; "
            f"{self._plan.subject(self._answered, simulated=self._simulated, gpus=self._gpus)}; "
            f"{self._plan.engine.reason}; "
            f"records in {self._records.folder}{self._going_on()}"
        )
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            print(told)
        else:
            reporter.write_line(told)

    def _going_on(self) -> str:
        """How a run that was interrupted is gone on with, as the end of a line."""
        if self._exit is not Exit.INTERRUPTED:
            return ""
        return f"; go on with the same command and --resume {self._records.folder.name}"

    def _good(self) -> int:
        """Verdicts that say something, and nothing bad that was not known."""
        return self._counts["pass"] + self._counts["waived"]

    def _meaning(self) -> str:
        """The status in words; a run that only --strict failed says so."""
        assert self._exit is not None, "the session has ended"
        if self._exit is Exit.PASSED and not self._plan.cells:
            return "this shard has no cell"
        if self._exit is Exit.PASSED and self._counts["waived"]:
            return "nothing failed but what is waived"
        others = sum(self._counts[verdict] for verdict in ("fail", "error"))
        if self._exit is Exit.FAILED and self._strict and not others:
            return f"--strict: {self._counts['not_applicable']} not applicable, which is no pass"
        return self._exit.meaning
