"""What a server is doing while it starts, as its log tells.

SGLang has no other way to be asked: until it listens, its log is all there is. The table is of the
lines of SGLang 0.4 to 0.5.16, and of the embedded server. A phase is what a line says, never a
guess; a line that the table does not know leaves the phase as it is, and is shown by itself where
no phase is known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servematrix.terminal import line

_LONGEST: Final = 60
"""Characters of a line, or of a detail, that is shown."""
_LONGEST_LINE: Final = 4096
"""Bytes of a line that are looked at; a progress bar has some hundred."""
_MOST_AT_ONCE: Final = 2**20
"""Bytes that are read at a time; a start writes some ten thousand."""

_DONE: Final = r"\|\s*(?P<done>\d+)/(?P<total>\d+) \["
"""In a bar of tqdm: `33%|███▎      | 1/3 [00:03<00:07, 3.93s/it]`."""

PHASES: Final[Sequence[tuple[str, str, str]]] = (
    # what the line holds; the phase; its detail, with the groups that were found
    (r"server_args=", "reads its arguments", ""),
    (r"Init torch distributed begin", "sets up torch.distributed", ""),
    (r"Init torch distributed ends", "torch.distributed is set up", ""),
    (r"Load weight begin", "loads weights", ""),
    (
        rf"(?:[Ll]oading (?P<kind>\S+) checkpoint shards|loading shards):.*?{_DONE}",
        "loads weights",
        "{done} of {total} shards",
    ),
    (r"Loading safetensors using .*?" + _DONE, "loads weights", "{done} of {total}"),
    (r"Load weight end", "weights are loaded", ""),
    (
        r"KV Cache is allocated.*?#tokens: (?P<tokens>\d+)",
        "allocates memory pools",
        "KV cache of {tokens} tokens",
    ),
    (r"Memory pool end", "memory pools are allocated", ""),
    (rf"DeepGEMM warmup:.*?{_DONE}", "compiles DeepGEMM kernels", "{done} of {total}"),
    (r"Running FlashInfer autotune", "tunes FlashInfer kernels", ""),
    (r"FlashInfer autotune completed", "FlashInfer kernels are tuned", ""),
    (
        rf"Compiling num tokens \(num_tokens=(?P<size>\d+).*?{_DONE}",
        "compiles graphs",
        "{done} of {total}, {size} tokens",
    ),
    (
        rf"Capturing batches \(bs=(?P<size>\d+).*?{_DONE}",
        "captures graphs",
        "{done} of {total}, batch size {size}",
    ),
    (
        rf"Capturing num tokens \(num_tokens=(?P<size>\d+).*?{_DONE}",
        "captures graphs",
        "{done} of {total}, {size} tokens",
    ),
    (rf"Capturing batches.*?{_DONE}", "captures graphs", "{done} of {total}"),
    # "Capture cuda graph begin", "Capture target verify CUDA graph begin", on AMD and Ascend too
    (r"Capture (?P<kind>.{0,40}?graph)s? begin", "captures graphs", "{kind}"),
    (r"Capture (?P<kind>.{0,40}?graph)s? end", "graphs are captured", "{kind}"),
    (r"Uvicorn running on|Serving .* on .* port \d+", "listens", ""),
    (r"Running warmup (?P<kind>\S+)", "warms up", "{kind}"),
    (r"(?:Prefill|Decode) batch", "generates its first tokens", ""),
    (r"The server is fired up and ready to roll", "says that it is ready", ""),
)
"""The first that a line holds is the line's phase."""

_COMPILED: Final = tuple((re.compile(found), name, detail) for found, name, detail in PHASES)
_STAMP: Final = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] ?")


@dataclass(frozen=True)
class Phase:
    """A phase and how far it is; `detail` may be empty."""

    name: str
    detail: str = ""


NOTHING: Final = Phase("its log is empty")


def phase_of(told: str) -> Phase | None:
    """Return the phase that one line of a log tells of, None where it tells of none."""
    for pattern, name, detail in _COMPILED:
        match = pattern.search(told)
        if match is not None:
            return Phase(name, line(detail.format_map(match.groupdict()), _LONGEST))
    return None


class StartLog:
    """A server's log while the server starts. Secrets are taken out before it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        """The inode: a log that grows too large is written anew."""
        self._read = 0
        self._unended = b""
        self._known: Phase | None = None
        self._last = ""

    def phase(self) -> Phase:
        """Return what the server does now: the last line that tells, else the last line.

        What a terminal would obey is escaped.
        """
        for one in self._new_lines():
            self._note(one)
        # a bar of tqdm has its end only when it is drawn anew
        return self._found_in(self._unended) or self._known or self._unknown()

    def _note(self, one: bytes) -> None:
        self._known = self._found_in(one) or self._known
        self._last = _text(one) or self._last

    def _found_in(self, one: bytes) -> Phase | None:
        return phase_of(one.decode(errors="replace")) if one else None

    def _unknown(self) -> Phase:
        told = _text(self._unended) or self._last
        return Phase(line(told, _LONGEST)) if told else NOTHING

    def _new_lines(self) -> list[bytes]:
        """Return the lines that came since the last look; carriage returns end lines too."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read:
                    self._file, self._read, self._unended = found.st_ino, 0, b""
                # what came before that says nothing of now
                self._read = max(self._read, found.st_size - _MOST_AT_ONCE)
                file.seek(self._read)
                new = file.read(_MOST_AT_ONCE)
        except OSError:
            return []
        self._read += len(new)
        *whole, unended = (self._unended + new).replace(b"\r", b"\n").split(b"\n")
        self._unended = unended[-_LONGEST_LINE:]
        # a pattern with a gap in it takes time with the square of the length
        return [one[:_LONGEST_LINE] for one in whole]


def _text(one: bytes) -> str:
    return _STAMP.sub("", one.decode(errors="replace")).strip()
