"""A run as Markdown, for the summary of a workflow's step: cells by kits, and what is no pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servematrix import records
from servematrix.merge import parts, table
from servematrix.merge.joined import join
from servematrix.overview import worst
from servematrix.terminal import line, markdown

_MOST: Final = 100
"""Verdicts that are told with their reasons; GitHub takes 1 MiB from a step."""
_LONGEST: Final = 500
_WORST: Final = ("fail", "error", "inconclusive")
_SYMBOLS: Final[Mapping[str, str]] = {
    "pass": "✅",
    "fail": "❌",
    "error": "❌",
    "inconclusive": "❔",
    "waived": "⚠️",
    "not_applicable": "⏭️",
}


def document(folder: Path) -> str:
    """The summary of a run; RecordsError where its records cannot be read."""
    part = parts.read(folder)
    whole = join([part], ())
    with records.as_written(folder):
        verdicts = part.of_kind("verdict")
        return "\n".join(
            [
                f"### servematrix: {markdown(table.last_line(whole))}",
                "",
                *_grid(part.cells, verdicts),
                "",
                *_troubles(verdicts),
                *(f"- {markdown(problem)}" for problem in whole.problems),
                "",
                f"Records: {markdown(str(folder))}",
                "",
            ]
        )


def _grid(cells: Sequence[str], verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    kits = list(dict.fromkeys(str(one["kit"]) for one in verdicts))
    found: dict[tuple[str, str], list[str]] = {}
    for one in verdicts:
        found.setdefault((one["cell"], one["kit"]), []).append(records.outcome(one))
    heads = ["cell", *map(markdown, kits)]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for cell in cells:
        told = [_told(found.get((cell, kit), ())) for kit in kits]
        lines.append(f"| {' | '.join([markdown(cell), *told])} |")
    return lines


def _told(outcomes: Sequence[str]) -> str:
    """The verdicts of one kit in one cell: the worst, and how many there are of it."""
    if not outcomes:
        return ""
    found = worst(outcomes)
    number = outcomes.count(found)
    of = "" if number == len(outcomes) else f" of {len(outcomes)}"
    return f"{_SYMBOLS.get(found, '❔')} {number}{of} {markdown(found.replace('_', ' '))}"


def _troubles(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is no pass, the worst first, one reason for many tests of a cell once."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for outcome in (*_WORST, "waived"):
        for one in verdicts:
            if records.outcome(one) == outcome:
                key = outcome, str(one["cell"]), line(str(one["reason"]), _LONGEST)
                told.setdefault(key, []).append(f"{one['kit']}.{one['test']}")
    lines = []
    for (outcome, cell, reason), tests in list(told.items())[:_MOST]:
        more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
        where = markdown(f"{cell}: {tests[0]}{more}")
        lines.append(f"- {_SYMBOLS[outcome]} **{outcome}** {where}: {markdown(reason)}")
    if len(told) > _MOST:
        lines.append(f"- {len(told) - _MOST} more stand in the records")
    return lines
