"""`servematrix compare`: two runs side by side, and two servers measured in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from servematrix import cli, records
from servematrix.compare import live
from servematrix.validation.running import Command

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "validation" / "h200-sglang-0.5.16"
BUSY = "fwd_occupancy.test_fwd_occupancy"
FLOOR = "hellaswag.test_accuracy_floor"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def compared(
    capsys: Capture, a: Path, b: Path, *options: str
) -> tuple[int, dict[str, Mapping[str, Any]], str]:
    """The status, the rows by name, and what was told on the side."""
    status = cli.main(["compare", str(a), str(b), "--json", *options])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["exit_code"] == status
    return status, {row["name"]: row for row in found["rows"]}, told.err


def outcomes(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: row["verdict"]["outcome"] for name, row in rows.items()}


# -- recorded runs -------------------------------------------------------------------------------


def test_a_run_against_itself_loses_nothing(capsys: Capture) -> None:
    run = KEPT / "smollm2"
    status, rows, _ = compared(capsys, run, run, "--margin", "paired_accuracy=0.03")
    assert status == 0
    assert set(outcomes(rows).values()) == {"pass", "not_applicable"}
    assert rows["24 tests alike"]["verdict"]["outcome"] == "pass"
    assert rows["occupancy"]["difference"] == 0
    status, rows, _ = compared(capsys, run, run)
    assert status == 7, "200 items do not exclude a loss of one point"
    assert outcomes(rows)["hellaswag paired_accuracy"] == "inconclusive"


def test_an_fp8_cache_is_told_item_by_item(capsys: Capture) -> None:
    status, rows, _ = compared(capsys, KEPT / "smollm2", KEPT / "smollm2-fp8-kv-cache")
    found = outcomes(rows)
    assert status == 1
    assert found["hellaswag drift, mean |Δ|"] == "fail"
    assert found["hellaswag gold_logprob"] == "fail"
    gold = rows["hellaswag gold_logprob"]
    assert gold["low"] < gold["difference"] < gold["high"] < -0.002
    changed = rows["decode_consistency.test_decode_matches_prefill"]
    assert (changed["a"], changed["b"], changed["verdict"]["outcome"]) == ("pass", "fail", "fail")
    assert rows["consistency_relative"]["difference"] == pytest.approx(0.293, abs=0.001)
    assert found["consistency_relative"] == "inconclusive", "one run a side has no interval"


def test_an_accepted_change_of_numerics_passes(capsys: Capture) -> None:
    folders = KEPT / "smollm2", KEPT / "smollm2-fp8-kv-cache"
    _, rows, _ = compared(capsys, *folders, "--accept", "fp8 KV cache")
    drift = rows["hellaswag drift, mean |Δ|"]["verdict"]
    assert drift["outcome"] == "pass"
    assert "accepted as 'fp8 KV cache'" in drift["reason"]


def test_a_lost_overlap_is_told_by_occupancy_and_speed(capsys: Capture) -> None:
    status, rows, _ = compared(capsys, KEPT / "smollm2", KEPT / "smollm2-no-overlap")
    assert status == 1
    assert rows["occupancy"]["difference"] == pytest.approx(-24.46, abs=0.01)
    assert rows["decode_tokens_per_s"]["difference"] == pytest.approx(-202.3, abs=0.1)
    assert (rows[BUSY]["a"], rows[BUSY]["b"]) == ("pass", "fail")
    found = outcomes(rows)
    assert [name for name, outcome in found.items() if outcome == "fail"] == [BUSY]
    assert found["hellaswag drift, mean |Δ|"] == "pass"
    # the other way round it is a gain
    status, rows, _ = compared(capsys, KEPT / "smollm2-no-overlap", KEPT / "smollm2")
    assert status == 7
    assert rows[BUSY]["verdict"]["outcome"] == "pass"


def test_the_only_cells_are_compared_and_what_one_lacks_is_told(capsys: Capture) -> None:
    status, rows, told = compared(capsys, KEPT / "smollm2", KEPT / "llama8b")
    assert status == 7
    assert {row["cell"] for row in rows.values()} == {"smollm2 | baseline"}
    assert outcomes(rows)["22 tests not run in B"] == "inconclusive"
    assert "test_accuracy_floor" in rows["22 tests not run in B"]["verdict"]["reason"]
    assert outcomes(rows)["hellaswag"] == "inconclusive"
    assert outcomes(rows)["consistency_p99"] == "inconclusive"
    assert "not all runs were on the same GPU" in told


def test_the_table_for_people_and_for_documents(capsys: Capture) -> None:
    folders = [str(KEPT / "smollm2"), str(KEPT / "smollm2-no-overlap")]
    assert cli.main(["compare", *folders]) == 1
    text = capsys.readouterr()
    assert f"A: {folders[0]}: sglang 0.5.16 on NVIDIA H200" in text.out
    (line,) = (one.split() for one in text.out.splitlines() if one.startswith(" occupancy"))
    assert line == ["occupancy", "98.3", "73.84", "-24.5", "%", "inconclusive"]
    assert f"{BUSY}: fail: pass in A, fail in B: median 73.84 %" in text.out
    assert "exit 1 (B is worse than A" in text.err
    assert cli.main(["compare", *folders, "--markdown"]) == 1
    assert "| occupancy | 98.3 | 73.84 | -24.5 |  | % | inconclusive |" in capsys.readouterr().out


# -- made-up runs --------------------------------------------------------------------------------


def made(
    root: Path,
    *told: tuple[str, str],
    numbers: Mapping[str, Any] | None = None,
    items: object = None,
    cell: str = "mine",
    simulated: bool = False,
    status: int | None = 0,
) -> Path:
    """A run's folder as a run leaves it; `told` are tests and what they said."""
    run = records.Run.create(root, "x")
    run.begin("run", engine="sglang", simulated=simulated, gpus=[])
    run.write("cell", cell=cell, startup_seconds=1.0, versions={"sglang": "0.5.16"}, gpus=[])
    if items is not None:
        path = run.attach("items", items)
        run.write("measurement", cell=cell, kit="hellaswag", name="items", path=path, unit="file")
    for test, outcome in told:
        kit, _, name = test.partition(".")
        run.write(
            "verdict",
            cell=cell,
            kit=kit,
            test=name,
            verdict=outcome,
            rule="a rule",
            numbers=numbers or {},
            reason="a reason",
        )
    if status is not None:
        run.write("end", exit_code=status)
    return run.folder


