"""A merged run as a table: for people, for documents and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix.engines.embedded import SIMULATED
from servematrix.exit_codes import Exit
from servematrix.merge.joined import Joined, Row
from servematrix.terminal import console, line
from servematrix.terminal import markdown as cell

_WIDE: Final = 140
_OUTCOMES: Final = ("pass", "fail", "error", "inconclusive", "not_applicable")


def plain(joined: Joined) -> None:
    """Print the table for people, and below it every verdict that is not a pass."""
    table = Table(
        title=line(subject(joined)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    outcomes = _outcomes(joined.rows)
    for heading in ("cell", "run", "problem"):
        table.add_column(heading, no_wrap=heading == "cell")
    for outcome in outcomes:
        table.add_column(outcome.replace("_", " "), justify="right")
    for row in joined.rows:
        texts = (row.cell, row.part, row.problem)
        table.add_row(*map(line, texts), *_counted(row, outcomes))
    console(at_least=_WIDE).print(table)
    for told in _troubles(joined):
        print(line(told))


def markdown(joined: Joined) -> None:
    """Print the table for a document, such as the summary of a workflow."""
    outcomes = _outcomes(joined.rows)
    print(f"**{cell(last_line(joined))}**\n")
    print(f"| cell | run | problem | {' | '.join(cell(one) for one in outcomes)} |")
    print(f"| --- | --- | --- |{' ---: |' * len(outcomes)}")
    for row in joined.rows:
        texts = [row.cell, row.part, row.problem, *_counted(row, outcomes)]
        print(f"| {' | '.join(map(cell, texts))} |")
    print()
    for told in [*joined.problems, *_troubles(joined)]:
        print(f"- {cell(told)}")


def programs(joined: Joined) -> None:
    """Print one JSON object: status, counts, problems, and the cells."""
    found: Mapping[str, object] = {
        "exit_code": int(joined.status),
        "meaning": joined.status.meaning,
        "engine": joined.parts[0].header["engine"],
        "simulated": joined.simulated,
        "counts": joined.counts,
        "missing": list(joined.missing),
        "problems": joined.problems,
        "parts": [str(part.folder) for part in joined.parts],
        "cells": [asdict(row) for row in joined.rows],
    }
    print(json.dumps(found, indent=2))


def subject(joined: Joined) -> str:
    """What answered, and how many runs there are."""
    note = f" ({SIMULATED})" if joined.simulated else ""
    counted = [_number(len(joined.parts), "run"), _number(len(joined.rows), "cell")]
    return f"engine {joined.parts[0].header['engine']}{note}; {', '.join(counted)}"


def last_line(joined: Joined) -> str:
    """The status and its meaning, the counts, and what answered."""
    counts = ", ".join(f"{number} {name}" for name, number in sorted(joined.counts.items()))
    meaning = joined.status.meaning
    if joined.status is Exit.INTERRUPTED:
        meaning = "a run was cut short"
    elif joined.missing and joined.status is Exit.FAILED:
        meaning = f"without verdict: {_number(len(joined.missing), 'expected cell')}"
    told = f"exit {int(joined.status)} ({meaning}): {counts or 'no verdicts'}"
    return f"{told}; {subject(joined)}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _outcomes(rows: Sequence[Row]) -> list[str]:
    """The columns of verdicts: those of ours that there are, then any other."""
    met = {outcome for row in rows for outcome in row.counts}
    ours = [one for one in _OUTCOMES if one in met]
    return [*ours, *sorted(met - set(ours))]


def _counted(row: Row, outcomes: Sequence[str]) -> list[str]:
    return [str(row.counts.get(outcome) or "") for outcome in outcomes]


def _troubles(joined: Joined) -> list[str]:
    return [f"{row.cell}: {told}" for row in joined.rows for told in row.troubles]
