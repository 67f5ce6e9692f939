"""The faults and their matrix: for people, for documents and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix.faults.known import CATCHERS, KITS, Fault, Known
from servematrix.faults.matrix import Entry, Healthy, Matrix
from servematrix.records import RecordsError
from servematrix.terminal import console

_MARKS: Final = {True: "●", False: "·", None: ""}
"""Caught, met and not caught, not reached."""
_NONE: Final = "none"
"""Stands for the fault in the line of a kit before healthy servers."""
_WIDE: Final = 150


def listing(faults: Sequence[Fault]) -> None:
    """Print what each fault does, the incident that it stands for, and what must catch it."""
    table = Table(box=SIMPLE_HEAD, show_lines=True)
    for heading in ("fault", "what the server does", "the incident", "caught by"):
        table.add_column(heading, no_wrap=heading == "fault")
    for fault in faults:
        incident = f"{fault.incident}\n{fault.thread}"
        table.add_row(_spelled(fault), fault.injected.does, incident, "\n".join(fault.caught_by))
    console(at_least=_WIDE).print(table)


def listing_programs(faults: Sequence[Fault]) -> None:
    """Print the faults as a JSON list."""
    rows = [fault.model_dump() | asdict(fault.injected) for fault in faults]
    print(json.dumps(rows, indent=2, ensure_ascii=False))


def programs(matrix: Matrix) -> None:
    """Print one JSON object a line: each fault before each kit and stage, then healthy servers.

    In the latter `fault` is `none`, `caught` says whether there was an alarm.
    """
    for fault in matrix.faults:
        for kit in CATCHERS:
            print(json.dumps(asdict(matrix.entries[fault, kit]), ensure_ascii=False))
    for kit in KITS:
        alarms = [one for one in matrix.healthy.alarms if f": {kit}." in one]
        row = {"fault": _NONE, "kit": kit, "caught": bool(alarms), "alarms": alarms}
        print(json.dumps(row | {"runs": matrix.healthy.runs}, ensure_ascii=False))


def parse(path: Path) -> Matrix:
    """The matrix that `programs` printed into a file; RecordsError where it is none."""
    entries: dict[tuple[str, str], Entry] = {}
    alarms: list[str] = []
    runs = 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            if row["fault"] == _NONE:
                runs = row["runs"]
                alarms += row["alarms"]
            else:
                entries[row["fault"], row["kit"]] = Entry(**row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordsError(f"{path}: no fault matrix: {error}") from error
    return Matrix(entries, Healthy(runs, tuple(alarms)))


def markdown(matrix: Matrix, known: Known) -> None:
    """Print the matrix for a document."""
    headings = ["fault", *(name.replace("_", " ") for name in CATCHERS)]
    print(f"| {' | '.join(headings)} |")
    print(f"|{' --- |'}{' :---: |' * len(CATCHERS)}")
    for fault in matrix.faults:
        marks = (_mark(matrix.entries[fault, kit]) for kit in CATCHERS)
        print(f"| `{fault}` | {' | '.join(marks)} |")
    alone = (", ".join(f"`{name}`" for name in matrix.alone(kit)) for kit in CATCHERS)
    print("\nCaught by nothing else:\n")
    for kit, names in zip(CATCHERS, alone, strict=True):
        print(f"- {kit}: {names or known.stays.get(kit, 'none')}")
    print(f"\n{told_healthy(matrix.healthy)}")


def plain(matrix: Matrix) -> None:
    """Print the matrix for people."""
    table = Table("fault", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for catcher in CATCHERS:
        table.add_column(catcher.replace("_", "\n"), justify="center")
    for fault in matrix.faults:
        table.add_row(fault, *(_mark(matrix.entries[fault, kit]) for kit in CATCHERS))
    console(at_least=_WIDE).print(table)
    print(f"{_MARKS[True]} caught, {_MARKS[False]} not caught, blank: not reached")
    print(told_healthy(matrix.healthy))


def told_healthy(healthy: Healthy) -> str:
    """The healthy runs in a sentence, with what they bound."""
    if not healthy.runs:
        return "No healthy server was run."
    found = f"{len(healthy.alarms)} false alarms in {healthy.runs} healthy runs"
    if healthy.rate_at_most is None:
        return f"{found}."
    return (
        f"{found}, so the rate of false alarms is at most {100 * healthy.rate_at_most:.2g} %"
        " (95 % confidence)."
    )


def _mark(entry: Entry) -> str:
    return _MARKS[None if entry.verdict is None else entry.caught]


def _spelled(fault: Fault) -> str:
    injected = fault.injected
    if injected.value is None:
        return fault.name
    return f"{fault.name}\n={injected.value:g} {injected.meaning}"
