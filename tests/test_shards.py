"""Cells in order and dealt out to shards, in a run, in a plan, and as jobs of GitHub Actions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix import cli, durations, records, shards
from servematrix.durations import Duration
from servematrix.engines.base import EnvironmentProblem
from servematrix.shards import Shard, deal, longest_first

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 60
suites = ["mine"]
axis.size = [1, 2, 3]
[model]
path = "org/model"
"""
SUITE = """
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit


@pytest.mark.suite("mine")
class TestMine(Kit):
    kit = "mine"

    def test_it(self):
        self.conclude(Verdict("pass", rule="a rule", reason="it is"))
"""
SHARDS = st.integers(1, 12)
DURATIONS = st.builds(
    Duration, st.floats(0.1, 1e5, allow_nan=False).map(lambda x: round(x, 1)), st.booleans()
)
CELLS = st.dictionaries(st.text("abc(=)1", min_size=1, max_size=6), DURATIONS, max_size=40)


def seconds(cells: dict[str, Duration], names: list[str]) -> float:
    return sum(cells[name].seconds for name in names)


@given(CELLS, SHARDS)
def test_every_cell_is_in_exactly_one_shard(cells: dict[str, Duration], number: int) -> None:
    dealt = deal(cells, number)
    assert len(dealt) == number
    assert sorted(name for own in dealt for name in own) == sorted(cells)


@given(CELLS, SHARDS, st.randoms(use_true_random=False))
def test_the_order_in_which_cells_come_does_not_matter(
    cells: dict[str, Duration], number: int, chance: random.Random
) -> None:
    shuffled = list(cells.items())
    chance.shuffle(shuffled)
    assert deal(dict(shuffled), number) == deal(cells, number)


@given(CELLS, SHARDS, st.text("xyz", min_size=1, max_size=3), st.floats(0.1, 1e5))
def test_a_cell_that_nobody_measured_moves_none_that_was(
    cells: dict[str, Duration], number: int, name: str, estimate: float
) -> None:
    before = deal(cells, number)
    after = deal({**cells, name: Duration(estimate, False)}, number)
    for then, now in zip(before, after, strict=True):
        assert [one for one in then if cells[one].recorded] == [
            one for one in now if one != name and cells[one].recorded
        ]


@given(CELLS.filter(len), SHARDS)
def test_the_busiest_shard_is_within_the_bounds(cells: dict[str, Duration], number: int) -> None:
    """Those of list scheduling, in any order: total/m + (1 - 1/m) longest (Graham, 1966)."""
    busiest = max(seconds(cells, own) for own in deal(cells, number))
    longest = max(one.seconds for one in cells.values())
    total = seconds(cells, list(cells))
    assert busiest >= max(longest, total / number) * (1 - 1e-9)
    assert busiest <= (total / number + (1 - 1 / number) * longest) * (1 + 1e-9)


def test_all_recorded_cells_are_dealt_longest_first() -> None:
    """Graham's own worst case for two machines: 7/6 of the least possible 6."""
    cells = {f"c{n}": Duration(s, True) for n, s in enumerate((3.0, 2.0, 2.0, 3.0, 2.0))}
    assert deal(cells, 2) == [["c0", "c1", "c4"], ["c3", "c2"]]


def test_recorded_cells_are_dealt_before_estimated_ones() -> None:
    cells = {"guess": Duration(100, False), "a": Duration(2, True), "b": Duration(1, True)}
    assert deal(cells, 2) == [["a"], ["b", "guess"]]


def test_equal_cells_stay_in_their_order_where_they_are_only_put_in_order() -> None:
    cells = {"b": Duration(1, True), "a": Duration(1, False), "c": Duration(2, True)}
    assert longest_first(cells) == ["c", "b", "a"]


def test_a_shard_is_named_by_number_and_count() -> None:
    assert shards.parse("2/4") == Shard(2, 4)
    assert str(shards.parse("4/4")) == "4/4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/4", "counted from 1, so the first of 4 is 1/4 and the last 4/4"),
        ("5/4", "the last 4/4"),
        ("1/0", "1/1"),
        ("a/b", "expected NUMBER/SHARDS, such as 2/4"),
        ("2", "expected NUMBER/SHARDS"),
        ("-1/4", "expected NUMBER/SHARDS"),
        ("1/2/3", "expected NUMBER/SHARDS"),
        ("1/\u0664", "expected NUMBER/SHARDS"),
        ("1/99999999999", "expected NUMBER/SHARDS"),
    ],
)
def test_what_is_no_shard_is_refused(text: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message):
        shards.parse(text)


