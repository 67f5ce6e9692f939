"""`--resume`: what of a broken run stands, what is run again, and which runs cannot be taken up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import survival
from benchmarks.quick_project import MARK, Processes
from servematrix import records, resume
from servematrix.engines.base import EnvironmentProblem
from servematrix.records import FILE, RecordsError, Run
from servematrix.redaction import Secrets
from servematrix.resume import Kept

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
axis.size = [1, 2]
[model]
path = "org/model"
[arguments]
enable-metrics = true
"""

SUITE = """
import os, signal, time
import pytest
from pathlib import Path
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


class MineMixin(Kit):
    kit = "mine"

    def end(self, outcome):
        self.conclude(Verdict(outcome, rule="a rule", reason=f"it is {outcome}"))


@pytest.mark.suite("mine")
class TestMine(MineMixin):
    def test_first(self, cell):
        self.end("pass")

    def test_second(self, cell):
        self.attach("trace", [1, 2])
        self.end(os.environ.get("SECOND", "pass"))

    def test_third(self, cell):
        if cell.id == os.environ.get("KILLED_IN"):
            os.kill(os.getpid(), int(os.environ['SIGNAL']))
        self.end("pass")
"""

CELLS = ("mine(size=1)", "mine(size=2)")
LAST = f"test_third[{CELLS[1]}]"


