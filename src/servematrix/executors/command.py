"""The run of one cell on a node: pytest's arguments for what the whole run was asked for.

Files of the project are named from its root, because a node may have it elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from servematrix.run import Options, PlannedCell

_AS_GIVEN = (
    "engine",
    "sglang",
    "start_deadline",
    "gpu_deadline",
    "retry_errors",
    "api_key_env",
)
_NEVER_SENT = ("server_python", "model", "draft_model")
"""Environments and weights are on the nodes already: these may be paths, which stay whole."""
_OURS = ("-p", "servematrix.plugin", "-p", "servematrix.executors.reports")


def arguments(
    config: pytest.Config, options: Options, cell: PlannedCell, nodeids: Sequence[str]
) -> list[str]:
    """Arguments of `python -m pytest`, in the project's root, for these tests of a cell."""
    root = config.rootpath
    return [
        *_general(config, root),
        "--executor=local",
        # in its own name a cell would be replaced twice where what replaces it is replaced too
        f"--config={(cell.cell.in_place_of or (cell.id,))[0]}",
        f"--configs={_path(root, root, str(options.configs_directory))}",
        *_named(config, options, root),
        *(f"--set={change}" for change in options.changes),
        *nodeids,
    ]


def _general(config: pytest.Config, root: Path) -> Iterator[str]:
    """What makes pytest find the same tests under the same names."""
    yield from _OURS
    yield "--rootdir=."
    if config.inipath is not None:
        yield f"--config-file={_path(root, root, str(config.inipath))}"
    yield f"--import-mode={config.option.importmode}"
    for change in config.option.override_ini or ():
        yield f"--override-ini={change}"
    for name in config.option.plugins or ():
        yield from ("-p", name)
    yield from ("-p", "no:cacheprovider")


def _named(config: pytest.Config, options: Options, root: Path) -> Iterator[str]:
    here = config.invocation_params.dir
    found = {name: getattr(options, name) for name in _AS_GIVEN}
    for name in _NEVER_SENT:
        value = getattr(options, name)
        is_path = value is not None and (here / value).exists()
        found[name] = os.path.normpath(here / value) if is_path else value
    for name, value in {
        "hellaswag": options.hellaswag,
        "baselines": config.option.baselines,
        "waivers": config.option.servematrix_waivers,
    }.items():
        found[name] = value if value is None else _path(root, here, value)
    for name, value in found.items():
        if value is not None:
            yield f"--{name.replace('_', '-')}={value}"
    for name in ("no_baseline", "no_waivers"):
        if getattr(config.option, name):
            yield f"--{name.replace('_', '-')}"


def _path(root: Path, here: Path, named: str) -> str:
    """A path as a node has it: within the project from its root, and else as it is here."""
    whole = Path(os.path.normpath(here / named))
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else str(whole)
