"""`--executor ray` on Ray's own test cluster: several nodes on this machine, with pretend GPUs.

One cluster serves the whole module. All processes that come of it carry a mark in their
environment, so that what is left behind is found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from servematrix import records

SECONDS = 240.0
"""For anything that is waited for here; some ten are usual on two cores. Ray gives a worker 60 to
come up before it starts another."""
MARK = "SERVEMATRIX_TEST_RAY"
STORE_BYTES = 80 * 2**20

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["{suite}"]
{more}
[model]
path = "org/model"
[arguments]
enable-metrics = true
"""

SUITE = """
import os, time
from pathlib import Path

import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit

SHARED = Path("{shared}")


def wait(found, what):
    deadline = time.monotonic() + {seconds}
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class OwnMixin(Kit):
    kit = "own"

    def end(self, outcome):
        self.conclude(Verdict(outcome, rule="a rule", reason=f"it is {{outcome}}"))


@pytest.mark.suite("mine")
class TestMine(OwnMixin):
    def test_together(self, cell):
        self.measure("visible", os.environ["CUDA_VISIBLE_DEVICES"], "1")
        self.attach("trace", [1, 2])
        (SHARED / f"begun-{{cell.slug}}").touch()
        # all three at once, or never
        wait(lambda: len(list(SHARED.glob("begun-*"))) == 3, "three cells at once")
        self.end("pass")

    def test_alone(self):
        self.end("inconclusive" if (SHARED / "unsure").exists() else "pass")


@pytest.mark.suite("plain")
class TestPlain(OwnMixin):
    def test_plain(self):
        self.measure("visible", os.environ["CUDA_VISIBLE_DEVICES"], "1")
        self.end("pass")


@pytest.mark.suite("held")
class TestHeld(OwnMixin):
    def test_first(self):
        self.end("pass")

    def test_second(self):
        self.end("pass")

    def test_third(self):
        (SHARED / "held").touch()
        wait((SHARED / "go").exists, "to be let go")
        self.end("pass")


def test_that_needs_no_server():
    pass
"""


