"""`servematrix validate`: servers of known state, expected against found, and the table of it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from servematrix import cli, records
from servematrix import config as configs
from servematrix.config import ConfigError, Place
from servematrix.validation import kept, servers, table
from servematrix.validation.judging import Finding, defects
from servematrix.validation.kept import NotRun
from servematrix.validation.servers import KnownServer

ROOT = Path(__file__).resolve().parent.parent
PASSED = ("hellaswag", "test_accuracy_floor", "pass")
BUSY = ("fwd_occupancy", "test_fwd_occupancy", "pass")
IDLE = ("fwd_occupancy", "test_fwd_occupancy", "fail")
Told = tuple[str, str, str]


def known(*must_fail: str, **more: Any) -> KnownServer:
    named = {"name": "mine", "description": "for tests", "config": "smollm2", "model": "smollm2"}
    return KnownServer(**{**named, "must_fail": list(must_fail), **more})


def judged(server: KnownServer, *told: Told) -> list[str]:
    findings = [Finding(*one, reason="a reason") for one in told]
    return [defect.what for defect in defects(server, findings)]


# -- expected against found ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("must_fail", "told", "found"),
    [
        ([], [PASSED, BUSY], []),
        (["fwd_occupancy"], [PASSED, IDLE], []),
        (["fwd_occupancy.test_fwd_occupancy"], [PASSED, IDLE], []),
        ([], [("hellaswag", "test_accuracy_floor", "not_applicable"), BUSY], []),
        ([], [PASSED, IDLE], ["fwd_occupancy.test_fwd_occupancy failed"]),
        (["fwd_occupancy"], [PASSED, BUSY], ["fwd_occupancy must fail and said pass"]),
        (["fwd_occupancy"], [PASSED], ["fwd_occupancy must fail and was not run"]),
        (
            ["fwd_occupancy"],
            [PASSED, (*IDLE[:2], "error")],
            ["fwd_occupancy must fail and said error"],
        ),
        (
            ["fwd_occupancy"],
            [("hellaswag", "test_accuracy_floor", "fail"), BUSY],
            [
                "fwd_occupancy must fail and said pass",
                "hellaswag.test_accuracy_floor failed",
            ],
        ),
        ([], [BUSY, (*PASSED[:2], "error")], ["hellaswag.test_accuracy_floor: error"]),
        (
            [],
            [BUSY, (*PASSED[:2], "inconclusive")],
            ["hellaswag.test_accuracy_floor: inconclusive"],
        ),
        ([], [(*PASSED[:2], "not_applicable")], ["no verdict applies"]),
        ([], [], ["no verdict applies"]),
    ],
)
def test_expected_against_found(
    must_fail: Sequence[str], told: Sequence[Told], found: Sequence[str]
) -> None:
    assert judged(known(*must_fail), *told) == found


def test_one_test_of_a_kit_may_have_to_fail_while_the_others_pass() -> None:
    server = known("spec_decoding.test_accept_length")
    low = ("spec_decoding", "test_accept_length", "fail")
    right = ("spec_decoding", "test_accepted_tokens_are_top1", "pass")
    assert judged(server, low, right) == []
    wrong = (*right[:2], "fail")
    assert judged(server, low, wrong) == ["spec_decoding.test_accepted_tokens_are_top1 failed"]


@pytest.mark.parametrize("outcome", ["pass", "fail", "error", "inconclusive", "not_applicable"])
def test_what_says_nothing_of_a_server_counts_for_nothing(outcome: str) -> None:
    server = known(may={"hellaswag": "random weights know nothing"})
    assert judged(server, BUSY, (*PASSED[:2], outcome)) == []


# -- the servers ---------------------------------------------------------------------------------


def test_every_packaged_server_can_be_started(configs_directory: Path) -> None:
    packaged = servers.load()
    for server in packaged:
        config = configs.load(configs_directory, server.config)
        resolved = configs.resolve(config, {}, Place("reference"), server.set)
        for suite in resolved.suites:
            assert (ROOT / "suites" / f"test_{suite}.py").is_file(), server.name
    healthy = [server for server in packaged if not server.must_fail]
    assert 0 < len(healthy) < len(packaged)


SERVER = """
[[server]]
name = "mine"
description = "for tests"
config = "smollm2"
model = "smollm2"
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('must_fial = ["hellaswag"]', "unknown key 'server.0.must_fial' (did you mean 'must_fail'"),
        ('must_fail = ["helaswag"]', "unknown kit 'helaswag' (did you mean 'hellaswag'?)"),
        ('must_fail = ["hellaswag.test_x"]', "it has: test_accuracy_floor"),
        ('must_fail = "hellaswag"', "found 'hellaswag'"),
        ('must_fail = ["hellaswag"]\nmay.hellaswag = "why"', "leave one out"),
        ('may.hellaswag = ""', "server.0.may.hellaswag"),
        ('engines = ["sglan"]\nengines_reason = "why"', "(did you mean 'sglang'?)"),
        ('engines = ["sglang"]', "belong together"),
        (SERVER, "'mine' stands twice"),
        ("x =", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_of_servers_is_told(tmp_path: Path, more: str, message: str) -> None:
    file = tmp_path / "known.toml"
    file.write_text(SERVER + more)
    with pytest.raises(ConfigError) as caught:
        servers.load(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_draft_is_its_path_or_the_model_itself_or_that_of_the_configuration() -> None:
    plain, speculating = configs.Model(path="hub/m"), configs.Model(path="hub/m", draft="hub/d")
    own, other = known(draft="smollm2"), known(draft="another")
    assert servers.models(known(), plain, {}) == servers.Models(None, None)
    assert servers.models(own, plain, {}) == servers.Models(None, "hub/m")
    assert servers.models(own, plain, {"smollm2": "/m"}) == servers.Models("/m", "/m")
    assert servers.models(other, speculating, {}) == servers.Models(None, None)
    assert servers.models(other, plain, {"another": "/d"}) == servers.Models(None, "/d")
    with pytest.raises(servers.NoPathError, match="--path another=PATH"):
        servers.models(other, plain, {})


# -- what is kept, and the table that is drawn from it -------------------------------------------


def keep(
    root: Path, server: KnownServer, *told: Told, status: int | None = 0, gpu: str | None = None
) -> None:
    """A server's folder as a run leaves it."""
    kept.write(root / server.name, server)
    run = records.Run.create(root / "runs", "x")
    gpus = [{"uuid": "u", "name": gpu, "driver": "1.2"}] if gpu else []
    run.begin("run", engine="sglang", simulated=False, gpus=gpus)
    used = ["u"] if gpu else []
    run.write("cell", startup_seconds=50.0, versions={"sglang": "0.5.16"}, gpus=used)
    trace = {"samples": [1.5] * 100}
    run.write("measurement", kit="x", name="trace", path=run.attach("trace", trace), unit="file")
    run.write("measurement", kit="cuda_graph", name="graph_share_at_1", value=0.996, unit="share")
    for kit, test, outcome in told:
        numbers = {"median": 98.25, "decode_tokens_per_s": 512.3, "accept_length": None}
        if kit != "fwd_occupancy":
            numbers = {"accuracy": 0.41}
        run.write(
            "verdict", kit=kit, test=test, verdict=outcome, numbers=numbers, reason="a reason"
        )
    if status is not None:
        run.write("end", exit_code=status)
    kept.pack(run.folder, root / server.name)


def redrawn(capsys: pytest.CaptureFixture[str], root: Path, *options: str) -> tuple[int, str, str]:
    status = cli.main(["validate", "--from", str(root), *options])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_table_is_drawn_from_the_records_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, known(name="healthy"), PASSED, BUSY, gpu="H100")
    keep(tmp_path, known("fwd_occupancy", name="slow"), PASSED, IDLE, status=1, gpu="H100")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # without any configuration
    status, text, told = redrawn(capsys, tmp_path)
    assert status == 0
    healthy, slow = (
        line.split() for line in text.splitlines() if line.startswith((" healthy", " slow"))
    )
    assert healthy[-2:] == slow[-2:] == ["as", "expected"]
    assert healthy[-8:-3] == ["98.25", "512.3", "0.996", "0.41", "50"]
    assert "sglang 0.5.16 on H100 (driver 1.2)" in text
    assert "exit 0 (every server was told as what it is): 2 as expected" in told
    first, second = json.loads(redrawn(capsys, tmp_path, "--json")[1])
    assert first["server"]["name"] == "healthy"
    assert second["failed"] == ["fwd_occupancy.test_fwd_occupancy"]
    assert second["counts"] == {"fail": 1, "pass": 1}
    assert first["seconds"] >= 0
    document = redrawn(capsys, tmp_path, "--markdown", "slow")[1]
    assert "| slow | for tests | fwd_occupancy | fwd_occupancy.test_fwd_occupancy | 1 |" in document
    assert "healthy" not in document


@pytest.mark.parametrize(
    ("told", "ended", "status", "result"),
    [
        ([PASSED, BUSY], 1, 1, "DEFECT: fwd_occupancy must fail and said pass"),
        ([PASSED, (*PASSED[:2], "error")], 6, 6, "the run ended with status 6"),
        ([PASSED, IDLE], 2, 6, "the run ended with status 2: interrupted"),
        ([PASSED, IDLE], None, 6, "cut short"),
    ],
)
def test_a_wrong_result_and_a_missing_one_are_never_green(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    told: Sequence[Told],
    ended: int | None,
    status: int,
    result: str,
) -> None:
    keep(tmp_path, known("fwd_occupancy", name="slow"), *told, status=ended)
    keep(tmp_path, known(name="healthy"), PASSED, BUSY)
    found, text, last = redrawn(capsys, tmp_path)
    assert found == status
    assert result in text
    assert "1 as expected" in last


def test_servers_without_a_run_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = NotRun(state="left out", reason="engine x cannot show it")
    kept.write(tmp_path / "a", known(name="a"), left_out)
    assert redrawn(capsys, tmp_path)[0] == 7, "nothing was judged"
    keep(tmp_path, known(name="healthy"), PASSED, BUSY)
    assert redrawn(capsys, tmp_path)[0] == 0
    kept.write(tmp_path / "b", known(name="b"), NotRun(state="not run", reason="no path for x"))
    status, text, last = redrawn(capsys, tmp_path)
    assert status == 7
    assert "b: not run: no path for x" in text
    assert "1 left out, 1 as expected, 1 not run" in last


def test_a_run_that_was_killed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept.write(tmp_path / "mine", known())
    status, text, _ = redrawn(capsys, tmp_path)
    assert status == 6
    assert "ended before this server's run did" in text


def test_records_are_kept_whole_and_small(tmp_path: Path) -> None:
    keep(tmp_path, known(), PASSED)
    folder = tmp_path / "mine"
    (measured,) = (record for record in records.read(folder) if "path" in record)
    with gzip.open(folder / measured["path"], "rt") as file:
        assert json.load(file) == {"samples": [1.5] * 100}
    again = tmp_path / "again"
    again.mkdir()
    run = (tmp_path / "runs" / "latest").resolve()
    kept.pack(run, again)
    assert (again / measured["path"]).read_bytes() == (folder / measured["path"]).read_bytes()


@pytest.mark.parametrize("damage", ["server.json", "records.jsonl"])
def test_damaged_records_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    keep(tmp_path, known(), PASSED)
    (tmp_path / "mine" / damage).write_text('{"x"')
    status, _, told = redrawn(capsys, tmp_path)
    assert status == 4
    assert damage in told


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["smolm2"], "did you mean 'smollm2'?"),
        (["--path", "smolm2=x"], "unknown role 'smolm2' (did you mean 'smollm2'?)"),
        (["--path", "smollm2"], "expected ROLE=PATH"),
        (["--path", "smollm2=/no/such/folder"], "there is no such folder"),
        (["--set", "x.y=1"], "unknown key 'x'"),
        (["--engine", "sglang"], "needs a GPU"),
        (["--json", "--markdown"], "leave one out"),
        (["--from", "/no/such/folder"], "/no/such/folder"),
        (["--start-deadline", "-1"], "must be over 0 s"),
    ],
)
def test_bad_usage_starts_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "out"
    engine = [] if "--engine" in options else ["--engine", "reference"]
    assert cli.main(["validate", *engine, "--out", str(out), *options]) == 4
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_was_validated_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "smollm2").mkdir()
    command = ["validate", "smollm2", "--engine", "reference", "--out", str(tmp_path)]
    assert cli.main(command) == 4
    assert "validated there already" in capsys.readouterr().err


