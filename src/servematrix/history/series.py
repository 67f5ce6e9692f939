"""What one configuration's cells measured from run to run, the oldest first."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from servematrix.config import ConfigError, nearest

_POINTS = """
SELECT runs.run, runs.time, cells.cell, cells.configuration, runs.engine, cells.simulated,
  cells.gpu, cells.server, numbers.kit, numbers.name, numbers.unit, numbers.value
FROM numbers JOIN cells USING (run, cell) JOIN runs USING (run)
ORDER BY runs.time, runs.run, cells.cell, numbers.kit, numbers.rowid
"""
_OUTCOMES = """
SELECT runs.run, runs.time, cells.cell, cells.configuration, runs.engine, cells.simulated,
  cells.gpu, verdicts.kit, verdicts.test, verdicts.verdict, verdicts.waived
FROM verdicts JOIN cells USING (run, cell) JOIN runs USING (run)
ORDER BY runs.time, runs.run, cells.cell, verdicts.kit, verdicts.rowid
"""


@dataclass(frozen=True)
class Point:
    """One number of one run; `server` is what answered, as JSON."""

    run: str
    time: str
    cell: str
    configuration: str
    engine: str
    simulated: bool
    gpu: str
    server: str
    kit: str
    name: str
    unit: str
    value: float

    @property
    def series(self) -> tuple[str, ...]:
        """What points share that may be compared: a simulated one is never beside a real one."""
        return self.cell, self.engine, str(self.simulated), self.gpu, self.kit, self.name, self.unit


@dataclass(frozen=True)
class Outcome:
    """One verdict of one run."""

    run: str
    time: str
    cell: str
    configuration: str
    engine: str
    simulated: bool
    gpu: str
    kit: str
    test: str
    verdict: str
    waived: bool

    @property
    def series(self) -> tuple[str, ...]:
        """What verdicts share that are shown in one line."""
        return self.cell, self.engine, str(self.simulated), self.gpu, self.kit


@dataclass(frozen=True)
class History:
    """The numbers and verdicts of a configuration."""

    points: Sequence[Point]
    outcomes: Sequence[Outcome]


def of(
    connection: sqlite3.Connection, named: str, kit: str | None = None, measure: str | None = None
) -> History:
    """The history of a configuration, or of one cell; ConfigError where there is none of it.

    `kit` and `measure` leave the others out. A merged run is left out where its parts are there.
    """
    merged = _merged(connection)
    points = [_point(row) for row in connection.execute(_POINTS) if row[0] not in merged]
    outcomes = [_outcome(row) for row in connection.execute(_OUTCOMES) if row[0] not in merged]
    known = sorted({one.configuration for one in points} | {one.configuration for one in outcomes})
    own = [one for one in points if named in (one.configuration, one.cell)]
    judged = [one for one in outcomes if named in (one.configuration, one.cell)]
    if not own and not judged:
        there = f"there are: {', '.join(known)}" if known else "there is no run yet"
        raise ConfigError(f"no run of {named!r}{nearest(named, known)}; {there}")
    kits = sorted({one.kit for one in own} | {one.kit for one in judged})
    if kit is not None and kit not in kits:
        raise ConfigError(f"--kit {kit}: none{nearest(kit, kits)}; there are: {', '.join(kits)}")
    own = [one for one in own if kit in (None, one.kit)]
    names = sorted({one.name for one in own})
    if measure is not None and measure not in names:
        raise ConfigError(
            f"--measure {measure}: none{nearest(measure, names)}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    own = [one for one in own if measure in (None, one.name)]
    return History(own, [one for one in judged if kit in (None, one.kit)])


def _merged(connection: sqlite3.Connection) -> set[str]:
    """The merged runs all of whose parts are there themselves."""
    found = [
        (run, json.loads(parts)) for run, parts in connection.execute("SELECT run, parts FROM runs")
    ]
    there = {run for run, _ in found}
    return {run for run, parts in found if parts and there.issuperset(parts)}


def _point(row: Sequence[object]) -> Point:
    found = Point(*row)  # type: ignore[arg-type]
    return Point(**(vars(found) | {"simulated": bool(found.simulated)}))


def _outcome(row: Sequence[object]) -> Outcome:
    found = Outcome(*row)  # type: ignore[arg-type]
    flags = {"simulated": bool(found.simulated), "waived": bool(found.waived)}
    return Outcome(**(vars(found) | flags))
