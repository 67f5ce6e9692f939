"""Commands in an empty folder use the configurations and suites that the package brings along.

What the wheel really holds, and runs with it, are in `test_wheel.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from made_runs import cell, end, make, verdict
from servematrix import cli
from servematrix import config as configs
from servematrix.calibration import command as calibration
from servematrix.compare import live
from servematrix.exit_codes import Exit
from servematrix.faults import command as faults
from servematrix.validation import running as validation
from servematrix.validation.running import Command

ROOT = Path(__file__).resolve().parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that an installed package has; the working directory is empty."""
    package = tmp_path / "site" / "_shipped"
    for folder in ("configs", "suites"):
        shutil.copytree(ROOT / folder, package / folder)
    monkeypatch.setattr(configs, "_SHIPPED", package / "configs")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return package


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (validation, ["validate", "smollm2"]),
        (calibration, ["calibrate", "smollm2"]),
        (live, ["compare", "--config=smollm2", "--b-set=arguments.x=1"]),
        (faults, ["faults", "--run", "--quick", "dies-at-start"]),
    ],
)
def test_runs_are_made_of_what_the_package_has(
    shipped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    module: object,
    words: list[str],
) -> None:
    commands: list[list[str]] = []

    def run(command: Command, output: Path) -> tuple[bool, str]:
        commands.append(list(command.line))
        return False, "interrupted"

    monkeypatch.setattr(module, "guarded_run", run)
    engine = [] if words[0] == "faults" else ["--engine=reference"]
    assert cli.main([*words, *engine]) == Exit.INTERRUPTED
    told = capsys.readouterr().err
    assert told.count(f"those of the installed package: {shipped}") == 1
    (command,) = commands
    # pytest has no settings here that would say any of this
    assert command[1:5] == ["-m", "pytest", "-p", "servematrix.plugin"]
    assert {"--import-mode=importlib", f"--rootdir={Path.cwd()}"} < set(command)
    assert Path(command[6]).resolve() == shipped / "suites"
    if words[0] != "faults":
        assert f"--configs={shipped / 'configs'}" in command


def test_replay_takes_limits_from_it(shipped: Path, capsys: Capture, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    with items.open("w") as file:
        for number in range(200):
            label = number % 4
            lp = [-1.0 if ending == label else -2.0 for ending in range(4)]
            row = {"ind": number, "label": label, "lp": lp, "nt": [1, 1, 1, 1]}
            file.write(json.dumps(row) + "\n")
    assert cli.main(["replay", str(items), "--config", "smollm2"]) == 0
    told = capsys.readouterr().err
    assert "those of the installed package" in told
    assert "limits: smollm2" in told


def test_merge_expects_its_cells(shipped: Path, capsys: Capture, tmp_path: Path) -> None:
    found = [cell("smollm2", 1, 1), verdict("smollm2", 2), end(3, 0, **{"pass": 1})]
    run = make(tmp_path / "run", ["smollm2"], found)
    words = ["merge", str(run), "--expect", "smollm2,eagle3"]
    assert cli.main(words) == Exit.FAILED
    told = capsys.readouterr().err
    assert "those of the installed package" in told
    assert "eagle3" in told


def test_doctor_looks_at_it_once(shipped: Path, capsys: Capture) -> None:
    cli.main(["doctor", "--json"])
    told = capsys.readouterr()
    assert told.err.count("those of the installed package") == 1
    checks = {one["check"]: one for one in map(json.loads, told.out.splitlines())}
    assert checks["configurations"]["kind"] == "ok"


def test_what_is_made_of_it_lies_in_the_working_folder(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = configs.find_directory(Path.cwd(), shipped=True)
    assert configs.project(folder) == tmp_path / "empty"
    # named from here it is the same
    monkeypatch.chdir(shipped)
    assert configs.project(Path("configs")) == shipped
    assert configs.project(ROOT / "configs") == ROOT


def test_configurations_of_ones_own_go_first(shipped: Path, capsys: Capture) -> None:
    shutil.copytree(ROOT / "configs", "configs")
    assert cli.main(["validate", "smollm2", "--engine=reference"]) == Exit.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "suites: no such folder; the suites lie beside" in told


@pytest.mark.parametrize(
    "words", [["validate", "smollm2"], ["faults", "--run"], ["plan", "smollm2"]]
)
def test_what_only_the_package_has_is_said(
    shipped: Path, capsys: Capture, words: list[str]
) -> None:
    assert cli.main(["new-kit", "mine"]) == 0
    assert cli.main(words) == Exit.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"; the installed package has it: --configs {shipped / 'configs'}" in told
    assert cli.main(["plan", "nowhere"]) == Exit.USAGE
    assert "installed package" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["new-config", "new-kit"])
def test_what_takes_its_place_says_so_once(shipped: Path, capsys: Capture, command: str) -> None:
    for name, times in (("mine", 1), ("more", 0)):
        assert cli.main([command, name]) == 0
        told = capsys.readouterr().out
        assert told.count("no longer the package's own configurations") == times
        assert told.count(str(shipped / "configs")) == times
    # a folder by another name is taken only where it is named
    assert cli.main([command, "mine", "--configs", "others/configs"]) == 0
    assert "no longer" not in capsys.readouterr().out
