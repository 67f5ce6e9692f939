"""Where a run comes from: command, engine, versions, GPUs, commit, configurations."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from servematrix import __version__, changes
from servematrix import config as configs
from servematrix.engines.base import Engine
from servematrix.gpus import Gpu
from servematrix.run import Plan

_SELECTING: Final = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf")
"""pytest's options that leave tests out."""


def header(plan: Plan, root: Path, command: Sequence[str]) -> dict[str, Any]:
    """The first record of a run: everything that says which run this was."""
    options = plan.options
    hidden = plan.secrets()
    return {
        "command": list(command),
        "nox_session": os.environ.get("NOX_CURRENT_SESSION"),
        "engine": plan.engine.name,
        "engine_reason": plan.engine.reason,
        "server": server(plan.engine),
        "simulated": plan.simulated,
        "versions": {"servematrix": __version__, "python": platform.python_version()},
        "gpus": [_described(gpu) for gpu in plan.visible],
        "git_commit": git_commit(root),
        "git_changes": git_changes(root),
        "configurations": {cell.id: configs.digest(cell.config, hidden) for cell in plan.cells},
        "changes": [changes.told(one) for one in options.assignments],
        "shard": options.shard,
        "base_url": options.base_url,
        "hellaswag": options.hellaswag,
        "hellaswag_sha256": _sha256(options.hellaswag),
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def server(engine: Engine) -> str | None:
    """The Python and version of the server to start; None where they come with the engine."""
    python, version = getattr(engine, "python", None), getattr(engine, "version", None)
    return f"{version} in {python}" if python is not None else None


def selection(config: pytest.Config) -> dict[str, Any]:
    """Which tests of its cells a run was asked for: arguments and options that leave tests out."""
    here, root = config.invocation_params.dir, config.rootpath
    arguments = [os.path.relpath(here / argument, root) for argument in config.args]
    return {
        "arguments": sorted(arguments),
        **{name: getattr(config.option, name, None) or None for name in _SELECTING},
    }


def git_commit(folder: Path) -> str | None:
    """The commit checked out at a folder, with `+changes` where files differ; None outside git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def git_changes(folder: Path) -> str | None:
    """The sha256 of what differs from the commit at a folder; None outside git or without any."""
    try:
        changes = _git(folder, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    return hashlib.sha256(changes.encode()).hexdigest() if changes else None


@functools.cache
def source() -> str:
    """Version of this package and the beginning of the sha256 of its files, which tells apart more.

    Two checkouts may have the same version and measure differently.
    """
    folder = Path(__file__).parent
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return f"{__version__} (sha256 {content.hexdigest()[:12]})"


def _sha256(path: str | None) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
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
