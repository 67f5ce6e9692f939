"""Folders of attempts on a node: gone with their attempt, or, where that was killed, with the next.

Each has a lock beside it, which the system frees however its process ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

_NAME: Final = "servematrix-cell-"


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for as long as the context lasts; removes those of killed attempts first."""
    root = Path(tempfile.gettempdir())
    _clean(root)
    made = root / f"{_NAME}{secrets.token_hex(8)}"
    with FileLock(_lock(made)):
        # whoever finds the folder finds it locked
        made.mkdir(mode=0o700)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            _lock(made).unlink(missing_ok=True)


def _lock(made: Path) -> Path:
    return made.with_name(f"{made.name}.lock")


def _clean(root: Path) -> None:
    for left in root.glob(f"{_NAME}*"):
        with suppress(OSError, Timeout):
            status = left.lstat()
            if left.is_symlink() or not left.is_dir() or status.st_uid != os.getuid():
                continue
            with FileLock(_lock(left), timeout=0):
                shutil.rmtree(left, ignore_errors=True)
                _lock(left).unlink(missing_ok=True)
