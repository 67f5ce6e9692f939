"""What a report shows of a run: its cells, their verdicts and what lies beside the records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servematrix import outside, records
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError
from servematrix.redaction import Secrets
from servematrix.replay import reading
from servematrix.replay.reading import RecordingError, Traces

LOG_BYTES: Final = 8000
"""Of the end of a server's log, at most."""
ALL_LOGS: Final = 150_000
"""Of all logs, where a run has many cells: a report of 50 is to have 2 MB at most."""
WORST_FIRST: Final = ("error", "fail", "waived", "inconclusive", "pass", "not_applicable")


@dataclass
class Shown:
    """One cell: `server` is its record, empty where no server of it was ready."""

    name: str
    server: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    traces: list[Traces] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    log: str = ""

    def kits(self) -> dict[str, str]:
        """The worst outcome of each kit."""
        found: dict[str, list[str]] = {}
        for one in self.verdicts:
            found.setdefault(str(one["kit"]), []).append(records.outcome(one))
        return {kit: worst(outcomes) for kit, outcomes in found.items()}

    def further(self) -> list[dict[str, Any]]:
        """The measured values that stand in no verdict's numbers."""
        told = {
            (one["kit"], name, str(value))
            for one in self.verdicts
            for name, value in one.get("numbers", {}).items()
        }
        return [
            one
            for one in self.measurements
            if "value" in one and (one.get("kit"), one.get("name"), str(one["value"])) not in told
        ]

    def command(self) -> str:
        """The server's command line, to be copied."""
        return shlex.join(map(str, self.server.get("command") or ()))


@dataclass(frozen=True)
class Report:
    """One run; `header` is its first record, `exit_code` None where it has no end."""

    folder: Path
    header: dict[str, Any]
    cells: list[Shown]
    events: list[dict[str, Any]]
    exit_code: int | None
    counts: dict[str, int]

    def meaning(self) -> str:
        """How the run ended, in words."""
        if self.exit_code is None:
            return "cut short: the records have no end; what was reached before is shown"
        known = self.exit_code in set(Exit)
        return Exit(self.exit_code).meaning if known else f"unknown status {self.exit_code}"

    def kits(self) -> list[str]:
        """The kits of all cells, by name."""
        return sorted({kit for cell in self.cells for kit in cell.kits()})

    def command(self) -> str:
        """The command line of the run."""
        return shlex.join(map(str, self.header.get("command") or ()))


def worst(outcomes: Sequence[str]) -> str:
    """The worst of some outcomes; a word that is not known is an error."""
    return min((one if one in WORST_FIRST else "error" for one in outcomes), key=WORST_FIRST.index)


def read(folder: Path, hidden: Secrets) -> Report:
    """Read a run; RecordsError where its records cannot be read.

    A file beside them that cannot be read is told in its cell. `hidden` is taken out of logs.
    """
    with records.as_written(folder):
        found = records.standing(records.read(folder))
        cells: dict[str, Shown] = {}
        events: list[dict[str, Any]] = []
        end: dict[str, Any] = {}
        for record in found[1:]:
            name = record.get("cell")
            if record["kind"] in ("end", "resume"):
                # what was taken up ends anew
                end = record if record["kind"] == "end" else {}
            elif isinstance(name, str) and name and record["kind"] != "waiver":
                _sort(record, cells.setdefault(name, Shown(name)))
            else:
                events.append(record)
        for cell in cells.values():
            # kits that ran side by side are mixed in the records; the sort keeps each one's order
            cell.verdicts.sort(key=lambda one: str(one["kit"]))
            _add_files(folder, cell)
            cell.log = hidden.redact(_log(folder, cell, min(LOG_BYTES, ALL_LOGS // len(cells))))
        counts: dict[str, int] = {}
        for cell in cells.values():
            for one in cell.verdicts:
                counts[records.outcome(one)] = counts.get(records.outcome(one), 0) + 1
        return Report(
            folder.resolve(), found[0], list(cells.values()), events, end.get("exit_code"), counts
        )


def _sort(record: dict[str, Any], cell: Shown) -> None:
    if record["kind"] == "cell":
        cell.server = record
    elif record["kind"] == "verdict":
        cell.verdicts.append(record)
    elif record["kind"] == "measurement":
        cell.measurements.append(record)
    else:
        cell.events.append(record)


def _add_files(folder: Path, cell: Shown) -> None:
    """Read the traces that the cell's records point to."""
    for one in cell.measurements:
        if one.get("name") != "trace" or "path" not in one:
            continue
        try:
            recording = reading.read(outside.within(folder, str(one["path"])))
        except (RecordingError, RecordsError, OSError, ValueError) as error:
            cell.unread.append(str(error))
            continue
        if isinstance(recording, Traces):
            cell.traces.append(recording)


def _log(folder: Path, cell: Shown, most: int) -> str:
    """The end of the log of the cell's last launch, `most` bytes; empty where there is none."""
    name = records.file_name(cell.name)
    launches = cell.server.get("launches")
    tried = launches if isinstance(launches, int) and 1 < launches < 100 else 1
    for number in range(tried, 0, -1):
        try:
            path = outside.within(folder, f"{name}.log" if number == 1 else f"{name}.{number}.log")
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most))
                text = file.read(most).decode(errors="replace")
        except (OSError, ValueError):
            continue
        # half a first line could be half a secret, which is not recognised
        return text.partition("\n")[2] if size > most else text
    return ""
