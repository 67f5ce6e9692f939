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
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE = "records.jsonl"


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
    file = folder / path
    try:
        raw = file.read_bytes()
        return json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise RecordsError(f"cannot read {file}: {error}") from error


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordsError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(record, dict) or "kind" not in record:
        raise RecordsError(f"{path}, line {number}: not a record (no key 'kind')")
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
