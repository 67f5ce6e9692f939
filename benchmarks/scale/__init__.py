"""What the matrix itself costs, where the servers cost nothing: pretend GPUs, simulated cells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scale import contention, makespan, planning


def figures() -> Iterator[tuple[str, list[float], str, float | None]]:
    """All figures of scale."""
    with tempfile.TemporaryDirectory() as folder:
        contention.use_folder(Path(folder))
        yield from contention.figures()
    yield from planning.figures()
    yield from makespan.figures()
