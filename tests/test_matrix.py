"""Which cells a selection names."""

from __future__ import annotations

from pathlib import Path

import pytest

from servematrix import matrix
from servematrix.config import ConfigError


def ids(folder: Path, *selections: str) -> list[str]:
    return [cell.id for cell in matrix.select(folder, selections)]


def test_a_configuration_with_an_axis_has_a_cell_for_each_value(configs_directory: Path) -> None:
    assert ids(configs_directory, "cuda_graph") == [
        f"cuda_graph(max_bs={value})" for value in (1, 2, 4, 8, 16, 32, "off")
    ]


def test_one_cell_of_an_axis(configs_directory: Path) -> None:
    assert ids(configs_directory, "cuda_graph(max_bs=8)") == ["cuda_graph(max_bs=8)"]


def test_several_selections_keep_their_order_and_name_no_cell_twice(
    configs_directory: Path,
) -> None:
    assert ids(configs_directory, "eagle3, baseline", "baseline") == ["eagle3", "baseline"]


def test_all_is_every_configuration(configs_directory: Path) -> None:
    found = ids(configs_directory, "all")
    assert {"baseline", "eagle3", "smollm2", "sm120(speculation=eagle3)"} <= set(found)
    assert len(found) == len(set(found)) == 13


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("cuda_graph(max_bs=5)", "no such cell"),
        ("cuda_graph(max_bs=", "expected NAME"),
        ("baseline(max_bs=8)", "no such cell"),
        ("nope", "no configuration 'nope'"),
        ("", "expected NAME"),
    ],
)
def test_an_unknown_selection_is_refused(
    configs_directory: Path, selection: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        matrix.select(configs_directory, [selection])


def given(folder: Path, engine: str, *selections: str) -> list[str]:
    cells = matrix.select(folder, selections)
    return [cell.label for cell in matrix.for_engine(folder, cells, engine)]


def test_an_engine_is_given_what_a_configuration_names_instead(configs_directory: Path) -> None:
    assert given(configs_directory, "sglang", "baseline") == ["baseline"]
    assert given(configs_directory, "sglang-cpu", "eagle3", "baseline") == [
        "eagle3",
        "smollm2_cpu in place of baseline",
    ]


def test_a_stand_in_comes_once(configs_directory: Path) -> None:
    both = "smollm2_cpu in place of baseline"
    assert given(configs_directory, "sglang-cpu", "smollm2_cpu", "baseline") == [both]
    found = given(configs_directory, "sglang-cpu", "all")
    assert found[0] == both
    assert len(found) == 12


def test_a_stand_in_for_many_cells_names_them(tmp_path: Path) -> None:
    text = (
        'description = "x"\nstage = "a"\nestimated_seconds = 1\nsuites = ["mine"]\n'
        '{}\n[model]\npath = "m"\n'
    )
    axis = 'axis.size = [1, 2]\ninstead.reference = "small"'
    (tmp_path / "large.toml").write_text(text.format(axis))
    (tmp_path / "small.toml").write_text(text.format("axis.size = [3, 4]"))
    replaced = "in place of large(size=1), large(size=2)"
    assert given(tmp_path, "reference", "large") == [
        f"small(size=3) {replaced}",
        f"small(size=4) {replaced}",
    ]
    assert given(tmp_path, "attach", "large") == ["large(size=1)", "large(size=2)"]
