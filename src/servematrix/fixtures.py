"""What a suite can ask for: the cell it runs for, and that cell's server.

Registered only in a run of the matrix, so that no other pytest run sees these names.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servematrix.run import PlannedCell
from servematrix.served import ServedCell
from servematrix.session import MatrixSession
from servematrix.suite import SESSION, suite_of


@pytest.fixture(scope="session")
def cell(request: pytest.FixtureRequest) -> PlannedCell:
    """The cell that the current tests belong to."""
    planned: PlannedCell = request.param
    return planned


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, cell: PlannedCell) -> Iterator[ServedCell]:
    """The cell's server: launched before its first test, stopped after its last."""
    with _session(request).serving(cell) as served:
        yield served


@pytest.fixture(autouse=True)
def _bound(request: pytest.FixtureRequest) -> None:
    """Suites read their server's address and limits from attributes of their instance."""
    if suite_of(request.cls) is not None:
        served = request.getfixturevalue("server")
        _session(request).bind(request.node, request.instance, served)


def _session(request: pytest.FixtureRequest) -> MatrixSession:
    session = request.config.pluginmanager.get_plugin(SESSION)
    assert isinstance(session, MatrixSession), "registered together with these fixtures"
    return session
