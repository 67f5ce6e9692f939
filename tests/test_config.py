"""Configurations: the shipped ones say what was published, and bad ones are told what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servematrix import config as configs
from servematrix import kits, settings
from servematrix.config import ConfigError, Place
from servematrix.kits.decode_correctness import PROBES

HERE = Place("sglang", vendor="nvidia", gpu_name="NVIDIA H100 80GB HBM3", compute_capability="9.0")
MINIMAL = """
description = "x"
stage = "a"
estimated_seconds = 10
suites = ["basic_sanity"]
[model]
path = "org/model"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine") -> Path:
        (tmp_path / f"{name}.toml").write_text(text)
        return tmp_path

    return write


def test_baseline_is_the_published_one(configs_directory: Path) -> None:
    config = configs.resolve(configs.load(configs_directory, "baseline"), {}, HERE)
    assert config.model.path == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.arguments == {
        "cuda-graph-max-bs": 4,
        "mem-fraction-static": 0.7,
        "enable-metrics": True,
    }
    assert config.environment == {"SGLANG_ENABLE_METRICS_DEVICE_TIMER": "1"}
    assert config.gates.fwd_occupancy.threshold == 97


def test_eagle3_is_the_published_one(configs_directory: Path) -> None:
    config = configs.resolve(configs.load(configs_directory, "eagle3"), {}, HERE)
    assert config.model.draft == "lmsys/sglang-EAGLE3-LLaMA3.1-Instruct-8B"
    assert config.arguments == {
        "dtype": "float16",
        "attention-backend": "triton",
        "speculative-algorithm": "EAGLE3",
        "speculative-num-steps": 3,
        "speculative-eagle-topk": 1,
        "speculative-num-draft-tokens": 4,
        "cuda-graph-max-bs": 4,
        "mem-fraction-static": 0.7,
        "enable-metrics": True,
    }
    assert config.gates.fwd_occupancy.threshold == 97
    assert config.gates.fwd_occupancy.acc_length_threshold == 1.8
    assert config.estimated_seconds == 200


def test_an_override_holds_on_its_gpu_only(configs_directory: Path) -> None:
    eagle3 = configs.load(configs_directory, "eagle3")
    on_amd = configs.resolve(eagle3, {}, Place("sglang", vendor="amd"))
    assert on_amd.gates.fwd_occupancy.threshold == 80
    assert on_amd.gates.fwd_occupancy.acc_length_threshold == 1.8
    assert configs.resolve(eagle3, {}, HERE).gates.fwd_occupancy.threshold == 97


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ('gpu_name = "*H100*"', True),
        ('gpu_name = "*4090*"', False),
        ('compute_capability = "9.0"', True),
        ('compute_capability = "12.0"', False),
        ('engine = "sglang", vendor = "nvidia"', True),
        ('engine = "reference", vendor = "nvidia"', False),
    ],
)
def test_conditions_of_overrides(write, when: str, matches: bool) -> None:
    text = f"{MINIMAL}\n[[overrides]]\nwhen = {{ {when} }}\nestimated_seconds = 99\n"
    config = configs.resolve(configs.load(write(text), "mine"), {}, HERE)
    assert config.estimated_seconds == (99 if matches else 10)


def test_the_axis_fills_arguments_in(configs_directory: Path) -> None:
    graph = configs.load(configs_directory, "cuda_graph")
    eight = configs.resolve(graph, {"max_bs": 8}, HERE)
    assert eight.arguments["cuda-graph-max-bs"] == 8
    off = configs.resolve(graph, {"max_bs": "off"}, HERE)
    assert off.arguments["cuda-graph-max-bs"] is False
    assert off.arguments["disable-cuda-graph"] is True


