"""Run folders: held while a run lives, cleaned by the next run, never anybody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servematrix import folders
from servematrix.folders import Busy
from servematrix.records import RecordsError, Run

HOLDER = """
import sys
from pathlib import Path
from servematrix.records import Run
run = Run.create(Path(sys.argv[1]), "other")
if sys.argv[2] == "writes":
    run.write("run")
print(run.folder.name, flush=True)
sys.stdin.read()
"""


class Other:
    """Another process with a run of its own."""

    def __init__(self, root: Path, does: str = "writes") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(root), does],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.folder = root / self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    made = Other(tmp_path)
    yield made
    made.kill()


def removed_by_the_next_run(root: Path) -> tuple[Path, ...]:
    run = Run.create(root, "mine")
    run.write("run")
    return run.removed


def leave_parts(folder: Path) -> list[Path]:
    """What a process leaves that is killed while it writes."""
    (folder / "files").mkdir()
    parts = [folder / "baseline.log.part", folder / "files" / "trace.json.part"]
    for part in parts:
        part.write_text("half")
    return parts


def test_what_a_living_run_writes_is_its_own_until_it_is_killed(
    tmp_path: Path, other: Other
) -> None:
    parts = leave_parts(other.folder)
    assert removed_by_the_next_run(tmp_path) == ()
    assert all(part.exists() for part in parts)
    other.kill()
    (tmp_path / ".latest-0123abcd").symlink_to(other.folder.name)
    removed = removed_by_the_next_run(tmp_path)
    assert sorted(removed) == sorted([*parts, tmp_path / ".latest-0123abcd"])
    assert not any(os.path.lexists(path) for path in removed)
    assert (other.folder / "records.jsonl").exists()


def test_a_folder_without_records_is_removed_once_its_run_is_gone(tmp_path: Path) -> None:
    starting = Other(tmp_path, "writes nothing yet")
    try:
        assert removed_by_the_next_run(tmp_path) == ()
        assert starting.folder.is_dir()
    finally:
        starting.kill()
    assert removed_by_the_next_run(tmp_path) == (starting.folder,)
    assert not starting.folder.exists()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "validation-20261122-140010"
    foreign.mkdir()
    leave_parts(foreign)
    (tmp_path / "20261122-140010-notes").mkdir()
    assert removed_by_the_next_run(tmp_path) == ()


def test_a_run_is_taken_up_by_one_process_and_only_when_it_is_over(
    tmp_path: Path, other: Other
) -> None:
    with pytest.raises(RecordsError, match="its run is still running; wait for it, or end it"):
        Run.take_up(other.folder)
    other.kill()
    held = Run.take_up(other.folder)
    with pytest.raises(RecordsError, match="still running"):
        Run.take_up(other.folder)
    del held


def test_a_root_that_others_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_ROOT_SECONDS", 0.1)
    with folders._alone(tmp_path), pytest.raises(RecordsError, match=r"\.lock .*--results DIR"):
        Run.create(tmp_path, "mine")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    folders.write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            folders.write_whole(path, "new")
    assert [one.name for one in tmp_path.iterdir()] == ["trace.json"]
    assert path.read_text() == "old"


def test_busy_names_the_run(tmp_path: Path, other: Other) -> None:
    with pytest.raises(Busy, match=other.folder.name):
        folders.take_up(other.folder)
