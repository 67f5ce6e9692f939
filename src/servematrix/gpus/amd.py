"""AMD's GPUs, as ROCm's own `amdsmi` tells of them where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus.gpu import Gpu
from servematrix.gpus.use import Process, Use


def gpus() -> list[Gpu]:
    """Return all GPUs; empty without `amdsmi` or the driver.

    Raises EnvironmentProblem where the driver fails.
    """
    with _library() as smi:
        if smi is None:
            return []
        handles = smi.amdsmi_get_processor_handles()
        return [_gpu(smi, position, handle) for position, handle in enumerate(handles)]


def uses(gpus: Sequence[Gpu]) -> dict[str, Use]:
    """Return who uses these GPUs, by UUID. Raises EnvironmentProblem where the driver fails."""
    wanted = {gpu.uuid for gpu in gpus}
    with _library() as smi:
        if smi is None:
            return {}
        handles = {_uuid(smi, one): one for one in smi.amdsmi_get_processor_handles()}
        return {uuid: _use(smi, handles[uuid]) for uuid in wanted & handles.keys()}


@contextmanager
def _library() -> Iterator[Any]:
    try:
        import amdsmi  # type: ignore[import-not-found]
    except (ImportError, KeyError, OSError):
        yield None
        return
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        yield None
        return
    try:
        yield amdsmi
    except amdsmi.AmdSmiException as error:
        raise EnvironmentProblem(
            f"the AMD driver cannot list its GPUs ({error}); see what amd-smi says"
        ) from error
    finally:
        amdsmi.amdsmi_shut_down()


def _gpu(smi: Any, position: int, handle: Any) -> Gpu:
    total = int(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM))
    return Gpu(
        index=position,
        uuid=_uuid(smi, handle),
        name=str(smi.amdsmi_get_gpu_asic_info(handle)["market_name"]),
        vendor="amd",
        memory_total=total,
        memory_free=_free(smi, handle),
        compute_capability=None,
        driver=str(smi.amdsmi_get_gpu_driver_info(handle)["driver_version"]),
        device=position,
    )


def _use(smi: Any, handle: Any) -> Use:
    processes = []
    for one in smi.amdsmi_get_gpu_process_list(handle):
        memory = int(one.get("memory_usage", {}).get("vram_mem", one.get("mem", 0)))
        if memory:  # it lists every process that has the driver open
            processes.append(Process(int(one["pid"]), memory))
    return Use(_free(smi, handle), tuple(processes))


def _free(smi: Any, handle: Any) -> int:
    kind = smi.AmdSmiMemoryType.VRAM
    total = int(smi.amdsmi_get_gpu_memory_total(handle, kind))
    return total - int(smi.amdsmi_get_gpu_memory_usage(handle, kind))


def _uuid(smi: Any, handle: Any) -> str:
    return str(smi.amdsmi_get_gpu_device_uuid(handle))
