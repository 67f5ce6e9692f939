"""What several runs measured, by cell and hardware, with the band of the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from servematrix import baselines
from servematrix.gates.throughput import QUANTITIES
from servematrix.report import plots
from servematrix.report.cells import Report, Shown
from servematrix.report.plots import Band, Point


@dataclass(frozen=True)
class Value:
    """What one run measured; `outcome` is that of the test, `place` the cell's in the page.

    `versions` are those of the server, `serving` what decides its numbers, and `otherwise` where
    that is not as in the newest run, in words.
    """

    run: str
    time: str
    value: float
    outcome: str
    versions: str
    place: str
    serving: Mapping[str, Any]
    otherwise: str = ""


@dataclass(frozen=True)
class Trend:
    """One quantity of one cell on one hardware, the oldest run first."""

    cell: str
    hardware: str
    quantity: str
    unit: str
    values: Sequence[Value]
    band: Band | None
    runs: int
    """How many runs the baseline has; 0 where there is none."""
    svg: str

    @property
    def caption(self) -> str:
        """What there is to see, in words."""
        found = [one.value for one in self.values]
        told = f"{len(found)} runs, from {min(found):.5g} to {max(found):.5g}, last {found[-1]:.5g}"
        if hollow := sum(1 for one in self.values if one.otherwise):
            told += f"; hollow: {hollow} configured otherwise than the newest"
        if self.band is None:
            return f"{told}; no baseline."
        told += f"; grey: the baseline's {self.runs} runs"
        told += f", {self.band.low:.5g} to {self.band.high:.5g}"
        return f"{told}." if self.band.bound is None else f"{told}; dashed: {self.band.bound:.5g}."


def of(reports: Sequence[Report]) -> list[Trend]:
    """The trends over some runs, in their order: of what two of them or more have measured."""
    found: dict[tuple[str, str, str], list[Value]] = {}
    bands: dict[tuple[str, str, str], tuple[Band, int]] = {}
    for run, report in enumerate(reports, 1):
        for number, cell in enumerate(report.cells, 1):
            for quantity, value in _measured(cell):
                key = (cell.name, cell.hardware, quantity)
                one = Value(
                    run=report.folder.name,
                    time=str(report.header["time"]),
                    value=value,
                    outcome=cell.outcome(baselines.TESTS[quantity]),
                    versions=cell.versions(),
                    place=f"c{run}-{number}",
                    serving=_serving(cell),
                )
                found.setdefault(key, []).append(one)
                band = _band(cell.server, quantity)
                if band is not None:
                    bands[key] = band
    several = {key: values for key, values in found.items() if len(values) > 1}
    return [
        _trend(key, values, bands.get(key), f"t{number}")
        for number, (key, values) in enumerate(sorted(several.items(), key=_order))
    ]


def _order(one: tuple[tuple[str, str, str], object]) -> tuple[str, str, int]:
    cell, hardware, quantity = one[0]
    return cell, hardware, list(QUANTITIES).index(quantity)


def _trend(
    key: tuple[str, str, str], values: Sequence[Value], band: tuple[Band, int] | None, name: str
) -> Trend:
    cell, hardware, quantity = key
    values = [replace(one, otherwise=_otherwise(values[-1], one)) for one in values]
    unit = QUANTITIES[quantity].unit
    # day and minute; runs of one minute are told apart in the table
    points = [
        Point(one.time[5:16].replace("T", " "), one.value, one.outcome == "pass", not one.otherwise)
        for one in values
    ]
    drawn, runs = band if band is not None else (None, 0)
    svg = plots.trend(points, drawn, unit, name)
    return Trend(cell, hardware, quantity, unit, values, drawn, runs, svg)


def _serving(cell: Shown) -> Mapping[str, Any]:
    configuration = cell.server.get("configuration")
    return baselines.serving(configuration) if configuration else {}


def _otherwise(newest: Value, one: Value) -> str:
    places = ("in the newest", "here")
    return "; ".join(baselines.differences(newest.serving, one.serving, places=places))


def _measured(cell: Shown) -> Iterator[tuple[str, float]]:
    for quantity, test in baselines.TESTS.items():
        value = cell.numbers(test).get(quantity)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield quantity, float(value)


def _band(server: Mapping[str, Any], quantity: str) -> tuple[Band, int] | None:
    """The band of a quantity, and of how many runs, where the cell was held to a baseline."""
    held_to = (server.get("baseline") or {}).get("quantities", {}).get(quantity)
    if not held_to:
        return None
    values = [float(one) for one in held_to["values"]]
    bound = held_to.get("bound")
    return Band(min(values), max(values), None if bound is None else float(bound)), len(values)
