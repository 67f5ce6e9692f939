"""Writes what one test measures and decides into the records of the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from servematrix.exit_codes import Exit
from servematrix.gates.verdict import Verdict
from servematrix.records import RecordsError, Run
from servematrix.waivers import Waiver, Waivers


class Reporter:
    """What a kit reports to; one for each test. Ends the run when the records are lost."""

    def __init__(
        self, records: Run, cell: str, test: str, nodeid: str, waivers: Waivers | None = None
    ) -> None:
        """`nodeid` is pytest's name of the test, which no other test of a run has."""
        self._test = test
        self._nodeid = nodeid
        self.concluded: Verdict | None = None
        self.waived: Waiver | None = None
        """What keeps the verdict from failing the run."""
        self.judged: tuple[str, str] | None = None
        """Kit and test of the verdict."""
        self.measured: list[tuple[str, str, object, str]] = []
        """Kit, name, value and unit of each number."""
        self._waivers = waivers or Waivers()
        self._records = records
        self._cell = cell

    def measurement(
        self, kit: str, name: str, value: float | int | str | bool | None, unit: str
    ) -> None:
        """Record one number."""
        self._write("measurement", kit=kit, name=name, value=value, unit=unit)
        self.measured.append((kit, name, value, unit))

    def attachment(self, kit: str, name: str, payload: object) -> None:
        """Keep a file beside the records, and record where."""
        try:
            path = self._records.attach(f"{self._cell}-{kit}-{name}", payload)
        except RecordsError as error:
            give_up(error)
        self._write("measurement", kit=kit, name=name, path=path, unit="file")

    def verdict(self, kit: str, test: str, verdict: Verdict) -> None:
        """Record the verdict of this test; a kit need not know what pytest calls it.

        A failure that is waived stays one, with the waiver beside it.
        """
        test = test or self._test
        self.judged, self.waived = (kit, test), None
        if verdict.outcome == "fail":
            waiver = self._waivers.of(self._cell, kit, test)
            if waiver is not None and waiver.expired:
                verdict = replace(verdict, reason=f"{verdict.reason}; {waiver.expiry()}")
            else:
                self.waived = waiver
        self._write(
            "verdict",
            kit=kit,
            test=test,
            nodeid=self._nodeid,
            verdict=verdict.outcome,
            rule=verdict.rule,
            numbers=dict(verdict.numbers),
            alpha=verdict.alpha,
            power=verdict.power,
            reason=verdict.reason,
            **({"waived": self.waived.record()} if self.waived else {}),
        )
        self.concluded = verdict

    def death(self, reason: str) -> None:
        """Record that the server was found dead at this test, or did not start for it."""
        self._write("death", nodeid=self._nodeid, reason=reason)

    def _write(self, kind: str, **fields: Any) -> None:
        try:
            self._records.write(kind, cell=self._cell, **fields)
        except RecordsError as error:
            give_up(error)


def give_up(error: RecordsError) -> None:
    """End the run: one whose records are lost is not worth going on with."""
    pytest.exit(str(error), returncode=Exit.USAGE)
