"""Many processes that want the same few GPUs: do two ever meet, and who waits how long?"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from servematrix import gpus
from servematrix.gpus import lease_files, leases
from servematrix.gpus.pretend import NUMBER

GPUS: Final = 8
PROCESSES: Final = 32
ACQUISITIONS: Final = 2000
DEADLINE: Final = 300.0
LONGEST_HOLD: Final = 0.02
"""Seconds; short, so that nearly all of the time goes into taking leases."""


@dataclass(frozen=True)
class Held:
    """A GPU as one process held it: seconds of one clock."""

    gpu: str
    process: int
    since: float
    until: float
    waited: float


def figures() -> Iterator[tuple[str, list[float], str, float | None]]:
    """Uncontended milliseconds, then what happened among many processes."""
    os.environ[NUMBER] = str(GPUS)
    taken, returned = zip(*(_uncontended() for _ in range(500)), strict=True)
    yield "a lease that nobody else wants: taken", [1000 * one for one in taken], "ms", 5.0
    yield "  and given back", [1000 * one for one in returned], "ms", 5.0
    began = time.monotonic()
    found = contend()
    seconds = time.monotonic() - began
    by_gpu: dict[str, list[Held]] = defaultdict(list)
    turns: dict[int, int] = defaultdict(int)
    for one in found:
        by_gpu[one.gpu].append(one)
        turns[one.process] += 1
    met = sum(
        second.since < first.until
        for held in by_gpu.values()
        for first, second in pairwise(sorted(held, key=lambda one: one.since))
    )
    name = f"{PROCESSES} processes, {GPUS} GPUs, {ACQUISITIONS} leases of 1 to 4"
    yield f"{name}: two holders at once", [float(met)], "", 0.0
    starved = PROCESSES - len(turns)
    yield "  processes that never had one", [float(starved)], "", 0.0
    yield "  waited for a lease", [one.waited for one in found], "s", None
    longest = [
        max(one.waited for one in found if one.process == process) for process in sorted(turns)
    ]
    yield "  waited, each process's longest", longest, "s", None
    yield "  all of it", [seconds], "s", None


def _uncontended() -> tuple[float, float]:
    visible = gpus.visible()
    began = time.perf_counter()
    lease = leases.take(visible, 1, holder="a benchmark", seconds=DEADLINE)
    taken = time.perf_counter()
    lease.release()
    return taken - began, time.perf_counter() - taken


def contend() -> list[Held]:
    """All processes at once; what each held when."""
    each = [ACQUISITIONS // PROCESSES + (n < ACQUISITIONS % PROCESSES) for n in range(PROCESSES)]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(PROCESSES)
    queue = context.Queue()
    processes = [
        context.Process(target=_process, args=(number, turns, ready, queue))
        for number, turns in enumerate(each)
    ]
    for process in processes:
        process.start()
    found = [held for _ in processes for held in queue.get(timeout=DEADLINE)]
    for process in processes:
        process.join()
    return found


def _process(number: int, turns: int, ready: object, queue: object) -> None:
    chance, found = random.Random(number), []
    ready.wait()  # type: ignore[attr-defined]
    for _ in range(turns):
        wanted = chance.choice((1, 1, 1, 2, 4))
        lease = leases.take(gpus.visible(), wanted, holder=f"process {number}", seconds=DEADLINE)
        since = time.monotonic()
        time.sleep(chance.uniform(0, LONGEST_HOLD))
        until = time.monotonic()
        found += [Held(gpu.uuid, number, since, until, lease.waited) for gpu in lease.gpus]
        lease.release()
    queue.put(found)  # type: ignore[attr-defined]


def use_folder(folder: Path) -> None:
    """Keep the leases of this process, and of those it starts, in a folder."""
    os.environ[lease_files.FOLDER] = str(folder)
