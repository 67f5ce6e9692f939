"""Run records: what was run, measured and decided, one JSON object a line, on disk at once.

A run is a folder `<results>/<run>/` with `records.jsonl` and the files that records point to.
`<results>/latest` points to the run that was started last. A line is flushed to disk before the
next test starts, so a killed run keeps every verdict it reached. Every process of a run appends to
the same file; a line is written by one call under a lock, so lines never mix. A line ends with its
line break: a last line without one was cut off while it was written, and is no record.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servematrix import folders, outside
from servematrix.folders import Busy, Held
from servematrix.outside import TooLargeError
from servematrix.redaction import Secrets

SCHEMA = 1
FILE = "records.jsonl"
_LONGEST_NAME = 80


_TYPES: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "run": {"engine": str, "simulated": bool, "gpus": list},
    "cell": {
        "cell": str,
        "configuration": dict,
        "gpus": list,
        "versions": dict,
        "model": str,
        "simulated": bool,
        "startup_seconds": (int, float),
    },
    "measurement": {"cell": str, "kit": str, "name": str, "path": str},
    "verdict": dict.fromkeys(("cell", "kit", "test", "verdict", "rule", "reason"), str)
    | {"numbers": dict, "waived": dict},
    "resume": {"again": list},
    "part": {"header": dict},
    "lost": {"cell": str, "again": list},
    "node": {"cell": str, "gpus": list},
    "end": {"exit_code": int},
}
"""Of what readers use in each kind of record, where it is there."""


_OF_PLACES = ("node", "lost")
"""Kinds of records that say where a cell ran; they are true whatever came of it."""


class RecordsError(Exception):
    """A record could not be written or read; the message says which file and why."""


class Run:
    """The records of one run, open for appending.

    Wherever one of the values in `hidden` would stand in a line or an attached file, `***` does.
    """

    def __init__(
        self, folder: Path, hidden: Secrets | None = None, *, held: Held | None = None
    ) -> None:
        """`held` is kept: the process that the run belongs to holds its folder to its end."""
        self.folder = folder
        self.removed = held.removed if held else ()
        self._held = held
        self._path = folder / FILE
        self._hidden = hidden or Secrets()

    @classmethod
    def create(cls, root: Path, label: str, hidden: Secrets | None = None) -> Run:
        """Make a new run folder under `root`; `latest` is to follow once something is recorded.

        It is called by time and `label`. RecordsError where it cannot be made.
        """
        try:
            held = folders.make(root, file_name(label))
        except (OSError, Busy) as error:
            raise RecordsError(
                f"cannot create a run folder in {root}: {_told(error)}; "
                "free some space or name another place with --results DIR"
            ) from error
        return cls(held.path, hidden, held=held)

    @classmethod
    def take_up(cls, folder: Path, hidden: Secrets | None = None) -> Run:
        """Hold the folder of a run that was ended; RecordsError where that run still lives."""
        try:
            return cls(folder, hidden, held=folders.take_up(folder))
        except Busy as error:
            raise RecordsError(f"{error}; wait for it, or end it first") from error
        except OSError as error:
            raise RecordsError(f"cannot take up {folder}: {_told(error)}") from error

    def begin(self, kind: str, **fields: Any) -> None:
        """Record the start, and let `latest` point to this run.

        RecordsError when the disk does not take it.
        """
        try:
            with folders.latest(self.folder):
                self.write(kind, **fields)
        except (OSError, Busy) as error:
            raise RecordsError(f"cannot point to {self.folder}: {_told(error)}") from error

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record of JSON-able `fields`; it is on disk when this returns.

        `kind` and the time (UTC) come first. RecordsError when the disk does not take it.
        """
        record: dict[str, Any] = {"kind": kind, "time": _now()}
        if kind == "run":
            record["schema"] = SCHEMA
        for name, value in fields.items():
            # a verdict is a word of ours, by which records are read
            record[name] = value if name == "verdict" else self._hidden.plain(value)
        line = _encoded(record) + "\n"
        try:
            with self._path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _cut_torn_end(file.fileno())
                # a lone surrogate, which UTF-8 lacks, as JSON writes it
                self._append(file.fileno(), line.encode(errors="backslashreplace"))
                os.fsync(file.fileno())
        except OSError as error:
            raise RecordsError(
                f"cannot write to {self._path}: {error.strerror}; what was recorded before is "
                "kept; free some space or name another place with --results DIR"
            ) from error

    def attach(self, name: str, payload: object) -> str:
        """Keep a JSON-able payload as a file beside the records; returns its relative path.

        It is there whole or not at all. RecordsError when the disk does not take it.
        """
        path = self.folder / "files" / f"{file_name(name)}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            folders.write_whole(path, _encoded(self._hidden.plain(payload)))
        except OSError as error:
            raise RecordsError(f"cannot write {path}: {error.strerror}") from error
        return str(path.relative_to(self.folder))

    def unused(self, name: str, ending: str) -> Path:
        """A file in the run's folder that is not there yet: a name with `ending`, or numbered."""
        number, path = 1, self.folder / f"{name}{ending}"
        while path.exists():
            number += 1
            path = self.folder / f"{name}.{number}{ending}"
        return path

    def _append(self, descriptor: int, data: bytes) -> None:
        start = os.lseek(descriptor, 0, os.SEEK_END)
        written = 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            # a half line would make the whole file unreadable
            os.ftruncate(descriptor, start)
            raise


