"""Baselines: made from healthy runs alone, read only as they were written, and picked up later."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servematrix import baselines, cli, records
from servematrix.baselines import BaselineError

RECORDED = Path(__file__).resolve().parent.parent / "docs/validation/h200-sglang-0.5.16"
Change = Callable[[dict[str, Any]], None]


def repeat(folder: Path, number: int, change: Change | None = None, *, of: str = "smollm2") -> Path:
    """A recorded run as if it had been made again: other times, speeds a little apart."""
    shutil.copytree(RECORDED / of, folder)
    path = folder / records.FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines:
        record["time"] = record["time"].replace("2026-11-22", f"2026-11-{10 + number}")
        if record["kind"] == "verdict" and record["kit"] == "fwd_occupancy":
            median = record["numbers"]["median"]  # of all windows: the run is of a version before
            record["numbers"]["settled_median"] = median * (1 + number / 1000)
            for name in ("decode_tokens_per_s", "itl_p50_ms", "ttft_s"):
                record["numbers"][name] *= 1 + (number % 3) / 200
        if change is not None:
            change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [str(repeat(tmp_path / f"run{number}", number)) for number in range(5)]


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pytester" not in request.fixturenames:
        monkeypatch.chdir(RECORDED.parents[2])


@pytest.fixture
def written(runs: list[str], tmp_path: Path) -> Path:
    assert calibrate(tmp_path, *runs) == 0
    return tmp_path / "baselines/smollm2/nvidia-h200.json"


def calibrate(root: Path, *runs: str, options: tuple[str, ...] = ()) -> int:
    out = ("--out", str(root / "baselines"))
    return cli.main(["calibrate", "smollm2", *out, *options, "--from", *runs])


# -- making one ----------------------------------------------------------------------------------


def test_runs_become_a_baseline_that_says_of_what(written: Path) -> None:
    found = baselines.load(written)
    provenance = found.provenance
    assert (provenance.engine, provenance.versions) == ("sglang", {"sglang": "0.5.16"})
    assert (provenance.gpus, provenance.drivers) == (["NVIDIA H200"], ["580.159.04"])
    assert (provenance.model, provenance.dtype) == ("/models/smollm2", "auto")
    assert (provenance.first[:10], provenance.last[:10]) == ("2026-11-10", "2026-11-14")
    assert provenance.runs == [f"run{number}" for number in range(5)]
    assert found.scoring is not None
    assert (found.scoring.items, found.scoring.shots) == (200, 20)
    assert found.scoring.method.endswith("through the prefix cache")
    assert len(found.distributions["decode_tokens_per_s"]) == 5
    assert found.known_bad_checked == []
    assert "normal" in found.assumption
    limit = found.thresholds["settled_median"]
    assert limit.extrapolated
    assert limit.bound is not None
    assert limit.bound < min(found.distributions["settled_median"])
    assert found.thresholds["accuracy"].bound is None, "all runs alike"
    items = baselines.rows(written, found)
    assert items is not None
    assert items[0].keys() >= {"ind", "label", "lp", "nt"}


def test_an_alpha_that_the_runs_show_is_not_extrapolated(runs: list[str], tmp_path: Path) -> None:
    assert calibrate(tmp_path, *runs, options=("--alpha", "0.2")) == 0
    found = baselines.load(tmp_path / "baselines/smollm2/nvidia-h200.json")
    assert not found.thresholds["settled_median"].extrapolated
    assert found.alpha == 0.2


@pytest.mark.parametrize("bad", ["smollm2-no-overlap", "smollm2-no-cuda-graph"])
def test_a_known_bad_run_lies_beyond_the_thresholds(
    runs: list[str], tmp_path: Path, bad: str
) -> None:
    # one option takes several values, so the other stands between it and the next
    broken = repeat(tmp_path / bad, 9, of=bad)
    assert calibrate(tmp_path, *runs, "--known-bad", str(broken)) == 0
    found = baselines.load(tmp_path / "baselines/smollm2/nvidia-h200.json")
    assert found.known_bad_checked[0].run == bad
    assert found.known_bad_checked[0].beyond.keys() >= {"settled_median", "decode_tokens_per_s"}


def test_a_known_bad_run_may_fail_by_its_items_alone(runs: list[str], tmp_path: Path) -> None:
    bad = str(RECORDED / "smollm2-fp8-kv-cache")
    assert calibrate(tmp_path, *runs, "--known-bad", bad) == 0
    found = baselines.load(tmp_path / "baselines/smollm2/nvidia-h200.json")
    assert found.known_bad_checked[0].beyond == {}
    assert "drift" in found.known_bad_checked[0].failed


def model(record: dict[str, Any]) -> None:
    if record["kind"] == "cell":
        record["model"] = "/models/other"


def dtype(record: dict[str, Any]) -> None:
    if record["kind"] == "cell":
        record["configuration"]["arguments"]["dtype"] = "float16"


def driver(record: dict[str, Any]) -> None:
    for gpu in record.get("gpus", []) if record["kind"] == "run" else []:
        gpu["driver"] = "999.1"


def number(name: str, value: Any) -> Change:
    def change(record: dict[str, Any]) -> None:
        if record["kind"] == "verdict" and name in record["numbers"]:
            record["numbers"][name] = value

    return change


def verdict(outcome: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        if record.get("test") == "test_max_token_one":
            record["verdict"] = outcome

    return change


def unended(record: dict[str, Any]) -> None:
    if record["kind"] == "end":
        record["kind"] = "measurement"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (model, "model: /models/smollm2 there, /models/other here"),
        (dtype, "dtype: auto there, float16 here"),
        (driver, "GPUs.driver: ['580.159.04'] there, ['999.1'] here"),
        (number("checksum_questions", "f" * 64), "HellaSwag.checksum_questions: 311c99"),
        (number("shots", 5), "HellaSwag.shots: 20 there, 5 here"),
        (number("settled_median", None), "quantities: "),
        (verdict("fail"), "decode_correctness.test_max_token_one: fail"),
        (verdict("error"), "decode_correctness.test_max_token_one: error"),
        (unended, "no end"),
    ],
)
def test_a_run_that_is_no_repeat_of_a_healthy_server_is_refused_by_name(
    runs: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    told: str,
) -> None:
    odd = str(repeat(tmp_path / "odd", 7, change))
    assert calibrate(tmp_path, *runs, odd) == 1
    err = capsys.readouterr().err
    assert "no baseline" in err
    assert odd in err
    assert told in err
    assert not (tmp_path / "baselines").exists()


def test_another_way_of_scoring_is_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = repeat(tmp_path / "odd", 7)
    file = odd / "files/smollm2-hellaswag-items.json.gz"
    rows = json.loads(gzip.decompress(file.read_bytes()))
    whole = [{k: v for k, v in row.items() if k not in ("n0", "cached")} for row in rows]
    file.write_bytes(gzip.compress(json.dumps(whole).encode()))
    assert calibrate(tmp_path, *runs, str(odd)) == 1
    assert "whole prompts here" in capsys.readouterr().err


def test_what_else_is_no_baseline_is_told(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, arguments, told in (
        (1, [*runs, runs[0]], "the same run twice"),
        (1, [*runs, str(RECORDED / "llama8b")], "no server of smollm2"),
        (1, [*runs, "--known-bad", runs[0]], "known bad, and it would pass: settled_median"),
        (4, [*runs, "--known-bad", str(RECORDED / "llama8b")], "no server of smollm2"),
        (4, runs[:2], "needs 3 or more"),
        (4, [*runs, "--alpha", "0.7"], "--alpha 0.7"),
        (4, [*runs, "--repeats", "3"], "leave one out"),
        (4, [*runs, "/no/such/run"], "/no/such/run: no run"),
        (4, [*runs, str(damaged(tmp_path / "damaged"))], "not the records of a run"),
    ):
        assert calibrate(tmp_path, *arguments) == status, told
        assert told in capsys.readouterr().err
    assert not (tmp_path / "baselines").exists()


def damaged(folder: Path) -> Path:
    return repeat(folder, 8, number("settled_median", "nan"))


# -- reading one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "edit", "told"),
    [
        (
            "thresholds",
            lambda raw: raw["thresholds"]["settled_median"].update(bound=1.0),
            "checksum",
        ),
        ("distributions", lambda raw: raw["distributions"]["settled_median"].pop(), "checksum"),
        ("provenance", lambda raw: raw["provenance"].update(model="x"), "checksum"),
        ("checksums", lambda raw: raw.pop("checksums"), "is missing"),
        (
            "thresholds.settled_median.alpha",
            lambda raw: raw["thresholds"]["settled_median"].pop("alpha"),
            "is mis",
        ),
        ("notes", lambda raw: raw.update(notes="mine"), "unknown key"),
        ("format", lambda raw: raw.update(format=2), "newer servematrix"),
        ("distributions", lambda raw: raw["distributions"].update(x=[1.0]), "pattern"),
        (
            "distributions.settled_median.0",
            lambda raw: raw["distributions"]["settled_median"].__setitem__(0, float("nan")),
            "finite",
        ),
        (
            "distributions.settled_median.0",
            lambda raw: raw["distributions"]["settled_median"].__setitem__(0, "99"),
            "number",
        ),
    ],
)
def test_an_edited_baseline_is_refused_with_file_and_key(
    written: Path, key: str, edit: Change, told: str
) -> None:
    raw = json.loads(written.read_text())
    edit(raw)
    written.write_text(json.dumps(raw))
    with pytest.raises(BaselineError) as caught:
        baselines.load(written)
    assert str(caught.value).startswith(str(written))
    assert f"'{key}" in str(caught.value)
    assert told in str(caught.value)


def test_edited_items_are_refused(written: Path) -> None:
    found = baselines.load(written)
    beside = written.with_name("nvidia-h200.items.json.gz")
    beside.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(BaselineError, match=r"items\.sha256"):
        baselines.rows(written, found)
    beside.unlink()
    with pytest.raises(BaselineError, match="cannot read"):
        baselines.rows(written, found)


def test_it_applies_to_its_configuration_alone(written: Path) -> None:
    root = written.parents[1]
    cell = next(r for r in records.read(RECORDED / "smollm2") if r["kind"] == "cell")
    configuration = cell["configuration"]
    found = baselines.find(root, "smollm2", "nvidia-h200", configuration)
    assert isinstance(found, baselines.Found)
    assert "5 runs of smollm2 on sglang 0.5.16" in found.described()
    assert found.attributes().keys() == {"fwd_occupancy_baseline", "hellaswag_baseline"}
    assert found.changed({"sglang": "0.5.16"}, ["580.159.04"]) is None
    changed = found.changed({"sglang": "0.5.17"}, ["581.0"])
    assert changed == (
        "server sglang 0.5.17, baseline sglang 0.5.16; driver 581.0, baseline 580.159.04"
    )
    assert baselines.find(root, "smollm2", "nvidia-h100", configuration) is None
    assert baselines.find(root, "baseline", "nvidia-h200", configuration) is None
    gates = configuration | {"gates": {"fwd_occupancy": {"threshold": 1.0}}}
    assert isinstance(baselines.find(root, "smollm2", "nvidia-h200", gates), baselines.Found)
    secret = configuration | {"environment": configuration["environment"] | {"HF_TOKEN": "x"}}
    assert isinstance(baselines.find(root, "smollm2", "nvidia-h200", secret), baselines.Found)
    other = configuration | {"arguments": configuration["arguments"] | {"dtype": "float16"}}
    told = baselines.find(root, "smollm2", "nvidia-h200", other)
    assert isinstance(told, str)
    assert "is not used" in told
    assert "arguments.dtype: not set there, float16 here" in told


def test_hardware_is_a_file_s_name() -> None:
    assert baselines.hardware("sglang", ["NVIDIA H200"] * 2) == "2x-nvidia-h200"
    assert baselines.hardware("sglang-cpu", []) == "sglang-cpu"
    assert baselines.place(Path("b"), "cuda_graph(max_bs=4)", "x").parts[1] == "cuda_graph-max_bs=4"


# -- from calibration to a later run -------------------------------------------------------------

CONFIG = """
description = "for tests"
stage = "t"
estimated_seconds = 1
suites = ["mine"]
[model]
path = "org/model"
[arguments]
enable-metrics = true
[environment]
SGLANG_ENABLE_METRICS_DEVICE_TIMER = "1"
https_proxy = "http://me:planted-key@127.0.0.1:1"
[kits.hellaswag]
num_questions = 100
num_shots = 2
[kits.fwd_occupancy]
max_new_tokens = 600
stream_max_new_tokens = 32
warmup_max_new_tokens = 8
[gates.hellaswag]
margin = 0.2
[gates.fwd_occupancy]
threshold = 50.0
startup_seconds = 0
block_windows = 1
"""

SUITE = """
import pytest
from servematrix.kits import FwdOccupancyMixin, HellaswagMixin


