"""What `servematrix new-config` writes is planned, linted and run as it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servematrix.cli import main

ROOT = Path(__file__).resolve().parent.parent


def test_a_new_folder_gets_a_configuration_and_a_suite_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-config", "night_build"]) == 0
    told = capsys.readouterr().out
    assert str(tmp_path / "configs" / "night_build.toml") in told
    assert main(["plan", "night_build", "--engine", "reference"]) == 0
    settings = f"--config={ROOT / 'pyproject.toml'}"
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, settings, "suites"], check=True)
    words = ["run", "night_build", "--engine=reference", "-k", "test_health"]
    ended = subprocess.run(
        [sys.executable, "-m", "servematrix", *words], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


def test_in_the_repository_the_main_suite_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "suites"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    before = sorted((tmp_path / "suites").iterdir())
    assert main(["new-config", "wide"]) == 0
    assert sorted((tmp_path / "suites").iterdir()) == before
    assert 'suites = ["basic_sanity"]' in (tmp_path / "configs" / "wide.toml").read_text()


@pytest.mark.parametrize("name", ["../up", "No", "a-b", "1a", "", "all", "stage_a", "waivers"])
def test_what_is_no_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-config", name]) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["configs/mine.toml", "suites/test_mine.py"])
def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / there
    path.parent.mkdir()
    path.write_text("# kept\n")
    assert main(["new-config", "mine"]) == 4
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]
    assert path.read_text() == "# kept\n"


@pytest.mark.parametrize("command", ["new-config", "new-kit"])
def test_a_file_where_a_folder_should_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    # the last that is made, so that others are written before
    (tmp_path / "suites").write_text("")
    assert main([command, "mine"]) == 4
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert f"{tmp_path / 'suites'}: " in told.err
    assert told.out == ""
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [tmp_path / "suites"]


@pytest.mark.parametrize("command", ["new-config", "new-kit"])
@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_takes_no_file_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    named: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    write = Path.open

    def refusing(path: Path, mode: str = "r", **more: Any) -> Any:
        if mode == "x" and path.parent.name == "suites":
            # as a folder that is read-only is found, and as a disk that is full
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path) if named else None)
        return write(path, mode, **more)

    monkeypatch.setattr(Path, "open", refusing)
    assert main([command, "mine"]) == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{tmp_path / 'suites'}/test_" in told
    assert ": Read-only file system; no file was written" in told
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []
