"""What several runs say together: cells, counts and one status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from servematrix import records
from servematrix.exit_codes import Exit
from servematrix.merge.parts import Part

WORST_FIRST: Final = (
    # it is not known what the rest would have been
    Exit.INTERNAL,
    Exit.USAGE,
    Exit.INTERRUPTED,
    # as in one run, a dead server outranks a verdict that failed
    Exit.SERVER,
    Exit.FAILED,
    Exit.NOTHING,
    Exit.INCONCLUSIVE,
    Exit.PASSED,
)
"""The status of several runs is the first of these that one of them has."""
_LINE: Final = "\n"


@dataclass(frozen=True)
class Row:
    """One cell: the folder of its run, its verdicts by outcome, and what is wrong with it."""

    cell: str
    part: str
    counts: Mapping[str, int]
    problem: str
    """Why it has no verdict, or fewer than it ought to have; empty where that is not so."""
    troubles: Sequence[str]
    """Verdicts that are not a pass: `outcome: kit.test: reason`."""


@dataclass(frozen=True)
class Joined:
    """Several runs as one; `missing` are cells that were expected and that no run has."""

    parts: Sequence[Part]
    rows: Sequence[Row]
    missing: Sequence[str]

    @property
    def simulated(self) -> bool:
        """Whether the embedded server answered in any of them."""
        told = [one for part in self.parts for one in (part.header, *part.of_kind("cell"))]
        return any(one.get("simulated") for one in told)

    @property
    def counts(self) -> Counter[str]:
        """Verdicts by outcome, of all runs."""
        return sum((part.counts for part in self.parts), Counter())

    @property
    def status(self) -> Exit:
        """The worst status by `WORST_FIRST`; a missing cell fails.

        A run in which nothing applied is inconclusive by itself. Beside others it is so only where
        no verdict of them all is a pass, as if all had been one run.
        """
        found = {part.status for part in self.parts} | ({Exit.FAILED} if self.missing else set())
        worst = next(status for status in WORST_FIRST if status in found)
        if worst is Exit.INCONCLUSIVE and self.counts["pass"] and not self.counts["inconclusive"]:
            return Exit.PASSED
        return worst

    @property
    def problems(self) -> list[str]:
        """What else than verdicts makes this less than a whole matrix, a sentence each."""
        cut = [
            f"{part.folder}: it was cut short, or still runs: its records have no end"
            for part in self.parts
            if part.end is None
        ]
        ended = [
            f"{part.folder}: it ended with status {int(part.status)} ({part.status.meaning})"
            for part in self.parts
            if part.end is not None and part.status in WORST_FIRST[:4]
        ]
        lost = [f"no run has {', '.join(self.missing)}, which was expected"] if self.missing else []
        return [*lost, *cut, *ended]


def join(parts: Sequence[Part], expected: Sequence[str]) -> Joined:
    """Join runs that `parts.check` let pass; `expected` are cells that one of them must have."""
    rows: list[Row] = []
    for part in parts:
        with records.as_written(part.folder):
            rows += [_row(part, cell) for cell in part.cells]
    judged = {row.cell for row in rows if row.counts}
    return Joined(parts, rows, [cell for cell in expected if cell not in judged])


def _row(part: Part, cell: str) -> Row:
    verdicts = [one for one in part.of_kind("verdict") if one["cell"] == cell]
    problem = "" if verdicts else "no verdict"
    if part.end is None or part.status in WORST_FIRST[:3]:
        problem = f"{problem or 'maybe not all tests'}: its run was cut short"
    return Row(
        cell,
        part.folder.name,
        dict(Counter(str(one["verdict"]) for one in verdicts)),
        problem,
        [
            f"{one['verdict']}: {one['kit']}.{one['test']}: {one['reason'].partition(_LINE)[0]}"
            for one in verdicts
            if one["verdict"] != "pass"
        ],
    )
