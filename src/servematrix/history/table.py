"""The history of a configuration: a table with sparklines for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix.gates.verdict import SEVERITY
from servematrix.history.series import History, Outcome, Point
from servematrix.terminal import console

Row = TypeVar("Row", Point, Outcome)
_WIDE: Final = 140
MOST: Final = 30
"""Runs of a sparkline: the newest."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_MARKS: Final = {"pass": "✓", "fail": "✗", "error": "!", "inconclusive": "?", "not_applicable": "·"}
_WAIVED: Final = "w"


def sparkline(values: Sequence[float]) -> str:
    """Numbers as bars between their least and their greatest; all in the middle where they agree.

    >>> sparkline([1, 2, 8]), sparkline([5, 5])
    ('▁▂█', '▄▄')
    """
    least, most = min(values), max(values)
    if least == most:
        return _BARS[3] * len(values)
    # halved, so that a difference of the largest numbers is one too
    span = most / 2 - least / 2
    top = len(_BARS) - 1
    return "".join(_BARS[round((one / 2 - least / 2) / span * top)] for one in values)


def plain(history: History) -> None:
    """Print a row a measured number, on each GPU, and a row a kit with its verdicts."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("cell", "GPU", "kit", "number"):
        table.add_column(heading, overflow="fold")
    for heading in ("runs", "least", "greatest", "newest"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("oldest to newest", no_wrap=True)
    for judged in _series(history.outcomes):
        marks = _marks(judged)
        whose = judged[0].cell, _where(judged[0]), judged[0].kit
        table.add_row(*whose, "verdict", str(len(marks)), "", "", "", marks[-MOST:])
    for points in _series(history.points):
        values = [one.value for one in points]
        first = points[0]
        named = f"{first.name} [{first.unit}]" if first.unit else first.name
        numbers = (str(len(values)), *map(_short, (min(values), max(values), values[-1])))
        line = sparkline(values[-MOST:])
        table.add_row(first.cell, _where(first), first.kit, named, *numbers, line)
    console(at_least=_WIDE).print(table)
    print(f"{' '.join(f'{mark} {name}' for name, mark in _MARKS.items())} {_WAIVED} waived")


def as_csv(history: History) -> None:
    """Print the numbers as CSV: a head, then a row for each number of each run."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([one.name for one in fields(Point)])
    for point in history.points:
        writer.writerow(asdict(point).values())


def as_json(history: History) -> None:
    """Print one object: the numbers and the verdicts of every run."""
    found = {
        "numbers": [asdict(one) for one in history.points],
        "verdicts": [asdict(one) for one in history.outcomes],
    }
    print(json.dumps(found, indent=2))


def _series(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for one in rows:
        found.setdefault(one.series, []).append(one)
    return list(found.values())


def _where(one: Point | Outcome) -> str:
    simulated = f" ({one.engine}, simulated)" if one.simulated else ""
    engine = "" if simulated or one.engine == "sglang" else f" ({one.engine})"
    return f"{one.gpu}{simulated}{engine}"


def _marks(outcomes: Sequence[Outcome]) -> str:
    """One character a run: the worst verdict of a kit."""
    runs: dict[str, list[Outcome]] = {}
    for one in outcomes:
        runs.setdefault(one.run, []).append(one)
    return "".join(map(_mark, runs.values()))


def _mark(outcomes: Sequence[Outcome]) -> str:
    judged = [one.verdict for one in outcomes if not one.waived]
    # a word that a newer version may have written is no pass
    known = [one if one in SEVERITY else "error" for one in judged]
    worst = max(known, key=SEVERITY.index, default="pass")
    if worst in ("pass", "not_applicable") and len(judged) < len(outcomes):
        return _WAIVED
    return _MARKS[worst]


def _short(value: float) -> str:
    return f"{value:.6g}"
