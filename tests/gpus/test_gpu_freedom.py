"""Whether a GPU is free: processes, ours and strangers', and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from drivers import AmdDriver, Driver
from servematrix import gpus
from servematrix.engines.base import EnvironmentProblem
from servematrix.engines.guard import guarded
from servematrix.gpus import GIB, freedom
from servematrix.gpus.use import Process, Use

GONE = 2**22 + 1
"""No process has this number: it is above the most that Linux gives."""


@pytest.fixture
def served(tmp_path) -> Iterator[int]:
    """A process that runs under a guard of ours."""
    command = guarded(["sleep", "60"], tmp_path / "server.log", grace=0.1)
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (children := psutil.Process(guard.pid).children()):
        assert guard.poll() is None
    yield children[0].pid
    guard.terminate()
    guard.wait(10)


def used(*processes: Process, free: int = 80 * GIB) -> Use:
    return Use(free, processes)


def test_memory_that_comes_back_ends_the_wait(driver: Driver) -> None:
    (gpu, _) = gpus.visible()
    free = iter([10 * GIB, 80 * GIB])
    driver.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(  # type: ignore[method-assign]
        total=80 * GIB, free=next(free)
    )
    assert freedom.wait_until_free([gpu], {gpu.uuid: 80 * GIB}, seconds=10) is None
    assert list(free) == []


def test_memory_that_stays_held_is_told(driver: Driver) -> None:
    (_, gpu) = gpus.visible()
    driver.free["GPU-aab2"] = 50 * GIB
    kept = freedom.wait_until_free([gpu], {gpu.uuid: 80 * GIB}, seconds=0)
    assert kept is not None
    assert "GPU 1: 30.0 GiB" in kept
    assert freedom.wait_until_free([gpu], {gpu.uuid: 50 * GIB}, seconds=0) is None


def test_what_a_stranger_took_meanwhile_is_not_waited_for(driver: Driver) -> None:
    (gpu, _) = gpus.visible()
    driver.running["GPU-aaa1"] = [SimpleNamespace(pid=1, usedGpuMemory=30 * GIB)]
    driver.free["GPU-aaa1"] = 50 * GIB
    assert freedom.wait_until_free([gpu], {gpu.uuid: 80 * GIB}, seconds=0) is None
    driver.free["GPU-aaa1"] = 40 * GIB
    kept = freedom.wait_until_free([gpu], {gpu.uuid: 80 * GIB}, seconds=0)
    assert "GPU 0: 10.0 GiB" in str(kept)


def test_a_process_of_ours_is_waited_for(driver: Driver, served: int) -> None:
    (gpu, _) = gpus.visible()
    driver.running["GPU-aaa1"] = [SimpleNamespace(pid=served, usedGpuMemory=None)]
    kept = freedom.wait_until_free([gpu], {gpu.uuid: 80 * GIB}, seconds=0)
    assert f"process {served}" in str(kept)


def test_ours_is_what_a_guard_of_ours_ends(served: int) -> None:
    assert Process(served, 0).is_ours()
    assert not Process(os.getpid(), 0).is_ours()
    assert not Process(GONE, 0).is_ours()


def test_a_stranger_is_named() -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    while not psutil.Process(stranger.pid).cmdline():  # it is set a moment after the exec is told
        time.sleep(0.001)
    told = freedom.occupied(used(Process(stranger.pid, 3 * GIB)), None)
    stranger.kill()
    stranger.wait()
    user = psutil.Process().username()
    assert told == f"used by process {stranger.pid} of {user} (sleep 600, 3.0 GiB)"
    told = freedom.occupied(used(Process(GONE, GIB)), None)
    assert told == f"used by process {GONE}, which cannot be seen from here, 1.0 GiB"


def test_a_free_gpu_has_its_memory_back() -> None:
    assert freedom.occupied(used(), None) is None
    assert freedom.occupied(used(free=0), None) is None, "no level is known"
    assert freedom.occupied(used(free=80 * GIB - 2**28), 80 * GIB) is None
    told = freedom.occupied(used(free=78 * GIB), 80 * GIB)
    assert told is not None
    assert told.startswith("2.0 GiB of its memory are still held")
    assert freedom.occupied(None, None) == "the driver no longer tells of it"


def test_slices_are_asked_for_by_their_own_name(driver: Driver) -> None:
    driver.slices = {"GPU-aaa1": [("MIG-aaaa", "a slice", 40, (0, 0))]}
    driver.running["MIG-aaaa"] = [SimpleNamespace(pid=7, usedGpuMemory=GIB)]
    found = freedom.uses(gpus.visible())
    assert found["MIG-aaaa"] == Use(40 * GIB - 1, (Process(7, GIB),))
    assert found["GPU-aab2"].processes == ()


def test_a_driver_that_does_not_tell_processes_tells_memory(driver: Driver) -> None:
    def unsupported(card: object) -> list[SimpleNamespace]:
        raise driver.NVMLError_NotSupported

    driver.nvmlDeviceGetComputeRunningProcesses = unsupported  # type: ignore[method-assign]
    assert freedom.uses(gpus.visible())["GPU-aaa1"] == Use(80 * GIB - 1)


def test_a_driver_that_fails_meanwhile_is_an_error(driver: Driver) -> None:
    seen = gpus.visible()

    def lost(uuid: str) -> object:
        raise driver.NVMLError("GPU is lost")

    driver.nvmlDeviceGetHandleByUUID = lost
    with pytest.raises(EnvironmentProblem, match="GPU is lost"):
        freedom.uses(seen)
    assert driver.open == 0


def test_amd_tells_who_holds_memory(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.cards = []
    amd = AmdDriver()
    monkeypatch.setitem(sys.modules, "amdsmi", amd)
    amd.running["two"] = [
        {"pid": 7, "memory_usage": {"vram_mem": 2 * GIB}},
        {"pid": 8, "memory_usage": {"vram_mem": 0}},
    ]
    found = freedom.uses(gpus.visible())
    assert found == {
        "uuid-one": Use(191 * GIB),
        "uuid-two": Use(191 * GIB, (Process(7, 2 * GIB),)),
    }
