"""Where a run comes from: command, engine, versions, GPUs, commit, configurations."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servematrix import __version__
from servematrix import config as configs
from servematrix.gpus import Gpu
from servematrix.run import Plan


def header(plan: Plan, root: Path, command: Sequence[str]) -> dict[str, Any]:
    """The first record of a run: everything that says which run this was."""
    options = plan.options
    hidden = plan.secrets()
    return {
        "command": list(command),
        "engine": plan.engine.name,
        "engine_reason": plan.engine.reason,
        "simulated": plan.simulated,
        "versions": {"servematrix": __version__, "python": platform.python_version()},
        "gpus": [_described(gpu) for gpu in plan.visible],
        "git_commit": git_commit(root),
        "configurations": {cell.id: configs.digest(cell.config, hidden) for cell in plan.cells},
        "base_url": options.base_url,
        "hellaswag": options.hellaswag,
        "platform": platform.platform(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit checked out at a folder, with `+changes` where files differ; None outside git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return answer.stdout.strip()


def _described(gpu: Gpu) -> Mapping[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "driver": gpu.driver,
        "compute_capability": gpu.compute_capability,
        "memory_total": gpu.memory_total,
    }


def command_line() -> list[str]:
    """The command of this process, as it was typed."""
    return [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
