"""One GPU, or one slice of a GPU, as the others here speak of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

GIB: Final = 2**30


@dataclass(frozen=True)
class Gpu:
    """One visible GPU. A GPU that is cut into slices (MIG) is each of its slices instead."""

    index: int
    """Position in the caller's visible list: what `--gpus` counts."""
    uuid: str
    name: str
    vendor: Literal["nvidia", "amd", "pretend"]
    memory_total: int
    """Bytes."""
    memory_free: int
    """Bytes, when the list was made."""
    compute_capability: tuple[int, int] | None
    """(major, minor); None for AMD and for a pretend GPU."""
    driver: str
    """Version of the driver."""
    device: int
    """What a server's environment counts: the position on the whole machine in PCI bus order; for
    AMD within an outer ROCR_VISIBLE_DEVICES, which stays as it is."""
    parent: str | None = None
    """UUID of the GPU that this is a slice of; None for a whole one."""

    @property
    def kind(self) -> tuple[str, tuple[int, int] | None, int]:
        """What GPUs that may stand for one another share."""
        return self.name, self.compute_capability, self.memory_total


def listed(gpus: Sequence[Gpu]) -> str:
    """GPUs in words, each with its position; `none` without any."""
    if not gpus:
        return "none"
    return ", ".join(
        f"{gpu.index}: {gpu.name}, {gpu.memory_total / GIB:.0f} GiB"
        + (f", {dotted(gpu.compute_capability)}" if gpu.compute_capability else "")
        for gpu in gpus
    )


def dotted(capability: tuple[int, int]) -> str:
    """A compute capability as people write it: `9.0`."""
    return f"{capability[0]}.{capability[1]}"
