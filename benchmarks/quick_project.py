"""A project that runs quickly through nox, and the processes of each of its runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from servematrix import records
from servematrix.engines import ports
from servematrix.exit_codes import Exit
from servematrix.folders import LOCK
from servematrix.report.command import FILE as REPORT

ROOT: Final = Path(__file__).resolve().parent.parent
END_SECONDS: Final = 120.0
"""For a whole run to end by itself; ten are usual on two cores."""
POLL_SECONDS: Final = 0.05
_NOT_OURS: Final = ("results/", ".pytest_cache/", "pytest-of-")
"""The runs, looked at on their own; pytest's cache, and the folder that it makes for workers."""
MARK: Final = "SERVEMATRIX_SURVIVAL"
"""The variable whose value all processes of one run have in common."""
_GUARD: Final = "servematrix.engines.guard"
_SERVER: Final = "servematrix.engines.reference"
_SUITE: Final = """\
import pytest
from servematrix.gates.verdict import Verdict
from servematrix.kits import BasicAPIContractMixin, BasicDecodeCorrectnessMixin
from servematrix.kits.base import Kit, concludes


class LongRequestMixin(Kit):
    kit = "long_request"

    @concludes("long_request")
    def test_long_request(self):
        answer = self.client.generate("Once", max_new_tokens=500, ignore_eos=True)
        self.attach("answer", answer)
        return Verdict("pass", "it ends", "it did")


@pytest.mark.suite("quick")
class TestQuick(BasicAPIContractMixin, LongRequestMixin, BasicDecodeCorrectnessMixin):
    pass
"""
"""Nothing here depends on how busy the machine is; a second of it is one request and its file."""


class Processes:
    """The processes of one run, found by its mark; their ports are remembered."""

    def __init__(self, mark: str, nox: int | None = None) -> None:
        """`mark` is their value of the variable `MARK`, `nox` the id of the first where it is."""
        self._mark = mark
        self._nox = nox
        self.ports: set[int] = set()
        self._others: set[psutil.Process] = set()

    def processes(self) -> dict[int, str]:
        """The living processes of the run: what each is, by process id."""
        found = {}
        for process in psutil.process_iter():
            if process in self._others:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found[process.pid] = self._role(process)
                elif process.pid != self._nox:  # which has the mark from its exec on, not its fork
                    self._others.add(process)
        return found

    def _role(self, process: psutil.Process) -> str:
        line = process.cmdline()
        if "--port" in line:
            self.ports.add(int(line[line.index("--port") + 1]))
        if process.pid == self._nox:
            return "nox"
        if _GUARD in line:
            return "guard"
        if _SERVER in line:
            return "server"
        if "pytest" in line:
            return "pytest"
        return "worker" if any("sys.stdin.readline" in word for word in line) else "other"

    def find(self, role: str) -> int | None:
        """A process of this role, None where there is none now."""
        return next((pid for pid, one in self.processes().items() if one == role), None)

    def listening(self) -> list[int]:
        """The run's ports on which somebody listens."""
        return [port for port in sorted(self.ports) if ports.owners(port)]


