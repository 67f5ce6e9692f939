"""Runs that are killed, and runs beside each other: nothing is left, and nobody is disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks import survival
from benchmarks.quick_project import Processes, Project
from servematrix import interrupts, records


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
    [
        *(("nox", False), ("nox", True), ("pytest", False), ("pytest", True), ("server", False)),
        ("worker", True),
    ],
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


def test_a_target_that_is_never_met_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    project = SimpleNamespace(spans={False: {"nox": 1.0}})
    monkeypatch.setattr(survival, "killed", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="20 runs were over before a nox was met"):
        next(survival.survive(project, 1, 1, resume_every=3))  # type: ignore[arg-type]


SESSIONS = ("stage_a", "cuda_graph(max_bs=1)", "cuda_graph(max_bs=8)")


def test_sessions_of_nox_share_the_gpus(survivor: Project, tmp_path: Path) -> None:
    before = set(survivor.results.glob("2*"))
    output = tmp_path / "output.txt"
    run = survivor.start("side-by-side", output, sessions=SESSIONS)
    assert run.wait(survival.END_SECONDS) == 0, output.read_text()
    made = [list(records.read(path)) for path in set(survivor.results.glob("2*")) - before]
    assert len(made) == len(SESSIONS)
    cells = [one for run in made for one in run if one["kind"] == "cell"]
    assert {gpu for cell in cells for gpu in cell["gpus"]} == {"PRETEND-0000", "PRETEND-0001"}
    spans = sorted((run[0]["time"], run[-1]["time"]) for run in made)
    assert spans[1][0] < spans[0][1], "two ran at once"


def test_killing_nox_ends_all_its_sessions(survivor: Project, tmp_path: Path) -> None:
    mark = "killed-side-by-side"
    nox = survivor.start(mark, tmp_path / "output.txt", sessions=SESSIONS)
    run = Processes(mark, nox.pid)
    try:
        while [*run.processes().values()].count("server") < 2:
            assert nox.poll() is None, (tmp_path / "output.txt").read_text()
        pytests = [pid for pid, role in run.processes().items() if role == "pytest"]
        for pid in pytests:
            # each is told of the first nox too: the one between may go on without it
            assert str(nox.pid) in psutil.Process(pid).environ()[interrupts.NOX].split(",")
        nox.kill()
        nox.wait()
        left, _ = survival.await_the_end(run, survivor.leases)
        assert not left
    finally:
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)


WAITS = """
import sys, time
from servematrix.interrupts import end_in_good_order
end_in_good_order()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize("first_to_end", [0, 1, None])
def test_a_run_ends_with_any_nox_above_it(first_to_end: int | None) -> None:
    above = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    ids = ",".join(str(one.pid) for one in above)
    if first_to_end is None:  # before the run began
        above[1].kill()
        above[1].wait()
    told = os.environ | {"NOX_CURRENT_SESSION": "stage_a", interrupts.NOX: ids}
    run = subprocess.Popen([sys.executable, "-c", WAITS], env=told, stdout=subprocess.PIPE)
    assert run.stdout is not None
    try:
        if first_to_end is not None:
            run.stdout.readline()
            assert run.poll() is None
            above[first_to_end].kill()
        assert run.wait(20) in (7, -signal.SIGINT), "interrupted, or before it could say so"
    finally:
        run.kill()
        for one in above:
            one.kill()
            one.wait()


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
