"""One run that is to be merged, and whether several are parts of one matrix."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from servematrix import records
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError

Record = Mapping[str, Any]

_SAME: Final[Mapping[str, str]] = {
    "engine": "engine",
    "base_url": "--base-url",
    "changes": "changes of the configuration (--set, --model, --draft-model)",
    "selection": "tests",
    "hellaswag_sha256": "content of the --hellaswag file (sha256)",
    "git_commit": "git commit",
    "git_changes": "changes that are not committed (sha256)",
}
"""What all parts have in common, by the key of their headers, and how it is called."""


@dataclass(frozen=True)
class Part:
    """One run: its first record, the others that stand, and its last one if it came to its end."""

    folder: Path
    header: Record
    found: Sequence[Record]
    end: Record | None

    @property
    def status(self) -> Exit:
        """How it ended; one that did not was interrupted."""
        return Exit.INTERRUPTED if self.end is None else Exit(self.end["exit_code"])

    @property
    def counts(self) -> Counter[str]:
        """Verdicts by outcome, as the run counted them, or as far as it got."""
        if self.end is not None and isinstance(self.end.get("counts"), dict):
            return Counter({str(name): int(count) for name, count in self.end["counts"].items()})
        return Counter(one["verdict"] for one in self.of_kind("verdict"))

    @property
    def cells(self) -> list[str]:
        """The cells that it was to run, and those that it has a record of."""
        recorded = (one["cell"] for one in self.found if "cell" in one)
        return list(dict.fromkeys([*self.header["configurations"], *recorded]))

    @property
    def answered(self) -> set[str]:
        """The versions that servers gave of themselves, each as JSON."""
        return {json.dumps(one["versions"], sort_keys=True) for one in self.of_kind("cell")}

    @property
    def servematrix(self) -> object:
        """The version of ours that ran it."""
        return self.header.get("versions", {}).get("servematrix")

    def of_kind(self, kind: str) -> list[Record]:
        """Its records of one kind."""
        return [one for one in self.found if one["kind"] == kind]


def read(path: Path) -> Part:
    """Read a run's folder, or its records file; RecordsError where it is no run.

    A run that was merged already is none: its parts are what is to be merged.
    """
    folder = path.parent if path.name == records.FILE else path
    with records.as_written(folder):
        whole = list(records.read(folder))
        header = whole[0]
        if header.get("merged"):
            raise RecordsError(f"{folder}: it is merged itself; name the runs that it is made of")
        begun = max(n for n, one in enumerate(whole) if one["kind"] in ("run", "resume"))
        ends = [one for one in whole[begun:] if one["kind"] == "end"]
        kept = [one for one in records.standing(whole)[1:] if one["kind"] != "end"]
        part = Part(folder, header, kept, ends[-1] if ends else None)
        # whatever a reader would trip over is found now, before anything is written
        _ = part.status, part.counts, part.cells, part.answered, header["engine"], header["time"]
        _ = [gpu["uuid"] for gpu in header["gpus"]], header["simulated"], part.servematrix
        _ = dict(header["configurations"]), dict(header.get("baselines") or {})
    return part


def check(parts: Sequence[Part]) -> None:
    """Refuse runs that are not parts of one matrix; RecordsError names what differs, and where."""
    owner: dict[str, Part] = {}
    for part in parts:
        for cell in part.cells:
            other = owner.setdefault(cell, part)
            if other is not part:
                raise RecordsError(
                    f"cannot merge {other.folder} and {part.folder}: both have the cell {cell}; "
                    "name one run of each cell"
                )
    for key, name in _SAME.items():
        _compare(parts, name, partial(_stated, key))
    _compare(parts, "version of servematrix", lambda part: part.servematrix)
    served = {one for part in parts for one in part.answered}
    for part in parts:
        different = sorted(served - part.answered)
        if part.answered and different:
            other = next(one for one in parts if different[0] in one.answered)
            told = sorted(part.answered)[0]
            raise RecordsError(
                f"cannot merge {part.folder} and {other.folder}: version of the server: "
                f"{told} and {different[0]}"
            )


def _stated(key: str, part: Part) -> object:
    return part.header.get(key)


def _compare(parts: Sequence[Part], name: str, value: Callable[[Part], object]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if value(part) != value(first):
            raise RecordsError(
                f"cannot merge {first.folder} and {part.folder}: {name}: "
                f"{value(first)} and {value(part)}"
            )
