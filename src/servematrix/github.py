"""A run as jobs of GitHub Actions: the cells of each, the runner it needs, how long it may take.

A runner of one's own is found by labels, which GitHub compares word by word. So one that could do
more carries the labels of the lesser needs as well: a machine with two GPUs of 80 GiB and compute
capability 9.0 has `gpus-1`, `gpus-2`, `vram-8` … `vram-80`, `cc-9.0` and each `cc-min-…` up to 9.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from servematrix import run, shards
from servematrix.config import ConfigError
from servematrix.run import Plan, PlannedCell

MOST_JOBS: Final = 256
"""Jobs that GitHub starts from one matrix."""
VRAM: Final = (8, 16, 24, 32, 40, 48, 80, 96, 141, 192, 288)
"""Memory of GPUs in GiB, as they are sold: a need is met by the next class."""
SETUP_MINUTES: Final = 15
"""Of each job: checkout, environment, a download of weights that is not at hand."""
SLACK: Final = 2.0
"""Of the durations that are expected: a busy host is slower, a hang should not cost hours."""
_HOSTED: Final = ("ubuntu-latest",)
_OWN: Final = ("self-hosted", "linux", "gpu")
_SELECTABLE: Final = re.compile(r"[^(),]*(\(\w+=[^(),]*\))?")


def jobs(options: run.Options, number: int | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of a matrix, a job for each cell or for each of `number` shards.

    Each has `name`, `config` or `shard` (what the option of that name takes), `cells`, `engine`,
    `runs-on` and `timeout-minutes`: 15 and twice the minutes that its cells take one after another.
    A shard without a cell is no job. Also returned is why cells are in no job: the engine can serve
    them on no machine. The GPUs of this machine are not asked. ConfigError where there would be
    more jobs than GitHub takes, or one that no runner could take.
    """
    if number is not None and not 1 <= number <= MOST_JOBS:
        raise ConfigError(f"--shards {number}: 1 to {MOST_JOBS}, which is what GitHub takes")
    # one shard of one is every cell that the engine can serve
    plan = run.plan(replace(options, shard="1/1"), machine=())
    assert plan.dealt is not None, "asked for above"
    if not plan.cells:
        raise ConfigError(f"--github: no cell for a job: {'; '.join(plan.dealt.left_out)}")
    if number is None and len(plan.cells) > MOST_JOBS:
        raise ConfigError(
            f"--github: {len(plan.cells)} cells, and GitHub takes {MOST_JOBS} jobs in a matrix; "
            f"deal them out with --shards N, up to {MOST_JOBS}"
        )
    if number is None:
        found = [_job(plan, cell.id, [cell], {"config": _selection(cell)}) for cell in plan.cells]
    else:
        found = _sharded(plan, number)
    return found, list(plan.dealt.left_out)


def _sharded(plan: Plan, number: int) -> list[dict[str, Any]]:
    found = []
    for position, cells in enumerate(shards.deal(plan.durations, number), 1):
        chosen = set(cells)
        own = [cell for cell in plan.cells if cell.id in chosen]
        if own:
            shard = f"{position}/{number}"
            found.append(_job(plan, f"shard {shard}", own, {"shard": shard}))
    return found


def _job(
    plan: Plan, name: str, cells: Sequence[PlannedCell], chosen: dict[str, str]
) -> dict[str, Any]:
    seconds = sum(plan.durations[cell.id].seconds for cell in cells)
    return {
        "name": name,
        **chosen,
        "cells": [cell.id for cell in cells],
        "engine": plan.engine.name,
        "runs-on": _labels(name, cells) if plan.engine.name == "sglang" else list(_HOSTED),
        "timeout-minutes": SETUP_MINUTES + math.ceil(SLACK * seconds / 60),
    }


def _labels(name: str, cells: Sequence[PlannedCell]) -> list[str]:
    """The labels of a runner on which every one of the cells fits."""
    needs = [run.requirement(cell.config) for cell in cells]
    labels = [*_OWN, f"gpus-{max(one.gpus for one in needs)}"]
    memory = max(one.memory_gib or 0.0 for one in needs)
    if memory:
        classes = [size for size in VRAM if size >= memory]
        labels.append(f"vram-{classes[0] if classes else math.ceil(memory)}")
    exact = {one.compute_capability_exact: cell.id for one, cell in zip(needs, cells, strict=True)}
    exact.pop(None, None)
    least = max((one.compute_capability_min or (0, 0) for one in needs), default=(0, 0))
    if len(exact) > 1 or any(one is not None and one < least for one in exact):
        told = [f"{cell.id}: {cell.config.requires.compute_capability}" for cell in cells]
        raise ConfigError(
            f"--github: {name}: no runner has every compute capability that its cells need "
            f"({', '.join(told)}); leave out --shards, or plan those cells apart"
        )
    labels += [f"cc-{_dotted(one)}" for one in exact if one is not None]
    return labels + ([f"cc-min-{_dotted(least)}"] if least > (0, 0) and not exact else [])


def _selection(cell: PlannedCell) -> str:
    if not _SELECTABLE.fullmatch(cell.id):
        raise ConfigError(
            f"--github: --config cannot name {cell.id}, for its commas or brackets; deal the cells "
            "out with --shards N"
        )
    return cell.id


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
