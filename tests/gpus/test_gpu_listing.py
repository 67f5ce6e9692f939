"""Which GPUs are visible, with a driver that is made up."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from drivers import H100, RTX, AmdDriver, Card, Driver
from servematrix import gpus
from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus import GIB, Gpu


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


SLICE: Card = ("MIG-aaaa", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40, (0, 0))
SLICE_TOO: Card = ("MIG-bbbb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40, (0, 0))


def test_a_gpu_that_is_cut_is_its_slices(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.slices = {"GPU-aaa1": [None, SLICE, SLICE_TOO]}
    one, two, whole = gpus.visible()
    assert [gpu.uuid for gpu in (one, two, whole)] == ["MIG-aaaa", "MIG-bbbb", "GPU-aab2"]
    assert [gpu.index for gpu in (one, two, whole)] == [0, 1, 2]
    assert [gpu.device for gpu in (one, two, whole)] == [0, 0, 1]
    assert [gpu.parent for gpu in (one, two, whole)] == ["GPU-aaa1", "GPU-aaa1", None]
    assert (one.memory_total, one.compute_capability) == (40 * GIB, (9, 0))
    driver.slices = {"GPU-aaa1": [None]}
    assert [gpu.uuid for gpu in gpus.visible()] == ["GPU-aab2"]


@pytest.mark.parametrize(
    ("outer", "uuids"),
    [
        ("MIG-bbbb", ["MIG-bbbb"]),
        ("MIG-b,MIG-aaaa", ["MIG-bbbb", "MIG-aaaa"]),
        ("MIG-1234", []),
        # CUDA shows one slice of a GPU that is named as a whole, the first
        ("0", ["MIG-aaaa"]),
        ("GPU-aaa1", ["MIG-aaaa"]),
        ("1,0", ["GPU-aab2", "MIG-aaaa"]),
        ("0,MIG-aaaa", []),
    ],
)
def test_a_limit_may_name_slices(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, outer: str, uuids: list[str]
) -> None:
    driver.slices = {"GPU-aaa1": [SLICE, SLICE_TOO]}
    assert [uuid for _, uuid, _ in seen(monkeypatch, outer)] == uuids


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({}, [("uuid-one", 0, 0), ("uuid-two", 1, 1)]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [("uuid-two", 0, 0)]),
        ({"ROCR_VISIBLE_DEVICES": "uuid-two,0"}, [("uuid-two", 0, 0), ("uuid-one", 1, 1)]),
        # HIP counts within what ROCR leaves
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, [("uuid-one", 0, 1)]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [("uuid-two", 0, 1)]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [("uuid-one", 0, 0)]),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, []),
    ],
)
def test_amd_has_two_limits_one_within_the_other(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, str],
    found: list[tuple[str, int, int]],
) -> None:
    driver.cards = []
    monkeypatch.setitem(sys.modules, "amdsmi", AmdDriver())
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    assert [(gpu.uuid, gpu.index, gpu.device) for gpu in gpus.visible()] == found


def test_pretend_gpus_take_the_place_of_all(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "8")
    assert {gpu.name for gpu in gpus.visible()} == {"pretend GPU"}
    assert seen(monkeypatch, "6,PRETEND-0002") == [(0, "PRETEND-0006", 6), (1, "PRETEND-0002", 2)]
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "0")
    assert gpus.visible() == []
    for wrong in ("many", "-1", "", "100000"):
        monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", wrong)
        with pytest.raises(EnvironmentProblem, match="a number of GPUs from 0 to 1024"):
            gpus.visible()


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
