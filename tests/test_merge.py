"""`servematrix merge`: several runs become one, with one status, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from made_runs import HEADER, cell, end, make, record, verdict
from servematrix import cli, durations, records
from servematrix.calibration import measured
from servematrix.compare import runs as compared
from servematrix.engines.base import EnvironmentProblem
from servematrix.exit_codes import Exit
from servematrix.merge.joined import WORST_FIRST
from servematrix.resume import read as resumed

ROOT = Path(__file__).resolve().parent.parent
Merge = Callable[..., tuple[int, str, str]]


@pytest.fixture
def merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Merge:
    """Merge runs into `merged`; returns the status and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def merge(*asked: object) -> tuple[int, str, str]:
        status = cli.main(["merge", "--out", "merged", *map(str, asked)])
        return status, *capsys.readouterr()

    return merge


def part(folder: Path, name: str, outcome: str = "pass", code: int = 0, **header: Any) -> Path:
    """A run of one cell with one verdict."""
    found = [cell(name, 10, 5), verdict(name, 20, outcome), end(21, code, **{outcome: 1})]
    return make(folder, [name], found, **header)


def merged() -> list[dict[str, Any]]:
    return list(records.read(Path("merged")))


def test_two_runs_become_one_that_readers_read(tmp_path: Path, merge: Merge) -> None:
    a = part(tmp_path / "a", "x(n=1)")
    other = {"uuid": "GPU-2", "name": "L4", "driver": "570"}
    b = part(tmp_path / "b", "x(n=2)", "fail", 1, gpus=[other], baselines={"x(n=2)": {"f": "g"}})
    status, out, err = merge(a, b)
    assert status == 1
    assert "x(n=1)" in out
    assert "x(n=2): fail: k.test_a: it is fail" in out
    assert "exit 1 (a verdict failed, or a measurement could not be made): 1 fail, 1 pass" in err
    assert "records and report in merged" in err
    assert "x(n=2)" in Path("merged/report.html").read_text()
    header, *others = merged()
    assert header["merged"] == ["a", "b"]
    assert header["configurations"] == {"x(n=1)": "digest", "x(n=2)": "digest"}
    assert [gpu["uuid"] for gpu in header["gpus"]] == ["GPU-1", "GPU-2"]
    assert header["baselines"] == {"x(n=2)": {"f": "g"}}
    assert (header["engine"], header["git_commit"]) == ("sglang", "abc")
    assert [one["kind"] for one in others] == [
        *("part", "cell", "verdict", "part", "cell", "verdict", "end")
    ]
    assert others[3]["header"] == next(records.read(b))
    assert (others[3]["number"], others[3]["folder"]) == (2, "b")
    assert others[3]["end"]["exit_code"] == 1
    assert others[-1].items() >= {"exit_code": 1, "counts": {"pass": 1, "fail": 1}}.items()
    assert others[1] == list(records.read(a))[1], "as it was, with its time"
    run = compared.read(Path("merged"))
    assert (run.problem, set(run.cells)) == ("", {"x(n=1)", "x(n=2)"})
    assert measured.cells(Path("merged"), "x") == ["x(n=1)", "x(n=2)"]
    assert measured.read(Path("merged"), "x(n=1)").gpus == ["H100"]


