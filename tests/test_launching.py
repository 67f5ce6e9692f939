"""From lease to release: what is given back, what is retried, and what never is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servematrix import gpus, launching, records, run
from servematrix.engines.base import EnvironmentProblem, Launch, MachineFailed, ServerFailed
from servematrix.folders import write_whole
from servematrix.gpus import GIB, leases
from servematrix.hub.download import DownloadCut
from servematrix.launching import Launcher
from servematrix.records import Run

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
CUT = """huggingface_hub.utils: ('Connection broken: IncompleteRead(1 bytes read, 9 more)')"""


class Started:
    """A server that is stopped once."""

    def __init__(self, left: str | None = None) -> None:
        self.left = left

    def stop(self) -> str | None:
        return self.left


class Engine:
    """An engine whose starts end as told, the last one again and again."""

    name = "reference"
    note = reason = ""

    def __init__(self, endings: Sequence[Exception | None], meanwhile: Callable[[], None]) -> None:
        self.endings = list(endings)
        self.meanwhile = meanwhile
        self.launches: list[Launch] = []
        self.held_meanwhile: dict[str, str] | None = None

    def prepare(self, launch: Launch, say: Callable[[str], None]) -> None:
        self.held_meanwhile = dict(leases.held())

    def start(self, launch: Launch) -> Started:
        self.launches.append(launch)
        launch.log.touch()
        self.meanwhile()
        ending = self.endings.pop(0) if len(self.endings) > 1 else self.endings[0]
        if ending is not None:
            raise ending
        return Started()


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], None]:
    """Says who uses the only pretend GPU: processes and bytes."""
    path = tmp_path / "uses.json"
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPU_USES", str(path))
    return lambda found: write_whole(path, json.dumps({"PRETEND-0000": found}))


@pytest.fixture
def launcher(monkeypatch, tmp_path: Path, configs_directory: Path) -> Callable[..., Any]:
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(tmp_path / "leases"))
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "1")
    monkeypatch.setattr(launching, "FREE_SECONDS", 0.0)

    def make(*endings: Exception | None, retries: int = 0, meanwhile=lambda: None) -> Any:
        options = run.Options(
            ["smollm2"], configs_directory, engine="reference", retry_errors=retries
        )
        plan = run.plan(options)
        engine = Engine(endings, meanwhile)
        kept = Run.create(tmp_path / "results", "x")
        kept.write("run")
        told: list[str] = []
        made = Launcher(replace(plan, engine=engine), kept, told.append)
        return made, plan.cells[0], engine, kept, told

    return make


def kinds(kept: Run) -> list[str]:
    return [record["kind"] for record in records.read(kept.folder)]


def test_a_server_has_the_gpus_of_its_lease(launcher) -> None:
    made, cell, engine, kept, _ = launcher(None)
    launched = made.launch(cell)
    (held,) = leases.held().items()
    assert held[0] == "PRETEND-0000"
    assert f"cell smollm2 of {kept.folder.absolute()}" in held[1]
    assert [gpu.uuid for gpu in engine.launches[0].gpus] == ["PRETEND-0000"]
    assert launched.cell.gpus == launched.lease.gpus
    assert launched.attempt == 1
    assert engine.held_meanwhile == {}, "a download needs no GPU"
    assert launched.end() == []
    assert leases.held() == {}


def test_memory_that_is_kept_is_told_and_the_next_one_waits(launcher, uses) -> None:
    made, cell, *_ = launcher(None)
    launched = made.launch(cell)
    uses([[0, 3 * GIB]])
    (problem,) = launched.end()
    assert "GPU 0: 3.0 GiB" in problem
    assert leases.held() == {}
    with pytest.raises(MachineFailed, match=r"3.0 GiB of its memory are still held"):
        leases.take(gpus.visible(), 1, holder="x", seconds=0)


def test_what_a_server_left_is_told_and_the_gpus_are_given_back(launcher) -> None:
    made, cell, engine, *_ = launcher(None)
    engine.start = lambda launch: Started("it left something")
    assert made.launch(cell).end() == ["it left something"]
    assert leases.held() == {}


@pytest.mark.parametrize(
    "problem", [ServerFailed("died"), EnvironmentProblem("no port"), KeyboardInterrupt()]
)
def test_a_launch_that_fails_holds_nothing(launcher, problem) -> None:
    made, cell, engine, kept, _ = launcher(problem, retries=5)
    with pytest.raises(type(problem)):
        made.launch(cell)
    assert leases.held() == {}
    assert len(engine.launches) == 1, "nothing of this is run again"
    assert kinds(kept) == ["run"]


def test_the_machine_is_retried_and_the_records_say_so(launcher) -> None:
    made, cell, engine, kept, told = launcher(ServerFailed(f"died\n{CUT}"), None, retries=2)
    launched = made.launch(cell)
    assert launched.attempt == 2
    assert [launch.log.name for launch in engine.launches] == ["smollm2.log", "smollm2.2.log"]
    (retry,) = (record for record in records.read(kept.folder) if record["kind"] == "retry")
    assert (retry["cell"], retry["attempt"], retry["retries"]) == ("smollm2", 1, 2)
    assert retry["problem"] == "smollm2: its download was cut. died"
    assert told == ["smollm2: retry 1 of 2, for: smollm2: its download was cut. died"]


def test_a_download_that_was_cut_is_retried(launcher) -> None:
    made, cell, engine, kept, _ = launcher(None, retries=1)
    cut = [DownloadCut("the download of org/model was cut")]

    def prepare(launch: Launch, say: Callable[[str], None]) -> None:
        if cut:
            raise cut.pop()

    engine.prepare = prepare
    assert made.launch(cell).attempt == 2
    assert kinds(kept) == ["run", "retry"]
    cut += [DownloadCut("again")] * 2
    with pytest.raises(DownloadCut):
        made.launch(cell)


def test_after_the_retries_the_failure_stands(launcher) -> None:
    made, cell, engine, kept, _ = launcher(ServerFailed(CUT), retries=2)
    with pytest.raises(MachineFailed, match="its download was cut"):
        made.launch(cell)
    assert len(engine.launches) == 3
    assert kinds(kept) == ["run", "retry", "retry"]


def test_too_little_memory_is_the_servers_own_fault(launcher) -> None:
    made, cell, engine, *_ = launcher(ServerFailed(OUT_OF_MEMORY), retries=2)
    with pytest.raises(ServerFailed, match="out of memory") as error:
        made.launch(cell)
    assert not isinstance(error.value, MachineFailed)
    assert len(engine.launches) == 1


def test_too_little_memory_beside_a_stranger_is_the_machines(launcher, uses) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    endings = (ServerFailed(OUT_OF_MEMORY), None)
    made, cell, _, kept, _ = launcher(*endings, retries=1)

    def meanwhile() -> None:
        if kinds(kept) == ["run"]:
            uses([[stranger.pid, 70 * GIB]])

    def leave(told: str) -> None:
        if "waits for GPU 0" in told:
            stranger.kill()
            stranger.wait()

    made._plan.engine.meanwhile = meanwhile
    made._say = leave
    assert made.launch(cell).attempt == 2
    (retry,) = (record for record in records.read(kept.folder) if record["kind"] == "retry")
    assert f"a stranger came to its GPU (GPU 0: process {stranger.pid} of " in retry["problem"]


def test_no_free_gpu_is_told_with_its_holder(launcher) -> None:
    made, cell, engine, *_ = launcher(None)
    made._plan = replace(made._plan, options=replace(made._plan.options, gpu_deadline=0))
    lease = leases.take(gpus.visible(), 1, holder="somebody's cell", seconds=0)
    with pytest.raises(MachineFailed, match=f"somebody's cell .process {os.getpid()}"):
        made.launch(cell)
    assert engine.launches == []
    lease.release()


@pytest.mark.parametrize("told", ["", "ReadTimeout of a request", "huggingface says no", "CUDA"])
def test_other_failures_are_not_the_machines(told: str) -> None:
    assert launching.machine_cause(told, None) is None


def test_a_cell_without_gpus_takes_no_lease(launcher, monkeypatch) -> None:
    made, cell, *_ = launcher(None)
    launched = made.launch(replace(cell, gpus=(), candidates=()))
    assert launched.lease is None
    assert launched.waited == 0
    assert launched.end() == []
