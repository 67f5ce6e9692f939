"""NVIDIA's GPUs, as their driver tells of them through NVML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus.gpu import Gpu
from servematrix.gpus.use import Process, Use


def gpus() -> list[Gpu]:
    """Return all GPUs in PCI bus order, slices (MIG) in the place of theirs.

    Empty without the driver. Raises EnvironmentProblem where the driver fails.
    """
    with _library() as nvml:
        if nvml is None:
            return []
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found: list[Gpu] = []
        for device in range(nvml.nvmlDeviceGetCount()):
            whole = nvml.nvmlDeviceGetHandleByIndex(device)
            slices = _slices(nvml, whole)
            for handle in [whole] if slices is None else slices:
                parent = None if slices is None else _text(nvml.nvmlDeviceGetUUID(whole))
                found.append(_gpu(nvml, handle, whole, len(found), device, driver, parent))
        return found


def uses(gpus: Sequence[Gpu]) -> dict[str, Use]:
    """Return who uses these GPUs, by UUID. Raises EnvironmentProblem where the driver fails."""
    with _library() as nvml:
        if nvml is None:
            return {}
        return {gpu.uuid: _use(nvml, nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)) for gpu in gpus}


@contextmanager
def _library() -> Iterator[Any]:
    """NVML for as long as the context lasts; None without it or without the driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    except Exception as error:  # whatever it is that a broken installation raises
        raise EnvironmentProblem(
            f"pynvml cannot be imported ({type(error).__name__}: {error}): reinstall nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise EnvironmentProblem(
            f"the NVIDIA driver cannot list its GPUs ({error}); see what nvidia-smi says"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def _slices(nvml: Any, whole: Any) -> list[Any] | None:
    """The slices of a GPU; None where it is not cut."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(whole)
    except nvml.NVMLError:
        return None  # a kind that cannot be cut
    if not current:
        return None
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, number))
        except nvml.NVMLError_NotFound:
            continue  # numbers have gaps
    return found


def _gpu(
    nvml: Any, handle: Any, whole: Any, index: int, device: int, driver: str, parent: str | None
) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(whole)
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        vendor="nvidia",
        memory_total=int(memory.total),
        memory_free=int(memory.free),
        compute_capability=(int(major), int(minor)),
        driver=driver,
        device=device,
        parent=parent,
    )


def _use(nvml: Any, handle: Any) -> Use:
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError_NotSupported:
        running = []  # a slice of some drivers; its memory tells all the same
    processes = tuple(
        # None where the driver does not tell whose memory it is
        Process(int(one.pid), int(one.usedGpuMemory or 0))
        for one in running
    )
    return Use(int(nvml.nvmlDeviceGetMemoryInfo(handle).free), processes)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
