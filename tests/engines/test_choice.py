"""Which engine is chosen, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from servematrix.engines import choice, environments
from servematrix.engines.base import EnvironmentProblem
from servematrix.engines.environments import NoSglangError
from servematrix.engines.sglang import SglangEngine
from servematrix.gpus import Gpu
from servematrix.options import OPTIONS

GPU = Gpu(0, "GPU-0", "a card", "nvidia", 2**36, 2**36, (9, 0), "580", 0)
NOTHING: dict[str, Any] = {
    "base_url": None,
    "server_python": None,
    "sglang_version": None,
    "gpus": [],
}


@pytest.fixture(autouse=True)
def pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The Pythons that have SGLang, with its version; to be filled by a test."""
    have: dict[str, str] = {}

    def probe(python: Path) -> str:
        if str(python) not in have:
            raise NoSglangError(f"{python} has no SGLang")
        return have[str(python)]

    monkeypatch.setattr(choice, "probe", probe)
    monkeypatch.setattr(choice, "default_pythons", lambda: [Path("/a/python3"), Path("/b/python")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return have


def choose(engine: str = "auto", **changes: Any) -> Any:
    return choice.choose(engine, **(NOTHING | changes))


def problem(engine: str = "auto", **changes: Any) -> str:
    with pytest.raises(EnvironmentProblem) as error:
        choose(engine, **changes)
    return str(error.value)


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (choose().name, choose().reason) == ("reference", "no GPU is visible")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose().reason == "no GPU is visible (CUDA_VISIBLE_DEVICES=)"


def test_auto_with_a_gpu_and_without_sglang() -> None:
    chosen = choose(gpus=[GPU])
    assert chosen.name == "reference"
    assert chosen.reason == (
        "a GPU is visible, but /a/python3 has no SGLang and /b/python has no SGLang"
    )


def test_auto_with_both(pythons: dict[str, str]) -> None:
    pythons["/b/python"] = "0.5.15"
    chosen = choose(gpus=[GPU, GPU])
    assert isinstance(chosen, SglangEngine)
    assert (chosen.python, chosen.version) == (Path("/b/python"), "0.5.15")
    assert chosen.reason == "2 GPUs are visible and /b/python has SGLang 0.5.15"
    pythons["/a/python3"] = "0.5.16"
    assert choose(gpus=[GPU]).python == Path("/a/python3")


def test_reference_when_asked(pythons: dict[str, str]) -> None:
    pythons["/a/python3"] = "0.5.16"
    chosen = choose("reference", gpus=[GPU])
    assert (chosen.name, chosen.reason) == ("reference", "--engine reference was given")


def test_the_cpu_only_when_asked(tmp_path: Path) -> None:
    assert choose().name == "reference"
    for gpus in ([], [GPU]):
        chosen = choose("sglang-cpu", gpus=gpus)
        assert (chosen.name, chosen.version) == ("sglang-cpu", "0.5.16")
        assert chosen.reason == "--engine sglang-cpu was given"
    folder = tmp_path / "servematrix" / "servers" / "sglang-cpu-0.5.17"
    chosen = choose("sglang-cpu", sglang_version="0.5.17")
    assert chosen.python == folder / "bin" / "python"
    assert chosen.reason == "--engine sglang-cpu was given and --sglang 0.5.17"
    assert not list(tmp_path.iterdir())


def test_the_cpu_with_a_named_python(
    pythons: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pythons[sys.executable] = "0.5.16"
    monkeypatch.setattr(choice, "require_cpu_build", lambda python: "2.13.0+cpu")
    chosen = choose("sglang-cpu", server_python=sys.executable)
    assert chosen.reason == (
        f"--engine sglang-cpu was given and {sys.executable} has SGLang 0.5.16 and PyTorch "
        "2.13.0+cpu"
    )


def test_the_options_of_pytest_and_of_the_command_are_the_same() -> None:
    settings = dict(OPTIONS)
    assert settings["--engine"]["choices"] == choice.NAMES


def test_a_running_server_wins() -> None:
    chosen = choose("sglang", base_url="http://127.0.0.1:1")
    assert (chosen.name, chosen.base_url) == ("attach", "http://127.0.0.1:1")


def test_sglang_without_a_gpu_builds_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    sentence = "--engine sglang needs a GPU, and no GPU is visible (CUDA_VISIBLE_DEVICES=-1)"
    assert problem("sglang", sglang_version="0.5.16") == sentence
    assert not list(tmp_path.iterdir())


def test_sglang_that_is_nowhere() -> None:
    told = problem("sglang", gpus=[GPU])
    assert told.startswith("--engine sglang needs SGLang, but /a/python3 has no SGLang and ")
    assert "--server-python" in told


def test_a_named_python_is_the_only_one_asked(pythons: dict[str, str]) -> None:
    pythons["/a/python3"] = "0.5.16"
    assert choose(gpus=[GPU], server_python=sys.executable).name == "reference"
    pythons[sys.executable] = "0.5.17"
    chosen = choose("sglang", gpus=[GPU], server_python=sys.executable)
    assert chosen.version == "0.5.17"
    assert chosen.reason.startswith("--engine sglang was given and ")


def test_a_named_python_that_is_not_there() -> None:
    assert problem(gpus=[GPU], server_python="/no/python") == (
        "--server-python /no/python: there is no such program"
    )


def test_a_version_is_made_later(tmp_path: Path) -> None:
    chosen = choose(gpus=[GPU], sglang_version="0.5.16")
    folder = tmp_path / "servematrix" / "servers" / "sglang-0.5.16"
    assert (chosen.name, chosen.version) == ("sglang", "0.5.16")
    assert chosen.python == folder / "bin" / "python"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("engine", "changes", "told"),
    [
        ("vllm", {}, "--engine vllm: not one of auto, sglang, sglang-cpu, reference"),
        ("sglang-cpu", {"server_python": "x", "sglang_version": "1"}, "leave one out"),
        ("sglang-cpu", {"server_python": "x", "base_url": "http://h"}, "and --base-url another"),
        ("sglang-cpu", {"server_python": "/no/python"}, "/no/python: there is no such program"),
        ("sglang-cpu", {"server_python": sys.executable}, "sglang-cpu needs SGLang and PyTorch, b"),
        ("sglang-cpu", {"sglang_version": "../x"}, "--sglang ../x: not a version"),
        ("auto", {"server_python": "x", "sglang_version": "1"}, "leave one out"),
        ("reference", {"sglang_version": "1"}, "--sglang names a server to start and --engine"),
        ("auto", {"server_python": "x", "base_url": "http://h"}, "and --base-url another one"),
        ("auto", {"base_url": "nowhere"}, "--base-url nowhere: not a URL"),
        ("auto", {"sglang_version": "../x", "gpus": [GPU]}, "--sglang ../x: not a version"),
    ],
)
def test_options_that_make_no_sense(engine: str, changes: dict[str, Any], told: str) -> None:
    assert told in problem(engine, **changes)


def test_the_default_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environments.default_pythons() == [Path(sys.executable)]
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    assert environments.default_pythons() == [python, Path(sys.executable)]
