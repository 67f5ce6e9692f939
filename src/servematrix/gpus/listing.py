"""The GPUs that the caller may use: those of the machine, within what the environment leaves.

A limit from outside is never left: CUDA_VISIBLE_DEVICES on NVIDIA; on AMD ROCR_VISIBLE_DEVICES, and
within it HIP_VISIBLE_DEVICES or, where that is not set, CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus import amd, nvidia, pretend
from servematrix.gpus.gpu import Gpu


def visible() -> list[Gpu]:
    """Return the GPUs that the caller may use, in the caller's order; empty without any.

    Raises EnvironmentProblem for a limit that cannot be followed for certain. Where
    SERVEMATRIX_FAKE_GPUS is set, there are pretend GPUs and no others.
    """
    pretended = pretend.gpus()
    if pretended is not None:
        return _within(pretended, "CUDA_VISIBLE_DEVICES")
    machine = nvidia.gpus()
    if machine:
        return _within(machine, "CUDA_VISIBLE_DEVICES")
    machine = _within(amd.gpus(), "ROCR_VISIBLE_DEVICES")
    # HIP counts within what ROCR leaves
    machine = [replace(gpu, device=gpu.index) for gpu in machine]
    own = "HIP_VISIBLE_DEVICES" in os.environ
    return _within(machine, "HIP_VISIBLE_DEVICES" if own else "CUDA_VISIBLE_DEVICES")


def _within(machine: Sequence[Gpu], variable: str) -> list[Gpu]:
    """Return the GPUs that an outer variable leaves, by CUDA's rules.

    Entries are positions, UUIDs or unique beginnings of UUIDs; the first one that names no GPU ends
    the list, and so does one that comes twice (CUDA then shows no GPU at all). Where a GPU is cut
    into slices, its position and its own UUID stand for the first of them.
    """
    outer = os.environ.get(variable)
    if outer is None:
        return list(machine)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in outer.split(",")):
        gpu = _entry(machine, entry, variable)
        if gpu is None:
            break
        if gpu in chosen:
            return []
        chosen.append(gpu)
    return [replace(gpu, index=index) for index, gpu in enumerate(chosen)]


def _entry(machine: Sequence[Gpu], entry: str, variable: str) -> Gpu | None:
    if not entry.isdecimal():
        matching = [gpu for gpu in machine if entry and gpu.uuid.startswith(entry)]
        if not matching:
            matching = [gpu for gpu in machine if gpu.parent == entry][:1]
        return matching[0] if len(matching) == 1 else None
    if len({gpu.name for gpu in machine if gpu.parent is None}) > 1:
        order = os.environ.get("CUDA_DEVICE_ORDER")
        if order != "PCI_BUS_ID" and machine[0].vendor == "nvidia":
            raise EnvironmentProblem(
                f"{variable}={os.environ.get(variable)} counts GPUs of "
                "different kinds, the fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name "
                "them by UUID"
            )
    return next((gpu for gpu in machine if gpu.device == int(entry)), None)
