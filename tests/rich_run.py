"""A run that has all a report can draw: a real one, with what newer runs keep beside it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servematrix.records import file_name
from servematrix.replay.reading import read

REAL = Path(__file__).resolve().parent.parent / "docs/validation/h200-sglang-0.5.16"
GAPS = [2.0, 2.1, 2.2] * 85 + [9.0]
DRAFTS = [{"completion_tokens": 190, "verify_passes": 50, "histogram": [2, 3, 5, 40]}] * 6
BAND = {"settled_median": {"values": [98.1, 98.6], "bound": 97.5, "unit": "%", "better": "higher"}}


def flips(text: str = "someone begins", count: int = 2) -> dict[str, Any]:
    """Items of which each has another answer than before; `text` is in each part of them."""
    item = {"activity_label": text, "ctx": text, "endings": [f"{text} {n}" for n in range(4)]}
    items = [{"ind": n, **item, "label": 1, "baseline": 1, "candidate": 3} for n in range(count)]
    return {"count": count, "items": items}


def make(
    folder: Path,
    cells: Sequence[str] = ("smollm2",),
    *,
    day: int = 22,
    median: float = 98.3,
    outcome: str = "pass",
    text: str = "someone begins",
    **header: Any,
) -> Path:
    """Write a run of so many cells on an H200; each has the same numbers, but for the median."""
    source = REAL / "smollm2-standalone"
    shutil.copytree(source / "files", folder / "files")
    (traced,) = (folder / "files").glob("*trace*")
    first, *lines = (json.loads(line) for line in (source / "records.jsonl").open())
    first |= {"time": f"2026-11-{day}T12:00:00.000000+00:00", "command": _COMMAND}
    first |= {"configurations": dict.fromkeys(cells, "digest")} | header
    assert read(traced), "the trace is one"
    found: list[Mapping[str, Any]] = [first]
    for cell in cells:
        added = {"flips": flips(text), "drafts": DRAFTS}
        for name, payload in added.items():
            path = folder / "files" / f"{file_name(cell)}-{name}.json"
            path.write_text(json.dumps(payload))
            added[name] = f"files/{path.name}"
        trace = folder / "files" / f"{file_name(cell)}-trace.json"
        _with_gaps(traced, trace)
        for line in lines:
            found.append(_mended(line, cell, f"files/{trace.name}", median, outcome))
        found += [
            {
                **_MEASURED,
                "cell": cell,
                "kit": "hellaswag",
                "name": "flips",
                "path": added["flips"],
            },
            {**_MEASURED, "cell": cell, "kit": "spec", "name": "drafts", "path": added["drafts"]},
        ]
        log = folder / f"{file_name(cell)}.log"
        log.write_text(f"a line of a server's log\n{text}\n" * 2000)
    found.sort(key=lambda one: one["kind"] == "end")
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return folder


_COMMAND = ["python", "-m", "pytest", "suites", "--config", "all", "--engine", "sglang", "-n", "2"]
_MEASURED = {"kind": "measurement", "time": "2026-11-22T12:00:01.000000+00:00", "unit": "file"}


def _with_gaps(source: Path, out: Path) -> None:
    found = json.loads(gzip.decompress(source.read_bytes()))
    found["traces"][0]["gaps_ms"] = GAPS
    out.write_text(json.dumps(found))


def _mended(
    line: Mapping[str, Any], cell: str, trace: str, median: float, outcome: str
) -> dict[str, Any]:
    """A record of the real run as one of this cell."""
    record = dict(line)
    if "cell" in record:
        record["cell"] = cell
    if record["kind"] == "cell":
        record["baseline"] = {"file": "f", "sha256": "s", "quantities": BAND}
    if record.get("name") == "trace":
        record["path"] = trace
    if record.get("test") == "test_fwd_occupancy":
        record["verdict"] = outcome
        record["numbers"] = record["numbers"] | {"settled_median": median}
    if record.get("test") == "test_accuracy_floor":
        interval = {"accuracy_low": 0.33, "accuracy_high": 0.49, "correct_baseline": 84}
        record["numbers"] = record["numbers"] | interval
    if record["kind"] == "end":
        record["exit_code"] = int(outcome != "pass")
    return record
