"""The wheel alone: what a person has after `pip install servematrix`, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing of the repository."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def servematrix(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as installed: its packages come before those of this environment."""
    begin = "import sys; from servematrix.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", begin, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_wheel_holds_configurations_suites_and_types(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, ending in (("configs", "toml"), ("suites", "py")):
        for path in (ROOT / folder).glob(f"*.{ending}"):
            assert f"servematrix/_shipped/{folder}/{path.name}" in held
    for path in (ROOT / "src/servematrix/resources/new").iterdir():
        assert f"servematrix/resources/new/{path.name}" in held
    assert "servematrix/py.typed" in held


def test_list_and_plan_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    listed = servematrix(installed, tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert "baseline" in listed.stdout
    assert f"those of the installed package: {installed}" in listed.stderr
    planned = servematrix(installed, tmp_path, "plan", "baseline", "--engine", "reference")
    assert planned.returncode == 0, planned.stderr
    assert "servematrix.engines.reference" in planned.stdout


def test_a_session_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    words = ("stage_a", "--engine", "reference", "--", "-k", "test_health")
    ended = servematrix(installed, tmp_path, "run", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "those of the installed package" in ended.stderr
    assert (tmp_path / "results" / "latest" / "records.jsonl").is_file()


def test_a_baseline_is_made_and_used_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    quick = ("--engine=reference", '--set=suites=["only_fwd_occupancy"]')
    made = servematrix(installed, tmp_path, "calibrate", "baseline", "--repeats=3", *quick)
    assert made.returncode == 0, made.stdout + made.stderr
    assert (tmp_path / "baselines" / "baseline" / "reference.json").is_file()
    held = servematrix(installed, tmp_path, "run", "baseline", *quick, "--co")
    assert "servematrix: baseline" in held.stdout, held.stdout + held.stderr
    assert {one.name for one in tmp_path.iterdir()} <= {"baselines", "results", ".pytest_cache"}


def test_a_failed_gate_ends_it_as_it_ends_pytest(installed: Path, tmp_path: Path) -> None:
    impossible = "--set=gates.fwd_occupancy.threshold=100"
    words = ("baseline", "--engine=reference", impossible, "-k", "occupancy")
    ended = servematrix(installed, tmp_path, "run", *words)
    assert ended.returncode == 1, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name what to run first"),
        (("--engine", "reference"), "unrecognized arguments: --engine"),
        (("stage_b",), "no configuration 'stage_b'"),
    ],
)
def test_what_is_not_known_is_refused(
    installed: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    ended = servematrix(installed, tmp_path, "run", *words)
    assert ended.returncode == 4
    assert told in ended.stderr
    assert not (tmp_path / "results").exists()


def test_configurations_of_ones_own_go_before_those_of_the_package(
    installed: Path, project: Path
) -> None:
    ended = servematrix(installed, project, "list")
    assert ended.returncode == 0, ended.stderr
    assert "installed package" not in ended.stderr
