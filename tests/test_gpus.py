"""Which GPUs are visible and which a configuration gets, with a driver that is made up."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from servematrix import gpus
from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus import GIB, Gpu, Requirement

Card = tuple[str, str, int, tuple[int, int]]
H100: Card = ("GPU-aaa1", "NVIDIA H100 80GB HBM3", 80, (9, 0))
H100_TOO: Card = ("GPU-aab2", "NVIDIA H100 80GB HBM3", 80, (9, 0))
RTX: Card = ("GPU-bbb3", "NVIDIA GeForce RTX 5090", 32, (12, 0))


class Driver(ModuleType):
    """What is used of `pynvml`."""

    class NVMLError(Exception):
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
        self.nvmlSystemGetDriverVersion = lambda: "580.1"

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=card[2] * GIB, free=card[2] * GIB - 1)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver([H100, H100_TOO])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return made


def seen(monkeypatch: pytest.MonkeyPatch, outer: str) -> list[tuple[int, str, int]]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outer)
    return [(gpu.index, gpu.uuid, gpu.device) for gpu in gpus.visible()]


def test_all_are_visible_by_default(driver: Driver) -> None:
    first, second = gpus.visible()
    assert first == Gpu(
        index=0,
        uuid="GPU-aaa1",
        name="NVIDIA H100 80GB HBM3",
        vendor="nvidia",
        memory_total=80 * GIB,
        memory_free=80 * GIB - 1,
        compute_capability=(9, 0),
        driver="580.1",
        device=0,
    )
    assert (second.index, second.uuid, second.device) == (1, "GPU-aab2", 1)
    assert driver.open == 0


@pytest.mark.parametrize(
    ("outer", "positions"),
    [
        ("0,1", [0, 1]),
        ("1", [1]),
        (" 1 , 0 ", [1, 0]),
        ("GPU-aab2", [1]),
        ("GPU-aab,0", [1, 0]),
        ("GPU-aa", []),
        ("", []),
        ("-1", []),
        ("1,-1,0", [1]),
        ("1,7,0", [1]),
        ("0,GPU-ffff,1", [0]),
        ("0,,1", [0]),
        ("none", []),
        ("0,0", []),
        ("0,GPU-aaa1", []),
    ],
)
def test_an_outer_list_is_followed_as_cuda_does(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, outer: str, positions: list[int]
) -> None:
    expected = [
        (index, driver.cards[position][0], position) for index, position in enumerate(positions)
    ]
    assert seen(monkeypatch, outer) == expected


def test_slices_of_a_gpu_are_refused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="a slice of a GPU"):
        seen(monkeypatch, "MIG-1234")


def test_positions_among_different_cards_need_an_order(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.cards = [H100, RTX]
    with pytest.raises(EnvironmentProblem, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        seen(monkeypatch, "0")
    assert seen(monkeypatch, "GPU-bbb3") == [(0, "GPU-bbb3", 1)]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert seen(monkeypatch, "1") == [(0, "GPU-bbb3", 1)]


def test_without_the_driver_there_is_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise driver.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "amdsmi", None)
    monkeypatch.setattr(driver, "nvmlInit", missing)
    assert gpus.visible() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.visible() == []


def test_a_driver_that_fails_is_an_error(driver: Driver) -> None:
    def lost(_: int) -> Card:
        raise driver.NVMLError("GPU is lost")

    driver.nvmlDeviceGetHandleByIndex = lost
    with pytest.raises(EnvironmentProblem, match=r"cannot list its GPUs \(GPU is lost\)"):
        gpus.visible()
    assert driver.open == 0


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
        self.amdsmi_get_gpu_driver_info = lambda handle: {"driver_version": "6.12"}


def test_amd(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.cards = []
    amd = AmdDriver()
    monkeypatch.setitem(sys.modules, "amdsmi", amd)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    (gpu,) = gpus.visible()
    assert (gpu.vendor, gpu.uuid, gpu.device, gpu.compute_capability) == (
        "amd",
        "uuid-two",
        1,
        None,
    )
    assert gpu.memory_free == 191 * GIB

    def fails() -> Any:
        raise amd.AmdSmiException("no permission")

    amd.amdsmi_get_processor_handles = fails
    with pytest.raises(EnvironmentProblem, match=r"AMD driver cannot list its GPUs \(no perm"):
        gpus.visible()
    amd.amdsmi_init = fails
    assert gpus.visible() == []


def machine(*cards: Card) -> list[Gpu]:
    return [
        Gpu(index, uuid, name, "nvidia", memory * GIB, memory * GIB, capability, "580", index + 4)
        for index, (uuid, name, memory, capability) in enumerate(cards)
    ]


def chosen(cards: list[Gpu], wanted: str | None = None, **requires: Any) -> list[int]:
    return [gpu.index for gpu in gpus.select(cards, wanted, Requirement(**requires))]


def test_the_first_ones_that_fit_are_taken() -> None:
    cards = machine(RTX, H100, H100_TOO)
    assert chosen(cards) == [0]
    assert chosen(cards, gpus=3) == [0, 1, 2]
    assert chosen(cards, memory_gib=79.5) == [1]
    assert chosen(cards, memory_gib=80, gpus=2) == [1, 2]
    assert chosen(cards, compute_capability_exact=(9, 0)) == [1]
    assert chosen(cards, compute_capability_min=(9, 0)) == [0]
    assert chosen(cards, compute_capability_min=(10, 0)) == [0]


def test_wanted_ones_are_taken_in_their_order() -> None:
    cards = machine(RTX, H100, H100_TOO)
    assert chosen(cards, "2,0", gpus=2) == [2, 0]
    assert chosen(cards, "2, 0") == [2]
    assert chosen(cards, "GPU-aab2") == [2]
    assert chosen(cards, "GPU-b") == [0]
    assert chosen(cards, "0,2", compute_capability_exact=(9, 0)) == [2]


@pytest.mark.parametrize(
    ("wanted", "requires", "told"),
    [
        ("3", {}, "--gpus: '3' names no visible GPU; visible: 0: NVIDIA H100 80GB HBM3, 80 GiB"),
        ("GPU-aa", {}, "--gpus: 'GPU-aa' names 2 GPUs; visible: "),
        ("0,0", {}, "--gpus 0,0 names a GPU twice"),
        ("0,GPU-aaa1", {}, "names a GPU twice"),
        ("0,", {}, "--gpus '0,': not a list such as 0,2"),
        ("", {}, "--gpus '': not a list"),
        ("0", {"gpus": 2}, "2 GPUs are needed, but 1 of the 1 named by --gpus 0 fits"),
        (None, {"gpus": 3}, "3 GPUs are needed, but 2 of the 2 visible fit; visible: 0: "),
        (
            None,
            {"memory_gib": 141, "compute_capability_min": (12, 0)},
            "1 GPU with 141 GiB or more and compute capability 12.0 or newer is needed, "
            "but 0 of the 2 visible fit",
        ),
        (
            "1",
            {"compute_capability_exact": (12, 0)},
            "1 GPU with compute capability 12.0 is needed, but 0 of the 1 named by --gpus 1 fit",
        ),
    ],
)
def test_what_cannot_be_had_is_an_error(
    wanted: str | None, requires: dict[str, Any], told: str
) -> None:
    with pytest.raises(EnvironmentProblem) as error:
        chosen(machine(H100, H100_TOO), wanted, **requires)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_visible_is_told() -> None:
    with pytest.raises(EnvironmentProblem, match=r"0 of the 0 visible fit; visible: none$"):
        chosen([])


def test_memory_that_comes_back_ends_the_wait(driver: Driver) -> None:
    before = gpus.visible()
    free = iter([10 * GIB, 80 * GIB, 80 * GIB, 80 * GIB])
    driver.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(  # type: ignore[method-assign]
        total=80 * GIB, free=next(free)
    )
    assert gpus.wait_until_free(before[:1], seconds=10) is None


def test_memory_that_stays_held_is_told(driver: Driver) -> None:
    before = gpus.visible()
    driver.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(  # type: ignore[method-assign]
        total=80 * GIB, free=50 * GIB
    )
    kept = gpus.wait_until_free(before[1:], seconds=0)
    assert kept is not None
    assert "GPU 1: 30.0 GiB" in kept
