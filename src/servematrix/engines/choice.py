"""Which engine serves, and why: decided once, printed first and last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from servematrix.engines.attach import AttachEngine
from servematrix.engines.base import Engine, EnvironmentProblem
from servematrix.engines.embedded import EmbeddedEngine
from servematrix.engines.environments import (
    NoSglangError,
    ServerEnvironment,
    default_pythons,
    named_python,
    probe,
)
from servematrix.engines.sglang import SglangEngine
from servematrix.engines.sglang_cpu.engine import SglangCpuEngine
from servematrix.engines.sglang_cpu.environment import (
    DEFAULT_VERSION,
    CpuEnvironment,
    require_cpu_build,
)
from servematrix.gpus import Gpu
from servematrix.gpus.pretend import NUMBER

NAMES = ("auto", "sglang", "sglang-cpu", "reference")
"""What `--engine` takes; `auto` never takes the CPU for a GPU that is missing."""


def choose(
    engine: str,
    *,
    base_url: str | None,
    server_python: str | None,
    sglang_version: str | None,
    gpus: Sequence[Gpu],
) -> Engine:
    """Return the engine for one of `NAMES`; `base_url` wins over it.

    Nothing is started and no environment is made: `Engine.prepare` does that. Raises
    EnvironmentProblem where `sglang` is asked for and there is no GPU or no SGLang, where the
    Python named for `sglang-cpu` does not fit it, and for options that contradict each other.
    """
    _check(engine, base_url, server_python, sglang_version)
    if base_url is not None:
        return AttachEngine(base_url, "--base-url names a server that runs already")
    if engine == "reference":
        return EmbeddedEngine("--engine reference was given")
    if engine == "sglang-cpu":
        return _sglang_cpu(server_python, sglang_version)
    if any(gpu.vendor == "pretend" for gpu in gpus):
        if engine == "sglang":
            raise EnvironmentProblem(
                f"--engine sglang needs a GPU, and {_seen(gpus)}: pretend ones, by {NUMBER}; unset "
                "that, or take --engine reference"
            )
        return EmbeddedEngine(f"{_seen(gpus)}: pretend ones, by {NUMBER}")
    if not gpus:
        if engine == "sglang":
            raise EnvironmentProblem(f"--engine sglang needs a GPU, and {_no_gpu()}")
        return EmbeddedEngine(_no_gpu())
    try:
        return _sglang(engine, server_python, sglang_version, gpus)
    except NoSglangError as error:
        if engine == "sglang":
            raise EnvironmentProblem(
                f"--engine sglang needs SGLang, but {error}; name a Python that has it with "
                "--server-python, or a version to install with --sglang"
            ) from error
        return EmbeddedEngine(f"{_seen(gpus)}, but {error}")


def intend(
    engine: str,
    *,
    base_url: str | None,
    server_python: str | None,
    sglang_version: str | None,
    gpus: Sequence[Gpu],
) -> Engine:
    """Return the engine that a plan is made for: as `choose`, though nothing need be there yet.

    So a run on a GPU machine can be planned on a laptop; `.reason` says what would be missing here.
    """
    try:
        return choose(
            engine,
            base_url=base_url,
            server_python=server_python,
            sglang_version=sglang_version,
            gpus=gpus,
        )
    except EnvironmentProblem as problem:
        _check(engine, base_url, server_python, sglang_version)
        if engine != "sglang":
            raise
        if sglang_version is not None:
            python = ServerEnvironment(sglang_version).python
        else:
            python = Path(server_python or "python3")
        return SglangEngine(python, sglang_version or "", f"planned only: {problem}")


def assume(engine: str, *, server_python: str | None, sglang_version: str | None) -> Engine:
    """Return the engine, named and not `auto`, that other machines are asked to run cells on.

    What they have is not known here; `choose` finds out on each of them.
    """
    _check(engine, None, server_python, sglang_version)
    reason = f"--engine {engine} was given"
    if engine == "reference":
        return EmbeddedEngine(reason)
    if engine == "sglang-cpu":
        version = sglang_version or DEFAULT_VERSION
        python = Path(server_python) if server_python else CpuEnvironment(version).python
        return SglangCpuEngine(python, version, reason)
    python = Path(server_python or "python3")
    if sglang_version is not None:
        python = ServerEnvironment(sglang_version).python
    return SglangEngine(python, sglang_version or "", reason)


def _check(
    engine: str, base_url: str | None, server_python: str | None, sglang_version: str | None
) -> None:
    if engine not in NAMES:
        raise EnvironmentProblem(f"--engine {engine}: not one of {', '.join(NAMES)}")
    server = {"--server-python": server_python, "--sglang": sglang_version}
    given = [option for option, value in server.items() if value is not None]
    if len(given) == 2:
        raise EnvironmentProblem("--server-python and --sglang both name a server; leave one out")
    others = {"--base-url": base_url is not None, "--engine reference": engine == "reference"}
    clash = [option for option, is_given in others.items() if is_given]
    if given and clash:
        raise EnvironmentProblem(
            f"{given[0]} names a server to start and {clash[0]} another one; leave one out"
        )


def _sglang(
    engine: str, server_python: str | None, sglang_version: str | None, gpus: Sequence[Gpu]
) -> Engine:
    why = "--engine sglang was given" if engine == "sglang" else _seen(gpus)
    if sglang_version is not None:
        environment = ServerEnvironment(sglang_version)
        reason = f"{why} and --sglang {sglang_version} was given"
        return SglangEngine(environment.python, sglang_version, reason, environment)
    pythons = [named_python(server_python)] if server_python is not None else default_pythons()
    problems: list[str] = []
    for python in pythons:
        try:
            version = probe(python)
        except NoSglangError as error:
            problems.append(str(error))
        else:
            return SglangEngine(python, version, f"{why} and {python} has SGLang {version}")
    raise NoSglangError(" and ".join(problems))


def _sglang_cpu(server_python: str | None, sglang_version: str | None) -> Engine:
    why = "--engine sglang-cpu was given"
    if server_python is None:
        environment = CpuEnvironment(sglang_version or DEFAULT_VERSION)
        if sglang_version is not None:
            why += f" and --sglang {sglang_version}"
        return SglangCpuEngine(environment.python, environment.version, why, environment)
    python = named_python(server_python)
    try:
        version, torch = probe(python), require_cpu_build(python)
    except NoSglangError as error:
        raise EnvironmentProblem(
            f"--engine sglang-cpu needs SGLang and PyTorch, but {error}; name another Python with "
            "--server-python, or leave that out to have an environment made"
        ) from error
    reason = f"{why} and {python} has SGLang {version} and PyTorch {torch}"
    return SglangCpuEngine(python, version, reason)


def _seen(gpus: Sequence[Gpu]) -> str:
    return "a GPU is visible" if len(gpus) == 1 else f"{len(gpus)} GPUs are visible"


def _no_gpu() -> str:
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "no GPU is visible" + ("" if outer is None else f" (CUDA_VISIBLE_DEVICES={outer})")
