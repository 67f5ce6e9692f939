"""What the records of a run say: which kit or stage caught which fault, and false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servematrix import records
from servematrix.engines.reference.faults.catalogue import CATALOGUE
from servematrix.faults.cells import HEALTHY
from servematrix.faults.known import CATCHERS, FILE, KITS, LAUNCH, SHUTDOWN, Known
from servematrix.gates.proportions import upper_bound
from servematrix.gates.verdict import SEVERITY
from servematrix.records import RecordsError

GREEN: Final = ("pass", "not_applicable")
"""Outcomes with which a run stays green; with any other the fault was caught."""
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Entry:
    """One fault before one kit or stage; `verdict` is the worst, None where it was not reached."""

    fault: str
    kit: str
    caught: bool
    verdict: str | None = None
    test: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Healthy:
    """The servers without a fault: how many runs, and the verdicts that were not as they ought."""

    runs: int
    alarms: tuple[str, ...]

    @property
    def rate_at_most(self) -> float | None:
        """The largest rate of false alarms that would have shown with 95 % confidence.

        Only where there was none: 1 - 0.05^(1/runs), three in `runs`.
        """
        if self.alarms or not self.runs:
            return None
        return float(upper_bound(0, self.runs, 1.0 - CONFIDENCE))


@dataclass(frozen=True)
class Matrix:
    """Faults against kits and stages, as far as a run got."""

    entries: Mapping[tuple[str, str], Entry]
    healthy: Healthy

    @property
    def faults(self) -> list[str]:
        """The faults that the run had, in the order of the catalogue."""
        met = {fault for fault, _ in self.entries}
        return [fault for fault in CATALOGUE if fault in met]

    def caught_by(self, fault: str) -> list[str]:
        """The kits and stages that caught a fault."""
        return [kit for kit in CATCHERS if self.entries[fault, kit].caught]

    def alone(self, kit: str) -> list[str]:
        """The faults that nothing but this kit or stage caught."""
        return [fault for fault in self.faults if self.caught_by(fault) == [kit]]

    def problems(self, known: Known, *, whole: bool) -> list[str]:
        """Where the matrix is not what it must be.

        With `whole` every fault must be there and every kit must catch one alone; else what was
        not reached is not held against it.
        """
        found = [f"false alarm: {alarm}" for alarm in self.healthy.alarms]
        for fault in known.fault:
            if fault.name in self.faults:
                found += self._missed(fault.name, fault.caught_by, whole=whole)
            elif whole:
                found.append(f"{fault.name}: not run")
        if whole:
            found += [
                f"{kit} catches nothing alone, and `stays` in {FILE} does not say why it is kept"
                for kit in KITS
                if not self.alone(kit) and kit not in known.stays
            ]
        return found

    def changes(self, before: Matrix) -> list[str]:
        """Where another matrix had it otherwise, as far as both reached."""
        return [
            f"{fault} before {kit}: {_told(old)} then, {_told(new)} now"
            for (fault, kit), new in self.entries.items()
            if (old := before.entries.get((fault, kit))) is not None
            and None not in (old.verdict, new.verdict)
            and old.caught != new.caught
        ]

    def _missed(self, fault: str, catchers: Sequence[str], *, whole: bool) -> list[str]:
        missed = [self.entries[fault, kit] for kit in catchers]
        return [
            f"{fault}: {one.kit} must catch it and {_told(one)}"
            for one in missed
            if not one.caught and (whole or one.verdict is not None)
        ]


def read(folder: Path) -> Matrix:
    """The matrix of a run; RecordsError where there are no records of one."""
    served: set[str] = set()
    verdicts: dict[str, list[Mapping[str, Any]]] = {}
    for record in records.standing(records.read(folder)):
        if record["kind"] == "cell":
            served.add(record["cell"])
        elif record["kind"] == "verdict":
            verdicts.setdefault(record["cell"], []).append(record)
    if not verdicts:
        raise RecordsError(f"{folder}: its records have no verdict")
    entries: dict[tuple[str, str], Entry] = {}
    alarms: list[str] = []
    runs = 0
    for cell, own in verdicts.items():
        name, _, value = cell.removesuffix(")").partition("(")
        if name in HEALTHY:
            runs += 1
            alarms += [_alarm(one) for one in own if one["verdict"] not in GREEN]
            continue
        for catcher in CATCHERS:
            entries.setdefault((name, catcher), Entry(name, catcher, caught=False))
        for entry in _entries(name, value.removeprefix("kit="), own, started=cell in served):
            if entry.caught or entries[name, entry.kit].verdict is None:
                entries[name, entry.kit] = entry
    return Matrix(entries, Healthy(runs, tuple(alarms)))


def _entries(
    fault: str, kit: str, verdicts: Sequence[Mapping[str, Any]], *, started: bool
) -> list[Entry]:
    """What one cell says: of its launch, its kit and its shutdown."""
    if not started:
        return [_worst(fault, LAUNCH, verdicts)]
    ending = [one for one in verdicts if one["kit"] == SHUTDOWN]
    asked = [one for one in verdicts if one["kit"] != SHUTDOWN]
    return [
        Entry(fault, LAUNCH, caught=False, verdict="pass"),
        *([_worst(fault, kit, asked)] if asked else []),
        _worst(fault, SHUTDOWN, ending)
        if ending
        else Entry(fault, SHUTDOWN, caught=False, verdict="pass"),
    ]


def _worst(fault: str, kit: str, verdicts: Sequence[Mapping[str, Any]]) -> Entry:
    one = max(verdicts, key=lambda one: SEVERITY.index(one["verdict"]))
    caught = one["verdict"] not in GREEN
    return Entry(fault, kit, caught, one["verdict"], one["test"], one["reason"].splitlines()[0])


def _alarm(record: Mapping[str, Any]) -> str:
    where = f"{record['cell']}: {record['kit']}.{record['test']}"
    return f"{where}: {record['verdict']}: {record['reason'].splitlines()[0]}"


def _told(entry: Entry) -> str:
    if entry.verdict is None:
        return "was not reached"
    return f"{'caught it' if entry.caught else 'did not catch it'} ({entry.verdict})"
