"""The history of a results folder: one SQLite file, made of the records and of nothing else.

It may be removed at any time. A run is read once, and again where its records have another size or
time of change than before, or could not be read: a newer version of ours may be able to. A run that
is gone from the folder is gone from the history too. So what was updated and what is made anew have
the same content.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from servematrix import records
from servematrix.history import reading
from servematrix.records import RecordsError

FILE: Final = "history.sqlite"
SCHEMA: Final = 1
"""Stands in the file (`PRAGMA user_version`); a file with an older one is made anew."""
TABLES: Final = {
    "runs": "run TEXT PRIMARY KEY, bytes INTEGER, changed INTEGER, time TEXT, engine TEXT, "
    "simulated INTEGER, git_commit TEXT, exit_code INTEGER, parts TEXT, problem TEXT",
    "cells": "run TEXT, cell TEXT, configuration TEXT, gpu TEXT, simulated INTEGER, server TEXT, "
    "model TEXT, PRIMARY KEY (run, cell)",
    "numbers": "run TEXT, cell TEXT, kit TEXT, name TEXT, unit TEXT, value REAL, "
    "PRIMARY KEY (run, cell, kit, name)",
    "verdicts": "run TEXT, cell TEXT, kit TEXT, test TEXT, verdict TEXT, waived INTEGER, "
    "PRIMARY KEY (run, cell, kit, test)",
}
"""Columns by table; `changed` in nanoseconds, `problem` why a run could not be read."""
_LOCK: Final = ".history.lock"
_LOCK_SECONDS: Final = 60.0
_PART: Final = f".{FILE}.part"


@dataclass(frozen=True)
class Updated:
    """What an update did: runs read, runs forgotten, and those left out with the reason."""

    read: int
    forgotten: int
    left_out: dict[str, str]


def update(root: Path, *, rebuild: bool = False) -> Updated:
    """Bring the history of a results folder up to date, or make it anew; one process at a time.

    RecordsError where the folder is none, another process takes too long, or the file is not ours,
    of a newer version, or cannot be written.
    """
    if not root.is_dir():
        raise RecordsError(f"{root}: no such folder; name the one of the runs with --results DIR")
    with _alone(root), _told(root):
        file = root / FILE
        if rebuild or not file.exists() or _is_older(file):
            part = root / _PART
            part.unlink(missing_ok=True)
            try:
                found = _update(root, part)
                part.replace(file)
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
            return found
        return _update(root, file)


@contextmanager
def opened(root: Path) -> Iterator[sqlite3.Connection]:
    """The history of a results folder, for reading; RecordsError."""
    with _told(root), closing(_connect(root / FILE)) as connection:
        yield connection


def content(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that the history of a folder holds, by table, sorted: for comparing two."""
    with opened(root) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in TABLES
        }


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file)


def _is_older(file: Path) -> bool:
    with closing(_connect(file)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise RecordsError(
            f"{file}: written by a newer servematrix (schema {version}, this one reads up to "
            f"{SCHEMA}); install that version, or make it anew with --rebuild"
        )
    return bool(version < SCHEMA)


def _update(root: Path, file: Path) -> Updated:
    with closing(_connect(file)) as connection, connection:
        for table, columns in TABLES.items():
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        known = {
            run: None if problem else tuple(mark)
            for run, problem, *mark in connection.execute(
                "SELECT run, problem, bytes, changed FROM runs"
            )
        }
        there = dict(_runs(root))
        gone = known.keys() - there.keys()
        stale = [run for run, mark in there.items() if known.get(run) != mark]
        for run in (*gone, *stale):
            for table in TABLES:
                connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
        for run in stale:
            _add(connection, root / run, there[run])
        broken = "SELECT run, problem FROM runs WHERE problem != '' ORDER BY run"
        return Updated(len(stale), len(gone), dict(connection.execute(broken)))


def _runs(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The runs of a folder by name, with size and time of change of their records."""
    for file in sorted(root.glob(f"*/{records.FILE}")):
        # `latest` is another name of one of them
        if not file.parent.is_symlink() and file.parent.name.isprintable():
            with suppress(FileNotFoundError):
                status = file.stat()
                yield file.parent.name, (status.st_size, status.st_mtime_ns)


def _add(connection: sqlite3.Connection, folder: Path, mark: tuple[int, int]) -> None:
    try:
        found = reading.read(folder)
    except RecordsError as error:
        unread = reading.Digest(("", "", 0, "", None))
        _insert(
            connection, "runs", (folder.name, *mark, *unread.run, "[]", reading.told(error, folder))
        )
        return
    _insert(connection, "runs", (folder.name, *mark, *found.run, json.dumps(found.parts), ""))
    for table in ("cells", "numbers", "verdicts"):
        for row in getattr(found, table):
            _insert(connection, table, (folder.name, *row))


def _insert(connection: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
    places = ", ".join("?" * len(row))
    # two names that are shown alike are one
    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    lock = FileLock(root / _LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise RecordsError(
            f"another process has held {root / _LOCK} for {_LOCK_SECONDS:.0f} s; see which (fuser)"
        ) from error
    except OSError as error:
        raise RecordsError(
            f"{root} cannot be written: {error.strerror}; the history is kept there: take"
            " --results with a copy of the runs"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise RecordsError(
            f"{root / FILE}: {error}; where it is damaged, make it anew with --rebuild"
        ) from error
