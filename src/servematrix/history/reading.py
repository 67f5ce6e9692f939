"""One run's records as rows of the history."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servematrix import records
from servematrix.terminal import line

NO_GPU: Final = "none"
_LONGEST: Final = 500


@dataclass(frozen=True)
class Digest:
    """What the history keeps of a run: the run itself, its cells, numbers and verdicts.

    Rows have the order of the columns in `database.TABLES`, without the run's name. `parts` are
    the names of the runs that a merged one is made of.
    """

    run: tuple[Any, ...]
    cells: Sequence[tuple[Any, ...]] = ()
    numbers: Sequence[tuple[Any, ...]] = ()
    verdicts: Sequence[tuple[Any, ...]] = ()
    parts: Sequence[str] = field(default=())


def read(folder: Path) -> Digest:
    """Read a run's folder; RecordsError where it is broken, or no run.

    Of a number that was measured again, after a run was taken up, the last one counts. What is no
    finite number is left out. Text is kept as `terminal.line` shows it.
    """
    with records.as_written(folder):
        found = records.standing(records.read(folder))
        header = found[0]
        ends = [one for one in found if one["kind"] == "end"]
        run = (
            _text(header["time"]),
            _text(header["engine"]),
            int(header["simulated"]),
            _text(header.get("git_commit") or ""),
            int(ends[-1]["exit_code"]) if ends else None,
        )
        named = {_uuid(gpu): _text(gpu["name"]) for gpu in header["gpus"]}
        cells = {
            one["cell"]: _cell(one, named, bool(header["simulated"]))
            for one in found
            if one["kind"] == "cell"
        }
        numbers = {
            (one["cell"], one["kit"], one["name"]): _number(one)
            for one in found
            if one["kind"] == "measurement" and _is_number(one.get("value"))
        }
        verdicts = {
            (one["cell"], one["kit"], one["test"]): _verdict(one)
            for one in found
            if one["kind"] == "verdict"
        }
        parts = [Path(str(one)).name for one in header.get("merged") or ()]
        return Digest(
            run, [*cells.values()], [*numbers.values()], [*verdicts.values()], _unique(parts)
        )


def _cell(record: Mapping[str, Any], named: Mapping[str, str], simulated: bool) -> tuple[Any, ...]:
    gpus = sorted(named.get(str(one), str(one)) for one in record["gpus"])
    configuration = record["configuration"].get("name") or record["cell"].partition("(")[0]
    return (
        _text(record["cell"]),
        _text(configuration),
        _text(", ".join(gpus)) or NO_GPU,
        # an attached server may turn out to be the embedded one
        int(simulated or bool(record.get("simulated"))),
        _text(json.dumps(record["versions"], sort_keys=True, ensure_ascii=False)),
        _text(record["model"]),
    )


def _number(record: Mapping[str, Any]) -> tuple[Any, ...]:
    names = (record["cell"], record["kit"], record["name"], record.get("unit") or "")
    return (*map(_text, names), float(record["value"]))


def _verdict(record: Mapping[str, Any]) -> tuple[Any, ...]:
    names = (record["cell"], record["kit"], record["test"], record["verdict"])
    return (*map(_text, names), int(bool(record.get("waived"))))


def _is_number(value: object) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(float(value))  # type: ignore[arg-type]


def _uuid(gpu: Mapping[str, Any]) -> str:
    return str(gpu["uuid"])


def told(error: Exception, folder: Path) -> str:
    """Why a run could not be read, in one line; files are named from its folder."""
    return _text(str(error).replace(f"{folder}/", "").replace(str(folder), folder.name))


def _text(value: object) -> str:
    return line(str(value), _LONGEST)


def _unique(names: Sequence[str]) -> Sequence[str]:
    return [*dict.fromkeys(map(_text, names))]
