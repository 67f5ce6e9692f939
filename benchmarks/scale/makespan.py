"""A matrix of simulated cells on pretend GPUs: how near to the shortest possible time?

The times of the cells are drawn from those of real ones, and made shorter by one factor.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from servematrix import durations, records
from servematrix.gpus import lease_files
from servematrix.gpus.pretend import NUMBER

ROOT: Final = Path(__file__).resolve().parents[2]
GPUS: Final = 8
CELLS: Final = 200
FACTOR: Final = 20.0
"""A simulated second is so many real ones."""
_SUITE: Final = """\
import json
import time
from pathlib import Path

import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit, concludes

SECONDS = json.loads(Path(__file__).with_name("seconds.json").read_text())


@pytest.mark.suite("simulated")
class TestSimulated(Kit):
    kit = "simulated"

    def test_cell(self, cell):
        time.sleep(SECONDS[cell.id])
        self.conclude(Verdict("pass", "a cell ends", "it did"))
"""
_CONFIG: Final = """\
description = "simulated cells"
stage = "bench"
estimated_seconds = 100
suites = ["simulated"]
axis.number = {numbers}
[model]
path = "nobody/nothing"
"""


def real_seconds() -> list[float]:
    """How long real cells took, launch to last record, as the kept validation runs tell."""
    found = []
    for path in sorted(ROOT.glob("docs/validation/*/*/records.jsonl")):
        for cells in durations.measured(path.parent).values():
            found += cells.values()
    return found


def figures() -> Iterator[tuple[str, list[float], str, float | None]]:
    """Makespan over its lower bound, and what a cell costs beside its server."""
    real = real_seconds()
    chance = random.Random(5)
    drawn = [chance.choice(real) * chance.uniform(0.8, 1.2) for _ in range(CELLS)]
    yield "real cells that times are drawn from", real, "s", None
    cells = [one / FACTOR for one in drawn]
    bound = max(max(cells), sum(cells) / GPUS)
    for recorded in (True, False):
        whole, from_first = _run(cells, "-n", str(GPUS), recorded=recorded)
        known = "recorded" if recorded else "unknown"
        name = f"{CELLS} cells on {GPUS} GPUs, times {known}: makespan over lower bound"
        yield name, [from_first / bound], "", 1.05 if recorded else None
        yield "  with the start and end of pytest and its workers", [whole / bound], "", None
    costs = []
    for _ in range(3):
        many, _ = _run([0.0] * 41)
        one, _ = _run([0.0])
        costs.append((many - one) / 40)
    yield "a cell beside its server and its tests", costs, "s", 0.5


def _run(cells: Sequence[float], *options: str, recorded: bool = True) -> tuple[float, float]:
    """Run simulated cells; returns seconds of it all, and from the first cell to the last end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, cells, recorded=recorded)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.scale.idle_engine"]
        command += ["-p", "no:cacheprovider", "--config", "all", *options]
        environment = os.environ | {
            NUMBER: str(GPUS),
            lease_files.FOLDER: str(folder / "leases"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        }
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        whole = time.perf_counter() - began
        if done.returncode != 0:
            raise SystemExit(f"the simulated run ended with {done.returncode}:\n{done.stdout}")
        found = list(records.read(folder / "results" / "latest"))
    begun = [_at(one) for one in found if one["kind"] == "cell"]
    ended = [_at(one) for one in found if one["kind"] == "verdict"]
    assert len(begun) == len(ended) == len(cells)
    return whole, max(ended) - min(begun)


def _write(folder: Path, cells: Sequence[float], *, recorded: bool) -> None:
    (folder / "configs").mkdir()
    config = _CONFIG.format(numbers=list(range(len(cells))))
    (folder / "configs" / "cells.toml").write_text(config)
    seconds = {f"cells(number={number})": one for number, one in enumerate(cells)}
    (folder / "seconds.json").write_text(json.dumps(seconds))
    (folder / "test_simulated.py").write_text(_SUITE)
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
    )
    if recorded:
        known = {cell: max(one, 0.001) for cell, one in seconds.items()}
        (folder / "configs" / "durations.json").write_text(json.dumps({"reference": known}))


def _at(record: dict[str, str]) -> float:
    return datetime.fromisoformat(record["time"]).timestamp()