class Matrix:
    """A project whose suite runs in two cells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        (self.folder / "pytest.ini").write_text(
            "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
        )
        (self.folder / "configs").mkdir()
        (self.folder / "configs" / "mine.toml").write_text(CONFIG)
        (self.folder / "test_mine.py").write_text(SUITE)

    @property
    def latest(self) -> Path:
        return (self.folder / "results" / "latest").resolve()

    def start(self, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a run; the variables say what happens in its tests."""
        command = [sys.executable, "-m", "pytest", "--engine", "reference", "--config", "mine"]
        inherited = {name: at for name, at in os.environ.items() if name != "PYTEST_ADDOPTS"}
        with (self.folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [*command, *options],
                cwd=self.folder,
                env=inherited | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        """Run to the end; returns the status and what was printed."""
        process = self.start(*options, **variables)
        status = process.wait(timeout=120)
        return status, (self.folder / "output.txt").read_text()

    def ending_in(self, cell: str, number: signal.Signals) -> dict[str, str]:
        """The variables of a run that a signal ends in the last test of a cell."""
        return {"KILLED_IN": cell, "SIGNAL": str(int(number))}


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    made = Matrix(tmp_path)
    made.make()
    return made


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    made = Matrix(tmp_path_factory.mktemp("killed"))
    made.make()
    status, text = made.run(**made.ending_in(CELLS[1], signal.SIGKILL), SECOND="inconclusive")
    assert status == -signal.SIGKILL, text
    return made


@pytest.fixture
def killed(killed_once: Matrix, tmp_path: Path) -> Matrix:
    """A run that was killed in the last test of its second cell."""
    return Matrix(Path(shutil.copytree(killed_once.folder, tmp_path / "p", symlinks=True)))


def reached_in(folder: Path, part: int) -> list[str]:
    """The tests that reached a verdict in one part of a run."""
    parts: list[list[str]] = []
    for record in records.read(folder):
        if record["kind"] in ("run", "resume"):
            parts.append([])
        if record["kind"] == "verdict":
            parts[-1].append(record["nodeid"].rpartition("::")[2])
    return parts[part]


def since_resume(folder: Path) -> list[dict[str, Any]]:
    found = list(records.read(folder))
    return found[max(n for n, one in enumerate(found) if one["kind"] == "resume") + 1 :]


def kinds(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in records.read(folder) if record["kind"] == kind]


def test_a_killed_run_goes_on_where_it_broke(killed: Matrix) -> None:
    run = killed.latest
    log = run / "mine-size=2.log"
    before = log.read_bytes()
    status, text = killed.run("--resume", "results/latest")
    assert status == 7, text
    assert reached_in(run, 1) == [LAST]
    assert f"5 verdicts kept from results/{run.name} (2 inconclusive, 3 pass)" in text
    assert "5 deselected" in text
    last = text.splitlines()[-1]
    assert "2 inconclusive, 4 pass (5 of them kept from before it was taken up)" in last
    assert "inconclusive: 2 tests, test_second[mine(size=1)] first: reached before this run" in text
    assert " mine(size=1)  mine      ? inconclusive  1 of 3        -\n" in text, "in the table too"
    assert [one["cell"] for one in kinds(run, "cell")] == [*CELLS, CELLS[1]]
    assert log.read_bytes().startswith(before), "it tells why the run broke"
    assert (run / "mine-size=2.2.log").exists()
    (said,) = kinds(run, "resume")
    assert (said["kept"], said["again"]) == (5, [])
    assert said["command"][-2:] == ["--resume", "results/latest"]
    assert kinds(run, "end")[0]["counts"] == {"pass": 4, "inconclusive": 2}
    assert [path.name for path in run.parent.iterdir() if path.name[0] == "2"] == [run.name]


def test_a_run_can_break_again_and_after_its_last_verdict(killed: Matrix) -> None:
    run = killed.latest
    ending = killed.ending_in(CELLS[1], signal.SIGTERM)
    status, text = killed.run("--resume", run.name, **ending)
    assert status == 2, text
    status, text = killed.run("--resume", str(run))
    assert status == 7, text
    assert [len(reached_in(run, part)) for part in range(3)] == [5, 0, 1]
    launched = len(kinds(run, "cell"))
    lines = (run / FILE).read_bytes().splitlines(keepends=True)
    (run / FILE).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    status, text = killed.run("--resume", "latest")
    assert status == 7, text
    assert "6 verdicts kept from" in text
    assert "its last record was cut off and is left out" in text
    assert len(kinds(run, "cell")) == launched, "no server for finished cells"
    assert kinds(run, "end")[-1]["exit_code"] == 7
    status, text = killed.run("--resume", "latest")
    assert status == 4
    assert "that run is complete, it ended with status 7" in text


def test_a_failed_gate_is_not_tried_again_and_counts(matrix: Matrix) -> None:
    ending = matrix.ending_in(CELLS[0], signal.SIGKILL)
    assert matrix.run(**ending, SECOND="fail")[0] == -signal.SIGKILL
    status, text = matrix.run("--resume", "latest", SECOND="pass")
    assert status == 1, text
    assert f"test_second[{CELLS[0]}]" not in reached_in(matrix.latest, 1)
    assert "fail: test_second[mine(size=1)]: reached before this run was taken up: it is" in text
    assert "exit 1 (a verdict failed" in text.splitlines()[-1]


def test_it_goes_on_under_workers_too(matrix: Matrix) -> None:
    """Both workers end with their controller, which a test kills."""
    script = matrix.folder / "test_mine.py"
    kill, itself = "os.kill(os.get{}(), int(os.environ['SIGNAL']))", "pid"
    kills_its_parent = f"{kill.format('ppid')}; time.sleep(60)"
    script.write_text(SUITE.replace(kill.format(itself), kills_its_parent))
    ending = matrix.ending_in(CELLS[1], signal.SIGKILL)
    status, text = matrix.run("-n", "2", **ending, **{MARK: str(matrix.folder)})
    assert status == -signal.SIGKILL, text
    left, seconds = survival.await_the_end(Processes(str(matrix.folder)))
    assert not left, f"after {seconds} s"
    run = matrix.latest
    reached = reached_in(run, 0)
    status, text = matrix.run("-n", "2", "--resume", "latest")
    assert status == 0, text
    now = reached_in(run, 1)
    tests = [f"test_{name}[{cell}]" for cell in CELLS for name in ("first", "second", "third")]
    assert sorted(reached + now) == sorted(tests)
    second = [one["cell"] for one in since_resume(run) if one["kind"] == "cell"]
    assert set(second) == {test.partition("[")[2][:-1] for test in now}
    assert f"{len(reached)} verdicts kept from" in text
    assert kinds(run, "end")[0]["counts"] == {"pass": 6}
    lines = (run / FILE).read_bytes().splitlines(keepends=True)
    (run / FILE).write_bytes(b"".join(lines[:-1]))
    status, text = matrix.run("-n", "2", "--resume", "latest")
    assert status == 0, text  # no worker has a test then, and that is no empty selection
    assert [one["kind"] for one in since_resume(run)] == ["end"]


def test_what_is_left_can_be_looked_at(killed: Matrix) -> None:
    before = (killed.latest / FILE).read_bytes()
    _, text = killed.run("--resume", "latest", "--collect-only", "-q")
    assert LAST in text
    assert "test_first" not in text
    assert (killed.latest / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("latest", "--set", "arguments.page-size=4"), "cells: configured otherwise (the file, "),
        (("latest", "-k", "third"), "tests: "),
        (("none-such",), "no such run; the newest in results: 2"),
    ],
)
def test_another_run_is_refused(killed: Matrix, options: Sequence[str], message: str) -> None:
    before = (killed.latest / FILE).read_bytes()
    status, text = killed.run("--resume", *options)
    assert status == 4, text
    assert message in text
    assert (killed.latest / FILE).read_bytes() == before


