"""Runs side by side on the GPUs of one machine, which are pretend ones here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servematrix import gpus, records
from servematrix.gpus import leases
from test_session import CONFIG, last_line, recorded, run  # noqa: F401

AXIS = "axis.k = [1, 2, 3, 4]\n" + CONFIG


@pytest.fixture(autouse=True)
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "2")
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(tmp_path_factory.mktemp("leases")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_run_on_pretend_gpus_says_so(run) -> None:  # noqa: F811
    result = run("self.end('pass')", options=("--config", "mine", "--engine", "auto"))
    assert result.ret == 0
    assert "GPU pretend GPU" in last_line(result)
    assert "pretend ones, by SERVEMATRIX_FAKE_GPUS" in last_line(result)
    assert "simulated" in last_line(result)
    (cell,) = recorded("cell")
    assert cell["gpus"] == ["PRETEND-0000"]
    assert leases.held() == {}


def test_an_outer_limit_is_never_left(run, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    Path("configs/mine.toml").write_text(AXIS)
    assert run("self.end('pass')", options=("--config", "mine", "-n", "2")).ret == 0
    assert {tuple(cell["gpus"]) for cell in recorded("cell")} == {("PRETEND-0001",)}


def test_workers_share_the_gpus_and_never_meet(run) -> None:  # noqa: F811
    Path("configs/mine.toml").write_text(AXIS)
    result = run("self.end('pass')", options=("--config", "mine", "-n", "3"))
    assert result.ret == 0, result.stdout
    cells = recorded("cell")
    assert sorted(cell["cell"] for cell in cells) == [f"mine(k={k})" for k in (1, 2, 3, 4)]
    assert {one for cell in cells for one in cell["gpus"]} == {"PRETEND-0000", "PRETEND-0001"}
    assert leases.held() == {}


def test_n_auto_is_a_worker_a_gpu(run) -> None:  # noqa: F811
    Path("configs/mine.toml").write_text(AXIS)
    result = run("self.end('pass')", options=("--config", "mine", "-n", "auto"))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["created: 2/2 workers*"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--port", "31999"), "-n with --port: workers would meet on one port; run without -n"),
        (("--base-url", "http://127.0.0.1:9"), "-n with --base-url: workers would meet on one"),
    ],
)
def test_workers_that_would_meet_are_refused(run, options, told: str) -> None:  # noqa: F811
    result = run("self.end('pass')", options=("--config", "mine", "-n", "2", *options))
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*{told}*"])


def test_a_gpu_that_does_not_become_free_is_an_error_of_its_cell(run) -> None:  # noqa: F811
    held = [leases.take([gpu], 1, holder="cell x of y", seconds=0) for gpu in gpus.visible()]
    result = run("self.end('pass')", options=("--config", "mine", "--gpu-deadline", "0.1"))
    assert result.ret == 6
    (verdict,) = recorded("verdict")
    assert verdict["verdict"] == "error"
    assert "GPU 0: leased by cell x of y (process " in verdict["reason"]
    assert "GPU 1: leased by cell x of y (process " in verdict["reason"]
    assert len(held) == 2


@pytest.mark.parametrize("option", [("--gpu-deadline", "-1"), ("--retry-errors", "-1")])
def test_limits_below_nothing_are_refused(run, option) -> None:  # noqa: F811
    result = run("self.end('pass')", options=("--config", "mine", *option))
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*{option[0]} -1*"])


def test_two_runs_share_the_gpus(project: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "1")
    command = [sys.executable, "-m", "pytest", "suites", "--config", "smollm2"]
    command += ["--engine", "reference", "--set", 'suites=["quick"]']
    environment = {name: at for name, at in os.environ.items() if name != "PYTEST_ADDOPTS"}
    held = leases.take(gpus.visible(), 1, holder="a test", seconds=0)
    outputs = [tmp_path / f"{number}.txt" for number in range(2)]
    runs = []
    for output in outputs:
        with output.open("w") as file:
            runs.append(
                subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file)
            )
    until = time.monotonic() + 60
    while not all("waits for GPU 0; GPU 0: leased by a test" in one.read_text() for one in outputs):
        assert time.monotonic() < until, [one.read_text() for one in outputs]
        time.sleep(0.05)
    held.release()
    assert [one.wait(120) for one in runs] == [0, 0], [one.read_text() for one in outputs]
    folders = {path.resolve() for path in (project / "results").iterdir() if path.is_dir()}
    spans = sorted(_span(folder) for folder in folders)
    assert len(spans) == 2
    assert spans[0][1] < spans[1][0], "one server at a time on the only GPU"


def _span(folder: Path) -> tuple[str, str]:
    """When the server of a run was ready, and the last verdict on it."""
    found = list(records.read(folder))
    (ready,) = (one["time"] for one in found if one["kind"] == "cell")
    return ready, max(one["time"] for one in found if one["kind"] == "verdict")