def processes(mark: str) -> list[psutil.Process]:
    """The living processes with this mark, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_ours = process.environ().get(MARK) == mark and process.pid != os.getpid()
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    """Marks what the module starts, and looks at its end that all of it is gone."""
    with pytest.MonkeyPatch.context() as patch:
        found = uuid.uuid4().hex
        patch.setenv(MARK, found)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        yield found
        wait(lambda: not processes(found), "the end of all that the module started")


class Nodes:
    """A cluster whose nodes have pretend GPUs."""

    def __init__(self) -> None:
        # a lost node is noticed after one second instead of half a minute
        settings = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 300,
            "health_check_failure_threshold": 3,
        }
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**self._small(0, 0), "_system_config": settings},
        )
        self.added: list[Any] = []

    @staticmethod
    def _small(cpus: int, gpus: int) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        }

    def add(self, gpus: int, accelerator: str) -> str:
        """Add a node; returns its id."""
        kind = {"resources": {f"accelerator_type:{accelerator}": 1}}
        # as what a shell starts with `&` does
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            node = self.cluster.add_node(**self._small(gpus, gpus), **kind)
        finally:
            signal.signal(signal.SIGINT, before)
        self.added.append(node)
        return str(node.node_id)

    def kill(self, node_id: str) -> None:
        """End a node as a power cut does."""
        node = next(one for one in self.added if one.node_id == node_id)
        self.added.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(mark: str) -> Iterator[Nodes]:
    """A node with two GPUs, and one with one."""
    made = Nodes()
    try:
        made.add(2, "A100")
        made.add(1, "H100")
        yield made
    finally:
        made.cluster.shutdown()


@dataclass
class Project:
    """A project, and a folder that its tests share on whatever node they run."""

    folder: Path
    shared: Path
    address: str

    @property
    def output(self) -> Path:
        return self.folder.parent / "output.txt"

    def start(self, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a run on the cluster; what it prints goes to `output`."""
        at = ("--ray-address", self.address) if self.address else ()
        where = ("--executor", "ray", *at)
        command = [sys.executable, "-m", "pytest", "--engine", "reference", *where, *options]
        with self.output.open("w") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | {"SERVEMATRIX_FAKE_GPUS": "3"} | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        """Run to the end; returns the status and what was printed."""
        return self.finish(self.start(*options, **variables))

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        return process.wait(SECONDS), self.output.read_text()

    @property
    def latest(self) -> Path:
        return (self.folder / "results" / "latest").resolve()

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in records.read(self.latest) if one["kind"] == kind]

    def held(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait until the last test of a cell `held` waits; returns where that is."""

        def is_held() -> bool:
            assert process.poll() is None, "the run has ended"
            return (self.shared / "held").exists() and len(self.recorded("verdict")) == 2

        try:
            wait(is_held, "the third test, and two verdicts on disk")
        except AssertionError as error:
            error.add_note(self.output.read_text())
            raise
        return self.recorded("node")[-1]


@pytest.fixture
def project(nodes: Nodes, tmp_path: Path) -> Project:
    return make(tmp_path, nodes.cluster.address)


def make(folder: Path, address: str = "") -> Project:
    shared = folder / "shared"
    project = folder / "project"
    (project / "configs").mkdir(parents=True)
    shared.mkdir()
    (project / "pytest.ini").write_text(
        "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    for name, suite, more in (
        ("mine", "mine", "axis.size = [1, 2, 3]"),
        ("picky", "plain", 'requires = { gpus = 1, accelerator = "H100" }'),
        ("huge", "plain", "requires = { gpus = 9 }"),
        ("held", "held", 'requires = { gpus = 1, accelerator = "T4" }'),
        ("plain", "plain", "requires = { gpus = 0 }"),
    ):
        text = CONFIG.format(suite=suite, more=more)
        (project / "configs" / f"{name}.toml").write_text(text)
    (project / "test_own.py").write_text(SUITE.format(shared=shared, seconds=SECONDS))
    return Project(project, shared, address)


def test_cells_on_several_nodes_are_one_run(project: Project) -> None:
    (project.shared / "unsure").touch()
    status, text = project.run("--config", "mine,picky,huge", "--junit-xml=all.xml")
    assert status == 7, text
    verdicts = {one["nodeid"]: one for one in project.recorded("verdict")}
    outcomes = sorted(one["verdict"] for one in verdicts.values())
    assert outcomes == [*["inconclusive"] * 3, "not_applicable", *["pass"] * 4]
    assert "servematrix: exit 7" in text
    assert "3 inconclusive, 1 not_applicable, 4 pass" in text
    # what no node can ever take
    (huge,) = (one for one in verdicts.values() if one["cell"] == "huge")
    assert huge["verdict"] == "not_applicable"
    assert "1 CPU and 9 GPUs needed, and no node of the Ray cluster has that" in huge["reason"]
    assert "2 CPU, 2 GPU (A100)" in huge["reason"]
    # all three at once, each with a GPU of its own
    placed = {one["cell"]: one for one in project.recorded("node")}
    own = [placed[f"mine(size={size})"] for size in (1, 2, 3)]
    assert len({(one["node_id"], one["assigned"]) for one in own}) == 3
    assert len({one["node_id"] for one in own}) == 2
    visible = {
        one["cell"]: one["value"]
        for one in project.recorded("measurement")
        if one["name"] == "visible"
    }
    assert visible == {cell: one["assigned"] for cell, one in placed.items()}
    # where its accelerator is: on the node with one GPU
    (single,) = {one["node_id"] for one in own if list_of(own, one) == 1}
    assert placed["picky"]["node_id"] == single
    # the rest is as in a run of this machine
    (header,) = project.recorded("run")
    assert header["executor"]["address"] == project.address
    assert len(header["executor"]["nodes"]) >= 3
    cells = project.recorded("cell")
    assert all(one["simulated"] and one["node"].endswith(")") for one in cells)
    paths = [one["path"] for one in project.recorded("measurement") if "path" in one]
    assert [records.attached(project.latest, path) for path in paths] == [[1, 2]] * 3
    assert len(list(project.latest.glob("mine-*.log"))) == 3
    assert (project.folder / "all.xml").read_text().count("<testcase") == 9
    assert "5 passed, 1 skipped, 3 inconclusive" in text


def list_of(own: list[dict[str, Any]], one: dict[str, Any]) -> int:
    """How many of the cells ran on the node of this one."""
    return sum(other["node_id"] == one["node_id"] for other in own)


def test_the_cells_of_a_lost_node_run_again_elsewhere(project: Project, nodes: Nodes) -> None:
    first, second = nodes.add(1, "T4"), nodes.add(1, "T4")
    process = project.start("--config", "held")
    before = project.held(process)["node_id"]
    nodes.kill(before)
    wait(lambda: project.recorded("lost"), "the loss to be noticed")
    (project.shared / "go").touch()
    status, text = project.finish(process)
    assert status == 0, text
    assert "3 pass" in text
    assert text.splitlines()[-1].startswith("servematrix: exit 0")
    assert "(raylet)" not in text
    assert "1 of 3" in text
    assert "verdicts of it that do not count: 2; the cell runs again" in text
    after = project.recorded("node")[-1]
    assert {before, after["node_id"]} == {first, second}
    assert after["attempt"] == 2
    (lost,) = project.recorded("lost")
    assert lost["verdicts"] == {"pass": 2}
    # on disk are the verdicts of both attempts, and those of the second stand
    assert len(project.recorded("verdict")) == 5
    standing = records.standing(records.read(project.latest))
    assert [one["kind"] for one in standing].count("verdict") == 3
    assert [one["attempt"] for one in standing if one["kind"] == "cell"] == [2]
    nodes.kill(after["node_id"])


def runs_on_nodes(mark: str) -> list[str]:
    """The runs of cells and their servers that are alive."""
    found = []
    for process in processes(mark):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "servematrix." in line and "--executor ray" not in line:
                found.append(line)
    return found


def test_a_killed_run_leaves_nothing_and_goes_on(project: Project, nodes: Nodes, mark: str) -> None:
    node = nodes.add(1, "T4")
    process = project.start("--config", "held")
    project.held(process)
    assert runs_on_nodes(mark)
    process.kill()
    project.finish(process)
    wait(lambda: not runs_on_nodes(mark), "the end of what the killed run started")
    # taken up, and interrupted by a person
    (project.shared / "held").unlink()
    process = project.start("--config", "held", "--resume", "latest")
    project.held(process)
    wait(lambda: len(project.recorded("cell")) == 2, "the second server")
    process.send_signal(signal.SIGINT)
    status, text = project.finish(process)
    assert status == 2, text
    assert "exit 2 (interrupted): 2 pass (2 of them kept from before" in text
    assert not runs_on_nodes(mark), "it ends after its servers"
    (project.shared / "go").touch()
    status, text = project.run("--config", "held", "--resume", "latest")
    assert status == 0, text
    assert "3 pass (2 of them kept from before it was taken up)" in text
    assert len(project.recorded("verdict")) == 3
    nodes.kill(node)


def test_a_cell_that_breaks_is_an_error_on_a_ray_of_its_own_too(mark: str, tmp_path: Path) -> None:
    project = make(tmp_path)
    (project.folder / "conftest.py").write_text(
        "import os\n\nif 'SERVEMATRIX_REPORTS' in os.environ:\n    raise RuntimeError('no luck')\n"
    )
    status, text = project.run("--config", "plain")
    assert status == 6, text
    (verdict,) = project.recorded("verdict")
    assert verdict["verdict"] == "error"
    assert "plain: no verdict came of its run on" in verdict["reason"]
    assert "(exit 4)" in verdict["reason"]
    assert "RuntimeError: no luck" in text
    assert "executor ray" in text
    assert "at a Ray of this run's own" in text
