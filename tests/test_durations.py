"""How long cells take: the kept file, estimates, and what is read from the records of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from made_runs import cell, end, make, record, verdict
from servematrix import config, durations
from servematrix.config import ConfigError
from servematrix.durations import Duration
from servematrix.engines.base import EnvironmentProblem
from servematrix.records import RecordsError


def kept(folder: Path, text: str) -> Path:
    file = folder / "durations.json"
    file.write_text(text)
    return file


def test_the_kept_file_lies_beside_the_configurations_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    kept(tmp_path, "{}")
    assert durations.path(tmp_path, None) == tmp_path / "durations.json"
    assert config.names(tmp_path) == ["a"]


def test_durations_are_read_and_written_alike_whatever_their_order(tmp_path: Path) -> None:
    found = {"sglang": {"b": 131.24, "a": 2}, "reference": {"a": 0.01}, "attach": {}}
    file = tmp_path / "durations.json"
    durations.write(file, found)
    assert durations.read(file) == {"sglang": {"a": 2.0, "b": 131.2}, "reference": {"a": 0.1}}
    text = file.read_text()
    durations.write(file, dict(reversed(found.items())))
    assert file.read_text() == text
    assert text.endswith("}\n")


def test_without_a_file_nothing_is_recorded(tmp_path: Path) -> None:
    assert durations.read(tmp_path / "durations.json") == {}


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"--cell-durations x\.json: no such file"):
        durations.path(tmp_path, "x.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "valid dictionary"),
        ('{"vllm": {}}', "key 'vllm': not a valid name"),
        ('{"sglang": 3}', "durations.json: sglang: "),
        ('{"sglang": {"a": 0}}', "sglang: key 'a': Input should be greater than 0"),
        ('{"sglang": {"a": -1}}', "key 'a': Input should be greater than 0"),
        ('{"sglang": {"a": Infinity}}', "key 'a': Input should be a finite number"),
        ('{"sglang": {"a": NaN}}', "key 'a': Input should be"),
        ('{"sglang": {"a": "5"}}', "key 'a': Input should be a valid number"),
        ('{"sglang": {"a": true}}', "key 'a': Input should be a valid number"),
    ],
)
def test_a_file_that_is_none_of_durations_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        durations.read(kept(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path / "durations.json") in str(caught.value)


def test_what_is_not_recorded_is_estimated() -> None:
    assert durations.expected({"a": 3.5, "gone": 9}, {"a": 100, "b": 60}) == {
        "a": Duration(3.5, True),
        "b": Duration(60.0, False),
    }


def test_the_newest_replaces_what_was_kept() -> None:
    old = {"sglang": {"a": 1.0, "b": 2.0}}
    newer = [{"sglang": {"a": 5.0}}, {"sglang": {"a": 6.0}, "reference": {"a": 0.5}}]
    joined = {"sglang": {"a": 6.0, "b": 2.0}, "reference": {"a": 0.5}}
    assert durations.updated(old, newer) == joined
    assert old == {"sglang": {"a": 1.0, "b": 2.0}}


# -- from records ----------------------------------------------------------------------------------

WHOLE = [
    cell("a", ready=50, startup=40),
    verdict("a", 60),
    cell("b", ready=100, startup=30),
    verdict("a", 130, test="test_b"),
    verdict("b", 140, "fail"),
    record("shutdown", 141.5, cell="b", problem="memory"),
    end(150, 1, fail=1),
]


def measured(folder: Path, found: list[dict[str, Any]], **header: Any) -> dict[str, Any]:
    return durations.measured(make(folder / "run", ["a", "b"], found, **header))


def test_a_cell_takes_from_its_launch_to_its_last_record(tmp_path: Path) -> None:
    assert measured(tmp_path, WHOLE) == {"sglang": {"a": 120.0, "b": 71.5}}


@pytest.mark.parametrize(
    "ended",
    [
        [],
        [end(150, 2)],
        [end(150, 3)],
        [end(150, 4)],
        [{**end(150, 1), "stopped": True}],
        [end(150, 0), record("resume", 160, again=[]), verdict("b", 170, test="test_c")],
    ],
)
def test_a_run_that_was_cut_short_measures_nothing(tmp_path: Path, ended: list[Any]) -> None:
    assert measured(tmp_path, [*WHOLE[:-1], *ended]) == {"sglang": {}}


@pytest.mark.parametrize(
    "selection",
    [
        {"arguments": ["suites"], "keyword": "occupancy"},
        {"arguments": ["suites/test_cuda_graph.py"]},
        {"arguments": ["suites/test_s.py::T::test_a"]},
        {"arguments": ["suites"], "deselect": ["x"]},
    ],
)
def test_a_run_of_some_tests_measures_nothing(tmp_path: Path, selection: Any) -> None:
    assert measured(tmp_path, WHOLE, selection=selection) == {"sglang": {}}


def test_a_cell_whose_server_died_or_was_launched_again_is_left_out(tmp_path: Path) -> None:
    died = [*WHOLE[:-1], record("death", 145, cell="b", nodeid="x", reason="gone"), WHOLE[-1]]
    assert measured(tmp_path, died) == {"sglang": {"a": 120.0}}
    again = [
        *WHOLE[:4],
        record("resume", 200, again=[]),
        cell("b", ready=230, startup=20),
        verdict("b", 300),
        end(301),
    ]
    assert measured(tmp_path / "again", again) == {"sglang": {"a": 120.0}}


@pytest.mark.parametrize("startup", [float("inf"), float("nan"), -100])
def test_a_duration_that_is_none_is_left_out(tmp_path: Path, startup: float) -> None:
    found = [cell("a", ready=50, startup=startup), verdict("a", 60), end(61)]
    assert measured(tmp_path, found) == {"sglang": {}}


def test_a_cell_without_a_verdict_or_without_a_server_is_left_out(tmp_path: Path) -> None:
    found = [cell("a", ready=50, startup=40), verdict("b", 60, "not_applicable"), end(61)]
    assert measured(tmp_path, found) == {"sglang": {}}


@pytest.mark.parametrize(
    "broken",
    [
        record("cell", 1, cell="a"),
        {**cell("a", 1, 1), "time": "yesterday"},
        {**cell("a", 1, 1), "startup_seconds": None},
    ],
)
def test_records_of_another_form_are_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(RecordsError, match=r"records.jsonl"):
        measured(tmp_path, [broken, verdict("a", 5), end(6)])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="nowhere"):
        durations.measured(tmp_path / "nowhere")


def test_what_is_written_is_json_for_people(tmp_path: Path) -> None:
    file = tmp_path / "durations.json"
    durations.write(file, {"sglang": {"a": 1.0}})
    assert json.loads(file.read_text()) == {"sglang": {"a": 1.0}}
    assert file.read_text().count("\n") == 5
    with pytest.raises(RecordsError, match="cannot write"):
        durations.write(tmp_path / "no" / "folder.json", {})
