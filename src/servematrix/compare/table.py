"""A comparison as a table: for people, for documents and for programs, all from the same rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix.compare.differences import Row
from servematrix.exit_codes import Exit
from servematrix.redaction import Secrets
from servematrix.terminal import console
from servematrix.terminal import line as one_line
from servematrix.terminal import markdown as cell

_WIDE: Final = 150
"""Columns that the table needs; a narrower terminal breaks its lines rather than lose some."""
_WORDS: Final = ("cell", "compared", "unit", "verdict")
_EXPLAINED: Final = ("fail", "error", "inconclusive")
_UNJUDGED: Final = (
    "not applicable: one run a side has no interval, or one side has no such number;"
    " measure both in turn, with --a and --b"
)
_MEANINGS: Final[Mapping[Exit, str]] = {
    Exit.PASSED: "B is not worse than A",
    Exit.FAILED: "B is worse than A, or something could not be compared",
    Exit.INCONCLUSIVE: "nothing shows B worse than A, and not every loss is excluded",
}


def last_line(rows: Sequence[Row], code: Exit) -> str:
    """The status and its meaning, and how many rows have which verdict."""
    counted = Counter(row.verdict.outcome for row in rows)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counted.items()))
    return f"exit {int(code)} ({_MEANINGS.get(code, code.meaning)}): {shown or 'nothing compared'}"


def plain(rows: Sequence[Row], sides: Mapping[str, str]) -> None:
    """Print the table for people, below it the reasons, which find no room in it.

    `sides` has what answered as A and as B.
    """
    for side, answered in sides.items():
        print(f"{side}: {one_line(answered)}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines = _lines(rows)
    for heading in lines[0]:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(one_line, line.values()))
    console(at_least=_WIDE).print(table)
    cells = {row.cell for row in rows}
    for row in rows:
        if row.verdict.outcome in _EXPLAINED:
            place = f"{row.cell}: {row.name}" if row.cell and len(cells) > 1 else row.name
            print(one_line(f"{place}: {row.verdict.outcome}: {row.verdict.reason}"))
    if any(row.verdict.outcome == "not_applicable" for row in rows):
        print(_UNJUDGED)


def markdown(rows: Sequence[Row], sides: Mapping[str, str]) -> None:
    """Print the table for a document."""
    for side, answered in sides.items():
        print(f"{side}: {cell(answered)}\n")
    lines = _lines(rows)
    headings = list(lines[0])
    rules = ["---" if heading in _WORDS else "---:" for heading in headings]
    for texts in (headings, rules, *(line.values() for line in lines)):
        print(f"| {' | '.join(map(cell, texts))} |")


def programs(rows: Sequence[Row], sides: Mapping[str, str], code: Exit) -> None:
    """Print one JSON object: what answered, the rows with their verdicts, the exit status."""
    found = [Secrets().plain(asdict(row)) for row in rows]
    print(json.dumps({"sides": sides, "rows": found, "exit_code": int(code)}, indent=2))


def _lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Headings and texts of each row; one cell alone is not named in each."""
    lines = [_line(row) for row in rows]
    if len({row.cell for row in rows}) == 1:
        for line in lines:
            del line["cell"]
    return lines


def _line(row: Row) -> dict[str, str]:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{_signed(row.low)} to {_signed(row.high)}"
    return {
        "cell": row.cell,
        "compared": row.name,
        "A": _shown(row.a),
        "B": _shown(row.b),
        "B - A": "" if row.difference is None else _signed(row.difference),
        "interval": interval,
        "unit": row.unit,
        "verdict": row.verdict.outcome.replace("_", " "),
    }


def _shown(value: float | str | None) -> str:
    if value is None:
        return ""
    return value.replace("_", " ") if isinstance(value, str) else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"