# -- plans -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configurations of three cells, one of which was measured."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "160")
    made = tmp_path / "configs"
    made.mkdir()
    (made / "mine.toml").write_text(CONFIG)
    (made / "durations.json").write_text('{"reference": {"mine(size=2)": 100}}')
    return made


def planned(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> Any:
    asked = ["plan", "all", "--configs", str(folder), *options]
    status = cli.main(asked)
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def test_plan_shows_a_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        [one["cell"] for one in planned(capsys, folder, "--json", "--shard", f"{n}/2")["cells"]]
        for n in (1, 2)
    ]
    assert cells == [["mine(size=2)"], ["mine(size=1)", "mine(size=3)"]]
    assert cli.main(["plan", "--configs", str(folder), "--shard", "1/2"]) == 0
    assert (
        f"shard 1/2: 1 of 3 cells; about 100 s of 220 s; durations: 1 recorded in "
        f"{folder / 'durations.json'}, 2 estimated\n"
    ) in capsys.readouterr().out


def test_a_named_file_of_durations_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.parent / "other.json"
    other.write_text('{"reference": {"mine(size=3)": 500}, "sglang": {"mine(size=1)": 900}}')
    asked = ("--json", "--shard", "1/2", "--cell-durations", str(other))
    (cell,) = planned(capsys, folder, *asked)["cells"]
    assert (cell["cell"], cell["recorded_seconds"]) == ("mine(size=3)", 500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "5/4"], "--shard 5/4: shards are counted from 1"),
        (["--cell-durations", "nowhere.json"], "--cell-durations nowhere.json: no such file"),
        (["--shards", "2"], "--shards is about --github"),
        (["--github"], "the machine that plans is not the one that runs; say what the jobs run"),
        (["--github", "--engine", "sglang", "--json"], "leave out --json"),
        (["--github", "--engine", "sglang", "--shard", "1/2"], "--shard is one of them"),
        (["--github", "--engine", "sglang", "--shards", "0"], "--shards 0: 1 to 256"),
        (["--github", "--engine", "sglang", "--shards", "257"], "--shards 257: 1 to 256"),
    ],
)
def test_bad_plans_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["plan", "--configs", str(folder), *options]) == 4
    out, err = capsys.readouterr()
    assert message in err
    assert not out


def test_cells_that_the_engine_serves_nowhere_are_in_no_shard_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cpu.toml").write_text(CONFIG.replace("[model]", "requires.gpus = 0\n[model]"))
    asked = ["plan", "--configs", str(folder), "--engine", "sglang", "--shard", "2/2"]
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    assert "shard 2/2: 1 of 3 cells" in out
    assert "in no shard: cpu(size=1): it is for engines without a GPU" in out


# -- GitHub ----------------------------------------------------------------------------------------


def test_a_job_a_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, folder, "--github", "--engine", "reference")["include"]
    assert found[1] == {
        "name": "mine(size=2)",
        "config": "mine(size=2)",
        "cells": ["mine(size=2)"],
        "engine": "reference",
        "runs-on": ["ubuntu-latest"],
        # 15 and twice 100 s
        "timeout-minutes": 19,
    }
    assert [one["config"] for one in found] == [f"mine(size={n})" for n in (1, 2, 3)]


def test_a_job_a_shard_has_the_cells_that_the_shard_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--github", "--engine", "reference", "--shards", "2")
    found = planned(capsys, folder, *asked)["include"]
    assert [one["shard"] for one in found] == ["1/2", "2/2"]
    for one in found:
        plan = planned(capsys, folder, "--json", "--shard", one["shard"])["cells"]
        assert one["cells"] == [cell["cell"] for cell in plan]
        assert "config" not in one
    assert found[1]["timeout-minutes"] == 15 + 4


def test_a_shard_without_a_cell_is_no_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--github", "--engine", "reference", "--shards", "9")
    assert len(planned(capsys, folder, *asked)["include"]) == 3


def test_runner_labels_say_what_a_cell_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = "[requires]\ngpus = 2\nmemory_gib = 25\ncompute_capability = '>=8.0'\n[model]"
    (folder / "mine.toml").write_text(CONFIG.replace("[model]", needs))
    (job, *_) = planned(capsys, folder, "--github", "--engine", "sglang")["include"]
    labels = ["self-hosted", "linux", "gpu", "gpus-2", "vram-32", "cc-min-8.0"]
    assert job["runs-on"] == labels
    (folder / "own.toml").write_text(
        CONFIG.replace("[model]", "[requires]\ncompute_capability = '12.0'\n[model]")
    )
    (job, *_) = planned(capsys, folder, "--github", "--engine", "sglang", "--shards", "1")[
        "include"
    ]
    # an exact capability says the least one too
    assert job["runs-on"] == ["self-hosted", "linux", "gpu", "gpus-2", "vram-32", "cc-12.0"]


