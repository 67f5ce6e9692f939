"""Ten thousand cells, planned and dealt out to shards, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CELLS: Final = 10_000
ROOT: Final = Path(__file__).resolve().parents[2]
ROUNDS: Final = 5


def figures() -> Iterator[tuple[str, list[float], str, float | None]]:
    """Seconds of the whole command, the start of Python included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (ROOT / "configs" / "smollm2.toml").read_text()
        numbers = f"axis.number = {list(range(CELLS))}\nsuites ="
        (folder / "many.toml").write_text(text.replace("suites =", numbers))
        cells = {f"many(number={number})": 60.0 + number % 97 for number in range(CELLS)}
        (folder / "durations.json").write_text(json.dumps({"reference": cells}))
        for what, options in (("planned", ()), ("dealt to 40 shards", ("--shard", "2/40"))):
            seconds = [_plan(folder, *options) for _ in range(ROUNDS)]
            yield f"{CELLS:,} cells {what} (servematrix plan --json)", seconds, "s", 5.0


def _plan(folder: Path, *options: str) -> float:
    command = [sys.executable, "-m", "servematrix", "plan", "all", "--configs", str(folder)]
    command += ["--engine", "reference", "--json", *options]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
