"""Runs made of records, without a server: what the readers of runs are tested with."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGUN = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
HEADER: Mapping[str, Any] = {
    "schema": 1,
    "command": ["pytest", "suites"],
    "engine": "sglang",
    "simulated": False,
    "versions": {"servematrix": "0.1.0", "python": "3.11.7"},
    "gpus": [{"uuid": "GPU-1", "name": "H100", "driver": "570"}],
    "git_commit": "abc",
    "git_changes": None,
    "base_url": None,
    "changes": [],
    "selection": {"arguments": ["suites"], "keyword": None},
    "hellaswag": None,
    "hellaswag_sha256": None,
}


def record(kind: str, after: float = 0.0, **fields: Any) -> dict[str, Any]:
    """One record, so many seconds after the beginning."""
    time = BEGUN + datetime.timedelta(seconds=after)
    return {"kind": kind, "time": time.isoformat(timespec="microseconds"), **fields}


def cell(name: str, ready: float, startup: float, **fields: Any) -> dict[str, Any]:
    """The record of a server that is ready so many seconds after the beginning."""
    whole: dict[str, Any] = {
        "configuration": {"name": name.partition("(")[0], "model": {"path": "m"}},
        "parameters": {},
        "gpus": ["GPU-1"],
        "versions": {"sglang": "0.5.16"},
        "model": "m",
        "simulated": False,
        "startup_seconds": startup,
    }
    return record("cell", ready, cell=name, **(whole | fields))


def verdict(name: str, after: float, outcome: str = "pass", test: str = "test_a") -> dict[str, Any]:
    """A verdict of a cell."""
    return record(
        "verdict",
        after,
        cell=name,
        kit="k",
        test=test,
        nodeid=f"suites/test_s.py::T::{test}[{name}]",
        verdict=outcome,
        rule="r",
        numbers={},
        reason=f"it is {outcome}\nand more",
    )


def end(after: float, exit_code: int = 0, **counts: int) -> dict[str, Any]:
    """The end of a run."""
    return record("end", after, exit_code=exit_code, counts=counts, stopped=False)


def make(
    folder: Path, cells: Sequence[str], found: Sequence[Mapping[str, Any]], **header: Any
) -> Path:
    """Write a run's folder; `cells` are those that it was to run."""
    configurations = {"configurations": dict.fromkeys(cells, "digest")}
    first = record("run", 0, **(dict(HEADER) | configurations | header))
    folder.mkdir(parents=True)
    lines = [json.dumps(one) + "\n" for one in (first, *found)]
    (folder / "records.jsonl").write_text("".join(lines))
    return folder
