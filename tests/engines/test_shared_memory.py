from __future__ import annotations

import mmap
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from servematrix.engines import shared_memory
from servematrix.engines.guard import guarded
from servematrix.engines.shared_memory import ROOT, Segment

HOLD = (
    "import mmap, sys; f = open(sys.argv[1], 'w+b'); f.truncate(2**20);"
    " m = mmap.mmap(f.fileno(), 2**20); f.close(); print('up', flush=True); sys.stdin.read()"
)


@pytest.fixture
def path() -> Iterator[Path]:
    found = ROOT / f"servematrix test {uuid.uuid4().hex}"
    yield found
    found.unlink(missing_ok=True)


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has mapped the path and closed its file."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_mapped_memory_is_seen_and_removed_once_nobody_uses_it(path: Path, holder) -> None:
    seen = shared_memory.used_by([psutil.Process(holder.pid)])
    assert seen == {Segment(path, path.stat().st_ino)}
    assert shared_memory.remove(seen) == {}
    assert path.exists()
    holder.kill()
    holder.wait()
    assert shared_memory.remove(seen) == {path.name: 2**20}
    assert not path.exists()
    assert shared_memory.remove(seen) == {}


def test_another_file_of_the_same_name_is_left_alone(path: Path, holder) -> None:
    seen = shared_memory.used_by([psutil.Process(holder.pid)])
    holder.kill()
    holder.wait()
    kept = path.with_name(f"{path.name} old")
    path.rename(kept)
    path.write_bytes(b"somebody else's")
    try:
        assert shared_memory.remove(seen) == {}
        assert path.exists()
    finally:
        kept.unlink()


def test_memory_without_a_name_hides_none_that_has_one(path: Path) -> None:
    others = [path.with_name(f"{path.name} {number}") for number in range(20)]
    files = [one.open("w+b") for one in (path, *others)]
    for file in files:
        file.truncate(4096)
    maps = [mmap.mmap(file.fileno(), 4096) for file in files]
    for one in others:
        one.unlink()
    try:
        seen = shared_memory.used_by([psutil.Process()])
    finally:
        for held in (*maps, *files):
            held.close()
    assert seen == {Segment(path, path.stat().st_ino)}


def test_an_open_file_counts_as_used(path: Path) -> None:
    with path.open("wb"):
        seen = shared_memory.used_by([psutil.Process()])
        assert Segment(path, path.stat().st_ino) in seen
    assert not shared_memory.used_by([psutil.Process()])


def test_memory_that_is_not_shared_is_not_looked_at() -> None:
    with mmap.mmap(-1, 4096):
        assert shared_memory.used_by([psutil.Process()]) == set()


def test_the_guard_removes_what_its_server_leaves_and_says_so(path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        HOLD.replace("sys.stdin.read()", "import signal; signal.pause()"),
    ]
    guard = subprocess.Popen(
        guarded([*command, str(path)], tmp_path / "log"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with guard:
        log = tmp_path / "log"
        while not (log.exists() and "up" in log.read_text()):
            assert guard.poll() is None
        told, _ = guard.communicate(timeout=20)
    assert told.splitlines() == ["stopped", f"kept {2**20} {path.name}"]
    assert not path.exists()
