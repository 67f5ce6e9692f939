"""The hooks that run the cells of a session on a Ray cluster, as one run.

Each cell is a task (`attempt`). Its records are written here as they come, so they are on this
disk at once; its reports are given to pytest when the cell is whole, and from there on everything
is as in a run of this machine: terminal, counts, JUnit file, exit status. A cell whose node is lost
runs again elsewhere, and what it had found before no longer stands, but for failed gates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import pytest

from servematrix import provenance
from servematrix.executors import attempt, command, usage
from servematrix.executors.cluster import Cluster, News
from servematrix.executors.incoming import Incoming
from servematrix.executors.part import Part, parts
from servematrix.progress import tell
from servematrix.records import RecordsError, Run
from servematrix.reporter import give_up
from servematrix.resume import Kept
from servematrix.run import Plan
from servematrix.terminal import shown

ATTEMPTS: Final = 3
"""Of one cell: one whose node is lost each time is taken to be the reason."""
_TURN_SECONDS: Final = 1.0
"""From one look at the nodes to the next while nothing comes."""
_STILL_SECONDS: Final = 60.0
"""After which it is said what is waited for."""


class Elsewhere:
    """The cluster of a session."""

    def __init__(self, config: pytest.Config) -> None:
        address = usage.address(config.option)
        self.root = config.rootpath
        self.cluster = Cluster(address, self.root, Path(config.option.results))

    def described(self) -> dict[str, Any]:
        """What the first record of the run says of it."""
        return {
            "name": "ray",
            "version": self.cluster.version,
            "address": self.cluster.address,
            "nodes": [node.told() for node in self.cluster.nodes()],
        }


def connect(config: pytest.Config) -> Elsewhere | None:
    """Connect to the cluster; None where nothing is run. EnvironmentProblem where there is none."""
    if config.option.collectonly:
        return None
    found = Elsewhere(config)
    config.add_cleanup(found.cluster.close)
    return found


class Dispatcher:
    """Hooks of a session whose cells run on a cluster."""

    def __init__(
        self, config: pytest.Config, plan: Plan, records: Run, kept: Kept, elsewhere: Elsewhere
    ) -> None:
        """`kept` is what stands of the run's earlier parts."""
        self._config = config
        self._plan = plan
        self._records = records
        self._cluster = elsewhere.cluster
        self._root = None if elsewhere.cluster.sends else str(elsewhere.root)
        self._wait = float(config.option.ray_wait)
        self._incoming = Incoming(config, records, kept)
        self._lost: list[str] = []
        self._news_at = time.monotonic()

    def pytest_report_header(self) -> list[str]:
        """Say which nodes there are."""
        told = [f"executor ray {self._cluster.version} at {self._cluster.address}"]
        told += [f"node {node.told()}" for node in self._cluster.nodes()]
        return [f"servematrix: {shown(one)}" for one in told]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run every cell as a task, and here the tests that belong to none."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            return None  # pytest's own loop says so
        waiting, others = parts(session.items, self._plan)
        running: list[Part] = []
        try:
            for part in waiting:
                self._submit(part)
                running.append(part)
            self._run_here(session, others)
            while running:
                self._turn(session, running)
        finally:
            self._cancel(running)
            # their verdicts are on disk, so they count
            for part in running:
                self._incoming.give(part)
        return True

    def pytest_sessionfinish(self) -> None:
        """Leave the cluster before the last lines: Ray's threads print, too."""
        self._cluster.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What ran more than once, and why."""
        if self._lost:
            terminalreporter.section("cells that lost their node")
        for told in self._lost:
            terminalreporter.write_line(shown(told))

    def _turn(self, session: pytest.Session, running: list[Part]) -> None:
        """Take the next news of any cell."""
        for part in self._without_node(running):
            running.remove(part)
            self._finish(session, part)
        news = (
            self._cluster.next([part.task for part in running], _TURN_SECONDS) if running else None
        )
        if news is None:
            self._say_what_is_waited_for(running)
            return
        self._news_at = time.monotonic()
        part = next(one for one in running if one.task is news.task)
        # to the end, so that each cell has its turn
        running.remove(part)
        if not news.over:
            running.append(part)
            self._take(part, news)
        elif news.lost is None or not part.missing():
            part.ended = part.ended or f"its task ended: {news.failed or 'it said nothing'}"
            self._finish(session, part)
        elif self._again(part, news.lost):
            running.append(part)
        else:
            self._finish(session, part)

    def _submit(self, part: Part) -> None:
        part.attempt += 1
        nodeids = part.to_run()
        order = {
            "arguments": command.arguments(self._config, self._plan.options, part.planned, nodeids),
            "root": self._root,
            "source": provenance.source(),
        }
        name = f"servematrix {part.planned.id}"
        part.task = self._cluster.submit(attempt.run, order, part.demand, name)

    def _take(self, part: Part, news: News) -> None:
        try:
            told = self._incoming.take(part, news.event or {})
        except RecordsError as error:
            give_up(error)
        if told:
            self._say(f"{part.planned.id}: {told}")

    def _again(self, part: Part, lost: str) -> bool:
        """Note a lost attempt and start the next one; False where there is none."""
        where = part.place if part.host else "its node"
        verdicts = part.verdicts()
        self._incoming.keep_failed(part)
        again = part.forget()
        stands = len(part.reports)
        last = part.attempt == ATTEMPTS or len(again) == 1
        self._record(
            "lost",
            cell=part.planned.id,
            attempt=part.attempt,
            node=where,
            reason=lost,
            verdicts={one: verdicts.count(one) for one in sorted(set(verdicts))},
            again=again,
        )
        told = f"{part.planned.id}: lost {where} in attempt {part.attempt} of {ATTEMPTS} ({lost})"
        told += f"; verdicts of it that do not count: {len(verdicts) - stands}"
        told += f", that failed and stand: {stands}" if stands else ""
        told += "" if last else "; the cell runs again"
        self._lost.append(told)
        self._say(told)
        part.ended = f"its node was lost {part.attempt} times, the last time {where}: {lost}"
        if last:
            return False
        part.ended = ""
        self._submit(part)
        return True

    def _without_node(self, running: Sequence[Part]) -> list[Part]:
        """The waiting cells that no node can take, and none was added for long enough."""
        waiting = [part for part in running if not part.host]
        nodes = self._cluster.nodes() if waiting else []
        found = []
        for part in waiting:
            told = part.cannot_run(nodes, self._wait)
            if told:
                self._cluster.cancel(part.task)
                # a cell that had begun has lost its node, which is no reason not to apply
                part.replan(**{"unfit" if part.attempt == 1 else "broken": told})
                found.append(part)
        return found

    def _finish(self, session: pytest.Session, part: Part) -> None:
        """Tell pytest of a cell, and of the tests in it that came to no verdict."""
        if part.host:
            self._say(f"{part.planned.id}: {len(part.verdicts())} verdicts from {part.place}")
        self._incoming.give(part)
        _stop_where_asked(session)
        missing = part.missing()
        if missing and not part.planned.unfit and not part.planned.broken:
            place = f" on {part.place}" if part.host else ""
            part.replan(
                broken=f"{part.planned.id}: no verdict came of its run{place}: {part.ended}"
            )
        self._run_here(session, missing)

    def _run_here(self, session: pytest.Session, items: Sequence[pytest.Item]) -> None:
        for item, following in zip_longest(items, items[1:]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            _stop_where_asked(session)

    def _cancel(self, running: Sequence[Part]) -> None:
        """End what still runs; returns when all servers have stopped, or there was time enough."""
        tasks = [part.task for part in running if part.task is not None]
        for task in tasks:
            self._cluster.cancel(task)
        deadline = time.monotonic() + attempt.END_SECONDS
        while tasks and time.monotonic() < deadline:
            news = self._cluster.next(tasks, _TURN_SECONDS)
            if news is not None and news.over:
                tasks = [task for task in tasks if task is not news.task]

    def _say_what_is_waited_for(self, running: Sequence[Part]) -> None:
        if time.monotonic() - self._news_at < _STILL_SECONDS:
            return
        self._news_at = time.monotonic()
        for part in running:
            self._say(
                f"{part.planned.id}: running on {part.place}"
                if part.host
                else f"{part.planned.id}: waits for a node with {part.demand.told()} free"
            )

    def _say(self, told: str) -> None:
        tell(self._config, told)

    def _record(self, kind: str, **fields: Any) -> None:
        try:
            self._records.write(kind, **fields)
        except RecordsError as error:
            give_up(error)


def _stop_where_asked(session: pytest.Session) -> None:
    """End the session where pytest's own loop would."""
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
