"""What one server of known state leaves on disk, and what can be read from it later.

Its folder holds `server.json` (what it is, and why it was not run where it was not),
`records.jsonl` with the attached files, gzipped, and what the run printed. A table is drawn from
such folders alone, so they may be gathered from several runs and machines.
"""

from __future__ import annotations

import datetime
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from servematrix import config as configs
from servematrix import outside, records
from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.folders import LOCK
from servematrix.records import RecordsError
from servematrix.validation.judging import Defect, Finding, defects
from servematrix.validation.servers import KnownServer

SERVER_FILE: Final = "server.json"
State = Literal["as expected", "DEFECT", "no result", "not run", "left out"]
"""`no result`: its run was begun and gave no verdicts to judge, such as a server that did not
start. `not run`: its run was not begun. `left out`: the engine cannot show this state."""

KEY_NUMBERS: Final[Mapping[str, tuple[str, str]]] = {
    "occupancy %": ("fwd_occupancy.test_fwd_occupancy", "median"),
    "decode tok/s": ("fwd_occupancy.test_fwd_occupancy", "decode_tokens_per_s"),
    "|Δ|/(1 - p)": ("decode_consistency.test_decode_matches_prefill", "relative"),
    "accept length": ("fwd_occupancy.test_fwd_occupancy", "accept_length"),
    "graph share": ("cuda_graph", "graph_share_at_1"),
    "accuracy": ("hellaswag.test_accuracy_floor", "accuracy"),
}
"""What a table shows of each server: the test whose verdict has the number, or the kit that
measured it, and the number's name."""


class NotRun(BaseModel):
    """Why there are no verdicts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    state: Literal["no result", "not run", "left out"]
    reason: str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    time: str
    server: KnownServer
    not_run: NotRun | None = None


@dataclass(frozen=True)
class Row:
    """One server of a table: what it is, what was found, and whether that is as it must be."""

    server: KnownServer
    state: State
    reason: str = ""
    """Why it was not run; empty where it was."""
    defects: Sequence[Defect] = ()
    answered: str = ""
    """Engine, version and GPU."""
    simulated: bool = False
    failed: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    startup_seconds: float | None = None
    seconds: float | None = None
    """From the server being ready to the last verdict."""


def write(folder: Path, server: KnownServer, not_run: NotRun | None = None) -> None:
    """Note what a folder is about; RecordsError where the disk does not take it."""
    entry = _Entry(time=datetime.datetime.now(datetime.UTC).isoformat(), server=server)
    entry = entry.model_copy(update={"not_run": not_run})
    text = entry.model_dump_json(indent=2, exclude_defaults=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SERVER_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordsError(f"cannot write {folder / SERVER_FILE}: {error.strerror}") from error


def pack(run: Path, folder: Path) -> None:
    """Keep the records of a run in a server's folder, every other file of it gzipped.

    The lines stay as they are, but for the names of attached files, which get `.gz` at their end.
    """
    lines = []
    for record in records.read(run):
        if "path" in record:
            record["path"] += ".gz"
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    try:
        (folder / records.FILE).write_text("".join(lines), encoding="utf-8")
        for file in sorted(run.rglob("*")):
            if file.is_file() and file.name not in (records.FILE, LOCK):
                kept = folder / f"{file.relative_to(run)}.gz"
                kept.parent.mkdir(exist_ok=True)
                # no time within, so that equal content gives equal files
                kept.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    except OSError as error:
        raise RecordsError(f"cannot keep the records of {run}: {error}") from error


def rows(root: Path, known: Sequence[KnownServer] = ()) -> list[Row]:
    """Every server kept under a folder, in the order of `known`, others by when they were run.

    A server that is started in the same way today is held against what is expected of it today.
    """
    today = {one.name: one for one in known}
    found = [(_today(_entry(file), today), file.parent) for file in root.glob(f"*/{SERVER_FILE}")]
    if not found:
        raise RecordsError(f"{root}: no such folder, or no server of a validation in it")
    order = list(today)
    found.sort(key=lambda one: (_place(one[0].server.name, order), one[0].time))
    return [_row(entry, folder) for entry, folder in found]


def row(folder: Path) -> Row:
    """What one server's folder tells; RecordsError names the file that cannot be read."""
    return _row(_entry(folder / SERVER_FILE), folder)


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _today(entry: _Entry, known: Mapping[str, KnownServer]) -> _Entry:
    then, now = entry.server, known.get(entry.server.name)
    if now is None or now.start != then.start:
        return entry
    return entry.model_copy(update={"server": now})