def test_a_run_that_still_runs_is_refused(matrix: Matrix) -> None:
    """Until it is killed; then its folder is free at once."""
    script = SUITE.replace("os.kill(os.getpid()", "signal.pause(); os.kill(os.getpid()")
    (matrix.folder / "test_mine.py").write_text(script)
    living = matrix.start(KILLED_IN=CELLS[0], SIGNAL="0")
    try:
        deadline = time.monotonic() + 60
        while not matrix.latest.exists() or len(reached_in(matrix.latest, 0)) < 2:
            assert time.monotonic() < deadline
            assert living.poll() is None
            time.sleep(0.05)
        status, text = matrix.run("--resume", "latest")
        assert status == 4
        assert "its run is still running; wait for it, or end it first" in text
    finally:
        living.kill()
        living.wait()
    assert matrix.run("--resume", "latest")[0] == 0


def test_another_server_behind_the_url_is_refused() -> None:
    kept = Kept(answered={"mine": "sglang 0.5.16 serving a"})
    assert kept.another("mine", "sglang 0.5.16 serving a") is None
    assert kept.another("other", "sglang 0.5.17 serving a") is None
    told = kept.another("mine", "sglang 0.5.17 serving a")
    assert told is not None
    assert "mine was measured on sglang 0.5.16 serving a, and now sglang 0.5.17" in told


# -- what stands, from records alone ---------------------------------------------------------------

