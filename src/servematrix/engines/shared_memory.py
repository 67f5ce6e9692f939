"""Shared memory under a name in `/dev/shm`, which stays when the processes that used it are gone.

SGLang 0.5.16 leaves a file there at each end; a server that is killed leaves more, up to gigabytes,
until the machine has none left for the next one. What a server's processes were seen to use may be
removed once nobody uses it any more; a file that merely appeared meanwhile may be somebody else's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/dev/shm")
_COLUMNS = 6
"""Columns of a line of `/proc/PID/maps`; the last is the path, and may hold blanks."""


@dataclass(frozen=True)
class Segment:
    """A file of shared memory, told from a later one of the same name by its inode."""

    path: Path
    inode: int


def used_by(processes: Iterable[psutil.Process]) -> set[Segment]:
    """The segments that are mapped or open in any of these processes now."""
    found: set[Segment] = set()
    for process in processes:
        for path in _paths(process.pid):
            with contextlib.suppress(OSError):  # its name is gone, which is as it should be
                found.add(Segment(path, path.stat().st_ino))
    return found


def remove(segments: Iterable[Segment]) -> dict[str, int]:
    """Remove those segments that are still there and that nobody uses; names and sizes in bytes."""
    left = {segment for segment in segments if _size(segment) is not None}
    if left:
        left -= used_by(psutil.process_iter())
    removed: dict[str, int] = {}
    for segment in left:
        size = _size(segment)
        if size is not None:
            with contextlib.suppress(OSError):
                segment.path.unlink()
                removed[segment.path.name] = size
    return removed


def _size(segment: Segment) -> int | None:
    """The size of a segment in bytes; None where it is gone, or another has its name."""
    try:
        status = segment.path.stat()
    except OSError:
        return None
    return status.st_size if status.st_ino == segment.inode else None


def _paths(pid: int) -> set[Path]:
    """What a process has mapped or open below `ROOT`; nothing where it may not be looked at."""
    found: set[Path] = set()
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        wanted = (line.split(maxsplit=_COLUMNS - 1) for line in lines if str(ROOT) in line)
        found |= {Path(line[-1]) for line in wanted if len(line) == _COLUMNS}
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile; so is the one that lists them
                found.add(link.readlink())
    return {path for path in found if path.is_relative_to(ROOT)}