def _entry(file: Path) -> _Entry:
    try:
        raw = json.loads(outside.content(outside.within(file.parent, file.name)))
        return configs.checked(_Entry, raw, str(file))
    except ConfigError as error:
        raise RecordsError(str(error)) from error
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise RecordsError(f"cannot read {file}: {error}") from error


def _row(entry: _Entry, folder: Path) -> Row:
    server = entry.server
    if entry.not_run is not None:
        return Row(server, entry.not_run.state, entry.not_run.reason)
    if not (folder / records.FILE).exists():
        return Row(server, "no result", "the validation ended before this server's run did")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in records.standing(records.read(folder)):
        kinds.setdefault(record["kind"], []).append(record)
    with records.as_written(folder):
        return _judged(server, kinds)


def _judged(server: KnownServer, kinds: Mapping[str, Sequence[dict[str, Any]]]) -> Row:
    run, cells = kinds["run"][0], kinds.get("cell", [])
    verdicts = kinds.get("verdict", [])
    findings = [Finding(v["kit"], v["test"], v["verdict"], v["reason"]) for v in verdicts]
    reason = cut(kinds.get("end", []), findings)
    told = [] if reason else defects(server, findings)
    return Row(
        server,
        "no result" if reason else "DEFECT" if told else "as expected",
        reason,
        told,
        answered=answered(run, cells),
        simulated=run["simulated"],
        failed=[finding.name for finding in findings if finding.outcome == "fail"],
        counts={
            outcome: sum(finding.outcome == outcome for finding in findings)
            for outcome in sorted({finding.outcome for finding in findings})
        },
        numbers=_numbers(kinds.get("measurement", []), verdicts),
        startup_seconds=cells[0]["startup_seconds"] if cells else None,
        seconds=_seconds(cells[0], verdicts[-1]) if cells and verdicts else None,
    )


def cut(ends: Sequence[Mapping[str, Any]], findings: Sequence[Finding]) -> str:
    """Why a run's verdicts are not those of a whole run on a live server; empty where they are."""
    if not ends:
        return "the run was cut short: its records have no end"
    status = Exit(ends[-1]["exit_code"])
    if status in (Exit.PASSED, Exit.FAILED, Exit.INCONCLUSIVE):
        return ""
    errors = [finding.reason for finding in findings if finding.outcome == "error"]
    told = errors[0].splitlines()[0] if status is Exit.SERVER and errors else status.meaning
    return f"the run ended with status {int(status)}: {told}"


def answered(run: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """Engine, version and GPU, from the records of a run and of its cells."""
    versions = cells[0]["versions"] if cells else {}
    named = ", ".join(f"{name} {version}" for name, version in versions.items()) or run["engine"]
    used = cells[0]["gpus"] if cells else []
    gpus = [f"{gpu['name']} (driver {gpu['driver']})" for gpu in run["gpus"] if gpu["uuid"] in used]
    return " on ".join([named, *([", ".join(gpus)] if gpus else [])])


def _numbers(
    measurements: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The numbers of `KEY_NUMBERS` that this run has."""
    known = {(one["kit"], one["name"]): one.get("value") for one in measurements}
    for verdict in verdicts:
        test = f"{verdict['kit']}.{verdict['test']}"
        known |= {(test, name): value for name, value in verdict["numbers"].items()}
    found = {heading: known.get(place) for heading, place in KEY_NUMBERS.items()}
    return {
        heading: float(value) for heading, value in found.items() if isinstance(value, (int, float))
    }


def _seconds(cell: Mapping[str, Any], verdict: Mapping[str, Any]) -> float:
    ready, ended = (datetime.datetime.fromisoformat(one["time"]) for one in (cell, verdict))
    return (ended - ready).total_seconds()
