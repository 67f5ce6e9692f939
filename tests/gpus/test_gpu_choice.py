"""Which of the visible GPUs suit a configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drivers import H100, H100_TOO, RTX, Card
from servematrix import gpus
from servematrix.engines.base import EnvironmentProblem
from servematrix.gpus import GIB, Gpu, Requirement


def machine(*cards: Card) -> list[Gpu]:
    return [
        Gpu(index, uuid, name, "nvidia", memory * GIB, memory * GIB, capability, "580", index + 4)
        for index, (uuid, name, memory, capability) in enumerate(cards)
    ]


def chosen(cards: list[Gpu], wanted: str | None = None, **requires: Any) -> list[int]:
    return [gpu.index for gpu in gpus.candidates(cards, wanted, Requirement(**requires))]


def test_all_of_the_first_kind_that_suffices_may_be_taken() -> None:
    cards = machine(RTX, H100, H100_TOO)
    assert chosen(cards) == [0]
    assert chosen(cards, gpus=2) == [1, 2]
    assert chosen(cards, memory_gib=79.5) == [1, 2]
    assert chosen(cards, memory_gib=80, gpus=2) == [1, 2]
    assert chosen(cards, compute_capability_exact=(9, 0)) == [1, 2]
    assert chosen(cards, compute_capability_min=(9, 0)) == [0]
    assert chosen(cards, compute_capability_min=(10, 0)) == [0]


def test_wanted_ones_are_taken_in_their_order() -> None:
    cards = machine(RTX, H100, H100_TOO)
    assert chosen(cards, "2,1", gpus=2) == [2, 1]
    assert chosen(cards, "2, 0, 1") == [2, 1]
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


def test_gpus_of_one_cell_are_of_one_kind() -> None:
    with pytest.raises(EnvironmentProblem, match="3 of the 3 visible fit, and they are of differ"):
        chosen(machine(RTX, H100, H100_TOO), gpus=3)


def test_slices_do_not_serve_together() -> None:
    cut = [replace(gpu, parent="GPU-0") for gpu in machine(H100, H100_TOO)]
    assert chosen(cut) == [0, 1]
    with pytest.raises(EnvironmentProblem, match="2 GPUs are needed, but 0 of the 2"):
        chosen(cut, gpus=2)


def test_a_pretend_gpu_has_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEMATRIX_FAKE_GPUS", "2")
    cards = gpus.visible()
    assert chosen(cards, memory_gib=1000, compute_capability_exact=(12, 0)) == [0, 1]
    with pytest.raises(EnvironmentProblem, match="3 GPUs are needed, but 2 of the 2"):
        chosen(cards, gpus=3)


def test_nothing_visible_is_told() -> None:
    with pytest.raises(EnvironmentProblem, match=r"0 of the 0 visible fit; visible: none$"):
        chosen([])
