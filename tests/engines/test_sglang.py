"""How SGLang is started: flags, names by version, GPUs, the API key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servematrix.engines.base import EnvironmentProblem, ServerFailed
from servematrix.engines.embedded import EmbeddedEngine
from servematrix.engines.environments import ServerEnvironment
from servematrix.engines.sglang import SglangEngine, spelled_for
from servematrix.gpus import Gpu

PYTHON = Path("/opt/sglang/bin/python")
EAGLE3 = {
    "dtype": "float16",
    "speculative-algorithm": "EAGLE3",
    "speculative-num-steps": 3,
    "cuda-graph-max-bs": 4,
    "mem-fraction-static": 0.7,
    "enable-metrics": True,
    "disable-radix-cache": False,
}


def gpu(device: int, vendor: Any = "nvidia") -> Gpu:
    return Gpu(0, f"GPU-{device}", "a card", vendor, 2**36, 2**36, (9, 0), "580", device)


def engine(version: str = "0.5.16") -> SglangEngine:
    return SglangEngine(PYTHON, version, "a test")


def test_the_command_line(fakes: Any) -> None:
    launch = fakes.launch(model="m/target", draft_model="m/draft", port=31000, arguments=EAGLE3)
    expected = (
        f"{PYTHON} -m sglang.launch_server --model-path m/target "
        "--speculative-draft-model-path m/draft --host 127.0.0.1 --port 31000 "
        "--dtype float16 --speculative-algorithm EAGLE3 --speculative-num-steps 3 "
        "--cuda-graph-max-bs 4 --mem-fraction-static 0.7 --enable-metrics"
    )
    assert " ".join(engine("0.5.13").command(launch)) == expected


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.4.10.post2", "cuda-graph-max-bs"),
        ("0.5.13.post1", "cuda-graph-max-bs"),
        ("0.5.14", "cuda-graph-max-bs-decode"),
        ("0.5.16", "cuda-graph-max-bs-decode"),
        ("0.6", "cuda-graph-max-bs-decode"),
        ("1.0.dev7+gabc", "cuda-graph-max-bs-decode"),
        ("0.0.0.dev0", "cuda-graph-max-bs-decode"),
        ("unknown", "cuda-graph-max-bs-decode"),
    ],
)
def test_flags_are_spelled_as_the_version_knows_them(version: str, name: str) -> None:
    for written in ("cuda-graph-max-bs", "cuda-graph-max-bs-decode"):
        assert spelled_for(version, {"tp-size": 2, written: 4}) == {"tp-size": 2, name: 4}


def test_both_names_of_a_flag_at_once_are_an_error() -> None:
    both = {"cuda-graph-max-bs": 4, "cuda-graph-max-bs-decode": 8}
    with pytest.raises(EnvironmentProblem, match="sets --cuda-graph-max-bs-decode twice"):
        spelled_for("0.5.16", both)


def test_the_server_is_pinned_to_its_gpus(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/bin:{PYTHON.parent}")
    environment = {"A": "b", "CUDA_VISIBLE_DEVICES": "7"}
    launch = fakes.launch(gpus=(gpu(5), gpu(2)), environment=environment)
    assert engine().environment(launch) == {
        "A": "b",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "5,2",
    }
    amd = fakes.launch(gpus=(gpu(1, "amd"),))
    assert engine().environment(amd) == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}
    cut = replace(gpu(5), uuid="MIG-1", parent="GPU-5")
    pins = engine().environment(fakes.launch(gpus=(cut,)))
    assert pins == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "MIG-1"}
    assert engine().environment(fakes.launch()) == {}


def test_programs_of_the_servers_python_are_found(
    fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert engine().environment(fakes.launch()) == {"PATH": f"{PYTHON.parent}:/bin:/usr/bin"}
    own = fakes.launch(environment={"PATH": "/own"})
    assert engine().environment(own) == {"PATH": f"{PYTHON.parent}:/own"}


def test_the_key_is_on_no_command_line(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    for one in (engine(), EmbeddedEngine("a test")):
        command = one.command(fakes.launch(api_key_env="MY_KEY"))
        assert "s3cret" not in " ".join(command)
        assert "MY_KEY" in command


def test_the_launcher_hands_the_key_to_the_module(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(
        "import os, sys\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, __spec__.name)\n"
        "    print(open('/proc/self/cmdline').read())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "-s3cret")
    launch = fakes.launch(api_key_env="MY_KEY", arguments={"tp-size": 1})
    command = SglangEngine(Path(sys.executable), "0.5.16", "a test").command(launch)
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    given, command_line = told.split("\n", 1)
    flags = ["--model-path", "a/model", "--host", "127.0.0.1", "--port", "0", "--tp-size", "1"]
    assert given.startswith(f"['{package}/launch_server.py'")
    assert given.endswith(f"{str([*flags, '--api-key=-s3cret'])[1:]} sglang.launch_server")
    assert "s3cret" not in command_line


def test_a_server_that_cannot_start_is_a_failure_with_its_log(fakes: Any) -> None:
    broken = SglangEngine(Path(sys.executable), "0.5.16", "a test")
    with pytest.raises(ServerFailed) as failure:
        broken.start(fakes.launch(deadline_seconds=60.0))
    assert "the sglang server of fake[1] died after" in str(failure.value)
    assert "sglang" in str(failure.value).splitlines()[-1]


def test_prepare_makes_the_environment_once(fakes: Any, tmp_path: Path) -> None:
    made: list[str] = []

    class Environment(ServerEnvironment):
        def make(self, say: Any) -> None:
            made.append(self.version)
            self.python.parent.mkdir(parents=True)
            self.python.write_text("#!/bin/sh\necho 0.5.16\n")
            self.python.chmod(0o755)

    environment = Environment("0.5.16", tmp_path)
    prepared = SglangEngine(environment.python, "0.5.16", "a test", environment)
    launch = fakes.launch(model=str(tmp_path))
    prepared.prepare(launch, print)
    prepared.prepare(launch, print)
    assert made == ["0.5.16"]
    engine().prepare(launch, print)


def test_an_environment_with_another_version_is_an_error(fakes: Any, tmp_path: Path) -> None:
    environment = ServerEnvironment("0.5.17", tmp_path)
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text("#!/bin/sh\necho 0.5.16\n")
    environment.python.chmod(0o755)
    (environment.folder / ".servematrix-whole").touch()
    wrong = SglangEngine(environment.python, "0.5.17", "a test", environment)
    with pytest.raises(EnvironmentProblem, match=r"has SGLang 0\.5\.16 where 0\.5\.17 is expected"):
        wrong.prepare(fakes.launch(), print)