def test_a_shard_that_no_runner_could_take_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, capability in (("a", "9.0"), ("b", "12.0")):
        needs = f"[requires]\ncompute_capability = '{capability}'\n[model]"
        (folder / f"{name}.toml").write_text(CONFIG.replace("[model]", needs))
    asked = ["plan", "--configs", str(folder), "--github", "--engine", "sglang", "--shards", "1"]
    assert cli.main(asked) == 4
    assert "shard 1/1: no runner has every compute capability" in capsys.readouterr().err


def test_more_cells_than_github_takes_jobs_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = CONFIG.replace("[1, 2, 3]", str(list(range(257))))
    (folder / "mine.toml").write_text(many)
    asked = ["plan", "--configs", str(folder), "--github", "--engine", "reference"]
    assert cli.main(asked) == 4
    assert "257 cells, and GitHub takes 256 jobs" in capsys.readouterr().err
    found = planned(capsys, folder, "--github", "--engine", "reference", "--shards", "256")
    assert len(found["include"]) == 256


def test_a_cell_that_config_cannot_name_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.toml").write_text(CONFIG.replace("[1, 2, 3]", '["a,b"]'))
    asked = ["plan", "--configs", str(folder), "--github", "--engine", "reference"]
    assert cli.main(asked) == 4
    assert "--config cannot name mine(size=a,b)" in capsys.readouterr().err


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run the matrix of three cells."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    ini = "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    pytester.makefile(".ini", pytest=ini)
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    pytester.makepyfile(test_mine=SUITE)

    def run(*options: str) -> pytest.RunResult:
        asked = ("--engine", "reference", "--config", "mine", *options)
        return pytester.runpytest_subprocess(*asked, timeout=120)

    return run


def test_a_run_of_a_shard_says_so_and_is_resumed_as_that_shard_alone(run) -> None:
    result = run("--shard", "2/2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["servematrix: shard 2/2: 1 of 3 cells; about 60 s of 180 s; *"])
    header, *others = records.read(Path("results/latest"))
    assert header["shard"] == "2/2"
    assert header["configurations"].keys() == {"mine(size=2)"}
    assert {one["cell"] for one in others if "cell" in one} == {"mine(size=2)"}
    lines = Path("results/latest/records.jsonl").read_text().splitlines(keepends=True)
    Path("results/latest/records.jsonl").write_text("".join(lines[:-2]))
    result = run("--shard", "1/2", "--resume", "latest")
    assert result.ret == 4
    assert "cells: only that run has: mine(size=2)" in "\n".join(result.errlines)


def test_all_shards_of_a_run_are_merged_into_the_whole(
    run, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for shard in ("1/2", "2/2"):
        assert run("--shard", shard).ret == 0
        folders.append(str(Path("results/latest").resolve()))
    expect = ("--configs", "configs", "--expect", "all")
    assert cli.main(["merge", folders[0], "--out", "part", *expect]) == 1
    assert "no run has mine(size=2), which was expected" in capsys.readouterr().err
    asked = ["merge", *folders, "--out", "whole", "--cell-durations", "kept.json"]
    assert cli.main([*asked, *expect]) == 0
    told = capsys.readouterr().err
    assert "exit 0 (all verdicts pass): 3 pass; engine reference (simulated: says that the" in told
    whole = list(records.read(Path("whole")))
    cells = {"mine(size=1)", "mine(size=2)", "mine(size=3)"}
    assert {one["cell"] for one in whole if one["kind"] == "verdict"} == cells
    assert durations.read(Path("kept.json"))["reference"].keys() == cells
    assert len(list(Path("whole/parts").glob("*/*.log"))) == 3


def test_a_shard_without_a_cell_is_green_and_says_so(run) -> None:
    result = run("--shard", "4/4")
    assert result.ret == 0
    told = "\n".join(result.outlines)
    assert "servematrix: shard 4/4: no cell, for there are 3;" in told
    assert "servematrix: exit 0 (this shard has no cell): no verdicts" in told
    assert list(records.read(Path("results/latest")))[-1]["exit_code"] == 0


def test_a_shard_that_selects_no_test_is_not_green(run) -> None:
    assert run("--shard", "1/2", "-k", "nothing").ret == 5