def test_a_report_that_cannot_be_drawn_changes_nothing(
    tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undrawn(reports: object) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("servematrix.report.page.render", undrawn)
    status, out, err = merge(part(tmp_path / "a", "x"), part(tmp_path / "b", "y", "fail", 1))
    assert status == 1
    assert "y: fail" in out
    assert "no report was written (RuntimeError: no fonts); the records are whole" in err
    assert "1 fail, 1 pass" in err
    assert "; records in merged" in err


def test_files_of_both_runs_are_there_and_meet_nobody(tmp_path: Path, merge: Merge) -> None:
    for name in ("a", "b"):
        item = record("measurement", 15, cell=name, kit="hellaswag", name="items", unit="file")
        found = [cell(name, 10, 5), {**item, "path": "files/same.json"}, verdict(name, 20), end(21)]
        folder = make(tmp_path / name, [name], found)
        (folder / "files").mkdir()
        (folder / "files" / "same.json").write_text(json.dumps([{"from": name}]))
        (folder / "same.log").write_text(f"log of {name}")
    assert merge(tmp_path / "a", tmp_path / "b" / "records.jsonl")[0] == 0
    run = compared.read(Path("merged"))
    assert {name: one.items() for name, one in run.cells.items()} == {
        "a": [{"from": "a"}],
        "b": [{"from": "b"}],
    }
    assert Path("merged/parts/2/same.log").read_text() == "log of b"


@pytest.mark.parametrize("path", ["../secret.json", "/etc/hostname", "link.json", "gone.json"])
def test_files_outside_of_a_run_are_not_taken(tmp_path: Path, merge: Merge, path: str) -> None:
    (tmp_path / "secret.json").write_text("[1]")
    item = record("measurement", 15, cell="a", kit="k", name="n", unit="file", path=path)
    folder = make(tmp_path / "a", ["a"], [cell("a", 10, 5), item, verdict("a", 20), end(21)])
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    status, out, err = merge(folder)
    assert (status, out) == (4, "")
    assert f"cannot copy {folder / path}" in err
    assert not Path("merged/records.jsonl").exists()


def test_a_log_that_is_a_link_to_elsewhere_is_not_taken(tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "secret").write_text("s")
    folder = part(tmp_path / "a", "a")
    (folder / "server.log").symlink_to(tmp_path / "secret")
    status, _, err = merge(folder)
    assert status == 4
    assert "it lies outside of" in err


# -- status ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ([("pass", 0), ("pass", 0)], 0),
        ([("pass", 0), ("fail", 1)], 1),
        ([("inconclusive", 7), ("fail", 1)], 1),
        ([("pass", 0), ("inconclusive", 7)], 7),
        # as in one run, where something else passed
        ([("pass", 0), ("not_applicable", 7)], 0),
        ([("not_applicable", 7), ("not_applicable", 7)], 7),
        ([("fail", 1), ("error", 6)], 6),
        ([("error", 6), ("pass", 2)], 2),
        ([("pass", 2), ("pass", 4)], 4),
        ([("pass", 4), ("pass", 3)], 3),
        ([("pass", 0), ("pass", 5)], 5),
    ],
)
def test_the_worst_status_wins(
    tmp_path: Path, merge: Merge, ended: list[tuple[str, int]], status: int
) -> None:
    folders = [part(tmp_path / f"p{n}", f"c{n}", *one) for n, one in enumerate(ended)]
    assert merge(*folders)[0] == status
    assert merged()[-1]["exit_code"] == status


def test_every_status_has_its_place() -> None:
    assert sorted(WORST_FIRST) == sorted(Exit)


def test_a_run_that_was_cut_short_is_said_and_is_no_pass(tmp_path: Path, merge: Merge) -> None:
    whole = part(tmp_path / "whole", "a")
    found = [cell("b", 10, 5), verdict("b", 20)]
    cut = make(tmp_path / "cut", ["b", "c"], found)
    status, out, err = merge(whole, cut)
    assert status == 2
    assert "maybe not all tests: its run was cut short" in out
    assert "no verdict: its run was cut short" in out
    assert f"{cut}: it was cut short, or still runs: its records have no end" in err
    assert "exit 2 (a run was cut short): 2 pass" in err
    assert merged()[-1]["counts"] == {"pass": 2}


def test_a_run_that_was_taken_up_counts_as_it_stands(tmp_path: Path, merge: Merge) -> None:
    again = verdict("a", 20, "error")
    found = [
        cell("a", 10, 5),
        again,
        end(21, 2, error=1),
        record("resume", 30, again=[again["nodeid"]]),
        cell("a", 40, 5),
        verdict("a", 50),
        end(51, 0, **{"pass": 1}),
    ]
    assert merge(make(tmp_path / "a", ["a"], found))[0] == 0
    assert [one["verdict"] for one in merged() if one["kind"] == "verdict"] == ["pass"]


