"""Files that somebody else may have written: read within their folder, and up to a bound.

Run folders, baselines and recordings are sent around. A record in one may name `../../.ssh/id_rsa`,
a name may be a link to it, and a few kilobytes of gzip may hold more than there is memory.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 256_000_000
"""Largest file, and largest content of one that is compressed. A run over all of HellaSwag has
1.5 MB; parsed, a file takes some ten times its size in memory."""
_GZIP: Final = b"\x1f\x8b"


class TooLargeError(ValueError):
    """A file holds more than `MOST_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST_BYTES // 10**6} MB, which none of ours has")


def within(folder: Path, name: str) -> Path:
    """The file of that name in a folder, links followed; ValueError where it lies elsewhere."""
    root = folder.resolve()
    file = (root / name).resolve()
    if not file.is_relative_to(root):
        raise ValueError(f"it lies outside of {folder}")
    if file.exists() and not file.is_file():
        raise ValueError("it is no regular file")
    return file


def raw(file: Path) -> bytes:
    """The bytes of a file; OSError and TooLargeError."""
    with file.open("rb") as opened:
        found = opened.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise TooLargeError
    return found


def content(file: Path) -> bytes:
    """What a file holds, unpacked where that is gzip.

    TooLargeError; OSError, EOFError and zlib.error as reading and unpacking give them.
    """
    return unpacked(raw(file))


def unpacked(packed: bytes) -> bytes:
    """The content of gzip, other bytes as they are; TooLargeError, and errors as `content`."""
    if not packed.startswith(_GZIP):
        return packed
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise TooLargeError
    return found
