"""What the records of one run say of one cell, as far as a baseline needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servematrix import baselines, records
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError

_ACCURACY: Final = baselines.TESTS["accuracy"]


@dataclass(frozen=True)
class Measured:
    """One cell of one run. `told` are its verdicts, `test: outcome: reason`, by outcome."""

    folder: Path
    cell: str
    parameters: Mapping[str, Any]
    engine: str
    simulated: bool
    versions: Mapping[str, str]
    gpus: Sequence[str]
    drivers: Sequence[str]
    model: str
    dtype: str
    commit: str | None
    begun: str
    serving: Mapping[str, Any]
    values: Mapping[str, float]
    scoring: Mapping[str, Any] | None
    rows: Sequence[Mapping[str, Any]] | None
    bad: Sequence[str]
    """Verdicts that fail or are errors, and an end that is not that of a whole run."""
    times: Sequence[str]
    """When each record was written: no two runs share them all."""

    @property
    def hardware(self) -> str:
        """As `baselines.hardware`."""
        return baselines.hardware(self.engine, self.gpus)

    @property
    def same(self) -> dict[str, Any]:
        """What all runs of one baseline share."""
        return {
            "engine": self.engine,
            "server": dict(self.versions),
            "GPUs": {"model": list(self.gpus), "driver": list(self.drivers)},
            "model": self.model,
            "dtype": self.dtype,
            "configuration": self.serving,
            "HellaSwag": self.scoring or {"scored": False},
            "quantities": sorted(self.values),
        }


def folder_of(path: Path) -> Path:
    """A run's folder, from itself or from its records file; RecordsError where it is neither."""
    folder = path.parent if path.name == records.FILE else path
    if not (folder / records.FILE).is_file():
        raise RecordsError(f"{path}: no run: there is no {records.FILE} in it")
    return folder.resolve()


def cells(folder: Path, selection: str) -> list[str]:
    """The cells of a run that a configuration's name, or a cell's own, selects."""
    with records.as_written(folder):
        found = [
            record["cell"]
            for record in records.read(folder)
            if record["kind"] == "cell"
            and selection in (record["cell"], record["configuration"]["name"])
        ]
    return list(dict.fromkeys(found))  # a run that was taken up again may have one twice


def read(folder: Path, cell: str) -> Measured:
    """Read one cell of a run; RecordsError where it is not in it, or not as kits write it."""
    every = records.standing(records.read(folder))
    own = [record for record in every if record.get("cell") == cell]
    served = next((record for record in own if record["kind"] == "cell"), None)
    if served is None:
        raise RecordsError(f"{folder}: no server of {cell} was started in this run")
    with records.as_written(folder):
        return _read(folder, every, own, served)


def _read(
    folder: Path,
    every: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    served: Mapping[str, Any],
) -> Measured:
    run = every[0]
    verdicts = [record for record in own if record["kind"] == "verdict"]
    used = [gpu for gpu in run["gpus"] if gpu["uuid"] in served["gpus"]]
    found = _rows(folder, own)
    return Measured(
        folder=folder,
        cell=served["cell"],
        parameters=served["parameters"],
        engine=run["engine"],
        simulated=served["simulated"],
        versions=served["versions"],
        gpus=[gpu["name"] for gpu in used],
        drivers=sorted({gpu["driver"] for gpu in used}),
        model=served["model"],
        dtype=str(served["configuration"].get("arguments", {}).get("dtype", "auto")),
        commit=run.get("git_commit"),
        begun=run["time"],
        serving=baselines.serving(served["configuration"]),
        values=_values(verdicts),
        scoring=None if found is None else _scoring(verdicts, found),
        rows=found,
        bad=_bad(every, verdicts),
        times=[record["time"] for record in every],
    )


def _values(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    numbers = {f"{one['kit']}.{one['test']}": one["numbers"] for one in verdicts}
    found = {}
    for name, test in baselines.TESTS.items():
        value = numbers.get(test, {}).get(name)
        if value is None:
            continue
        found[name] = float(value)
        if not math.isfinite(found[name]):
            raise ValueError(f"{name} is {value}, no number")
    return found


def _rows(folder: Path, own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    for record in own:
        if record.get("kit") == "hellaswag" and record.get("name") == "items":
            rows: list[dict[str, Any]] = records.attached(folder, record["path"])
            return rows
    return None


def _scoring(
    verdicts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    numbers = {f"{one['kit']}.{one['test']}": one["numbers"] for one in verdicts}[_ACCURACY]
    through = all("n0" in row for row in rows)
    return {
        "checksum_questions": numbers["checksum_questions"],
        "checksum_shots": numbers["checksum_shots"],
        "items": numbers["n"],
        "shots": numbers["shots"],
        "method": "mean log-probability a token, "
        + ("through the prefix cache" if through else "whole prompts"),
    }


def _bad(every: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [
        f"{one['kit']}.{one['test']}: {one['verdict']}: {one['reason']}"
        for one in verdicts
        if one["verdict"] in ("fail", "error")
    ]
    ends = [record for record in every if record["kind"] == "end"]
    if not ends:
        return [*told, "it was cut short: its records have no end"]
    status = Exit(ends[-1]["exit_code"])
    if not told and status not in (Exit.PASSED, Exit.FAILED, Exit.INCONCLUSIVE):
        told.append(f"it ended with status {int(status)} ({status.meaning})")
    return told
