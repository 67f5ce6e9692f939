"""What a run's records say of each of its cells, as far as a comparison needs it.

A run's folder is read as the run left it, and as a validation keeps it, with its files gzipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servematrix import records
from servematrix.gates.verdict import Verdict
from servematrix.records import RecordsError
from servematrix.validation import kept
from servematrix.validation.judging import Finding

_ITEMS: Final = ("hellaswag", "items")


@dataclass(frozen=True)
class Cell:
    """One cell of a run: its verdicts by `kit.test`, and the file of its HellaSwag items.

    The file is that of its record, within the run's folder.
    """

    tests: Mapping[str, Verdict]
    folder: Path = Path()
    items_file: str | None = None

    def items(self) -> list[Any] | None:
        """The rows of the items as the kit attached them, None where it did not.

        RecordsError names a file that cannot be read.
        """
        if self.items_file is None:
            return None
        rows = records.attached(self.folder, self.items_file)
        if not isinstance(rows, list):
            raise RecordsError(f"{self.folder / self.items_file}: not a list of items")
        return rows


@dataclass(frozen=True)
class Run:
    """One run: which server answered, on which GPUs (UUIDs), and what was found in each cell.

    `problem` says why its verdicts are not those of a whole run; empty where they are.
    """

    folder: Path
    answered: str
    simulated: bool
    problem: str
    cells: Mapping[str, Cell]
    gpus: frozenset[str] = frozenset()


def read(folder: Path) -> Run:
    """Read a run's folder; RecordsError where there is none, or it is no run of a matrix."""
    with records.as_written(folder):
        found = records.standing(records.read(folder))
        return _run(folder, found)


def _run(folder: Path, found: Sequence[Mapping[str, Any]]) -> Run:
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for record in found:
        kinds.setdefault(record["kind"], []).append(record)
    run, verdicts = kinds["run"][0], kinds.get("verdict", [])
    names = dict.fromkeys(one["cell"] for one in (*kinds.get("cell", []), *verdicts))
    findings = [Finding(v["kit"], v["test"], v["verdict"], v["reason"]) for v in verdicts]
    return Run(
        folder,
        kept.answered(run, kinds.get("cell", [])),
        run["simulated"],
        kept.cut(kinds.get("end", []), findings),
        {name: _cell(name, folder, verdicts, kinds.get("measurement", [])) for name in names},
        frozenset(gpu for one in kinds.get("cell", []) for gpu in one["gpus"]),
    )


def _cell(
    name: str,
    folder: Path,
    verdicts: Sequence[Mapping[str, Any]],
    measurements: Sequence[Mapping[str, Any]],
) -> Cell:
    files = [
        str(one["path"])
        for one in measurements
        if one["cell"] == name and (one["kit"], one["name"]) == _ITEMS and "path" in one
    ]
    tests = {
        f"{one['kit']}.{one['test']}": Verdict(
            one["verdict"], one["rule"], one["reason"], one["numbers"]
        )
        for one in verdicts
        if one["cell"] == name
    }
    return Cell(tests, folder, files[-1] if files else None)