def test_a_lost_job_is_not_green(tmp_path: Path, merge: Merge) -> None:
    asked = ("--configs", ROOT / "configs", "--expect", "sm120,smollm2_cpu", "--expect", "smollm2")
    status, _, err = merge(part(tmp_path / "a", "smollm2"), *asked)
    assert status == 1
    lost = "sm120(speculation=off), sm120(speculation=eagle3)"
    assert f"no run has {lost}, which was expected" in err
    assert "not expected: smollm2_cpu: it is for engines without a GPU" in err
    assert "exit 1 (without verdict: 2 expected cells): 1 pass" in err
    assert merged()[-1]["missing"] == lost.split(", ")


def test_a_cell_without_a_verdict_is_missing_too(tmp_path: Path, merge: Merge) -> None:
    folder = make(tmp_path / "a", ["smollm2"], [end(5, 0)])
    assert merge(folder, "--configs", ROOT / "configs", "--expect", "smollm2")[0] == 1


def test_all_that_was_expected_is_there(tmp_path: Path, merge: Merge) -> None:
    empty = make(tmp_path / "empty", [], [end(5, 0)])
    asked = ("--configs", ROOT / "configs", "--expect", "smollm2")
    status, _, err = merge(part(tmp_path / "a", "smollm2"), empty, *asked)
    assert status == 0
    assert "was expected" not in err


# -- refused ---------------------------------------------------------------------------------------


def test_one_cell_twice_is_refused_with_both_runs_named(tmp_path: Path, merge: Merge) -> None:
    a, b = part(tmp_path / "a", "x"), make(tmp_path / "b", ["y", "x"], [end(1)])
    status, _, err = merge(a, b)
    assert status == 4
    assert f"cannot merge {a} and {b}: both have the cell x" in err
    assert not Path("merged").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"engine": "reference"}, "engine: sglang and reference"),
        ({"git_commit": "def"}, "git commit: abc and def"),
        ({"git_changes": "123"}, "changes that are not committed (sha256): None and 123"),
        ({"changes": ["gates.x=1"]}, "(--set, --model, --draft-model): [] and ['gates.x=1']"),
        ({"selection": {"keyword": "x"}}, "tests: "),
        ({"base_url": "http://h"}, "--base-url: None and http://h"),
        ({"hellaswag_sha256": "0"}, "--hellaswag file (sha256): None and 0"),
        ({"versions": {"servematrix": "0.2"}}, "version of servematrix: 0.1.0 and 0.2"),
    ],
)
def test_runs_of_different_things_are_refused(
    tmp_path: Path, merge: Merge, header: dict[str, Any], message: str
) -> None:
    a, b = part(tmp_path / "a", "x"), part(tmp_path / "b", "y", **header)
    status, _, err = merge(a, b)
    assert status == 4
    assert f"cannot merge {a} and {b}: " in err
    assert message in err


def test_servers_of_different_versions_are_refused(tmp_path: Path, merge: Merge) -> None:
    a = part(tmp_path / "a", "x")
    found = [cell("y", 10, 5, versions={"sglang": "0.5.17"}), verdict("y", 20), end(21)]
    status, _, err = merge(a, make(tmp_path / "b", ["y"], found))
    assert status == 4
    assert "version of the server" in err
    assert "0.5.16" in err
    assert "0.5.17" in err


