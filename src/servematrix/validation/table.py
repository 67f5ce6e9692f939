"""A validation as a table: for people, for documents and for programs, all from the same rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix.exit_codes import Exit
from servematrix.terminal import console
from servematrix.terminal import line as one_line
from servematrix.terminal import markdown as cell
from servematrix.validation.kept import KEY_NUMBERS, Row, State

_WIDE: Final = 180
"""Columns that the table needs; a narrower terminal breaks its lines rather than lose some."""
_PROSE: Final = {"what it is": 18, "on": 12, "result": 14}
"""Columns that are wrapped where there is no room, and what they need at least."""
_WORDS: Final = ("server", *_PROSE, "must fail", "did fail")
_COUNTS: Final = {
    "pass": "pass",
    "n/a": "not_applicable",
    "inconclusive": "inconclusive",
    "error": "error",
}
_MEANINGS: Final[Mapping[Exit, str]] = {
    Exit.PASSED: "every server was told as what it is",
    Exit.FAILED: "a server was told as what it is not",
    Exit.SERVER: "a server gave no result",
    Exit.INCONCLUSIVE: "not every server was run",
}
_STATES: Final[Mapping[State, Exit]] = {
    # the first one that there is decides
    "DEFECT": Exit.FAILED,
    "no result": Exit.SERVER,
    "not run": Exit.INCONCLUSIVE,
}
SIMULATED: Final = "simulated: says that the kits work, never that a server is good"


def status(rows: Sequence[Row]) -> Exit:
    """The exit status of a validation; one in which nothing was judged is not green."""
    states = {row.state for row in rows}
    for state, code in _STATES.items():
        if state in states:
            return code
    return Exit.PASSED if "as expected" in states else Exit.INCONCLUSIVE


def last_line(rows: Sequence[Row], code: Exit) -> str:
    """The status and its meaning, how many servers are in which state, and what answered."""
    counted = Counter(row.state for row in rows)
    shown = ", ".join(f"{count} {state}" for state, count in counted.items())
    meaning = _MEANINGS.get(code, code.meaning)
    return f"exit {int(code)} ({meaning}): {shown}; {_answered(rows)}"


def plain(rows: Sequence[Row]) -> None:
    """Print the table for people, and below it the reasons, which find no room in it."""
    padding = (0, 1, 0, 0)
    title = one_line(_answered(rows))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=padding)
    lines = _lines(rows)
    for heading in lines[0]:
        table.add_column(
            heading if heading in _WORDS else heading.replace(" ", "\n", 1),
            justify="left" if heading in _WORDS else "right",
            no_wrap=heading not in _PROSE,
            min_width=_PROSE.get(heading),
        )
    for line in lines:
        texts = {heading: one_line(text) for heading, text in line.items()}
        fails = {name: _stacked(texts[name]) for name in ("must fail", "did fail")}
        table.add_row(*(texts | fails).values())
    console(at_least=_WIDE).print(table)
    for row in rows:
        for told, reason in _reasons(row):
            print(one_line(f"{row.server.name}: {told}: {reason}"))


def markdown(rows: Sequence[Row]) -> None:
    """Print the table for a document."""
    lines = _lines(rows)
    print(f"{cell(_answered(rows))}\n")
    headings = list(lines[0])
    rules = ["---" if heading in _WORDS else "---:" for heading in headings]
    for texts in (headings, rules, *(line.values() for line in lines)):
        print(f"| {' | '.join(map(cell, texts))} |")


def programs(rows: Sequence[Row]) -> None:
    """Print one JSON object a server, in a list."""
    print(json.dumps([asdict(row) | {"server": row.server.model_dump()} for row in rows], indent=2))


def _answered(rows: Sequence[Row]) -> str:
    answered = dict.fromkeys(_on(row) for row in rows if row.answered)
    return "; ".join(answered) or "no server answered"


def _on(row: Row) -> str:
    return f"{row.answered} ({SIMULATED})" if row.simulated else row.answered


def _lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Headings and texts of each row; a column that would be empty throughout is left out.

    So is what answered, where one answered for all: that stands above the table.
    """
    lines = [_line(row) for row in rows]
    dropped = {heading for heading in lines[0] if not any(line[heading] for line in lines)}
    dropped -= {"did fail"}
    if len({row.answered for row in rows if row.answered}) == 1:
        dropped.add("on")
    return [
        {heading: text for heading, text in line.items() if heading not in dropped}
        for line in lines
    ]


def _line(row: Row) -> dict[str, str]:
    judged = row.state in ("as expected", "DEFECT")
    return {
        "server": row.server.name,
        "what it is": row.server.description,
        "on": row.answered,
        "must fail": ", ".join(row.server.must_fail) or "nothing",
        "did fail": ", ".join(row.failed) or ("nothing" if judged else ""),
        **{heading: str(row.counts.get(name) or "") for heading, name in _COUNTS.items()},
        **{heading: _number(row.numbers.get(heading)) for heading in KEY_NUMBERS},
        "ready s": _seconds(row.startup_seconds),
        "cell s": _seconds(row.seconds),
        "result": _result(row),
    }


def _result(row: Row) -> str:
    told = "; ".join(defect.what for defect in row.defects)
    return f"{row.state}: {told}" if told else row.state


def _reasons(row: Row) -> list[tuple[str, str]]:
    if row.reason:
        return [(row.state, row.reason)]
    return [(f"{row.state}: {one.what}", one.reason) for one in row.defects if one.reason]


def _stacked(entries: str) -> str:
    """Entries one below the other, each test below its kit."""
    return entries.replace(", ", "\n").replace(".", ".\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