@dataclass
class Project:
    """A project with two quick cells and the real noxfile, where all the runs of a survival write.

    `spans` is how long each kind of process lives, by whether there are workers.
    """

    folder: Path
    spans: dict[bool, dict[str, float]] = field(default_factory=dict)
    tests: frozenset[str] = frozenset()
    _files: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        project = self.folder / "project"
        (project / "suites").mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        # a process that has a title has it where its environment was, and with that our mark
        (self.folder / "first").mkdir()
        (self.folder / "first" / "setproctitle.py").write_text("raise ImportError\n")
        for name in ("configs", "noxfile.py", "pyproject.toml", "src"):
            (project / name).symlink_to(ROOT / name)
        (project / "suites" / "test_quick.py").write_text(_SUITE)
        (project / "pytest.ini").write_text(
            "[pytest]\naddopts = -p servematrix.plugin --import-mode=importlib\n"
        )
        self._stand_in_for_the_harness()

    @property
    def results(self) -> Path:
        """The root of the run folders."""
        return self.folder / "project" / "results"

    @property
    def leases(self) -> Path:
        """Where the runs keep their leases of two pretend GPUs."""
        return self.folder / "leases"

    def _stand_in_for_the_harness(self) -> None:
        """Make nox's environment of this Python, as if it had been installed."""
        harness = self.folder / "project" / ".nox" / "harness"
        (harness / "bin").mkdir(parents=True)
        python = harness / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        project = harness.parent.parent
        about = f"{project} {sys.version} {(project / 'pyproject.toml').read_text()}"
        (harness / "harness.stamp").write_text(hashlib.sha256(about.encode()).hexdigest())

    def start(
        self, mark: str, output: Path, *options: str, sessions: Sequence[str] = ("stage_a",)
    ) -> subprocess.Popen[bytes]:
        """Start a run that carries a mark; what it prints goes to a file.

        Of several nox sessions two run at a time, each in a run of its own.
        """
        command = [sys.executable, "-m", "nox", *(["-j", "2"] if len(sessions) > 1 else [])]
        command += ["-s", *sessions, "--", "-v", "--config", "smollm2"]
        command += ["--engine", "reference", "--set", 'suites=["quick"]']
        inner = [str(self.folder / "first"), str(ROOT / "src")]
        path = os.pathsep.join([*inner, os.environ.get("PYTHONPATH", "")])
        inherited = {name: value for name, value in os.environ.items() if _is_passed_on(name)}
        environment = inherited | {
            MARK: mark,
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": path.rstrip(os.pathsep),
            "COLUMNS": "200",
            "SERVEMATRIX_FAKE_GPUS": "2",
            "SERVEMATRIX_LEASES": str(self.leases),
        }
        with output.open("wb") as file:
            return subprocess.Popen(
                [*command, *options],
                cwd=self.folder / "project",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def whole_run(self, *options: str) -> tuple[int, str, dict[str, float]]:
        """Run to the end; returns pytest's status, what was printed, and seconds of each role."""
        output = self.folder / "whole.txt"
        mark = f"{time.monotonic_ns()}"
        run = self.start(mark, output, *options)
        seen = Processes(mark, run.pid)
        spans: dict[str, tuple[float, float]] = {}
        deadline = time.monotonic() + END_SECONDS
        while run.poll() is None and time.monotonic() < deadline:
            now = time.monotonic()
            for role in seen.processes().values():
                spans[role] = (spans.get(role, (now, now))[0], now)
            time.sleep(POLL_SECONDS)
        run.kill()
        run.wait()
        text = output.read_text(errors="replace")
        return _status(text), text, {role: last - first for role, (first, last) in spans.items()}

    def warm_up(self, *, workers: Sequence[bool] = (False, True)) -> None:
        """Learn from whole runs how long each process lives, and which files a run leaves."""
        for with_workers in workers:
            status, text, spans = self.whole_run(*(["-n", "2"] if with_workers else []))
            if status != Exit.PASSED:
                raise SystemExit(f"a run that nobody killed ended with {status}:\n{text[-3000:]}")
            self.spans[with_workers] = spans
            found = records.read(self.results / "latest")
            self.tests = frozenset(one["nodeid"] for one in found if one["kind"] == "verdict")
        if "Installing" in text or "pip install" in text:
            raise SystemExit(f"nox made the harness anew, its stamp has changed:\n{text[-3000:]}")
        self._files = self._listed()

    def left(self) -> tuple[list[str], list[str]]:
        """Files that no run should leave, and those that the next run removes."""
        found = [
            f"{path} in TMPDIR"
            for path in _files_of(self.folder / "tmp")
            if not path.startswith(_NOT_OURS)
        ]
        found += sorted(self._listed() - self._files)
        for_next = []
        for name in _files_of(self.results):
            first, _, rest = name.partition("/")
            if name.endswith(".part") or first.startswith(".latest-"):
                for_next.append(name)
            elif not _is_of_a_run(first, rest):
                found.append(f"{name} in results")
        return found, for_next

    def _listed(self) -> frozenset[str]:
        """All files of the project but those of its runs and of pytest itself."""
        files = _files_of(self.folder / "project")
        return frozenset(name for name in files if not name.startswith(_NOT_OURS))


def _is_passed_on(variable: str) -> bool:
    return not variable.startswith(("PYTEST_", "NOX_", "COV_", "SERVEMATRIX_"))


def _files_of(folder: Path) -> list[str]:
    return [
        os.path.relpath(Path(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    ]


def _is_of_a_run(first: str, rest: str) -> bool:
    if first in (".lock", "latest"):
        return not rest
    inside = re.fullmatch(
        rf"{records.FILE}|{LOCK}|{re.escape(REPORT)}|[^/]+\.log|files/[^/]+\.json", rest
    )
    return inside is not None


def _status(text: str) -> int:
    """pytest's status, as the run's last line names it; nox has only 0 and 1."""
    found = re.findall(r"servematrix: exit (\d)", text)
    return int(found[-1]) if found else -1
