"""How pytest-xdist hands out tests: whole cells, the longest first, to workers that are free.

All tests of a cell go to one worker, so its server starts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

from servematrix.durations import Duration
from servematrix.shards import longest_first
from servematrix.suite import suite_of

_END: Final = "end-of-cell"


class CellScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Load scheduling with cells as the unit.

    xdist's own `loadgroup` marks a test's group in its node id, which pytest 9.2 does not take.

    A worker of xdist runs a test only once it knows the next one. So a worker that has one test
    left is given its next cell, and never sooner: with the `CellEnds` that is when the last test of
    its cell is over. Who is free first gets the longest cell that is left.
    """

    def __init__(self, config: pytest.Config, log: Any, cells: Mapping[str, Duration]) -> None:
        """`cells` are the cells of the run, and how long each will take."""
        super().__init__(config, log)
        # node ids have other characters than ASCII escaped
        ids = [cell.encode("unicode_escape").decode() for cell in longest_first(cells)]
        self._order = {cell: position for position, cell in enumerate(ids)}

    def _split_scope(self, nodeid: str) -> str:
        """The cell of a test: what its parameters say.

        `test_a.py::TestA::test_b[cuda_graph(max_bs=8)]` belongs to `cuda_graph(max_bs=8)`.
        """
        return nodeid.rpartition("[")[2].removesuffix("]")

    def _assign_work_unit(self, node: Any) -> None:
        """Give a worker the longest cell that is left; what is no cell comes last."""
        last = len(self._order)
        longest = min(self.workqueue, key=lambda cell: self._order.get(cell, last))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        """Give a worker its next cell once it cannot go on without; xdist does so a test sooner."""
        if self.workqueue and self._pending_of(self.assigned_work[node]) > 1:
            return
        super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """Take a worker away; what is left of its cells goes to others. Returns what it died of.

        That test is not run again: xdist would, with worker after worker. It would hand out the
        finished cells too, and a worker that is given nothing to run never asks again.
        """
        cells = self.assigned_work[node]
        left = [tests for tests in cells.values() if not all(tests.values())]
        crashed: str | None = None
        if left:
            crashed = next(test for test, is_over in left[0].items() if not is_over)
            left[0][crashed] = True
        for cell in [cell for cell, tests in cells.items() if all(tests.values())]:
            del cells[cell]
        super().remove_node(node)
        return crashed


class CellEnds:
    """Hooks of xdist's workers and controller that give each cell an end: a test of nothing.

    While a worker is at it, it is told its next cell. Without it that would be while the last real
    test of its cell runs, which may take minutes in which another worker becomes free.
    """

    def __init__(self) -> None:
        self._session: pytest.Session | None = None
        self._tests = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Know the session whose progress is shown."""
        self._session = session

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Count the tests that are no end of a cell."""
        self._tests = sum(not _is_end(one) for one in ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Let the progress be that of tests, in the controller, where xdist counts all items."""
        if self._session is not None and self._tests:
            self._session.testscollected = self._tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Add the ends behind all tests, for the cells that have any left; in workers alone."""
        if not hasattr(session.config, "workerinput"):
            return
        tests = [item for item in items if suite_of(getattr(item, "cls", None)) is not None]
        scopes = dict.fromkeys(item.nodeid.rpartition("[")[2] for item in tests)
        items += [CellEnd.from_parent(session, name=f"{_END}[{scope}") for scope in scopes]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Report nothing of an end, but of a worker's last, with which its last server stops."""
        return True if isinstance(item, CellEnd) and nextitem is not None else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """Neither show nor count them."""
        return ("", "", "") if _is_end(report.nodeid) and report.passed else None


class CellEnd(pytest.Item):
    """The end of a cell."""

    def runtest(self) -> None:
        """Test nothing."""

    def reportinfo(self) -> tuple[str, None, str]:
        """What stands for its place, which is in no file."""
        return "", None, self.name


def _is_end(nodeid: str) -> bool:
    return nodeid.startswith(f"::{_END}[")
