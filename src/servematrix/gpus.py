"""Which GPUs this process may use, and which of them a server gets.

GPUs are counted within what the caller may see, never over the whole machine: a scheduler that
hands out cards says so in CUDA_VISIBLE_DEVICES, and the others belong to somebody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from servematrix.engines.base import EnvironmentProblem

GIB = 2**30
SLACK_BYTES = 256 * 2**20
"""A driver's own use changes by some megabytes from one server to the next."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU."""

    index: int
    """Position in the caller's visible list: what `--gpus` counts."""
    uuid: str
    name: str
    vendor: Literal["nvidia", "amd"]
    memory_total: int
    """Bytes."""
    memory_free: int
    """Bytes, when the list was made."""
    compute_capability: tuple[int, int] | None
    """(major, minor); None for AMD."""
    driver: str
    """Version of the driver."""
    device: int
    """Position on the whole machine in PCI bus order: what a server's environment names."""


@dataclass(frozen=True)
class Requirement:
    """What a configuration needs of its GPUs."""

    gpus: int = 1
    memory_gib: float | None = None
    """Total memory of each GPU, at least."""
    compute_capability_min: tuple[int, int] | None = None
    """(major, minor), at least. Never met by a GPU that has none (AMD)."""
    compute_capability_exact: tuple[int, int] | None = None
    """(major, minor), exactly. Never met by a GPU that has none (AMD)."""


def visible() -> list[Gpu]:
    """Return the GPUs that the caller may use, in the caller's order; empty without any.

    Raises EnvironmentProblem for a CUDA_VISIBLE_DEVICES that cannot be followed for certain.
    """
    machine = _nvidia()
    if machine:
        return _within(machine, os.environ.get("CUDA_VISIBLE_DEVICES"))
    outer = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return _within(_amd(), outer)


def select(gpus: Sequence[Gpu], wanted: str | None, requires: Requirement) -> tuple[Gpu, ...]:
    """Return the first GPUs that fit: as many as are required, of those that are wanted.

    `wanted` is `--gpus`: positions in the visible list or UUIDs (or their unique beginnings),
    separated by commas; None stands for all. Raises EnvironmentProblem with what was asked for and
    what is visible.
    """
    pool = list(gpus) if wanted is None else [_named(gpus, name) for name in _names(wanted)]
    if len(set(pool)) < len(pool):
        raise EnvironmentProblem(f"--gpus {wanted} names a GPU twice; visible: {_listed(gpus)}")
    fitting = [gpu for gpu in pool if _fits(gpu, requires)]
    if len(fitting) < requires.gpus:
        among = "visible" if wanted is None else f"named by --gpus {wanted}"
        raise EnvironmentProblem(
            f"{_asked(requires)} needed, but {len(fitting)} of the {len(pool)} {among} "
            f"{'fits' if len(fitting) == 1 else 'fit'}; visible: {_listed(gpus)}"
        )
    return tuple(fitting[: requires.gpus])


def wait_until_free(gpus: Sequence[Gpu], seconds: float) -> str | None:
    """Wait until the GPUs have as much free memory again as when they were listed.

    A driver gives memory back about a second after a server's last process has ended; a server
    that starts before may not find enough. Returns None once it is free, else a sentence. Memory
    is not announced, so it is asked for.
    """
    deadline = time.monotonic() + seconds
    while True:
        free = {gpu.uuid: gpu.memory_free for gpu in (*_nvidia(), *_amd())}
        held = {gpu.index: gpu.memory_free - free.get(gpu.uuid, 0) for gpu in gpus}
        kept = {index: size for index, size in held.items() if size > SLACK_BYTES}
        if not kept:
            return None
        if time.monotonic() > deadline:
            shown = ", ".join(f"GPU {index}: {size / GIB:.1f} GiB" for index, size in kept.items())
            return (
                f"memory is still held {seconds:.0f} s after the server ended ({shown}); "
                "the next server may not find enough: see what nvidia-smi shows"
            )
        time.sleep(0.2)


def _within(machine: Sequence[Gpu], outer: str | None) -> list[Gpu]:
    """Return the GPUs that an outer CUDA_VISIBLE_DEVICES leaves, by CUDA's rules.

    Entries are positions, UUIDs or unique beginnings of UUIDs; the first one that names no GPU ends
    the list, and so does one that comes twice (CUDA then shows no GPU at all).
    """
    if outer is None:
        return list(machine)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in outer.split(",")):
        gpu = _entry(machine, entry)
        if gpu is None:
            break
        if gpu in chosen:
            return []
        chosen.append(gpu)
    return [replace(gpu, index=index) for index, gpu in enumerate(chosen)]


