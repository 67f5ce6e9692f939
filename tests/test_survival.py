"""Runs that are killed, and runs beside each other: nothing is left, and nobody is disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import survival
from benchmarks.quick_project import Processes, Project

from servematrix import records


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("survival"))
    made.warm_up(workers=[False])
    return made


class Reached:
    """The moment at which a run of a project has so many verdicts."""

    def __init__(self, project: Project, verdicts: int) -> None:
        self._results = project.results
        self._before = set(self._results.glob("2*"))
        self._verdicts = verdicts

    def __call__(self, run: Processes) -> bool:
        made = set(self._results.glob("2*/records.jsonl"))
        lines = [path.read_text() for path in made if path.parent not in self._before]
        return sum(text.count('"kind": "verdict"') for text in lines) >= self._verdicts


@pytest.mark.parametrize(
    ("target", "workers"),
    [("nox", False), ("nox", True), ("pytest", False), ("pytest", True), ("server", False)],
)
def test_nothing_of_a_killed_run_is_left(survivor: Project, target: str, workers: bool) -> None:
    """A few rounds of `nox -s bench -- survival`, at a moment at which servers run."""
    resume = target == "pytest" and not workers
    # the second cell has begun where the run is to be taken up
    moment = Reached(survivor, len(survivor.tests) // 2 + 1 if resume else 1)
    done = survival.killed(survivor, target, moment, workers=workers, resume=resume)
    assert done is not None, "the run was over before its moment came"
    assert not done.left, done
    assert not done.wrong, done
    assert done.verdicts > 0
    if target in ("nox", "pytest"):
        assert done.verdicts < len(survivor.tests), "it went on to its end as if nothing had been"
    assert done.resumed == ("completed" if resume else "")


def test_two_runs_at_once_do_not_disturb_each_other(project: Path) -> None:
    command = [sys.executable, "-m", "pytest", "suites", "--config", "smollm2"]
    command += ["--engine", "reference", "--set", 'suites=["quick"]']
    environment = {name: at for name, at in os.environ.items() if name != "PYTEST_ADDOPTS"}
    runs = [
        subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    folders = [path for path in (project / "results").iterdir() if (path / "lock").exists()]
    made = sorted((list(records.read(one)) for one in folders if not one.is_symlink()), key=_begun)
    assert len(made) == 2
    for one in made:
        assert {record["kind"] for record in one} >= {"run", "cell", "verdict", "end"}
    assert _begun(made[1]) < made[0][-1]["time"], "they did run at once"
    assert len({_of(one, "cell")["base_url"] for one in made}) == 2
    assert {_of(one, "verdict")["verdict"] for one in made} == {"pass"}
    latest = list(records.read(project / "results" / "latest"))
    assert latest == made[1], "the last started"


def _begun(run: list[dict[str, Any]]) -> str:
    return str(run[0]["time"])


def _of(run: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (record for record in run if record["kind"] == kind)
    return found
