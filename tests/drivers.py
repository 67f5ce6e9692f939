"""Drivers that are made up, with the cards that a test gives them."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from servematrix.gpus import GIB

LIMITS = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "SERVEMATRIX_FAKE_GPUS",
)
Card = tuple[str, str, int, tuple[int, int]]
H100: Card = ("GPU-aaa1", "NVIDIA H100 80GB HBM3", 80, (9, 0))
H100_TOO: Card = ("GPU-aab2", "NVIDIA H100 80GB HBM3", 80, (9, 0))
RTX: Card = ("GPU-bbb3", "NVIDIA GeForce RTX 5090", 32, (12, 0))


class Driver(ModuleType):
    """What is used of `pynvml`."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    def __init__(self, cards: list[Card]) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.open = 0
        self.nvmlDeviceGetName = lambda card: card[1].encode()
        self.nvmlDeviceGetUUID = lambda card: card[0]
        self.nvmlDeviceGetCudaComputeCapability = lambda card: card[3]
        self.nvmlDeviceGetCount = lambda: len(self.cards)
        self.nvmlDeviceGetHandleByIndex = lambda position: self.cards[position]
        self.nvmlDeviceGetHandleByUUID = self.by_uuid
        self.nvmlSystemGetDriverVersion = lambda: "580.1"
        self.free: dict[str, int] = {}
        self.running: dict[str, list[SimpleNamespace]] = {}
        self.slices: dict[str, list[Card | None]] = {}

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> SimpleNamespace:  # noqa: N802
        free = self.free.get(card[0], card[2] * GIB - 1)
        return SimpleNamespace(total=card[2] * GIB, free=free)

    def by_uuid(self, uuid: str) -> Card:
        slices = [one for cut in self.slices.values() for one in cut if one]
        return next(card for card in [*self.cards, *slices] if card[0] == uuid)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[SimpleNamespace]:  # noqa: N802
        return self.running.get(card[0], [])

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if card[3] < (8, 0):
            raise self.NVMLError_NotSupported
        return [int(card[0] in self.slices), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return len(self.slices[card[0]])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, number: int) -> Card:  # noqa: N802
        found = self.slices[card[0]][number]
        if found is None:
            raise self.NVMLError_NotFound
        return found


class AmdDriver(ModuleType):
    """What is used of `amdsmi`."""

    AmdSmiException = type("AmdSmiException", (Exception,), {})
    AmdSmiMemoryType = SimpleNamespace(VRAM="vram")

    def __init__(self) -> None:
        super().__init__("amdsmi")
        self.amdsmi_init = lambda: None
        self.amdsmi_shut_down = lambda: None
        self.amdsmi_get_processor_handles = lambda: ["one", "two"]
        self.amdsmi_get_gpu_memory_total = lambda handle, kind: 192 * GIB
        self.amdsmi_get_gpu_memory_usage = lambda handle, kind: GIB
        self.amdsmi_get_gpu_device_uuid = lambda handle: f"uuid-{handle}"
        self.amdsmi_get_gpu_asic_info = lambda handle: {"market_name": "AMD Instinct MI300X"}
        self.amdsmi_get_gpu_process_list = lambda handle: self.running.get(handle, [])
        self.running: dict[str, list[dict[str, Any]]] = {}
        self.amdsmi_get_gpu_driver_info = lambda handle: {"driver_version": "6.12"}