def test_set_changes_any_key_last(configs_directory: Path) -> None:
    baseline = configs.load(configs_directory, "baseline")
    changes = ["gates.fwd_occupancy.threshold=96.5", "model.path=my/model", "arguments.tp=2"]
    config = configs.resolve(baseline, {}, HERE, changes)
    assert config.gates.fwd_occupancy.threshold == 96.5
    assert config.model.path == "my/model"
    assert config.arguments["tp"] == 2
    assert configs.digest(config) != configs.digest(configs.resolve(baseline, {}, HERE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gates.fwd_occupancy.treshold=96", "did you mean 'threshold'?"),
        ("gates.fwd_occupancy.threshold=960", "less than or equal to 100 (found 960)"),
        ("requires.gpus=-1", "requires.gpus"),
        ("requires.gpus=0", "gpus = 0 asks for no GPU, and memory or compute capability for one"),
        ('instead={ sglang-cpu = "smollm2_cpu" }', "cannot be set from the command line"),
        ('kits.decode_correctness.probes=["poetry"]', "found 'poetry'"),
        ("arguments.Enable_X=1", "not a valid name"),
        ("overrides=[]", "cannot be set from the command line"),
        ("nonsense", "expected key=value"),
    ],
)
def test_a_bad_change_is_refused(configs_directory: Path, change: str, message: str) -> None:
    baseline = configs.load(configs_directory, "baseline")
    with pytest.raises(ConfigError) as caught:
        configs.resolve(baseline, {}, HERE, [change])
    assert message in str(caught.value)
    assert "--set" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("description = ", "not valid TOML"),
        (MINIMAL.replace('stage = "a"\n', ""), "key 'stage' is missing"),
        (MINIMAL.replace("estimated_seconds", "estimated_second"), "did you mean 'estimated_seco"),
        (MINIMAL.replace("= 10", '= "10"'), "key 'estimated_seconds': Input should be a valid int"),
        (MINIMAL.replace('path = "org/model"', 'pth = "x"'), "did you mean 'path'?"),
        ('name = "x"\n' + MINIMAL, "the file's name is the name"),
        ("axis.a = [1]\naxis.b = [2]\n" + MINIMAL, "at most 1 item"),
        ("axis.a = [1, 1]\n" + MINIMAL, "no value twice"),
        (MINIMAL + '[[overrides]]\nwhen = { vendr = "amd" }\n', "did you mean 'vendor'?"),
        ("axis.a = [1, 2]\n" + MINIMAL + "[[overrides]]\nwhen = { a = 3 }\n", "has no value '3'"),
        (MINIMAL + '[arguments]\napi-key = "x"\n', "--api-key-env"),
        (MINIMAL + "[gates.fwd_occupanci]\nthreshold = 1\n", "did you mean 'fwd_occupancy'?"),
        (MINIMAL + '[requires]\ncompute_capability = "nine"\n', "requires.compute_capability"),
        ('instead.sglang-gpu = "mine"\n' + MINIMAL, "unknown engine 'sglang-gpu' (did you mean"),
        ('instead.sglang-cpu = "mine"\n' + MINIMAL, "no other configuration 'mine' in"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(write, text: str, message: str) -> None:
    folder = write(text)
    with pytest.raises(ConfigError) as caught:
        configs.load(folder, "mine")
    assert message in str(caught.value)
    assert str(folder / "mine.toml") in str(caught.value)


def test_a_stand_in_that_is_not_there_is_told_with_the_nearest(write) -> None:
    folder = write('instead = { sglang-cpu = "smol" }\n' + MINIMAL)
    write(MINIMAL, "small")
    with pytest.raises(ConfigError) as caught:
        configs.load(folder, "mine")
    assert str(caught.value) == (
        f"{folder / 'mine.toml'}: key 'instead.sglang-cpu': no other configuration 'smol' in "
        f"{folder} (did you mean 'small'?); there are: small"
    )


def test_the_configuration_without_a_gpu(configs_directory: Path) -> None:
    config = configs.load(configs_directory, "smollm2_cpu")
    assert config.requires.gpus == 0
    assert configs.load(configs_directory, "baseline").instead == {"sglang-cpu": "smollm2_cpu"}
    found = configs.attributes(configs.resolve(config, {}, Place("sglang-cpu")))
    assert found["hellaswag_packaged"] is True


def test_a_digest_tells_nothing_of_a_secret(configs_directory: Path) -> None:
    baseline = configs.load(configs_directory, "baseline")

    def digest(key: str) -> str:
        changes = [f"environment.HF_TOKEN={key}", f"environment.X=http://me:{key}@host"]
        return configs.digest(configs.resolve(baseline, {}, HERE, changes))

    assert digest("planted-1") == digest("planted-2")


def test_an_unknown_name_is_met_with_the_nearest(configs_directory: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'baseline'"):
        configs.load(configs_directory, "basline")


def test_no_folder_of_configurations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--configs DIR"):
        configs.find_directory(tmp_path)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_an_error(tmp_path_factory, text: str) -> None:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "any.toml").write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(ConfigError):
        configs.load(folder, "any")


def test_every_key_of_gates_and_kits_is_an_attribute_of_its_kit(configs_directory: Path) -> None:
    """A key that no kit reads would be ignored in silence."""
    mixins = {mixin.kit: mixin for mixin in kits.MIXINS}
    for section in (settings.Gates, settings.Kits):
        for kit, table in section.model_fields.items():
            for key in table.annotation.model_fields:
                assert hasattr(mixins[kit], f"{kit}_{key}"), f"{kit}.{key}"


def test_attributes_are_named_after_kit_and_key(configs_directory: Path) -> None:
    config = configs.resolve(configs.load(configs_directory, "smollm2"), {}, HERE)
    found = configs.attributes(config)
    assert found["fwd_occupancy_max_new_tokens"] == 6000
    assert found["hellaswag_accuracy_threshold"] == 0.30
    assert "basic_math" not in found["decode_correctness_probes"]


def test_a_configuration_may_name_exactly_the_probes_that_there_are() -> None:
    assert set(get_args(settings.Probe)) == set(PROBES)
