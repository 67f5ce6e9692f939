"""Every test of a suite ends with a verdict, and pytest shows it as what it is."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from servematrix.ci import properties
from servematrix.engines.base import ServerFailed
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Inconclusive, NotApplicable, VerdictFailed
from servematrix.records import Run
from servematrix.reporter import Reporter
from servematrix.served import ServedCell
from servematrix.suite import suite_of
from servematrix.terminal import MOST, shown
from servematrix.waivers import Waivers, clause

SERVED = pytest.StashKey[ServedCell]()
"""The server that a test was given."""
SHUTDOWN = "shutdown"
"""Stands for kit and test in the verdict on a server's end, and names it in a report."""
TOOK = pytest.StashKey[float]()
"""The seconds of a test that was not run in its turn."""
_REPORTER = pytest.StashKey[Reporter]()


class Verdicts:
    """Hooks that turn the end of a test into a verdict."""

    def __init__(self, records: Run, waivers: Waivers) -> None:
        self._records = records
        self._waivers = waivers
        self._told: set[str] = set()
        self._left: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn the end of a test into a verdict, and an inconclusive one into its own state."""
        report = yield
        ended = report.when == "call" or (report.when == "setup" and not report.passed)
        if ended and suite_of(getattr(item, "cls", None)) is not None:
            self._conclude(item, call, report)
        if report.when == "teardown":
            report.user_properties += properties.kept(item)
        report.user_properties += [(SHUTDOWN, problem) for problem in self._left]
        self._left.clear()
        return report

    def left(self, cell: str, problem: str) -> None:
        """Conclude that the server of a cell ended badly.

        The next report carries it: between two cells that is one of the other cell's.
        """
        verdict = Verdict("error", "nothing outlives a server", problem)
        nodeid = f"{SHUTDOWN}[{cell}]"
        Reporter(self._records, cell, SHUTDOWN, nodeid).verdict(SHUTDOWN, "", verdict)
        self._left.append(problem)

    def _conclude(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        error = call.excinfo.value if call.excinfo else None
        served = item.stash.get(SERVED, None)
        # a probe that does not apply says nothing of the server, and asking it takes a second
        death = served.death() if served and report.failed else None
        if death:
            report.sections.append(("the server died", shown(death)))
        failure, _, log = shown(str(error)).partition("\n")
        again = isinstance(error, ServerFailed) and str(error) in self._told
        if again or isinstance(error, (Inconclusive, NotApplicable)):
            # the other tests of a cell without a server have nothing to add to the first
            report.outcome = "skipped"
            report.longrepr = shown_as_skipped(item, failure)
        elif isinstance(error, ServerFailed):
            self._told.add(str(error))
            report.longrepr = failure
            if log:
                report.sections.append(("the end of its log", log))
        reporter = self.reporter(item)
        verdict = reporter.concluded
        # what else may have gone wrong in the test is not waived
        waived = reporter.waived if isinstance(error, VerdictFailed) else None
        if verdict is None:
            verdict = _verdict_of(report, error, death)
            reporter.verdict(kit_of(item), "", verdict)
            if report.passed:
                report.outcome = "failed"
                report.longrepr = f"{verdict.outcome}: {verdict.reason}"
            elif report.failed and (told := shown(text := str(report.longrepr))) != text:
                report.longrepr = told  # without its colours, and without what it quotes
        elif waived:
            report.outcome = "skipped"  # pytest's word for what is neither a pass nor a failure
            report.longrepr = shown_as_skipped(item, f"fail: {verdict.reason}")
        elif report.failed:
            # a verdict speaks for itself; where in the kit it was raised tells nobody anything
            report.longrepr = shown_as_failed(verdict.outcome, verdict.reason, verdict.rule)
        failed = death is not None or isinstance(error, ServerFailed)
        if failed and not again:
            reporter.death(death or failure)
        assert reporter.judged is not None, "a verdict was recorded"
        kit, test = reporter.judged
        properties.keep(item, cell_of(item), reporter, verdict)
        real = served is None or not served.simulated
        report.user_properties += [
            ("cell", cell_of(item)),
            ("kit", kit),
            ("test", test),
            ("waived", clause(waived.record()) if waived else ""),
            ("verdict", verdict.outcome),
            ("reason", verdict.reason),
            ("server", "failed" if failed else "real" if real else "simulated"),
            ("answered", served.answers if served else ""),
            ("seconds", item.stash.get(TOOK, report.duration)),
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """Show an inconclusive and a waived verdict as what it is: neither passed nor skipped."""
        told = dict(getattr(report, "user_properties", ()))
        verdict = told.get("verdict")
        if report.when == "call" and told.get("waived"):
            return "waived", "w", ("WAIVED", {"yellow": True})
        if report.when == "call" and verdict == "inconclusive":
            return "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
        return None

    def reporter(self, item: pytest.Item) -> Reporter:
        """What the kit of this test reports to."""
        if _REPORTER not in item.stash:
            item.stash[_REPORTER] = Reporter(
                self._records, cell_of(item), _test_of(item), item.nodeid, self._waivers
            )
        return item.stash[_REPORTER]


def _verdict_of(
    report: pytest.TestReport, error: BaseException | None, death: str | None
) -> Verdict:
    """The verdict of a test that ended without one of its own."""
    if report.skipped and not isinstance(error, ServerFailed):
        why = shown(str(error), MOST)
        return Verdict("not_applicable", "the cell fits its GPU or its server", why)
    found = "it ended without one" if error is None else f"{type(error).__name__}: {error}"
    return Verdict("error", "a test ends with a verdict of its own", shown(death or found, MOST))


def shown_as_skipped(item: pytest.Item, reason: str) -> tuple[str, int, str]:
    """What pytest takes from the report of a skipped test: file, line and reason."""
    return str(item.path), item.location[1] or 0, reason


def shown_as_failed(outcome: str, reason: str, rule: str) -> str:
    """What pytest shows of a test whose gate failed."""
    return f"{outcome}: {reason}\nrule: {rule}"


def cell_of(item: pytest.Item) -> str:
    """The name of the cell that a test belongs to."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params["cell"].id) if callspec else "?"


def _test_of(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", item.name))


def kit_of(item: pytest.Item) -> str:
    """The kit that defines a test, where several kits share a suite class."""
    name = _test_of(item)
    for owner in getattr(item, "cls", object).__mro__:
        if name in vars(owner):
            return str(getattr(owner, "kit", "?"))
    return "?"