@pytest.mark.suite("mine")
class TestMine(HellaswagMixin, FwdOccupancyMixin):
    pass
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--baselines", "nowhere"], "--baselines nowhere: no such folder"),
        (["--baselines", ".", "--no-baseline"], "exclude one another"),
        (["--baselines", ".", "--base-url", "http://127.0.0.1:1"], "is unknown"),
    ],
)
def test_bad_usage_is_told_before_anything_starts(
    pytester: pytest.Pytester, options: list[str], told: str
) -> None:
    Path("configs").mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    engine = [] if "--base-url" in options else ["--engine", "reference"]
    plugin = ["-p", "servematrix.plugin"]
    result = pytester.runpytest_inprocess(*plugin, "--co", "--config", "mine", *engine, *options)
    assert result.ret == 4
    assert told in str(result.stderr)


def test_a_later_run_is_held_to_what_was_calibrated(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    ini = "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    pytester.makefile(".ini", pytest=ini)
    for folder in ("configs", "suites"):
        Path(folder).mkdir()
    Path("configs/mine.toml").write_text(CONFIG)
    Path("suites/test_mine.py").write_text(SUITE)
    made = ["calibrate", "mine", "--repeats", "3", "--engine", "reference"]
    assert cli.main(made) == 0, capsys.readouterr().err
    assert "wrote baseline" in capsys.readouterr().err
    for output in Path("results").glob("calibration-*/*.txt"):
        assert "servematrix: baseline" not in output.read_text(), "a repeat is held to nothing"
    path = Path("baselines/mine/reference.json")
    assert baselines.load(path).provenance.simulated
    assert "planted-key" not in path.read_text()

    def later(*options: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(
            "suites", "--config", "mine", "--engine", "reference", *options, timeout=120
        )

    result = later()
    assert result.ret == 0, result.stdout
    result.stdout.fnmatch_lines(["servematrix: baseline */mine/reference.json: 3 runs of mine*"])
    found = list(records.read(Path("results/latest")))
    verdicts = {record["kit"]: record for record in found if record["kind"] == "verdict"}
    assert verdicts["fwd_occupancy"]["numbers"]["baseline_decode_tokens_per_s_runs"] == 3
    assert "loss_p" in verdicts["hellaswag"]["numbers"]
    cell = next(record for record in found if record["kind"] == "cell")
    assert cell["baseline"]["file"].endswith("mine/reference.json")

    other = later("-k", "occupancy", "--set", "arguments.dtype=float16", "--co")
    other.stdout.fnmatch_lines(["*is not used*arguments.dtype: not set there, float16 here"])
    path.write_text(path.read_text().replace('"simulated": true', '"simulated": false'))
    # refused before the session changes anything in this process
    plugin = ["-p", "servematrix.plugin"]
    edited = pytester.runpytest_inprocess(
        *plugin, "suites", "--config", "mine", "--engine", "reference", "--co"
    )
    assert edited.ret == 4
    assert "key 'provenance': not as it was written" in str(edited.stderr)
