"""Is a GPU free: nobody's process on it, and its memory back at its level from before?

A driver gives memory back about a second after a server's last process has ended, and a server that
starts before may not find enough. Neither is announced, so both are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from servematrix.gpus import amd, nvidia, pretend
from servematrix.gpus.gpu import GIB, Gpu
from servematrix.gpus.use import Use

SLACK_BYTES: Final = 256 * 2**20
"""A driver's own use changes by some megabytes from one server to the next."""
POLL_SECONDS: Final = 0.2


def uses(gpus: Sequence[Gpu]) -> dict[str, Use]:
    """Return who uses these GPUs, by UUID. Raises EnvironmentProblem where a driver fails."""
    found: dict[str, Use] = {}
    for vendor, ask in (("nvidia", nvidia.uses), ("amd", amd.uses), ("pretend", pretend.uses)):
        asked = [gpu for gpu in gpus if gpu.vendor == vendor]
        if asked:
            found |= ask(asked)
    return found


def occupied(use: Use | None, level: int | None) -> str | None:
    """Say who has a GPU, as a clause; None where it is free.

    `level` is the free memory in bytes that it must have again, None where that is not known.
    """
    if use is None:
        return "the driver no longer tells of it"
    strangers = use.strangers()
    if strangers:
        return f"used by {', '.join(one.told() for one in strangers)}"
    if use.processes:
        return f"a server that is being ended: {', '.join(one.told() for one in use.processes)}"
    if level is not None and level - use.free > SLACK_BYTES:
        return (
            f"{(level - use.free) / GIB:.1f} GiB of its memory are still held, and no process is "
            "seen to hold them"
        )
    return None


def wait_until_free(gpus: Sequence[Gpu], levels: Mapping[str, int], seconds: float) -> str | None:
    """Wait until the GPUs are free of our processes and have as much free memory as `levels` say.

    `levels` are bytes by UUID. Returns None once it is so, else a sentence. A stranger that came
    meanwhile is not waited for here: the next lease waits for it.
    """
    deadline = time.monotonic() + seconds
    while True:
        now = uses(gpus)
        told = [(gpu, _kept(now.get(gpu.uuid), levels[gpu.uuid])) for gpu in gpus]
        kept = [f"GPU {gpu.index}: {what}" for gpu, what in told if what]
        if not kept:
            return None
        if time.monotonic() > deadline:
            shown = "; ".join(kept)
            return (
                f"memory is still held {seconds:.0f} s after the server ended ({shown}); "
                "the next server may not find enough: see what nvidia-smi shows"
            )
        time.sleep(POLL_SECONDS)


def _kept(use: Use | None, level: int) -> str | None:
    if use is None:
        return occupied(use, level)
    strangers = use.strangers()
    ours = tuple(one for one in use.processes if one not in strangers)
    # what a stranger holds is not ours to give back
    return occupied(Use(use.free + sum(one.memory for one in strangers), ours), level)