@pytest.mark.parametrize(
    ("a", "b", "outcome", "status"),
    [
        ("pass", "pass", None, 0),
        ("fail", "fail", None, 0),
        ("pass", "fail", "fail", 1),
        ("pass", "error", "error", 1),
        ("error", "error", "error", 1),
        ("pass", "inconclusive", "inconclusive", 7),
        ("fail", "pass", "pass", 0),
        ("error", "pass", "pass", 0),
        ("pass", "not_applicable", "not_applicable", 7),
    ],
)
def test_a_changed_verdict_is_told(
    tmp_path: Path, capsys: Capture, a: str, b: str, outcome: str | None, status: int
) -> None:
    folders = [made(tmp_path, ("kit.test_x", one)) for one in (a, b)]
    found, rows, _ = compared(capsys, *folders)
    assert found == status
    assert outcomes(rows).get("kit.test_x") == outcome
    assert ("1 test alike" in rows) == (outcome is None)


def test_what_a_broken_measurement_left_is_not_compared(tmp_path: Path, capsys: Capture) -> None:
    good = made(tmp_path, (BUSY, "pass"), numbers={"median": 98.0})
    bad = made(tmp_path, (BUSY, "error"), numbers={"median": 98.0})
    status, rows, _ = compared(capsys, good, bad)
    assert status == 1
    assert outcomes(rows)["occupancy"] == "error"
    assert "B: fwd_occupancy.test_fwd_occupancy ended in error" in str(rows["occupancy"])


def test_a_number_that_is_none_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    folders = [made(tmp_path, (BUSY, "pass"), numbers={"median": x}) for x in (98.0, float("nan"))]
    status, rows, _ = compared(capsys, *folders)
    assert status == 1
    assert "B has [nan]" in rows["occupancy"]["verdict"]["reason"]


def rows_of(n: int, **more: Any) -> list[dict[str, Any]]:
    lp = [-4.0, -5.0, -6.0, -7.0]
    turn = [{"ind": i, "label": i % 4, "lp": lp[-(i % 3) :] + lp[: -(i % 3)]} for i in range(n)]
    return [{**one, "nt": [4, 4, 4, 4], **more} for one in turn]


@pytest.mark.parametrize(
    ("items", "numbers", "name", "message"),
    [
        (rows_of(150, n0=30, cached=[30] * 4), {}, "hellaswag pairing", "scored differently"),
        (rows_of(140), {}, "hellaswag pairing", "missing in the candidate: items 140"),
        ([7], {}, "hellaswag pairing", "row 0 of the candidate"),
        (rows_of(150), {"checksum_shots": "other"}, "hellaswag", "checksum_shots is mine in A"),
        (rows_of(150), {"shots": 5}, "hellaswag", "shots is 20 in A and 5 in B"),
    ],
)
def test_items_scored_otherwise_are_refused(
    tmp_path: Path,
    capsys: Capture,
    items: object,
    numbers: Mapping[str, Any],
    name: str,
    message: str,
) -> None:
    own: dict[str, Any] = {"checksum_shots": "mine", "shots": 20}
    a = made(tmp_path, (FLOOR, "pass"), numbers=own, items=rows_of(150))
    b = made(tmp_path, (FLOOR, "pass"), numbers={**own, **numbers}, items=items)
    status, rows, _ = compared(capsys, a, b)
    assert status == 1
    assert rows[name]["verdict"]["outcome"] == "error"
    assert message in rows[name]["verdict"]["reason"]