def begin(out: Path, *options: str) -> subprocess.Popen[str]:
    gate = "gates.fwd_occupancy"
    quick = [f"{gate}.startup_seconds=0", f"{gate}.block_windows=1", 'suites=["quick"]']
    command = [sys.executable, "-m", "servematrix", "validate", "--engine", "reference"]
    return subprocess.Popen(
        [*command, "--out", str(out), *options, *(f"--set={change}" for change in quick)],
        cwd=out.parent,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a shell is started with it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_healthy_and_a_degraded_server_are_told_apart(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project / "out"
    names = ("smollm2", "smollm2-no-overlap", "smollm2-fp8-kv-cache")
    with begin(out, *names) as process:
        text, told = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert "[2/3] smollm2-no-overlap: as expected: fwd_occupancy.test_fwd_occupancy failed" in told
    assert "2 as expected, 1 left out" in told
    assert "simulated: says that the kits work" in told
    assert "test session starts" not in text + told
    assert "test session starts" in (out / "smollm2" / "output.txt").read_text()
    assert not (out / "smollm2" / "run").exists()
    assert redrawn(capsys, out)[1] == text


def test_a_server_that_does_not_start_is_told_with_its_output(project: Path) -> None:
    with begin(project / "out", "smollm2", "--set=arguments.no-such=1") as process:
        text, told = process.communicate(timeout=100)
    assert process.returncode == 6
    assert "unrecognized arguments: --no-such" in told
    assert "no result" in text


def test_an_interrupt_ends_the_run_in_good_order_and_draws_what_there_is(project: Path) -> None:
    out = project / "out"
    long = "--set=kits.fwd_occupancy.warmup_max_new_tokens=15000"
    with begin(out, "smollm2", "smollm2-no-overlap", long) as process:
        deadline = time.monotonic() + 60
        while not any(out.glob("smollm2/run/*/smollm2.log")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        text, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "smollm2: no result: the run ended with status 2: interrupted" in text
    assert "smollm2-no-overlap: not run: interrupted before its turn" in text
    assert "exit 2 (interrupted)" in (out / "smollm2" / "output.txt").read_text()


def test_the_worst_state_decides_the_status() -> None:
    rows = [
        kept.Row(known(), state)
        for state in ("left out", "as expected", "not run", "no result", "DEFECT")
    ]
    assert [table.status(rows[:count]) for count in range(1, 6)] == [7, 0, 7, 6, 1]


def test_what_is_expected_today_decides_for_a_server_started_in_the_same_way(
    tmp_path: Path,
) -> None:
    then = known("fwd_occupancy")
    keep(tmp_path, then, BUSY)
    assert kept.rows(tmp_path)[0].state == "DEFECT"
    assert kept.rows(tmp_path, [known()])[0].state == "as expected"
    otherwise = known(set=["arguments.disable-cuda-graph=true"])
    assert kept.rows(tmp_path, [otherwise])[0].state == "DEFECT"


def test_the_table_in_the_documentation_is_drawn_from_its_records(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/validation.md").read_text(encoding="utf-8")
    code, out, _ = redrawn(capsys, ROOT / "docs/validation/h200-sglang-0.5.16", "--markdown")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 9
    assert "\n".join(lines) in page
