"""What a report shows of a run: its cells, their verdicts and what lies beside the records."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servematrix import outside, records
from servematrix.exit_codes import Exit
from servematrix.overview import WORST
from servematrix.records import RecordsError
from servematrix.redaction import Secrets
from servematrix.replay.reading import Traces
from servematrix.report import again, attachments
from servematrix.report.attachments import Drafts, Flips

LOG_BYTES: Final = 8000
"""Of the end of a server's log, at most."""
ALL_LOGS: Final = 100_000
"""Of all logs, where a run has many cells: a report of 50 is to have 2 MB at most."""
WORST_FIRST: Final = tuple(reversed(WORST))

QUIET: Final = ("pass", "not_applicable")
"""Outcomes that nobody needs to look at."""


@dataclass
class Shown:
    """One cell: `server` is its record, empty where no server of it was ready.

    `hardware` names what the server ran on; `unread` says what could not be read.
    """

    name: str
    server: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    traces: Traces | None = None
    drafts: Sequence[Drafts] = ()
    flips: Flips | None = None
    unread: list[str] = field(default_factory=list)
    hardware: str = ""
    log: str = ""
    again: str = ""
    """The command that runs this cell again."""

    def kits(self) -> dict[str, str]:
        """The worst outcome of each kit."""
        found: dict[str, list[str]] = {}
        for one in self.verdicts:
            found.setdefault(str(one["kit"]), []).append(records.outcome(one))
        return {kit: worst(outcomes) for kit, outcomes in found.items()}

    def outcomes(self) -> list[str]:
        """Each outcome that a verdict of the cell has, the worst first."""
        found = {records.outcome(one) for one in self.verdicts}
        return sorted(found, key=lambda one: WORST_FIRST.index(worst([one])))

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

    def numbers(self, test: str) -> Mapping[str, Any]:
        """The numbers of a test's verdict, by `kit.test`; none where there is no such verdict."""
        for one in self.verdicts:
            if f"{one['kit']}.{one['test']}" == test:
                found: Mapping[str, Any] = one.get("numbers", {})
                return found
        return {}

    def outcome(self, test: str) -> str:
        """The outcome of a test, by `kit.test`; empty where there is no such verdict."""
        for one in self.verdicts:
            if f"{one['kit']}.{one['test']}" == test:
                return records.outcome(one)
        return ""

    def versions(self) -> str:
        """What served, and its version."""
        found = self.server.get("versions") or {}
        return ", ".join(f"{name} {version}" for name, version in found.items())

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
            return "the records have no end; what was reached before is shown"
        known = self.exit_code in set(Exit)
        return Exit(self.exit_code).meaning if known else f"unknown status {self.exit_code}"

    def title(self) -> str:
        """How the run ended: its exit status and what that means."""
        if self.exit_code is None:
            return f"Cut short: {self.meaning()}"
        return f"Exit {self.exit_code}: {self.meaning()}"

    def versions(self) -> dict[str, str]:
        """Versions of the run itself and of all that served in it."""
        found = {str(name): str(version) for name, version in self.header["versions"].items()}
        for cell in self.cells:
            for name, version in (cell.server.get("versions") or {}).items():
                known = found.get(name, "")
                if str(version) not in known.split(" and "):
                    found[name] = f"{known} and {version}" if known else str(version)
        return found

    @property
    def passed(self) -> bool:
        """Whether the run ended with nothing wrong."""
        return self.exit_code == Exit.PASSED

    def kits(self) -> list[str]:
        """The kits of all cells by name, first those with something to look at."""
        loud = {kit for cell in self.cells for kit, one in cell.kits().items() if one not in QUIET}
        every = {kit for cell in self.cells for kit in cell.kits()}
        return sorted(every, key=lambda kit: (kit not in loud, kit))

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
        # those that it was to run come first: none is left out for not being reached
        cells = {name: Shown(name) for name in found[0]["configurations"]}
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
        asked = _asked(found)
        for cell in cells.values():
            # what went wrong first; kits that ran side by side are mixed in the records
            cell.verdicts.sort(key=lambda one: (records.outcome(one) in QUIET, str(one["kit"])))
            _add_files(folder, cell)
            cell.hardware = _hardware(found[0], cell)
            cell.again = again.command(asked, cell.name)
            cell.log = hidden.redact(
                _log(folder, cell.name, min(LOG_BYTES, ALL_LOGS // len(cells)))
            )
        counts: dict[str, int] = {}
        for cell in cells.values():
            for one in cell.verdicts:
                counts[records.outcome(one)] = counts.get(records.outcome(one), 0) + 1
        return Report(
            folder.resolve(), found[0], list(cells.values()), events, end.get("exit_code"), counts
        )


def _asked(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The header of the run that ran cells: that of a merged run's first part, else its own."""
    header: Mapping[str, Any] = next(
        (one["header"] for one in found if one["kind"] == "part"), found[0]
    )
    return header


def _hardware(header: Mapping[str, Any], cell: Shown) -> str:
    """What a cell ran on, by name; the engine where that was no GPU."""
    named = {str(gpu.get("uuid")): str(gpu.get("name")) for gpu in header["gpus"]}
    gpus = [named.get(str(uuid), str(uuid)) for uuid in cell.server.get("gpus") or ()]
    simulated = " (simulated)" if header["simulated"] else ""
    return ", ".join(sorted(gpus)) or f"engine {header['engine']}{simulated}"


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
    """Read what the cell's records point to; of what was measured again, the last."""
    files = {one["name"]: str(one["path"]) for one in cell.measurements if "path" in one}
    try:
        if "trace" in files:
            cell.traces = attachments.traces(folder, files["trace"])
        if "drafts" in files:
            cell.drafts = attachments.drafts(folder, files["drafts"])
        if "flips" in files:
            cell.flips = attachments.flips(folder, files["flips"])
    except RecordsError as error:
        cell.unread.append(str(error))


def _log(folder: Path, cell: str, most: int) -> str:
    """The end of the log of the cell's last launch, `most` bytes; empty where there is none.

    A launch that follows another writes to a file with a number; a merged run has its parts' logs.
    """
    name = re.compile(rf"{re.escape(records.file_name(cell))}(?:\.(\d{{1,9}}))?\.log")
    logs = {
        int(found[1] or 1): path
        for path in (*folder.glob("*.log"), *folder.glob("parts/*/*.log"))
        if (found := name.fullmatch(path.name))
    }
    for _, path in sorted(logs.items(), reverse=True):
        try:
            with outside.within(folder, str(path.relative_to(folder))).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most))
                text = file.read(most).decode(errors="replace")
        except (OSError, ValueError):
            continue
        # half a first line could be half a secret, which is not recognised
        return text.partition("\n")[2] if size > most else text
    return ""
