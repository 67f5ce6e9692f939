"""One cell of a run that other machines carry out: its tests, and what is known of them so far."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from servematrix.executors.cluster import Demand, Node, Task
from servematrix.gpus.pretend import NUMBER
from servematrix.run import Plan, PlannedCell
from servematrix.shards import longest_first
from servematrix.suite import suite_of
from servematrix.verdicts import SHUTDOWN


@dataclass
class Part:
    """One cell, from its first attempt to its last verdict."""

    planned: PlannedCell
    items: Sequence[pytest.Item]
    demand: Demand
    task: Task = None
    attempt: int = 0
    """Number of the task that runs or waits, from 1."""
    host: str = ""
    """Where the attempt runs; empty while it waits for a node."""
    node: str = ""
    """The address of that host."""
    node_id: str = ""
    """Ray's name of the node."""
    assigned: str = ""
    """The GPUs that Ray gave it, as in CUDA_VISIBLE_DEVICES."""
    gpus: Sequence[str] = ()
    """Names of the GPUs that it sees."""
    misses_since: float | None = None
    """Since when no node could take it (monotonic seconds)."""
    reports: dict[str, list[pytest.TestReport]] = field(default_factory=dict)
    """By test. They are held until the cell is whole: nobody can take back what pytest was told."""
    judged: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By test, the records of the attempt's verdicts: they come before the reports."""
    served: Mapping[str, Any] | None = None
    """The record of the attempt's server."""
    ended: str = ""
    """How the run on the node ended, with the end of its output; empty while it goes on."""

    @property
    def place(self) -> str:
        """Host and address, for people."""
        return f"{self.host} ({self.node})"

    def has(self, nodeid: str) -> bool:
        """Whether a test is one of this cell."""
        return any(item.nodeid == nodeid for item in self.items)

    def to_run(self) -> list[str]:
        """The tests that an attempt is given: all but those of which something stands."""
        return [item.nodeid for item in self.items if item.nodeid not in self.reports]

    def verdicts(self) -> list[str]:
        """The verdicts that are known so far."""
        recorded = {nodeid: str(one["verdict"]) for nodeid, one in self.judged.items()}
        reported = {nodeid: verdict_of(found) for nodeid, found in self.reports.items()}
        # of a test in its course there is a report already, without a verdict
        known = recorded | {nodeid: found for nodeid, found in reported.items() if found}
        return list(known.values())

    def forget(self) -> list[str]:
        """Forget what a lost attempt had found, but for failed gates; returns what runs again.

        A failed gate is never tried again until it passes.
        """
        self.reports = {
            nodeid: found for nodeid, found in self.reports.items() if verdict_of(found) == "fail"
        }
        self.judged, self.served = {}, None
        self.host = self.node = ""
        return [*self.to_run(), f"{SHUTDOWN}[{self.planned.id}]"]

    def missing(self) -> list[pytest.Item]:
        """The tests without a verdict."""
        return [one for one in self.items if verdict_of(self.reports.get(one.nodeid, ())) is None]

    def cannot_run(self, nodes: Sequence[Node], seconds: float) -> str | None:
        """Why no node will take it, after none could for so long; None while one may."""
        if any(node.takes(self.demand) for node in nodes):
            self.misses_since = None
            return None
        self.misses_since = self.misses_since or time.monotonic()
        if time.monotonic() - self.misses_since < seconds:
            return None
        return (
            f"{self.planned.id}: {self.demand.told()} needed, and no node of the Ray cluster has "
            f"that: {'; '.join(node.told() for node in nodes) or 'it has none'}; where an "
            "autoscaler adds nodes, say with --ray-wait SECONDS how long to wait"
        )

    def replan(self, **changes: str) -> None:
        """Change the cell that its tests will see."""
        self.planned = replace(self.planned, **changes)  # type: ignore[arg-type]
        for item in self.items:
            callspec: Any = item.callspec  # type: ignore[attr-defined]
            callspec.params["cell"] = self.planned


def parts(items: Iterable[pytest.Item], plan: Plan) -> tuple[list[Part], list[pytest.Item]]:
    """The cells of a session's tests, the longest first, and the tests that belong to none.

    To those belong the tests of a cell that can run nowhere.
    """
    cells: dict[str, Part] = {}
    others: list[pytest.Item] = []
    for item in items:
        planned = _cell(item)
        if planned is None or planned.unfit:
            others.append(item)
            continue
        part = cells.setdefault(planned.id, Part(planned, [], demand(planned, plan.engine.name)))
        part.items = [*part.items, item]
    order = dict.fromkeys((*longest_first(plan.durations), *cells))
    return [cells[cell] for cell in order if cell in cells], others


def demand(cell: PlannedCell, engine: str) -> Demand:
    """What a cell asks Ray for: GPUs only where its engine has some, or pretends to."""
    requires = cell.config.requires
    pretends = engine == "reference" and os.environ.get(NUMBER, "0") not in ("", "0")
    if engine == "sglang" or pretends:
        return Demand(requires.gpus, requires.accelerator)
    return Demand()


def verdict_of(reports: Iterable[pytest.TestReport]) -> str | None:
    """The verdict that the reports of one test carry; None where it has none yet."""
    found = (dict(one.user_properties).get("verdict") for one in reports)
    return next((str(verdict) for verdict in found if verdict is not None), None)


def _cell(item: pytest.Item) -> PlannedCell | None:
    callspec = getattr(item, "callspec", None)
    if callspec is None or suite_of(getattr(item, "cls", None)) is None:
        return None
    planned: PlannedCell | None = callspec.params.get("cell")
    return planned
