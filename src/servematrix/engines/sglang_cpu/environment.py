"""Where SGLang for the CPU is installed: without CUDA, and without what a CPU never calls.

SGLang asks for about a hundred packages, of which CUDA's libraries are the most part. Here it is
installed alone, beside PyTorch's CPU build and the packages that it imports (`packages.txt`).
`standins/` takes the place of those that it imports and never calls on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.environments import ServerEnvironment, Steps, ask, installer
from servematrix.engines.log import last_lines

DEFAULT_VERSION = "0.5.16"
"""Of SGLang, where none is named; what the stand-ins and `packages.txt` were tried with."""
TORCH = "torch==2.13.0+cpu"
"""`+cpu` names the CPU build and no other: an index without it gives an error, not CUDA."""
ALONE = ("xgrammar",)
"""Installed without dependencies: it would bring Triton, 1 GB that no CPU uses."""
_INSPECT = """
import importlib.metadata, importlib.util, json, os, runpy
spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    raise SystemExit("no PyTorch")
told = runpy.run_path(os.path.join(os.path.dirname(spec.origin), "version.py"))
names = sorted({str(one.name) for one in importlib.metadata.distributions()})
cuda = [name for name in names if name.lower().startswith(("nvidia", "cuda"))]
builds = {name: told[name] for name in ("cuda", "hip", "xpu") if told.get(name)}
print(json.dumps({"version": told["__version__"], "builds": builds, "packages": cuda}))
"""
NOT_CUDA = ("nvidia-ml-py",)
"""Asks the driver what GPUs there are; many tools bring it."""


class CpuEnvironment(ServerEnvironment):
    """The environment of one version of SGLang for the CPU, in the user's cache."""

    kind = "sglang-cpu"
    size = "about 400 MB"

    def _install(self, steps: Steps, say: Say) -> None:
        tool = installer(self.python)
        steps.run(tool.venv(self.folder, pip=True))
        self._install_torch(steps, say)
        steps.run(tool.install("--no-deps", f"sglang=={self.version}"))
        wanted = {Requirement(line).name: line for line in requirements(self._asked())}
        alone = [wanted.pop(name) for name in ALONE]
        # PyTorch is named again, so that no dependency puts another build in its place
        steps.run(tool.install(TORCH, *wanted.values()))
        steps.run(tool.install("--no-deps", *alone))
        require_cpu_build(self.python)

    def _install_torch(self, steps: Steps, say: Say) -> None:
        """Install PyTorch's CPU build, from wherever it is to be had."""
        uv = installer(self.python).uv
        pip = [str(self.python), "-m", "pip", "install", TORCH]
        if uv is not None:
            known = [uv, "pip", "install", "--compile-bytecode", "--torch-backend", "cpu"]
            problem = steps.attempt([*known, "--python", str(self.python), TORCH])
            if problem is None:
                return
            told = (last_lines(steps.log, 20).splitlines() or ["it says nothing"])[-1].strip()
            say(f"uv {problem} to install {TORCH} ({told}); trying pip as it is configured here")
        problem = steps.attempt(pip)
        if problem:
            raise EnvironmentProblem(
                f"{TORCH} could not be installed: `{' '.join(pip)}` {problem}; the public index "
                "has CUDA builds only: configure an index with PyTorch's CPU builds for pip "
                "(`pip config set global.extra-index-url URL`), or name a Python that has SGLang "
                f"and such a build with --server-python (log: {steps.log})\n"
                f"{last_lines(steps.log, 20)}"
            )

    def _asked(self) -> list[str]:
        """Return what the installed SGLang asks for."""
        folders = [str(folder) for folder in self.folder.glob("lib/python3*/site-packages")]
        found = importlib.metadata.distributions(name="sglang", path=folders)
        return [line for one in found for line in one.requires or ()]


def requirements(asked: list[str]) -> Iterator[str]:
    """Give each package of `packages.txt` in the version tried, or as SGLang wants it instead.

    `asked` is what SGLang asks for, as its metadata writes it; what belongs to an extra is left
    out.
    """
    own = {
        canonicalize_name(one.name): one
        for one in map(Requirement, asked)
        if one.marker is None or "extra" not in str(one.marker)
    }
    for line in Path(__file__).with_name("packages.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        tried = Requirement(text)
        version = next(iter(tried.specifier)).version
        theirs = own.get(canonicalize_name(tried.name))
        fits = theirs is None or theirs.specifier.contains(version, prereleases=True)
        yield text if fits else f"{tried.name}{theirs.specifier if theirs else ''}"


def require_cpu_build(python: Path) -> str:
    """Return the version of PyTorch that a Python would import, without importing it.

    Raises EnvironmentProblem where it is a build for GPUs, or CUDA packages are beside it.
    """
    told = json.loads(ask(python, _INSPECT, "PyTorch"))
    builds = [f"{name.upper()} {version}" for name, version in told["builds"].items()]
    if builds:
        raise EnvironmentProblem(
            f"{python} has PyTorch {told['version']}, a build for {', '.join(builds)}; engine "
            "sglang-cpu needs a CPU build: name a Python that has one with --server-python, or "
            "leave that out to have an environment made"
        )
    packages = [name for name in told["packages"] if canonicalize_name(name) not in NOT_CUDA]
    if packages:
        raise EnvironmentProblem(
            f"{python} has PyTorch {told['version']}, a CPU build, but CUDA packages too: "
            f"{', '.join(packages)}; SGLang would try to use them: name another Python "
            "with --server-python, or leave that out to have an environment made"
        )
    return str(told["version"])