@pytest.mark.parametrize(
    ("status", "message"), [(None, "cut short"), (6, "status 6"), (2, "interrupted")]
)
def test_a_run_that_is_not_whole_is_an_error(
    tmp_path: Path, capsys: Capture, status: int | None, message: str
) -> None:
    whole, cut = (made(tmp_path, ("kit.test_x", "pass"), status=one) for one in (0, status))
    found, rows, _ = compared(capsys, whole, cut)
    assert found == 1
    assert list(rows) == ["run of B"]
    assert message in rows["run of B"]["verdict"]["reason"]


def test_a_cell_of_one_side_alone_is_told(tmp_path: Path, capsys: Capture) -> None:
    a, b = (made(tmp_path, ("kit.test_x", "pass")) for _ in range(2))
    run = records.Run(a)
    run.write("cell", cell="other", startup_seconds=1.0, versions={}, gpus=[])
    status, rows, told = compared(capsys, a, b)
    assert status == 0
    assert {row["cell"] for row in rows.values()} == {"mine"}
    assert "only A has other" in told


def _simulated(root: Path) -> tuple[Path, Path]:
    return made(root, (BUSY, "pass")), made(root, (BUSY, "pass"), simulated=True)


def _strangers(root: Path) -> tuple[Path, Path]:
    a, b = made(root, (BUSY, "pass"), cell="x"), made(root, (BUSY, "pass"), cell="y")
    records.Run(a).write("cell", cell="z", startup_seconds=1.0, versions={}, gpus=[])
    return a, b


def _damaged(root: Path) -> tuple[Path, Path]:
    a, b = (made(root, (FLOOR, "pass"), items=rows_of(150)) for _ in range(2))
    (b / "files" / "items.json").write_text("[{")
    return a, b


def _headless(root: Path) -> tuple[Path, Path]:
    a, b = (made(root, (BUSY, "pass")) for _ in range(2))
    lines = (b / records.FILE).read_text().splitlines()
    broken = [line.replace('"simulated"', '"x"') for line in lines]
    (b / records.FILE).write_text("\n".join(broken))
    return a, b


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_simulated, "one side is simulated"),
        (_strangers, "no cell in common"),
        (_damaged, "items.json"),
        (_headless, "no key 'simulated'"),
        (lambda root: (made(root, (BUSY, "pass")), root / "none"), "none/records.jsonl"),
    ],
)
def test_runs_that_cannot_be_compared_are_usage(
    tmp_path: Path, capsys: Capture, make: Callable[[Path], tuple[Path, Path]], message: str
) -> None:
    assert cli.main(["compare", *map(str, make(tmp_path))]) == 4
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name two runs, or say how two servers differ"),
        (["one"], "1 run was named"),
        (["one", "two", "three"], "3 runs were named"),
        (["one", "two", "--b", "sglang==1"], "--b is about servers to measure"),
        (["one", "two", "--b-set", "x=1"], "--b-set is about servers to measure"),
        (["--margin", "ocupancy=1"], "did you mean 'occupancy'?"),
        (["--margin", "occupancy=-1"], "expected occupancy=NUMBER, above 0"),
        (["--margin", "occupancy"], "expected occupancy=NUMBER, above 0"),
        (["--accept", " "], "the change has a name"),
        (["--json", "--markdown"], "leave one out"),
        (["--b", "0.5.17"], "expected sglang==VERSION"),
        (["--b", "arguments.x=1"], "--b-set KEY=VALUE"),
        (["--b", "sglang==0.5.17"], "it would not be started, for no GPU is visible"),
        (["--b", "http://127.0.0.1:9"], "one side is simulated"),
        (["--b-set", "x.y=1"], "unknown key 'x'"),
        (["--b-set", "estimated_seconds=5", "--rounds", "0"], "one at least"),
        (["--b-set", "estimated_seconds=5", "--config", "smolm2"], "did you mean 'smollm2'?"),
    ],
)
def test_bad_usage_starts_nothing(
    tmp_path: Path, capsys: Capture, options: Sequence[str], message: str
) -> None:
    out = tmp_path / "out"
    named = [] if options and not options[0].startswith("-") else ["--out", str(out)]
    assert cli.main(["compare", *options, *named]) == 4
    assert message in capsys.readouterr().err
    assert not out.exists()


# -- servers measured in turn --------------------------------------------------------------------