def test_what_differs_between_machines_is_not_refused(tmp_path: Path, merge: Merge) -> None:
    versions = {**HEADER["versions"], "python": "3.12.1"}
    a = part(tmp_path / "a", "x")
    b = part(tmp_path / "b", "y", versions=versions, platform="other", pid=7, shard="2/2")
    assert merge(a, b)[0] == 0


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "verdict", "time": "t", "cell": "a", "kit": "k"},
        {"kind": "end", "time": "t", "exit_code": 99},
        {"kind": "end", "time": "t", "exit_code": 0, "counts": {"pass": "many"}},
        {"kind": "cell", "time": "t", "cell": "a"},
        {"kind": "verdict", "time": "t", "cell": "a", "verdict": "fail"},
        {"kind": "death", "time": "t", "cell": ["a"]},
    ],
)
def test_records_of_another_form_are_refused(
    tmp_path: Path, merge: Merge, broken: dict[str, Any]
) -> None:
    folder = make(tmp_path / "a", ["a"], [broken])
    status, _, err = merge(folder)
    assert status == 4
    assert "records.jsonl: not the records of a run" in err
    assert not Path("merged").exists()


def test_a_folder_that_is_no_run_and_one_that_is_there_already_are_refused(
    tmp_path: Path, merge: Merge
) -> None:
    assert "nowhere" in merge("nowhere")[2]
    Path("merged").mkdir()
    status, _, err = merge(part(tmp_path / "a", "x"))
    assert status == 4
    assert "--out merged: it is there already" in err


def test_a_merged_run_is_neither_merged_again_nor_taken_up(tmp_path: Path, merge: Merge) -> None:
    assert merge(part(tmp_path / "a", "x"))[0] == 0
    Path("merged").rename("m")
    status, _, err = merge("m")
    assert status == 4
    assert "it is merged itself; name the runs that it is made of" in err
    with pytest.raises(EnvironmentProblem, match="merged from a; take up the one that"):
        resumed(Path("m"), dict(HEADER))


# -- what is shown ---------------------------------------------------------------------------------


def test_simulated_stays_labelled(tmp_path: Path, merge: Merge) -> None:
    a = part(tmp_path / "a", "x", engine="reference", simulated=True)
    _, out, err = merge(a, "--markdown")
    assert "simulated: says that the matrix works" in out
    assert "simulated: says that the matrix works" in err
    assert merged()[0]["simulated"] is True


def test_a_summary_for_a_workflow(tmp_path: Path, merge: Merge) -> None:
    found = [cell("x", 10, 5), verdict("x", 20, "fail"), end(21, 1, fail=1)]
    found[1]["reason"] = "<img src=x> | \x1b[31m"
    status, out, _ = merge(make(tmp_path / "a", ["x"], found), "--markdown")
    assert status == 1
    lines = out.splitlines()
    assert lines[0].startswith("**exit 1 (a verdict failed")
    assert "| cell | run | problem | fail |" in lines
    assert "| x | a |  | 1 |" in lines
    assert lines[-1] == r"- x: fail: k.test_a: \<img src=x\> \| \\x1b\[31m"


def test_a_form_for_programs(tmp_path: Path, merge: Merge) -> None:
    _, out, _ = merge(part(tmp_path / "a", "x"), make(tmp_path / "b", ["y"], []), "--json")
    found = json.loads(out)
    assert (found["exit_code"], found["counts"], found["simulated"]) == (2, {"pass": 1}, False)
    assert [one["cell"] for one in found["cells"]] == ["x", "y"]
    assert found["cells"][1]["problem"] == "no verdict: its run was cut short"


def test_inherited_secrets_are_not_written(
    tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    assert merge(part(tmp_path / "a", "x", command=["--key", "hf_planted_token"]))[0] == 0
    assert "hf_planted_token" not in Path("merged/records.jsonl").read_text()


def test_durations_are_kept_of_whole_runs_the_newest_in_place_of_the_old(
    tmp_path: Path, merge: Merge
) -> None:
    Path("d.json").write_text('{"sglang": {"x": 1, "z": 3}, "reference": {"x": 2}}')
    cut = make(tmp_path / "cut", ["y"], [cell("y", 10, 5), verdict("y", 20)])
    _, _, err = merge(part(tmp_path / "a", "x"), cut, "--cell-durations", "d.json")
    assert durations.read(Path("d.json")) == {
        "reference": {"x": 2.0},
        "sglang": {"x": 15.0, "z": 3.0},
    }
    assert "1 duration kept in d.json" in err
