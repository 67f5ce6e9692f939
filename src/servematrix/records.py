"""Run records: what was run, measured and decided, one JSON object a line, on disk at once.

A run is a folder `<results>/<run>/` with `records.jsonl` and the files that records point to.
`<results>/latest` points to the run that was started last. A line is flushed to disk before the
next test starts, so a killed run keeps every verdict it reached. Every process of a run appends to
the same file; a line is written by one call under a lock, so lines never mix.
"""

from __future__ import annotations

import datetime
import fcntl
import gzip
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE = "records.jsonl"


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
    | {"numbers": dict},
    "end": {"exit_code": int},
}
"""Of what readers use in each kind of record, where it is there."""
_MOST_BYTES = 256_000_000
"""Of an attached file, once it is unpacked; a run over all of HellaSwag has 1.5 MB."""


class RecordsError(Exception):
    """A record could not be written or read; the message says which file and why."""


class Run:
    """The records of one run, open for appending.

    `hidden` are secret values: wherever one would stand in a line or an attached file, `***` does.
    """

    def __init__(self, folder: Path, hidden: Sequence[str] = ()) -> None:
        self.folder = folder
        self._path = folder / FILE
        self._hidden = [value for value in hidden if value]

    @classmethod
    def create(cls, root: Path, label: str, hidden: Sequence[str] = ()) -> Run:
        """Make a new run folder under `root` and let `latest` point to it."""
        now = datetime.datetime.now().astimezone()
        name = f"{now:%Y%m%d-%H%M%S}-{file_name(label)}-{secrets.token_hex(2)}"
        folder = root / name
        try:
            folder.mkdir(parents=True)
            pointer = root / f".latest-{secrets.token_hex(4)}"
            pointer.symlink_to(name)
            pointer.replace(root / "latest")
        except OSError as error:
            raise RecordsError(
                f"cannot create the run folder {folder}: {error.strerror}; "
                "free some space or name another place with --results DIR"
            ) from error
        return cls(folder, hidden)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record; RecordsError when the disk does not take it."""
        record: dict[str, Any] = {"kind": kind, "time": _now()}
        if kind == "run":
            record["schema"] = SCHEMA
        line = self._encode(record | fields) + "\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # a lone surrogate, which UTF-8 lacks, as JSON writes it
                self._append(file.fileno(), line.encode(errors="backslashreplace"))
                os.fsync(file.fileno())
        except OSError as error:
            raise RecordsError(
                f"cannot write to {self._path}: {error.strerror}; what was recorded before is "
                "kept; free some space or name another place with --results DIR"
            ) from error

    def attach(self, name: str, payload: object) -> str:
        """Keep a JSON-able payload as a file beside the records; returns its relative path."""
        path = self.folder / "files" / f"{file_name(name)}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self._encode(payload).encode(errors="backslashreplace"))
        except OSError as error:
            raise RecordsError(f"cannot write {path}: {error.strerror}") from error
        return str(path.relative_to(self.folder))

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

    def _encode(self, value: object) -> str:
        return json.dumps(plain(value, self._hidden), ensure_ascii=False, allow_nan=False)


def file_name(text: str) -> str:
    """A text as the name of a file: one word, without a path in it."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-.")[:80] or "unnamed"


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, in order; RecordsError names file and line of what is not one."""
    path = folder / FILE
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _parsed(line, path, number)
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"cannot read {path}: {error}") from error


def attached(folder: Path, path: str) -> Any:
    """The content of a file that a record points to, gzipped where its name ends in `.gz`."""
    return content(beside(folder, path))


def beside(folder: Path, path: str) -> Path:
    """The file that a record points to; RecordsError where it is not one of its run."""
    file = folder / path
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RecordsError(f"{folder / FILE}: points to {path!r}, which is not of this run")
    return file


def content(file: Path) -> Any:
    """The JSON in a file, gzipped where its name ends in `.gz`; RecordsError names the file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"over {_MOST_BYTES // 10**6} MB, which no file of a run has")
        return json.loads(raw)
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise RecordsError(f"cannot read {file}: {error}") from error


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Turn what a reader trips over in somebody else's records into a RecordsError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise RecordsError(f"{folder / FILE}: not the records of a run: {what}") from error


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def plain(value: object, hidden: Sequence[str] = ()) -> object:
    """A value as JSON has it: numbers that it lacks as text, and secrets as `***`."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, hidden) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, hidden) for item in value]
    text = str(value)
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
