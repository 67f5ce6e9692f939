"""A server's log as it reaches the disk: bounded in size, secrets taken out.

Both work on bytes as they come from a pipe: a chunk may end anywhere, within a character, a line
or a secret. Little is imported; `guard` runs this in a process of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from servematrix.redaction import spellings
from servematrix.terminal import shown

SHORTEST_CUT_SECRET = 4
"""Bytes of a secret's beginning that are taken out when the output ends within it."""


class Redactor:
    """Replaces secret values in a stream of bytes, across the borders of its chunks.

    `secrets` holds pairs of a name and a value; `<name redacted>` takes the value's place. A value
    is found in the spellings of `redaction.spellings`.
    """

    def __init__(self, secrets: Iterable[tuple[str, str]]) -> None:
        self._marks = {
            os.fsencode(spelling): f"<{name} redacted>".encode()
            for name, value in secrets
            for spelling in spellings(value)
        }
        # the longest first, so that no secret survives as the rest of a shorter one
        self._spellings = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._spellings)))
        self._firsts = {spelling[0] for spelling in self._spellings}
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be written: all but an end that may become a secret with what follows."""
        if not self._spellings:
            return chunk
        data = self._held + chunk
        done: list[bytes] = []
        position = 0
        while True:
            hold = self._hold_from(data, position)
            match = self._pattern.search(data, position)
            if match is None or match.start() >= hold:
                break
            done += [data[position : match.start()], self._marks[match.group()]]
            position = match.end()
        self._held = data[hold:]
        return b"".join([*done, data[position:hold]])

    def close(self) -> bytes:
        """Return what `feed` held back. The beginning of a secret is taken out as well."""
        held, self._held = self._held, b""
        if len(held) >= SHORTEST_CUT_SECRET:
            return next(self._marks[s] for s in self._spellings if s.startswith(held))
        return self._pattern.sub(lambda match: self._marks[match.group()], held) if held else b""

    def _hold_from(self, data: bytes, position: int) -> int:
        """Index of the first byte from which the data may be the beginning of a secret."""
        longest = len(self._spellings[0])
        for start in range(max(position, len(data) - longest + 1), len(data)):
            if data[start] not in self._firsts:
                continue
            end = data[start:]
            if any(len(s) > len(end) and s.startswith(end) for s in self._spellings):
                return start
        return len(data)


class BoundedLog:
    """A file that keeps the beginning and the end of what is written to it.

    It never holds more than `limit` bytes (1,024 or more), is readable at any moment, and survives
    its writer. A full disk loses output, counted in the log once there is room again; it never
    stops the server whose output this is.
    """

    def __init__(self, path: Path, limit: int) -> None:
        if limit < 1024:
            raise ValueError(f"a log of {limit} bytes is too small, 1024 or more are needed")
        self._path = path
        self._limit = limit
        self._head = b""
        self._head_size = limit // 4
        self._left_out = 0
        self._lost = 0
        self._size = 0
        self._body = 0
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append; never raises because of the disk."""
        step = self._limit // 4
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            try:
                self._append(piece)
            except OSError:
                self._lost += len(piece)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, piece: bytes) -> None:
        if self._lost:
            note = f"\n[... {self._lost} bytes lost, the disk was full ...]\n".encode()
            self._put(note)
            self._lost = 0
        self._put(piece)

    def _put(self, piece: bytes) -> None:
        if self._size + len(piece) > self._limit:
            self._shorten()
        rest = memoryview(piece)
        while rest:
            written = self._file.write(rest) or 0
            self._size += written
            rest = rest[written:]

    def _shorten(self) -> None:
        """Keep the head and the last half; the new file takes the old one's place at once."""
        old = self._path.read_bytes()
        if not self._head:
            self._head = old[: self._head_size]
            self._body = len(self._head)
        tail = old[max(self._body, len(old) - self._limit // 2) :]
        left_out = self._left_out + len(old) - self._body - len(tail)
        mark = f"\n[... {left_out} bytes left out ...]\n".encode()
        aside = self._path.with_name(self._path.name + ".part")
        new = aside.open("wb", buffering=0)
        try:
            new.write(self._head + mark + tail)
            aside.replace(self._path)
        except OSError:
            new.close()
            aside.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = new
        self._left_out = left_out
        self._body = len(self._head) + len(mark)
        self._size = self._body + len(tail)


def last_lines(path: Path, lines: int, window: int = 65536) -> str:
    """Return the last lines of a file, at most `window` bytes; empty where there is no file.

    They are for people: what a terminal would obey is escaped.
    """
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - window))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return shown("\n".join(text.splitlines()[-lines:]))