Answer = Callable[[int, str], Mapping[str, Any] | None]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[list[str]]]:
    """Replaces the guarded run by records that a function of its number and side gives."""

    def replaced(answer: Answer) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: Command, output: Path) -> tuple[bool, str]:
            commands.append(list(command.line))
            output.write_text("what it printed\n")
            found = answer(len(commands), output.stem[-1])
            if found is None:
                return False, "interrupted"
            if found:
                made(Path(command.line[-1].removeprefix("--results=")), (BUSY, "pass"), **found)
            return True, "exit 1"

        monkeypatch.setattr(live, "guarded_run", run)
        return commands

    return replaced


def measured(capsys: Capture, out: Path, *options: str) -> tuple[int, dict[str, str], str]:
    command = ["compare", "--engine", "reference", "--config", "smollm2", "--out", str(out)]
    status = cli.main([*command, "--json", "--b-set", "arguments.x=1", *options])
    told = capsys.readouterr()
    found = json.loads(told.out)
    return status, {r["name"]: r["verdict"]["outcome"] for r in found["rows"]}, told.err


def test_runs_are_made_in_turn_and_paired(
    tmp_path: Path, capsys: Capture, runner: Callable[[Answer], list[list[str]]]
) -> None:
    # the machine loses a point from run to run; B is 10 points below A
    def answer(number: int, side: str) -> Mapping[str, Any]:
        return {"numbers": {"median": 99.0 - 0.1 * number - (10 if side == "b" else 0)}}

    commands = runner(answer)
    status, rows, told = measured(capsys, tmp_path / "out", "--rounds", "2")
    assert status == 1
    assert rows["occupancy"] == "fail"
    changed = ["--set=arguments.x=1" in command for command in commands]
    assert changed == [False, True, True, False] * 2
    assert all("--engine=reference" in command for command in commands)
    assert all("--no-baseline" in command for command in commands)
    assert "[2/8] B: reference --set arguments.x=1" in told


def test_two_urls_are_each_asked(
    tmp_path: Path, capsys: Capture, runner: Callable[[Answer], list[list[str]]]
) -> None:
    commands = runner(lambda number, side: {"numbers": {"median": 98.0}})
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:8"]
    asked = ["compare", "--a", urls[0], "--b", urls[1], "--config", "smollm2", "--json"]
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["low"] == 0
    named = [[one for one in command if one.startswith("--base-url=")] for command in commands]
    assert [one.partition("=")[2] for (one,) in named] == [
        *urls,
        *reversed(urls),
    ]


@pytest.mark.parametrize(
    ("found", "message"),
    [({}, "it left no records"), ({"status": 6, "numbers": {}}, "status 6")],
)
def test_the_first_run_that_is_not_whole_is_the_last(
    tmp_path: Path,
    capsys: Capture,
    runner: Callable[[Answer], list[list[str]]],
    found: Mapping[str, Any],
    message: str,
) -> None:
    good = {"numbers": {"median": 98.0}}
    commands = runner(lambda number, side: good if side == "a" else found)
    status, rows, told = measured(capsys, tmp_path / "out")
    assert status == 1
    assert rows == {"run of B": "error"}
    assert len(commands) == 2
    assert message in told
    assert "what it printed" in told


def test_an_interrupt_ends_it_and_tells_what_there_is(
    tmp_path: Path, capsys: Capture, runner: Callable[[Answer], list[list[str]]]
) -> None:
    good = {"numbers": {"median": 98.0}}
    runner(lambda number, side: good if number < 3 else None)
    status, rows, told = measured(capsys, tmp_path / "out")
    assert status == 2
    assert rows["occupancy"] == "not_applicable"
    assert "exit 2 (interrupted)" in told


def test_runs_are_not_overwritten(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "there").touch()
    options = ["--engine", "reference", "--config", "smollm2", "--out", str(tmp_path)]
    assert cli.main(["compare", "--b-set", "arguments.x=1", *options]) == 4
    assert "has files already" in capsys.readouterr().err


def test_a_lost_overlap_is_seen_from_end_to_end(project: Path) -> None:
    command = [sys.executable, "-m", "servematrix", "compare", "--engine", "reference"]
    command += ["--config", "smollm2", "--b-set", "arguments.disable-overlap-schedule=true"]
    command += ["--set", 'suites=["quick"]', "--set", "kits.fwd_occupancy.max_new_tokens=600"]
    done = subprocess.run(
        [*command, "--out", "out", "--json"],
        cwd=project,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["occupancy"]["verdict"]["outcome"] == "fail"
    assert rows["occupancy"]["high"] < -2
    assert rows["decode_tokens_per_s"]["difference"] < 0
    assert all("simulated" in told and "2 runs" in told for told in found["sides"].values())
    assert "[4/4] A: reference" in done.stderr
    assert "test session starts" in (project / "out" / "1-a.txt").read_text()
