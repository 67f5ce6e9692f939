"""Which worker of pytest-xdist gets which cell, and when."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from xdist.remote import Producer

from servematrix import records
from servematrix.durations import Duration
from servematrix.scheduling import CellScheduling

END = "::end-of-cell"


@dataclass(eq=False)
class Worker:
    """What xdist's controller knows of a worker, and the worker's queue behind it."""

    number: int
    queue: deque[int | None] = field(default_factory=deque)
    shutting_down: bool = False
    running: bool = False

    @property
    def gateway(self) -> SimpleNamespace:
        return SimpleNamespace(id=f"gw{self.number}")

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        if not self.shutting_down:
            self.queue.append(None)
        self.shutting_down = True


class Simulation:
    """A run of cells in simulated seconds, with workers as xdist has them.

    A worker starts a test only once it knows the next one. `cells` are the seconds of each test.
    """

    def __init__(
        self,
        cells: Mapping[str, Sequence[float]],
        workers: int,
        *,
        expected: Mapping[str, float] | None = None,
        ends: bool = True,
    ) -> None:
        tests = []
        for cell, own in cells.items():
            tests += [(f"{n}.py::test[{cell}]", seconds) for n, seconds in enumerate(own)]
        if ends:
            tests += [(f"{END}[{cell}]", 0.0) for cell in cells]
        self.tests = tests
        expected = expected or {cell: sum(own) for cell, own in cells.items()}
        config: Any = SimpleNamespace(
            getvalue=lambda name: [f"{workers}*popen"],
            option=SimpleNamespace(loadscopereorder=True),
            hook=None,
        )
        durations = {cell: Duration(seconds, True) for cell, seconds in expected.items()}
        self.scheduler = CellScheduling(config, Producer("", enabled=False), durations)
        self.workers = [Worker(number) for number in range(workers)]
        self.started: list[tuple[float, int, str]] = []
        """Time, worker and cell of each start of a cell."""
        self.makespan = 0.0

    def run(self, at_completion: Callable[[Worker, int], bool] = lambda *_: True) -> Simulation:
        for worker in self.workers:
            self.add(worker)
        self.scheduler.schedule()
        order = itertools.count()
        ends: list[tuple[float, int, Worker, int]] = []
        now = 0.0
        while True:
            for worker in self.workers:
                # the next one must be known
                while not worker.running and len(worker.queue) >= 2:
                    index = worker.queue.popleft()
                    assert index is not None
                    worker.running = True
                    nodeid, seconds = self.tests[index]
                    cell = self.scheduler._split_scope(nodeid)
                    if cell not in [one for _, _, one in self.started]:
                        self.started.append((now, worker.number, cell))
                    heapq.heappush(ends, (now + seconds, next(order), worker, index))
            if not ends:
                break
            now, _, worker, index = heapq.heappop(ends)
            worker.running = False
            self.makespan = now
            if at_completion(worker, index):
                self.scheduler.mark_test_complete(worker, index)
            if self.scheduler.tests_finished:
                for one in self.scheduler.nodes:
                    one.shutdown()
        assert not self.scheduler.has_pending, "every test was run"
        return self

    def add(self, worker: Worker) -> None:
        self.scheduler.add_node(worker)
        self.scheduler.add_node_collection(worker, [nodeid for nodeid, _ in self.tests])


def test_the_longest_cells_are_started_first() -> None:
    cells = {"a": [1.0, 1.0], "b": [1.0, 8.0], "c": [5.0], "d": [1.0, 2.0]}
    assert [cell for _, _, cell in Simulation(cells, 2).run().started] == ["b", "c", "d", "a"]


def test_cells_without_tests_left_and_tests_without_a_cell_do_no_harm() -> None:
    simulation = Simulation({"other": [1.0], "a": [2.0]}, 1, expected={"a": 2.0, "gone": 9.0})
    assert [cell for _, _, cell in simulation.run().started] == ["a", "other"]


def test_a_cell_goes_to_who_is_free_and_not_to_who_is_at_its_last_test() -> None:
    cells = {"long": [1.0, 9.0], "short": [1.0, 4.0], "next": [4.0]}
    simulation = Simulation(cells, 2).run()
    assert simulation.started == [(0.0, 0, "long"), (0.0, 1, "short"), (5.0, 1, "next")]
    assert simulation.makespan == 10
    # what the ends of cells are for
    assert Simulation(cells, 2, ends=False).run().makespan == 14


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("tests", [1, 8])
def test_two_hundred_cells_on_eight_workers_end_close_to_the_lower_bound(
    seed: int, tests: int
) -> None:
    chance = random.Random(seed)
    cells = {}
    for number in range(200):
        whole = chance.lognormvariate(5.0, 0.6)
        parts = [chance.random() for _ in range(tests)]
        cells[f"cell{number}"] = [whole * part / sum(parts) for part in parts]
    total = [sum(own) for own in cells.values()]
    lower_bound = max(max(total), sum(total) / 8)
    assert Simulation(cells, 8).run().makespan <= 1.05 * lower_bound


def test_what_a_lost_worker_had_is_run_by_another_but_for_what_it_died_of() -> None:
    cells = {"a": [1.0], "b": [1.0, 1.0], "c": [1.0]}
    simulation = Simulation(cells, 1, expected={"a": 3.0, "b": 2.0, "c": 1.0})
    other = Worker(1)
    done: list[str] = []

    def lose(worker: Worker, index: int) -> bool:
        nodeid = simulation.tests[index][0]
        if nodeid == "0.py::test[b]" and worker.number == 0:
            simulation.workers[:] = [other]
            assert simulation.scheduler.remove_node(worker) == nodeid
            simulation.add(other)
            simulation.scheduler.schedule()
            return False
        done.append(nodeid)
        return True

    simulation.run(lose)
    whole = {nodeid for nodeid, _ in simulation.tests}
    assert sorted(done) == sorted(whole - {"0.py::test[b]"})


SUITE = """
import time
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


