"""Leases: never two holders, nobody starved, nothing left of a killed holder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers import LIMITS
from servematrix import gpus
from servematrix.engines.base import EnvironmentProblem, MachineFailed
from servematrix.folders import write_whole
from servematrix.gpus import GIB, Gpu, lease_files, leases
from servematrix.gpus.leases import Lease

HOLD = """
import sys, time
from servematrix import gpus
from servematrix.gpus import leases
lease = leases.take(gpus.visible(), int(sys.argv[1]), holder="cell held", seconds=30)
print(*(gpu.index for gpu in lease.gpus), flush=True)
time.sleep(600)
"""


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, leases_folder: Path) -> Callable[[int], list[Gpu]]:
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)

    def make(number: int) -> list[Gpu]:
        monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", str(number))
        return gpus.visible()

    return make


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Says who uses pretend GPUs: processes and bytes by the GPU's number."""
    path = tmp_path / "uses.json"
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPU_USES", str(path))

    def say(**found: Any) -> None:
        told = {f"PRETEND-000{name[1:]}": one for name, one in found.items()}
        write_whole(path, json.dumps(told))  # somebody may just be reading it

    say()
    return say


def take(cards: list[Gpu], number: int = 1, seconds: float = 0, **more: Any) -> Lease:
    return leases.take(cards, number, holder=more.pop("holder", "a cell"), seconds=seconds, **more)


def indices(lease: Lease) -> list[int]:
    return [gpu.index for gpu in lease.gpus]


def holding(number: int) -> subprocess.Popen[str]:
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(number)], stdout=-1, text=True)
    assert held.stdout is not None
    assert held.stdout.readline()
    return held


def test_a_gpu_has_one_holder(cards) -> None:
    two = cards(2)
    first, second = take(two), take(two)
    assert (indices(first), indices(second)) == ([0], [1])
    with pytest.raises(MachineFailed, match="no GPU after 0 s: 1 of GPU 0, 1; GPU 0: leased by a "):
        take(two)
    first.release()
    assert indices(take(two)) == [0]


def test_the_holder_is_named(cards) -> None:
    (one,) = cards(1)
    lease = take([one], holder="cell eagle3 of results/x")
    told = f"leased by cell eagle3 of results/x (process {os.getpid()} of "
    with pytest.raises(MachineFailed, match="--gpu-deadline SECONDS") as error:
        take([one])
    assert "leased by " + leases.held()[one.uuid] in str(error.value)
    assert told in str(error.value)
    lease.release()
    assert leases.held() == {}


def test_all_or_none(cards) -> None:
    three = cards(3)
    lease = take(three)
    with pytest.raises(MachineFailed, match="3 of GPU 0, 1, 2"):
        take(three, 3)
    assert indices(take(three, 2)) == [1, 2], "the one that failed holds nothing"
    lease.release()
    assert indices(take(three)) == [0]


def test_a_lease_is_given_back_once(cards) -> None:
    (one,) = cards(1)
    first = take([one])
    first.release()
    second = take([one])
    first.release()
    with pytest.raises(MachineFailed):
        take([one])
    second.release()


def test_who_waits_is_told_and_served(cards) -> None:
    (one,) = cards(1)
    lease, told, got = take([one]), [], []
    waiting = threading.Event()

    def say(line: str) -> None:
        told.append(line)
        waiting.set()

    def wait() -> None:
        got.append(take([one], seconds=30, say=say))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    assert not got
    lease.release()
    thread.join(10)
    assert got[0].waited > 0
    assert len(told) == 1
    assert told[0].startswith("waits for GPU 0; GPU 0: leased by a cell (process ")


def test_the_lease_of_a_killed_holder_frees_itself(cards) -> None:
    three = cards(3)
    holder = holding(2)
    with pytest.raises(MachineFailed, match="cell held"):
        take(three, 2)
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert indices(take(three, 3)) == [0, 1, 2]