def _entry(machine: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.startswith("MIG-"):
        raise EnvironmentProblem(
            f"CUDA_VISIBLE_DEVICES names a slice of a GPU ({entry}); only whole GPUs are supported"
        )
    if not entry.isdecimal():
        matching = [gpu for gpu in machine if entry and gpu.uuid.startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    if len({gpu.name for gpu in machine}) > 1:
        order = os.environ.get("CUDA_DEVICE_ORDER")
        if order != "PCI_BUS_ID" and machine[0].vendor == "nvidia":
            raise EnvironmentProblem(
                f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')} counts GPUs of "
                "different kinds, the fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name "
                "them by UUID"
            )
    position = int(entry)
    return machine[position] if position < len(machine) else None


def _named(gpus: Sequence[Gpu], name: str) -> Gpu:
    if name.isdecimal():
        matching = [gpu for gpu in gpus if gpu.index == int(name)]
    else:
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    what = "no visible GPU" if not matching else f"{len(matching)} GPUs"
    raise EnvironmentProblem(f"--gpus: {name!r} names {what}; visible: {_listed(gpus)}")


def _names(wanted: str) -> list[str]:
    names = [name.strip() for name in wanted.split(",")]
    if not all(names):
        raise EnvironmentProblem(f"--gpus {wanted!r}: not a list such as 0,2 or of UUIDs")
    return names


def _fits(gpu: Gpu, requires: Requirement) -> bool:
    if requires.memory_gib is not None and gpu.memory_total < requires.memory_gib * GIB:
        return False
    capability = gpu.compute_capability
    least, exact = requires.compute_capability_min, requires.compute_capability_exact
    if least is not None and (capability is None or capability < least):
        return False
    return exact is None or capability == exact


def _asked(requires: Requirement) -> str:
    conditions = []
    if requires.memory_gib is not None:
        conditions.append(f"{requires.memory_gib:g} GiB or more")
    if requires.compute_capability_min is not None:
        conditions.append(f"compute capability {_dotted(requires.compute_capability_min)} or newer")
    if requires.compute_capability_exact is not None:
        conditions.append(f"compute capability {_dotted(requires.compute_capability_exact)}")
    number = "1 GPU is" if requires.gpus == 1 else f"{requires.gpus} GPUs are"
    words = number.split()
    with_conditions = f" with {' and '.join(conditions)}" if conditions else ""
    return f"{words[0]} {words[1]}{with_conditions} {words[2]}"


def _listed(gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "none"
    return ", ".join(
        f"{gpu.index}: {gpu.name}, {gpu.memory_total / GIB:.0f} GiB"
        + (f", {_dotted(gpu.compute_capability)}" if gpu.compute_capability else "")
        for gpu in gpus
    )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _nvidia() -> list[Gpu]:
    """Return all NVIDIA GPUs in PCI bus order; empty without the driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        count = pynvml.nvmlDeviceGetCount()
        return [_nvidia_gpu(pynvml, position, driver) for position in range(count)]
    except pynvml.NVMLError as error:
        raise EnvironmentProblem(
            f"the NVIDIA driver cannot list its GPUs ({error}); see what nvidia-smi says"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(nvml: Any, position: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(position)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=position,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        vendor="nvidia",
        memory_total=int(memory.total),
        memory_free=int(memory.free),
        compute_capability=(int(major), int(minor)),
        driver=driver,
        device=position,
    )


def _amd() -> list[Gpu]:
    """Return all AMD GPUs; empty where ROCm's own `amdsmi` is not installed."""
    try:
        import amdsmi  # type: ignore[import-not-found]
    except (ImportError, KeyError, OSError):
        return []
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return []
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        return [_amd_gpu(amdsmi, position, handle) for position, handle in enumerate(handles)]
    except amdsmi.AmdSmiException as error:
        raise EnvironmentProblem(
            f"the AMD driver cannot list its GPUs ({error}); see what amd-smi says"
        ) from error
    finally:
        amdsmi.amdsmi_shut_down()


def _amd_gpu(smi: Any, position: int, handle: Any) -> Gpu:
    kind = smi.AmdSmiMemoryType.VRAM
    total = int(smi.amdsmi_get_gpu_memory_total(handle, kind))
    return Gpu(
        index=position,
        uuid=_text(smi.amdsmi_get_gpu_device_uuid(handle)),
        name=_text(smi.amdsmi_get_gpu_asic_info(handle)["market_name"]),
        vendor="amd",
        memory_total=total,
        memory_free=total - int(smi.amdsmi_get_gpu_memory_usage(handle, kind)),
        compute_capability=None,
        driver=_text(smi.amdsmi_get_gpu_driver_info(handle)["driver_version"]),
        device=position,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