def file_name(text: str) -> str:
    """A text as the name of a file: one word, without a path in it.

    A long one ends in a part of its checksum, so that two of them stay two.
    """
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-.") or "unnamed"
    if len(name) <= _LONGEST_NAME:
        return name
    mark = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name[: _LONGEST_NAME - len(mark)] + mark


def _cut_torn_end(descriptor: int) -> None:
    """Take away the part of a line that a killed process left, which no other could follow."""
    size = end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        block = os.pread(descriptor, end - start, start)
        found = block.rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, in order; RecordsError names file and line of what is not one.

    The last line is left out where it was cut off, as `is_torn` tells.
    """
    path = folder / FILE
    whole = 0
    try:
        with outside.within(folder, FILE).open("rb") as file:
            # bounded: a line need not have an end
            while line := file.readline(outside.MOST_BYTES):
                if len(line) == outside.MOST_BYTES:
                    raise TooLargeError
                if not line.endswith(b"\n"):
                    break
                whole += 1
                yield parsed(line.decode(), path, whole)
    except FileNotFoundError as error:
        raise RecordsError(
            f"cannot read {path}: no such file; name the folder of a run, "
            f"such as results/{folders.LATEST}"
        ) from error
    except (OSError, ValueError) as error:
        raise RecordsError(f"cannot read {path}: {error}") from error
    if not whole:
        raise RecordsError(f"{path}: empty, not the start of a run")


def is_torn(folder: Path) -> bool:
    """Whether the last line of a run's records was cut off while it was written."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read() not in (b"", b"\n")
    except OSError as error:
        raise RecordsError(f"cannot read {path}: {error}") from error


def standing(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a run without what was measured again.

    That are the verdicts that were reached again when it was taken up, and all that a cell had
    found on a node that was `lost`, but for verdicts that are not reached again. The first record
    has the GPUs of all nodes.
    """
    kept: list[dict[str, Any]] = []
    for record in found:
        if record["kind"] in ("resume", "lost"):
            again = set(map(str, record.get("again", ())))
            broken = record["cell"] if record["kind"] == "lost" else None
            kept = [one for one in kept if _stands(one, again, broken)]
        elif record["kind"] == "node" and kept:
            seen = [one for one in record["gpus"] if one not in kept[0]["gpus"]]
            kept[0] = kept[0] | {"gpus": [*kept[0]["gpus"], *seen]}
        kept.append(record)
    return kept


def _stands(record: Mapping[str, Any], again: Collection[str], broken: str | None) -> bool:
    """Whether a record stands when tests run `again`, all else of the cell `broken` with them."""
    if record["kind"] == "verdict":
        return record.get("nodeid") not in again
    return broken is None or record.get("cell") != broken or record["kind"] in _OF_PLACES


def outcome(verdict: Mapping[str, Any]) -> str:
    """A verdict's word; a failure that is waived is `waived`."""
    return "waived" if verdict.get("waived") else str(verdict["verdict"])


def attached(folder: Path, path: str) -> Any:
    """The content of a file that a record points to, gzipped or not.

    RecordsError where it is not within the folder, and where it cannot be read.
    """
    try:
        return json.loads(outside.content(outside.within(folder, path)))
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise RecordsError(f"cannot read {folder / path}: {error}") from error


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Turn what a reader trips over in somebody else's records into a RecordsError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise RecordsError(f"{folder / FILE}: not the records of a run: {what}") from error


def parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    """One line of a run's records, checked; `path` and `number` say in a RecordsError which."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordsError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise RecordsError(f"{path}, line {number}: not a record (no key 'kind')")
    for key, kind in _TYPES.get(record["kind"], {}).items():
        if key in record and not isinstance(record[key], kind):
            raise RecordsError(f"{path}, line {number}: key {key!r} is {record[key]!r:.80}")
    if number == 1:
        schema = record.get("schema")
        if record["kind"] != "run" or not isinstance(schema, int):
            raise RecordsError(f"{path}, line 1: not the start of a run")
        if schema > SCHEMA:
            raise RecordsError(
                f"{path}: written by a newer servematrix (schema {schema}, this one reads up to "
                f"{SCHEMA}); install that version to read it"
            )
    return record


def _told(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


def _encoded(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