def test_memory_that_a_killed_holder_left_is_waited_for(cards, uses) -> None:
    (one,) = cards(1)
    holder = holding(1)
    uses(g0=[[0, 30 * GIB]])
    holder.kill()
    holder.wait(10)
    with pytest.raises(MachineFailed, match=r"GPU 0: 30.0 GiB of its memory are still held"):
        take([one])
    uses()
    lease = take([one])
    assert lease.levels == {one.uuid: 80 * GIB}
    lease.release(clean=False)
    uses(g0=[[0, GIB]])
    with pytest.raises(MachineFailed, match=r"1.0 GiB"):
        take([one])


def test_who_waits_sees_what_a_killed_holder_left(cards, uses) -> None:
    (one,) = cards(1)
    holder = holding(1)
    uses(g0=[[0, 30 * GIB]])
    waiting = threading.Event()
    got: list[Lease] = []
    thread = threading.Thread(
        target=lambda: got.append(take([one], seconds=60, say=lambda _: waiting.set()))
    )
    thread.start()
    assert waiting.wait(10)
    holder.kill()
    holder.wait(10)
    thread.join(0.3)
    assert not got, "the lock is free at once, the memory is not"
    uses()
    thread.join(10)
    assert got[0].levels == {one.uuid: 80 * GIB}


def test_memory_that_was_held_before_is_the_level(cards, uses) -> None:
    (one,) = cards(1)
    uses(g0=[[0, 30 * GIB]])
    lease = take([one])
    assert lease.levels == {one.uuid: 50 * GIB}
    lease.release(clean=False)
    assert take([one]).levels == {one.uuid: 50 * GIB}


def test_a_level_from_before_the_machine_started_is_none(cards, uses, monkeypatch) -> None:
    (one,) = cards(1)
    take([one]).release(clean=False)
    uses(g0=[[0, 30 * GIB]])
    monkeypatch.setattr(lease_files, "boot", lambda: "another")
    assert take([one]).levels == {one.uuid: 50 * GIB}


def test_a_stranger_is_named_and_avoided(cards, uses) -> None:
    two = cards(2)
    uses(g0=[[os.getpid(), GIB]])
    lease = take(two)
    assert indices(lease) == [1]
    with pytest.raises(MachineFailed, match=f"GPU 0: used by process {os.getpid()} of ") as error:
        take(two)
    assert "GPU 1: leased by" in str(error.value)


def test_a_stranger_that_leaves_is_waited_for(cards, uses) -> None:
    (one,) = cards(1)
    stranger = subprocess.Popen(["sleep", "600"])
    uses(g0=[[stranger.pid, GIB]])
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        stranger.kill()
        stranger.wait()

    assert indices(take([one], seconds=30, say=say)) == [0]
    assert f"used by process {stranger.pid}" in told[0]


def in_turn(cards: list[Gpu], wants: list[tuple[list[int], int]]) -> list[int]:
    """Waiters in this order for these GPUs, while one holds all; returns the order of service."""
    everything = take(cards, len(cards))
    served: list[int] = []
    threads = []
    for turn, (among, number) in enumerate(wants):
        waiting = threading.Event()

        def wait(turn=turn, among=among, number=number, waiting=waiting) -> None:
            chosen = [cards[one] for one in among]
            lease = take(chosen, number, seconds=60, say=lambda _: waiting.set())
            served.append(turn)
            lease.release()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        assert waiting.wait(10)
        # the ticket is drawn after it is said
        while len(lease_files.tickets(lease_files.folder_of_leases())) <= turn:
            time.sleep(0.001)
    everything.release()
    for thread in threads:
        thread.join(30)
    return served


def test_who_came_first_is_served_first(cards) -> None:
    assert in_turn(cards(1), [([0], 1)] * 5) == [0, 1, 2, 3, 4]


def test_one_that_needs_many_is_not_passed_by(cards) -> None:
    both = [0, 1]
    assert in_turn(cards(2), [(both, 2), (both, 1), (both, 1)])[0] == 0


