"""The matrix: read from records, drawn, kept, and the part of it that is run each time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from servematrix.cli import main
from servematrix.faults import known, matrix, table
from servematrix.faults.known import CATCHERS, KITS
from servematrix.faults.matrix import Entry, Healthy, Matrix
from servematrix.records import RecordsError, Run

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "faults" / "matrix.jsonl"
PAGE = ROOT / "docs" / "faults.md"
PARTS = 4
NAMES = [fault.name for fault in known.load().fault]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    made.write("run")
    return made


def conclude(run: Run, cell: str, kit: str, verdict: str, *, started: bool = True) -> None:
    if started:
        run.write("cell", cell=cell)
    run.write("verdict", cell=cell, kit=kit, test="test_x", verdict=verdict, reason="why\nlog")


@pytest.mark.parametrize(
    ("verdict", "caught"),
    [
        ("pass", False),
        ("not_applicable", False),
        ("inconclusive", True),
        ("error", True),
        ("fail", True),
    ],
)
def test_a_kit_catches_what_keeps_its_run_from_being_green(run, verdict, caught):
    conclude(run, "errors(kit=hellaswag)", "hellaswag", "pass")
    conclude(run, "errors(kit=hellaswag)", "hellaswag", verdict, started=False)
    found = matrix.read(run.folder)
    entry = found.entries["errors", "hellaswag"]
    assert (entry.caught, found.caught_by("errors")) == (caught, ["hellaswag"] * caught)
    assert found.entries["errors", "cuda_graph"] == Entry("errors", "cuda_graph", caught=False)
    assert found.alone("hellaswag") == ["errors"] * caught


def test_a_server_that_never_started_was_caught_at_launch_and_met_no_kit(run):
    conclude(run, "never-ready(kit=api_contract)", "api_contract", "error", started=False)
    found = matrix.read(run.folder)
    assert found.caught_by("never-ready") == ["launch"]
    assert found.entries["never-ready", "api_contract"].verdict is None


def test_what_a_server_left_is_caught_at_its_shutdown_and_by_no_kit(run):
    conclude(run, "memory-kept(kit=api_contract)", "api_contract", "pass")
    conclude(run, "memory-kept(kit=api_contract)", "shutdown", "error", started=False)
    assert matrix.read(run.folder).caught_by("memory-kept") == ["shutdown"]


def test_healthy_servers_are_no_fault_and_their_alarms_are_counted(run):
    conclude(run, "healthy(run=1)", "hellaswag", "pass")
    conclude(run, "healthy-eagle3(run=1)", "spec_decoding", "not_applicable")
    found = matrix.read(run.folder)
    assert found.faults == []
    assert found.healthy.rate_at_most == pytest.approx(1 - 0.05**0.5)
    conclude(run, "healthy(run=2)", "fwd_occupancy", "inconclusive")
    healthy = matrix.read(run.folder).healthy
    assert (healthy.runs, healthy.rate_at_most) == (3, None)
    assert healthy.alarms == ("healthy(run=2): fwd_occupancy.test_x: inconclusive: why",)
    assert "1 false alarms in 3 healthy runs." in table.told_healthy(healthy)


def test_200_healthy_runs_without_an_alarm_bound_the_rate():
    assert Healthy(200, ()).rate_at_most == pytest.approx(0.0149, abs=1e-4)
    assert "at most 1.5 %" in table.told_healthy(Healthy(200, ()))
    assert "No healthy server" in table.told_healthy(Healthy(0, ()))


def test_records_without_a_verdict_are_no_matrix(run):
    with pytest.raises(RecordsError, match="no verdict"):
        matrix.read(run.folder)


# -- what must hold -------------------------------------------------------------------------------


def kept() -> Matrix:
    return table.parse(KEPT)


def without(found: Matrix, fault: str, kit: str) -> Matrix:
    """The same where a kit did not catch a fault."""
    changed = Entry(fault, kit, caught=False, verdict="pass")
    return Matrix({**found.entries, (fault, kit): changed}, found.healthy)


def test_the_kept_matrix_is_whole_and_has_no_problem():
    found = kept()
    assert found.faults == NAMES
    assert found.problems(known.load(), whole=True) == []
    assert found.healthy.runs >= 200
    assert not found.healthy.alarms
    for kit in KITS:
        assert found.alone(kit), kit


@pytest.mark.parametrize(
    ("fault", "kit"), [("errors", "scheduler_stress"), ("never-ready", "launch")]
)
def test_a_fault_that_is_no_longer_caught_is_a_problem(fault, kit):
    found = without(kept(), fault, kit)
    (problem, *_) = found.problems(known.load(), whole=True)
    assert problem == f"{fault}: {kit} must catch it and did not catch it (pass)"
    assert found.changes(kept())[0].startswith(f"{fault} before {kit}: caught it")
    assert kept().changes(kept()) == []


def test_a_cell_that_is_caught_where_it_was_not_is_a_change():
    new = Matrix(
        {("errors", "cuda_graph"): Entry("errors", "cuda_graph", True, "fail")}, Healthy(0, ())
    )
    assert len(new.changes(kept())) == 1
    blank = Matrix({("errors", "cuda_graph"): Entry("errors", "cuda_graph", False)}, Healthy(0, ()))
    assert blank.changes(kept()) == []


def test_a_kit_that_catches_nothing_alone_must_say_why_it_stays():
    found = kept()
    for fault in found.alone("cuda_graph"):
        found = without(found, fault, "cuda_graph")
    told = found.problems(known.load(), whole=True)
    assert "cuda_graph catches nothing alone" in told[-1]
    stays = known.load().model_copy(update={"stays": {"cuda_graph": "it names the cause"}})
    assert not [one for one in found.problems(stays, whole=True) if "alone" in one]


def test_a_fault_that_was_not_run_is_missing_from_a_whole_matrix_only():
    found = kept()
    entries = {key: entry for key, entry in found.entries.items() if key[0] != "errors"}
    part = Matrix(entries, found.healthy)
    assert part.problems(known.load(), whole=False) == []
    assert part.problems(known.load(), whole=True) == ["errors: not run"]


def test_a_false_alarm_is_a_problem(tmp_path, capsys):
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    rows[-1] |= {"alarms": ["healthy(run=1): hellaswag.test_x: fail: why"]}
    changed = tmp_path / "matrix.jsonl"
    changed.write_text("\n".join(map(json.dumps, rows)))
    assert main(["faults", "--matrix", str(changed)]) == 1
    assert "false alarm: healthy(run=1): hellaswag" in capsys.readouterr().err


# -- drawn ----------------------------------------------------------------------------------------


def test_one_object_a_line_for_each_fault_and_kit(capsys):
    assert main(["faults", "--matrix", str(KEPT), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(NAMES) * len(CATCHERS) + len(KITS)
    assert all({"fault", "kit", "caught"} <= set(row) for row in rows)
    assert rows == [json.loads(line) for line in KEPT.read_text().splitlines()]


def test_the_table_of_the_page_is_drawn_from_the_kept_matrix(capsys):
    assert main(["faults", "--matrix", str(KEPT), "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in PAGE.read_text()


def test_the_table_for_people_tells_caught_from_not_reached(capsys):
    assert main(["faults", "--matrix", str(KEPT)]) == 0
    shown = capsys.readouterr().out
    (line,) = re.findall(r"^ never-ready .*$", shown, re.MULTILINE)
    assert line.split()[1:] == ["●"]


@pytest.mark.parametrize("content", ["", "no json", '{"kit": "x"}', '{"fault": "errors", "x": 1}'])
def test_what_is_no_matrix_is_told(tmp_path, content):
    file = tmp_path / "matrix.jsonl"
    file.write_text(content or '{"fault": 1}')
    with pytest.raises(RecordsError, match="no fault matrix"):
        table.parse(file)


# -- run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(PARTS))
def test_each_fault_is_caught_by_a_kit_that_must_catch_it(tmp_path, capsys, monkeypatch, part):
    monkeypatch.chdir(ROOT)
    some = NAMES[part::PARTS]
    out = ["--out", str(tmp_path / "run"), "-n", "1", "--against", str(KEPT)]
    status = main(["faults", "--run", "--quick", *out, "--json", *some])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert {row["fault"] for row in rows if row["caught"]} == set(some)