HEADER: dict[str, Any] = {
    "command": ["pytest", "--config", "a,b"],
    "configurations": {"a": "1", "b": "2"},
    "engine": "reference",
    "server": None,
    "base_url": None,
    "selection": {"arguments": ["suites"], "keyword": None},
    "baselines": {},
    "hellaswag": None,
    "hellaswag_sha256": None,
    "gpus": [],
    "versions": {"servematrix": "1"},
    "git_commit": "abc+changes",
    "git_changes": "d1",
}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run with these records after its first, a second between them."""

    def write(*found: dict[str, Any], header: dict[str, Any] = HEADER) -> Path:
        folder = tmp_path / "a-run"
        folder.mkdir()
        first = {"kind": "run", "schema": 1, **header}
        lines = [
            json.dumps({**one, "time": f"2026-11-22T14:00:{number:02}.000+00:00"})
            for number, one in enumerate([first, *found])
        ]
        (folder / FILE).write_text("\n".join(lines) + "\n")
        return folder

    return write


def read(folder: Path, header: dict[str, Any]) -> Kept:
    return resume.read(folder, header, Secrets())


def verdict(cell: str, test: str, outcome: str) -> dict[str, Any]:
    nodeid = f"s.py::T::{test}[{cell}]"
    return {
        "kind": "verdict",
        "cell": cell,
        "kit": "k",
        "test": test,
        "nodeid": nodeid,
        "verdict": outcome,
        "reason": "why",
    }


def served(cell: str, startup_seconds: float = 0.5) -> dict[str, Any]:
    about = {"versions": {"reference": "1"}, "model": "m", "simulated": True}
    return {"kind": "cell", "cell": cell, "startup_seconds": startup_seconds, **about}


A, B = served("a"), served("b")
OK, BAD = verdict("a", "one", "pass"), verdict("a", "two", "error")


@pytest.mark.parametrize(
    ("found", "again"),
    [
        pytest.param([A, OK], [], id="what passed stands"),
        pytest.param([A, verdict("a", "x", "fail")], [], id="and what failed"),
        pytest.param([A, verdict("a", "x", "inconclusive")], [], id="and what did not decide"),
        pytest.param([A, verdict("a", "x", "not_applicable")], [], id="and what did not apply"),
        pytest.param([A, OK, BAD], ["two"], id="the last error may be the interruption"),
        pytest.param([A, BAD, OK], [], id="its server lived on"),
        pytest.param(
            [A, BAD, verdict("a", "x", "error")], ["two", "x"], id="errors alone show nothing"
        ),
        pytest.param(
            [A, BAD, verdict("a", "x", "not_applicable")], ["two"], id="nor what asks no server"
        ),
        pytest.param(
            [A, verdict("a", "x", "error") | {"kit": "shutdown"}],
            [],
            id="what a server left stands",
        ),
        pytest.param([A, BAD, B], [], id="another server was started later"),
        pytest.param(
            [A, BAD, served("b", startup_seconds=30)], ["two"], id="it was being started already"
        ),
        pytest.param([A, BAD, A, OK], ["two"], id="a server of another part says nothing"),
        pytest.param([A, BAD, {"kind": "end", "exit_code": 2, "counts": {}}], ["two"], id="Ctrl-C"),
        pytest.param(
            [A, BAD, {"kind": "resume", "again": [BAD["nodeid"]]}, A, verdict("a", "two", "pass")],
            [],
            id="made again",
        ),
    ],
)
def test_which_verdicts_are_finished(
    broken: Callable[..., Path], found: Sequence[dict[str, Any]], again: list[str]
) -> None:
    kept = read(broken(*found), HEADER)
    assert [nodeid.split("::")[2].partition("[")[0] for nodeid in kept.again] == again
    assert not set(kept.again) & set(kept.nodeids)
    reached = {one["nodeid"] for one in found if one["kind"] == "verdict"}
    assert {*kept.again, *kept.nodeids} == reached
    assert ("run again" in kept.told()) == bool(again)


def test_a_kept_verdict_says_what_answered_and_whether_it_died(broken: Callable[..., Path]) -> None:
    death = {"kind": "death", "cell": "a", "nodeid": BAD["nodeid"], "reason": "died"}
    kept = read(broken(A, OK, BAD, death, B, verdict("b", "one", "pass")), HEADER)
    assert [(one.verdict, one.server) for one in kept.verdicts] == [
        ("pass", "simulated"),
        ("error", "failed"),
        ("pass", "simulated"),
    ]
    assert {one.answered for one in kept.verdicts} == {"reference 1 serving m"}


@pytest.mark.parametrize("key", [key for key in HEADER if key not in ("command", "configurations")])
def test_another_run_is_refused_with_what_differs(broken: Callable[..., Path], key: str) -> None:
    now = HEADER | {key: "other"}
    with pytest.raises(EnvironmentProblem, match=r"other now.* start a new run") as caught:
        read(broken(A, OK), now)
    assert "pytest --config a,b" in str(caught.value)


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ({"a": "1"}, "only that run has: b"),
        ({"a": "1", "b": "2", "c": "3"}, "only this command has: c"),
        ({"a": "1", "b": "3"}, r"configured otherwise \(the file, --set, --model\): b"),
    ],
)
def test_other_cells_are_refused(
    broken: Callable[..., Path], configurations: dict[str, str], message: str
) -> None:
    with pytest.raises(EnvironmentProblem, match=message):
        read(broken(A, OK), HEADER | {"configurations": configurations})


def test_records_of_an_older_version_are_refused(broken: Callable[..., Path]) -> None:
    older = {key: value for key, value in HEADER.items() if key != "selection"}
    with pytest.raises(EnvironmentProblem, match="tests: not in its records"):
        read(broken(A, OK, header=older), HEADER)


def test_records_of_a_newer_version_are_refused(broken: Callable[..., Path]) -> None:
    with pytest.raises(RecordsError, match="newer servematrix"):
        read(broken(A, OK, header=HEADER | {"schema": 99}), HEADER)


@pytest.mark.parametrize("status", [0, 1, 5, 6, 7])
def test_a_complete_run_is_refused(broken: Callable[..., Path], status: int) -> None:
    end = {"kind": "end", "exit_code": status, "counts": {}}
    with pytest.raises(EnvironmentProblem, match=f"complete, it ended with status {status}"):
        read(broken(A, OK, end), HEADER)


@pytest.mark.parametrize("status", [2, 3, 4])
def test_a_run_that_ended_before_its_time_is_taken_up(
    broken: Callable[..., Path], status: int
) -> None:
    end = {"kind": "end", "exit_code": status, "counts": {}}
    assert read(broken(A, OK, end), HEADER).nodeids == [OK["nodeid"]]


def test_a_run_is_found_by_path_by_name_and_as_the_latest(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "mine")
    with pytest.raises(EnvironmentProblem, match="nothing was recorded in"):
        resume.find(tmp_path, run.folder.name)
    run.begin("run")
    for named in (str(run.folder), run.folder.name, "latest", str(tmp_path / "latest")):
        assert resume.find(tmp_path, named) == run.folder
    with pytest.raises(EnvironmentProblem, match=f"no such run; the newest .*: {run.folder.name}"):
        resume.find(tmp_path, "latets")