def test_one_that_waits_for_other_gpus_bars_nobody(cards) -> None:
    two = cards(2)
    first = take(two[:1])
    waiting = threading.Event()
    got: list[Lease] = []
    thread = threading.Thread(
        target=lambda: got.append(take(two[:1], seconds=60, say=lambda _: waiting.set()))
    )
    thread.start()
    assert waiting.wait(10)
    assert indices(take(two)) == [1]
    first.release()
    thread.join(10)
    assert indices(got[0]) == [0]


def test_the_ticket_of_a_killed_waiter_bars_nobody(cards) -> None:
    two = cards(2)
    lease = take(two[:1])
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, "2"], stdout=subprocess.DEVNULL)
    while not lease_files.tickets(lease_files.folder_of_leases()):
        assert waiter.poll() is None
        time.sleep(0.01)
    with pytest.raises(MachineFailed, match="GPU 1: somebody waits for it who came before"):
        take(two)
    waiter.kill()
    waiter.wait()
    assert indices(take(two)) == [1]
    assert lease_files.tickets(lease_files.folder_of_leases()) == []
    lease.release()


def contend(folder: str, seed: int, turns: int) -> int:
    """Take leases again and again; returns how often another was met on a GPU."""
    os.environ["SERVEMATRIX_LEASES"] = folder
    os.environ["SERVEMATRIX_FAKE_GPUS"] = "3"
    met = 0
    for turn in range(turns):
        lease = take(gpus.visible(), 1 + (seed + turn) % 2, seconds=120)
        for gpu in lease.gpus:
            mark = Path(folder, f"mark-{gpu.index}")
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                met += 1
        for gpu in lease.gpus:
            Path(folder, f"mark-{gpu.index}").unlink()
        lease.release()
    return met


def test_processes_never_meet_on_a_gpu(leases_folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        met = pool.starmap(contend, [(str(leases_folder), seed, 20) for seed in range(6)])
    assert met == [0] * 6
    assert lease_files.tickets(leases_folder) == []


def test_a_folder_is_for_every_user(cards, leases_folder: Path) -> None:
    (one,) = cards(1)
    take([one]).release()
    assert leases_folder.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in leases_folder.iterdir()} == {0o666}


def test_a_folder_that_cannot_be_made_is_told(cards, monkeypatch, tmp_path: Path) -> None:
    (one,) = cards(1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SERVEMATRIX_LEASES", str(tmp_path / "file" / "leases"))
    with pytest.raises(EnvironmentProblem, match="name another folder in SERVEMATRIX_LEASES"):
        take([one])


def test_a_link_in_the_place_of_an_account_is_not_followed(cards, leases_folder: Path) -> None:
    (one,) = cards(1)
    take([one]).release()
    (account,) = leases_folder.glob("gpu-*.json")
    precious = leases_folder.parent / "precious"
    precious.write_text("mine")
    account.unlink()
    account.symlink_to(precious)
    with pytest.raises(EnvironmentProblem):
        take([one])
    assert precious.read_text() == "mine"


def test_a_pipe_in_the_place_of_an_account_holds_nobody_up(cards, leases_folder: Path) -> None:
    (one,) = cards(1)
    lease = take([one])
    (account,) = leases_folder.glob("gpu-*.json")
    account.unlink()
    os.mkfifo(account)
    with pytest.raises(MachineFailed, match="leased by somebody"):
        take([one])
    lease.release()
    with pytest.raises(EnvironmentProblem, match="leases of GPUs cannot be kept there"):
        take([one])


MANY = '{"clean": false, "free": 1, "boot": "' + "x" * 2**20 + '"}'


@pytest.mark.parametrize("account", ["", "[]", "{", '{"free": "much", "clean": false}', MANY])
def test_an_account_that_cannot_be_read_bars_nobody(cards, leases_folder: Path, account) -> None:
    (one,) = cards(1)
    take([one]).release()
    (path,) = leases_folder.glob("gpu-*.json")
    path.write_text(account)
    assert indices(take([one])) == [0]
