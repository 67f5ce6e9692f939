"""GPUs that are not there, for tests and dry runs: SERVEMATRIX_FAKE_GPUS=8 makes eight.

No server runs on one; the embedded server, which needs none, takes leases of them. Who uses them is
what a file says, so that a test can put a stranger on one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus.gpu import GIB, Gpu
from servematrix.gpus.use import Process, Use

NUMBER: Final = "SERVEMATRIX_FAKE_GPUS"
USES: Final = "SERVEMATRIX_FAKE_GPU_USES"
"""Names a file with `{UUID: [[PID, BYTES], …]}`; a process that has ended uses nothing."""
MOST: Final = 1024
MEMORY: Final = 80 * GIB


def gpus() -> list[Gpu] | None:
    """Return the pretend GPUs; None where the variable is not set. Raises EnvironmentProblem."""
    wanted = os.environ.get(NUMBER)
    if wanted is None:
        return None
    if not wanted.isdecimal() or int(wanted) > MOST:
        raise EnvironmentProblem(f"{NUMBER}={wanted}: a number of GPUs from 0 to {MOST}")
    return [
        Gpu(
            index=number,
            uuid=f"PRETEND-{number:04d}",
            name="pretend GPU",
            vendor="pretend",
            memory_total=MEMORY,
            memory_free=MEMORY,
            compute_capability=None,
            driver="none",
            device=number,
        )
        for number in range(int(wanted))
    ]


def uses(gpus: Sequence[Gpu]) -> dict[str, Use]:
    """Return who uses these GPUs, by UUID."""
    named = os.environ.get(USES)
    told = json.loads(Path(named).read_text()) if named and Path(named).exists() else {}
    found = {}
    for gpu in gpus:
        there = [Process(*one) for one in told.get(gpu.uuid, ()) if _uses(*one)]
        free = gpu.memory_total - sum(one.memory for one in there)
        # pid 0: memory that no process is seen to hold
        found[gpu.uuid] = Use(free, tuple(one for one in there if one.pid))
    return found


def _uses(pid: int, memory: int) -> bool:
    return pid == 0 or psutil.pid_exists(pid)
