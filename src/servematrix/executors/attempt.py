"""What a task does on its node: runs one cell as a pytest of its own, and yields what that finds.

The run stands under a guard (`engines.guard`): it ends with this process, however that ends, and
its servers with it. Everything that leaves here is built-in data, so that what went wrong can be
told also where the node has another version of this package.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from servematrix import ci, outside, records
from servematrix.engines.guard import guarded
from servematrix.engines.log import last_lines
from servematrix.executors import reports, scratch
from servematrix.executors.cluster import whereabouts
from servematrix.provenance import source

END_SECONDS: Final = 60.0
"""What an interrupted run gets to stop its server and see the GPU free."""
_LOOK_SECONDS: Final = 0.2
"""From one look at the run's files to the next. A file tells nobody that it grew; a pipe would
hold the run up once nobody reads it."""
_SHOWN_LINES: Final = 25
_NOT_PASSED_ON: Final = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_PLUGINS")


def run(order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Run one cell; yields `began`, then `record`, `report` and `log`, and at last `ended`.

    `order` has `arguments` (of pytest), `root` (of the project; None for this process's folder) and
    `source`, which this package must have too; else `another` is all that follows.
    """
    if threading.current_thread() is threading.main_thread():
        # Ray cancels by an interrupt, which a Ray that a shell started with `&` was told to ignore
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield {"what": "began", "host": platform.node(), **whereabouts()}
    if source() != order["source"]:
        yield {"what": "another", "source": source()}
        return
    with scratch.folder() as folder:
        yield from _run(order, folder)


def _run(order: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    output, told = folder / "output.txt", folder / "reports.jsonl"
    line = [
        sys.executable,
        "-m",
        "pytest",
        *order["arguments"],
        "--no-report",
        f"--results={folder / 'results'}",
    ]
    told_by_us = ci.without(os.environ)
    inherited = {name: at for name, at in told_by_us.items() if name not in _NOT_PASSED_ON}
    guard = subprocess.Popen(
        guarded(line, output, grace=END_SECONDS),
        cwd=order["root"],
        env=inherited | {reports.FILE: str(told)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        read, run = _Lines(told), _Records(folder / "results")
        ended = False
        while not ended:
            ended = _ended(guard)
            # a report follows its verdict's record, so it must not overtake it
            reported = read.new()
            yield from run.new()
            yield from ({"what": "report", "report": json.loads(one)} for one in reported)
        yield from run.logs()
        ending = guard.communicate()[0].partition("\n")[0].strip()
        yield {"what": "ended", "how": ending, "output": last_lines(output, _SHOWN_LINES)}
    finally:
        if guard.poll() is None:
            guard.terminate()
            guard.wait()


def _ended(guard: subprocess.Popen[str]) -> bool:
    """Whether the run is over; waits a moment for it. The guard says how it ended as it goes."""
    with selectors.DefaultSelector() as selector:
        selector.register(guard.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        return bool(selector.select(_LOOK_SECONDS))


class _Lines:
    """The lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[str]:
        """The whole lines that came since the last look."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        self._read += len(whole) + bool(whole)
        return whole.decode(errors="replace").split("\n") if whole else []


class _Records:
    """The records of the one run under a results folder, with the files that they name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lines: _Lines | None = None
        self._folder = root

    def new(self) -> Iterator[dict[str, Any]]:
        """The records since the last look; a measurement in a file with that file's text."""
        if self._lines is None:
            found = next(self._root.glob(f"*/{records.FILE}"), None)
            if found is None:
                return
            # not through `latest`, which comes a moment later
            self._folder = found.parent.resolve()
            self._lines = _Lines(self._folder / records.FILE)
        for line in self._lines.new():
            path = json.loads(line).get("path")
            text = None if path is None else gzip.compress(self._text(path))
            yield {"what": "record", "line": line, "file": text}

    def _text(self, path: str) -> bytes:
        return outside.content(outside.within(self._folder, path))

    def logs(self) -> Iterator[dict[str, Any]]:
        """The logs of the servers."""
        if self._lines is not None:
            for path in sorted(self._folder.glob("*.log")):
                yield {"what": "log", "text": path.read_text(errors="replace")}
