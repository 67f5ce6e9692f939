"""How long each cell takes: kept in a file, or estimated by its configuration.

The kept file, `durations.json` beside the configurations, is what cells are put in order and dealt
out to shards by. All jobs of one workflow must deal alike, so nothing that differs between machines
is asked: no run that lies about, and no GPU.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, RootModel

from servematrix import config as configs
from servematrix import folders, outside, records
from servematrix.config import ConfigError
from servematrix.engines.base import EnvironmentProblem
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError

FILE: Final = "durations.json"
_WHOLE: Final = (Exit.PASSED, Exit.FAILED, Exit.SERVER, Exit.INCONCLUSIVE)
"""Statuses of a run in which every test that was selected was run."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Durations = Mapping[str, Mapping[str, float]]
"""Seconds by engine and cell."""


class _File(RootModel[dict[Literal["sglang", "sglang-cpu", "reference", "attach"], Any]]):
    """The engines of the file, so that a wrong one is named; cells are checked by `_Cells`."""


class _Cells(RootModel[dict[str, Seconds]]):
    """Seconds of each cell on one engine."""


@dataclass(frozen=True)
class Duration:
    """Seconds from launch to stop, `recorded` in the kept file or else estimated."""

    seconds: float
    recorded: bool


def path(directory: Path, named: str | None) -> Path:
    """The kept file: the one that is named, else that of a folder of configurations.

    EnvironmentProblem where a named one is not there.
    """
    if named is None:
        return directory / FILE
    if not Path(named).is_file():
        raise EnvironmentProblem(
            f"--cell-durations {named}: no such file; `servematrix merge RUN… --cell-durations "
            "FILE` writes one"
        )
    return Path(named)


def read(file: Path) -> dict[str, dict[str, float]]:
    """The kept durations, none where there is no file; ConfigError names key and value."""
    if not file.exists():
        return {}
    try:
        raw = json.loads(outside.raw(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    engines = configs.checked(_File, raw, str(file)).root
    return {
        engine: configs.checked(_Cells, cells, f"{file}: {engine}").root
        for engine, cells in engines.items()
    }


def write(file: Path, durations: Durations) -> None:
    """Keep durations, sorted and to a tenth of a second; RecordsError where the disk refuses."""
    rounded = {
        engine: {cell: max(0.1, round(seconds, 1)) for cell, seconds in cells.items()}
        for engine, cells in durations.items()
        if cells
    }
    try:
        folders.write_whole(file, json.dumps(rounded, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise RecordsError(f"cannot write {file}: {error.strerror}") from error


def updated(kept: Durations, newer: Sequence[Durations]) -> dict[str, dict[str, float]]:
    """Kept durations with newer ones in their place, the last one winning.

    The newest replaces rather than joining an average: a cell whose tests changed takes as long as
    it takes now.
    """
    found = {engine: dict(cells) for engine, cells in kept.items()}
    for one in newer:
        for engine, cells in one.items():
            found.setdefault(engine, {}).update(cells)
    return found


def expected(kept: Mapping[str, float], estimates: Mapping[str, float]) -> dict[str, Duration]:
    """What each cell of `estimates` will take: as kept for its engine, else as estimated."""
    return {
        cell: Duration(kept[cell], True) if cell in kept else Duration(float(estimate), False)
        for cell, estimate in estimates.items()
    }


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """How long the cells of a run took: seconds from launch to a cell's last record, by engine.

    The stop of a server is not in it, about a second. Left out are runs that were cut short or run
    in part (`-k`, `-x`, one file), and cells that did not go the whole way: launched again by
    `--resume`, or with a server that died. RecordsError where a run cannot be read.
    """
    with records.as_written(folder):
        found = list(records.read(folder))
        return {str(found[0]["engine"]): _measured(found)}


def _measured(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if not _is_whole(found):
        return {}
    launched: dict[str, list[Mapping[str, Any]]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    died = {one["cell"] for one in found if one["kind"] == "death"}
    judged = {one["cell"] for one in found if one["kind"] == "verdict"}
    for record in found:
        if record["kind"] == "cell":
            launched.setdefault(record["cell"], []).append(record)
        if "cell" in record:
            last[record["cell"]] = record
    seconds = {}
    for cell, starts in launched.items():
        if len(starts) > 1 or cell in died or cell not in judged:
            continue
        took = _at(last[cell]) - _at(starts[0])
        whole = took.total_seconds() + float(starts[0]["startup_seconds"])
        if math.isfinite(whole) and whole > 0:
            seconds[cell] = whole
    return seconds


def _is_whole(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run came to its end with all the tests of its cells."""
    selection = dict(found[0].get("selection", {}))
    arguments = selection.pop("arguments", ())
    # one file may hold only some of a cell's suites
    in_part = any(".py" in str(argument) for argument in arguments) or any(selection.values())
    ended = found[-1]
    return (
        not in_part
        and ended["kind"] == "end"
        and ended["exit_code"] in _WHOLE
        and not ended.get("stopped")
    )


def _at(record: Mapping[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record["time"])
