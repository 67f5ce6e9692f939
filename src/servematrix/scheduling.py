"""How pytest-xdist hands out tests: all tests of a cell to one worker, so a server starts once."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling


class CellScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Load scheduling with cells as the unit.

    xdist's own `loadgroup` marks a test's group in its node id, which pytest 9.2 does not take.
    """

    def _split_scope(self, nodeid: str) -> str:
        """The cell of a test: what its parameters say.

        `test_a.py::TestA::test_b[cuda_graph(max_bs=8)]` belongs to `cuda_graph(max_bs=8)`.
        """
        return nodeid.rpartition("[")[2].removesuffix("]")
