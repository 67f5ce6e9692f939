"""The folder of a merged run: records that readers of one run can read, and what they point to.

Its first record is a run's, with what all parts have in common. For each part a record of kind
`part` follows, with the header and the end of that run, then its other records as they were. Files
lie below `parts/<number>/`, so that those of two parts never meet.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servematrix import folders, outside, records
from servematrix.merge.joined import Joined
from servematrix.merge.parts import Record
from servematrix.records import RecordsError
from servematrix.redaction import Secrets

_PARTS: Final = "parts"
_SHARED: Final = (
    *("engine", "server", "versions", "git_commit", "git_changes", "base_url", "changes"),
    *("selection", "hellaswag", "hellaswag_sha256"),
)
"""Keys of a header that are those of the first part; `parts.check` compared what decides."""
_JOINED: Final = ("configurations", "baselines")
"""Keys of a header that are by cell."""


def write(folder: Path, joined: Joined, command: Sequence[str], hidden: Secrets) -> None:
    """Write a merged run into a folder that is not there yet.

    RecordsError where a part cannot be read, or the disk does not take it.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RecordsError(f"cannot make {folder}: {error.strerror}") from error
    lines = [_line(record, hidden) for record in _records(folder, joined, command)]
    try:
        # last of all: without it the folder is no run
        folders.write_whole(folder / records.FILE, "".join(lines))
    except OSError as error:
        raise RecordsError(f"cannot write {folder / records.FILE}: {error.strerror}") from error


def _records(folder: Path, joined: Joined, command: Sequence[str]) -> Iterator[Record]:
    yield _header(joined, command)
    for number, part in enumerate(joined.parts, 1):
        place = f"{_PARTS}/{number}"
        for log in sorted(part.folder.glob("*.log")):
            _copied(part.folder, log.name, folder, place)
        yield {
            "kind": "part",
            "time": _now(),
            "number": number,
            "folder": part.folder.name,
            "header": part.header,
            "end": part.end,
        }
        for record in part.found:
            if record["kind"] == "measurement" and "path" in record:
                path = _copied(part.folder, record["path"], folder, place)
                yield {**record, "path": path}
            else:
                yield record
    yield {
        "kind": "end",
        "time": _now(),
        "exit_code": int(joined.status),
        "counts": dict(joined.counts),
        "missing": list(joined.missing),
    }


def _header(joined: Joined, command: Sequence[str]) -> Record:
    headers = [part.header for part in joined.parts]
    first = headers[0]
    gpus = {str(gpu["uuid"]): gpu for header in headers for gpu in header["gpus"]}
    return {
        "kind": "run",
        "time": _now(),
        "schema": records.SCHEMA,
        "command": list(command),
        "engine_reason": f"merged from {len(headers)} runs",
        **{key: first.get(key) for key in _SHARED},
        "simulated": joined.simulated,
        "gpus": list(gpus.values()),
        **{key: _by_cell(headers, key) for key in _JOINED},
        "merged": [part.folder.name for part in joined.parts],
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def _by_cell(headers: Sequence[Record], key: str) -> Mapping[str, Any]:
    return {cell: value for header in headers for cell, value in (header.get(key) or {}).items()}


def _copied(source: Path, name: str, folder: Path, place: str) -> str:
    """Copy a file of a part; returns where it lies in the merged run."""
    try:
        file = outside.within(source, name)
        path = f"{place}/{file.relative_to(source.resolve())}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(outside.raw(file))
    except (OSError, ValueError) as error:
        raise RecordsError(f"cannot copy {source / name}: {error}") from error
    return path


def _line(record: Record, hidden: Secrets) -> str:
    plain: Any = hidden.plain(record)
    # words of ours, by which records are read
    plain |= {key: record[key] for key in ("kind", "verdict") if key in record}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