@pytest.mark.suite("mine")
class TestMine(Kit):
    kit = "mine"

    def test_first(self, cell):
        # so that the long cell is at its last test when this one comes to its own
        time.sleep(1.5 if "small" in cell.id else 0)
        self.conclude(Verdict("pass", rule="a rule", reason="it is"))

    def test_last(self, cell):
        time.sleep(4 if "long" in cell.id else 0)
        self.conclude(Verdict("pass", rule="a rule", reason="it is"))
"""
CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
axis.size = ["small", "tiny", "long"]
[model]
path = "org/model"
"""


def test_real_workers_do_so_too(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    ini = "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    pytester.makefile(".ini", pytest=ini)
    pytester.makepyfile(test_mine=SUITE)
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    Path("configs/durations.json").write_text(
        '{"reference": {"mine(size=long)": 9, "mine(size=small)": 5}}'
    )
    asked = ("--engine", "reference", "--config", "mine", "-n", "2")
    listed = pytester.runpytest_subprocess(*asked, "--collect-only", "-q", timeout=120)
    listed.stdout.fnmatch_lines(["6 tests collected *"])
    result = pytester.runpytest_subprocess(*asked, "--junitxml", "junit.xml", timeout=120)
    assert result.ret == 0, result.stdout
    # one for each worker, at most
    assert Path("junit.xml").read_text().count("end-of-cell") <= 2
    result.stdout.fnmatch_lines(["*100%*", "*= 6 passed in *", "servematrix: exit 0*6 pass;*"])
    found = list(records.read(Path("results/latest")))
    began = [one["cell"] for one in found if one["kind"] == "cell"]
    assert set(began[:2]) == {"mine(size=long)", "mine(size=small)"}
    ended = [one["cell"] for one in found if one["kind"] == "verdict"]
    assert ended[-1] == "mine(size=long)", "the third cell did not wait behind it"
    assert len(ended) == 6
