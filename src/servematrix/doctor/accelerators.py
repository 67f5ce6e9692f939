"""Checks of the GPUs: which may be used, by which driver, who uses them, who holds leases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from servematrix import gpus
from servematrix.doctor.finding import Finding
from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus import GIB, Gpu, freedom, lease_files, leases
from servematrix.gpus.gpu import listed
from servematrix.gpus.pretend import NUMBER
from servematrix.gpus.use import Use

LIMITS: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", NUMBER)
"""Variables by which somebody outside says which GPUs there are."""
KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")
HELD: Final = GIB
"""Bytes that a GPU may lack without a process that has them: drivers keep some hundred MiB."""


def is_real() -> bool:
    """Whether a GPU may be used that is no pretend one."""
    try:
        return any(gpu.vendor != "pretend" for gpu in gpus.visible())
    except EnvironmentProblem:
        return False


def visible() -> Finding:
    """Which GPUs may be used, and by whose limit no others?"""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    limited = f" (limited by {', '.join(limits)})" if limits else ""
    try:
        found = gpus.visible()
    except EnvironmentProblem as problem:
        return Finding("problem", str(problem), "see to what it says; limits of GPUs come first")
    if not found:
        return Finding(
            "warning",
            f"no GPU is visible{limited}: engine reference will serve, or sglang-cpu",
            "on a machine with GPUs: see what nvidia-smi or amd-smi says, and the limits",
        )
    slices = [f"{gpu.index} of {gpu.parent}" for gpu in found if gpu.parent is not None]
    cut = f"; slices (MIG): {', '.join(slices)}" if slices else ""
    told = f"{listed(found)}{cut}{limited}"
    if any(gpu.vendor == "pretend" for gpu in found):
        return Finding(
            "warning", f"{told}: these are pretend ones", f"unset {NUMBER} to see the real ones"
        )
    return Finding("ok", told)


def driver() -> Finding:
    """Does the driver answer, and which version is it?"""
    broken = _broken_nvml()
    if broken is not None:
        return broken
    versions = sorted({f"{gpu.vendor} {gpu.driver}" for gpu in gpus.visible()})
    return Finding("ok", ", ".join(versions) or "none, and without a GPU none is needed")


def _broken_nvml() -> Finding | None:
    """What keeps NVIDIA's library from a driver that is loaded; None where nothing does."""
    try:
        import pynvml
    except Exception as error:  # whatever it is that a broken installation raises
        return Finding("problem", f"pynvml: {error}", "pip install --force-reinstall nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not KERNEL_MODULE.exists():
            return None  # no driver at all
        return Finding(
            "problem",
            f"NVIDIA's driver is loaded and does not answer: {error}",
            "after an update of the driver: load its new module, or restart the machine; in a "
            "container: start it with --gpus and the driver's libraries",
        )
    pynvml.nvmlShutdown()
    return None


def users() -> Finding:
    """Does somebody else use the GPUs?"""
    found = gpus.visible()
    if not found:
        return Finding("ok", "no GPU is visible")
    uses = freedom.uses(found)
    taken = {gpu.index: told for gpu in found if (told := _taken(gpu, uses.get(gpu.uuid)))}
    if not taken:
        busy = sum(bool(use.processes) for use in uses.values())
        return Finding("ok", f"nobody but our own servers, on {busy}" if busy else "nobody")
    told = "; ".join(f"GPU {index}: {what}" for index, what in taken.items())
    free = [gpu.index for gpu in found if gpu.index not in taken]
    if free:
        others = ",".join(map(str, free))
        return Finding("warning", told, f"cells take the others; --gpus {others} asks for no more")
    return Finding(
        "problem", told, "cells would wait for them (--gpu-deadline): end what is not needed"
    )


def _taken(gpu: Gpu, use: Use | None) -> str | None:
    """Who other than a server of ours has a GPU, as a clause."""
    if use is not None and use.processes and not use.strangers():
        return None
    missing = gpu.memory_total - use.free if use is not None else 0
    if use is not None and not use.processes and missing > max(HELD, gpu.memory_total // 20):
        return (
            f"{missing / GIB:.1f} GiB of its memory are held, and no process is seen to hold them"
        )
    return freedom.occupied(use, None)


def held() -> Finding:
    """Can leases be taken, and who holds some?"""
    try:
        folder = lease_files.folder_of_leases()
        found = leases.held(folder)
    except EnvironmentProblem as problem:
        return Finding("problem", str(problem), f"name another folder in {lease_files.FOLDER}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "problem",
            f"{folder}: no lease can be written there",
            f"make it writable for all users, or name another folder in {lease_files.FOLDER}",
        )
    told = "; ".join(f"{uuid} by {holder}" for uuid, holder in found.items())
    return Finding("ok", f"leases in {folder}: {told or 'none held'}")
