"""Run folders: made, held while their run lives, and cleaned where a run was killed.

A run holds a lock in its folder for as long as it lives, and the system frees that lock however the
run ends. Folders are made, taken up and cleaned by one process at a time, under a lock of their
root. So what lies in a folder whose lock is free belongs to no run that lives.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

LOCK: Final = "lock"
"""The file in a run's folder that its run holds locked; it stays there, empty."""
LATEST: Final = "latest"
_ROOT_LOCK: Final = ".lock"
_ROOT_SECONDS: Final = 30.0
"""A run holds its root for some milliseconds when it starts."""
_POINTER: Final = ".latest-"
_PART: Final = ".part"
_NAME: Final = re.compile(r"\d{8}-\d{6}-.*-[0-9a-f]{4}")


class Busy(Exception):
    """Another process holds a folder; the message says which."""


@dataclass(frozen=True)
class Held:
    """A run's folder, held by this process until it ends.

    `removed` are the files and folders of killed runs that were cleaned up on the way.
    """

    path: Path
    lock: FileLock
    removed: tuple[Path, ...] = ()


def make(root: Path, label: str) -> Held:
    """Make a folder for a new run under `root`.

    Raises OSError, and Busy where other runs hold the root for too long.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        removed = _clean(root)
        now = datetime.datetime.now().astimezone()
        folder = root / f"{now:%Y%m%d-%H%M%S}-{label}-{secrets.token_hex(2)}"
        folder.mkdir()
        return Held(folder, _held(folder), removed)


def take_up(folder: Path) -> Held:
    """Hold the folder of a run that has ended. Raises OSError and Busy."""
    with _alone(folder.parent):
        lock = _held(folder)
        return Held(folder, lock, _clean(folder.parent))


@contextmanager
def latest(folder: Path) -> Iterator[None]:
    """Let `latest` point to a run's folder once the run's start is recorded within the context.

    Under the lock of the root, so that runs follow one another in `latest` as in their records.
    Raises OSError and Busy.
    """
    with _alone(folder.parent):
        yield
        pointer = folder.parent / f"{_POINTER}{secrets.token_hex(4)}"
        pointer.symlink_to(folder.name)
        pointer.replace(folder.parent / LATEST)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, however its writer ends."""
    part = path.with_name(path.name + _PART)
    try:
        # a lone surrogate, which UTF-8 lacks, as JSON writes it
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    lock = FileLock(root / _ROOT_LOCK)
    try:
        lock.acquire(timeout=_ROOT_SECONDS)
    except Timeout as error:
        raise Busy(
            f"another process has held {root / _ROOT_LOCK} for {_ROOT_SECONDS:.0f} s; see which "
            "(fuser), or name another place with --results DIR"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _held(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy(f"{folder}: its run is still running") from error
    return lock


def _clean(root: Path) -> tuple[Path, ...]:
    """Remove what killed runs left under a root that this process holds; returns what it was.

    That is what was being written when they were killed, and folders in which nothing is recorded.
    """
    removed: list[Path] = []
    for pointer in root.glob(f"{_POINTER}*"):
        removed += _removed(pointer)
    for run in _runs(root):
        # a folder from elsewhere may hold a link to where nothing is ours
        inner = () if (run / "files").is_symlink() else run.glob(f"files/*{_PART}")
        left = [*run.glob(f"*{_PART}"), *inner]
        empty = {path.name for path in run.iterdir()} <= {LOCK}
        if not left and not empty:
            continue
        try:
            lock = _held(run)
        except Busy:
            continue
        try:
            for path in [run] if empty else left:
                removed += _removed(path)
        finally:
            lock.release()
    return tuple(removed)


def _runs(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]


def _removed(path: Path) -> list[Path]:
    """Remove a file or a folder; what cannot be removed stays for the next run."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return []
    return [path]
