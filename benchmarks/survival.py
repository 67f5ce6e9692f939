"""Runs that are killed at random moments: what is left of them, and whether they go on.

A round starts a whole run of two cells, nox → pytest → guard → embedded server, kills one of its
processes with SIGKILL and looks, until a deadline of 5 s, for what is left of the run: processes
(each carries the round's mark in its environment), listening ports, files where the run writes.
Then it reads the records, holds them against what pytest printed, and takes the run up again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import psutil

from servematrix import records
from servematrix.exit_codes import Exit
from servematrix.folders import LOCK

ROOT: Final = Path(__file__).resolve().parent.parent
TARGETS: Final = ("nox", "pytest", "server", "guard", "worker")
CLEAN_SECONDS: Final = 5.0
"""What a killed run has until nothing of it is left."""
END_SECONDS: Final = 120.0
"""For a whole run to end by itself; ten are usual on two cores."""
_POLL_SECONDS: Final = 0.05
_NOT_OURS: Final = ("results/", ".pytest_cache/", "pytest-of-")
"""The runs, looked at on their own; pytest's cache, and the folder that it makes for workers."""
_MARK: Final = "SERVEMATRIX_SURVIVAL"
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
_PRINTED: Final = re.compile(
    r"(?P<alone>\S+::\S+) (?:PASSED|FAILED|SKIPPED)"
    r"|\] (?:PASSED|SKIPPED) (?P<by_a_worker>\S+::\S+)"
)
"""A test whose end pytest has shown; not the one that a killed worker was in, which has none."""


@dataclass(frozen=True)
class Round:
    """One killed run. `left` and `wrong` say what should not be; both are empty where all is well.

    `left` are processes, ports and files at the deadline; `wrong` is about records and `--resume`.
    """

    target: str
    workers: bool
    moment: str
    clean_seconds: float
    """Until nothing of the run was left; from the run's end where that came by itself."""
    verdicts: int
    """In the records when the run had ended."""
    resumed: str = ""
    """How `--resume` ended: `completed`, or `refused` for a run that was complete."""
    left: Sequence[str] = ()
    wrong: Sequence[str] = ()
    for_the_next_run: Sequence[str] = ()
    """Files that the next run has to remove."""


class Killed:
    """The processes of one run, found by its mark; their ports are remembered."""

    def __init__(self, mark: str, nox: int) -> None:
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
                if process.environ().get(_MARK) == self._mark:
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
        with contextlib.suppress(psutil.Error):
            return sorted(
                connection.laddr.port
                for connection in psutil.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port in self.ports
            )
        return []


@dataclass
class Project:
    """A project with two quick cells and the real noxfile, where all the runs of a survival write.

    `options` go to each run; `spans` is how long each kind of process lives, by whether there are
    workers.
    """

    folder: Path
    options: Sequence[str] = ()
    spans: dict[bool, dict[str, float]] = field(default_factory=dict)
    tests: frozenset[str] = frozenset()
    _files: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        project = self.folder / "project"
        (project / "suites").mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        for name in ("configs", "noxfile.py", "pyproject.toml"):
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

    def start(self, mark: str, output: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start a run that carries a mark; what it prints goes to a file."""
        command = [sys.executable, "-m", "nox", "-s", "stage_a", "--", "-v", "--config", "smollm2"]
        command += ["--engine", "reference", "--set", 'suites=["quick"]']
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        inherited = {name: value for name, value in os.environ.items() if _is_passed_on(name)}
        environment = inherited | {
            _MARK: mark,
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": path.rstrip(os.pathsep),
            "COLUMNS": "200",
        }
        with output.open("wb") as file:
            return subprocess.Popen(
                [*command, *self.options, *options],
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
        seen = Killed(mark, run.pid)
        spans: dict[str, tuple[float, float]] = {}
        deadline = time.monotonic() + END_SECONDS
        while run.poll() is None and time.monotonic() < deadline:
            now = time.monotonic()
            for role in seen.processes().values():
                spans[role] = (spans.get(role, (now, now))[0], now)
            time.sleep(_POLL_SECONDS)
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
    inside = re.fullmatch(rf"{records.FILE}|{LOCK}|[^/]+\.log|files/[^/]+\.json", rest)
    return inside is not None


def _status(text: str) -> int:
    """pytest's status, as the run's last line names it; nox has only 0 and 1."""
    found = re.findall(r"servematrix: exit (\d)", text)
    return int(found[-1]) if found else -1


class Moment(Protocol):
    """Tells when to kill: true once it has come. Asked again and again from the run's start on."""

    def __call__(self, run: Killed) -> bool:
        """Whether it has come."""


class After:
    """Some seconds after the first process of a role is there."""

    def __init__(self, role: str, seconds: float) -> None:
        self._role = role
        self._seconds = seconds
        self._began: float | None = None

    def __call__(self, run: Killed) -> bool:
        """Whether it has come."""
        now = time.monotonic()
        if self._began is None and run.find(self._role) is not None:
            self._began = now
        return self._began is not None and now >= self._began + self._seconds

    def __str__(self) -> str:
        return f"{self._seconds:.2f} s after the first {self._role}"


def killed(
    project: Project, target: str, moment: Moment, *, workers: bool, resume: bool
) -> Round | None:
    """One round: kill the target, and see what is left; None where the run was over before.

    A target that is not there at the moment comes again with the next cell.
    """
    mark = f"{time.monotonic_ns()}"
    output = project.folder / "output.txt"
    before = set(_run_folders(project))
    nox = project.start(mark, output, *(["-n", "2"] if workers else []))
    run = Killed(mark, nox.pid)
    try:
        if not _kill(run, nox, target, moment):
            return None
        if target in ("server", "guard", "worker"):
            nox.wait(END_SECONDS)  # the run says what happened, and ends by itself
        left, seconds = _await_the_end(run, nox)
    finally:
        for pid in run.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        nox.wait()
    files, for_next = project.left()
    made = next((path for path in _run_folders(project) if path not in before), None)
    verdicts, wrong = _read(made, output.read_text(errors="replace"), target)
    resumed = ""
    if resume and made is not None and verdicts:
        resumed, more = _resume(project, made, target)
        wrong += more
    left += files
    return Round(target, workers, str(moment), seconds, verdicts, resumed, left, wrong, for_next)


def _kill(run: Killed, nox: subprocess.Popen[bytes], target: str, moment: Moment) -> bool:
    has_come = False
    while nox.poll() is None:
        has_come = has_come or moment(run)
        victim = run.find(target) if has_come else None
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                return True
        time.sleep(_POLL_SECONDS)
    return False


def _run_folders(project: Project) -> list[Path]:
    if not project.results.exists():
        return []
    return [path for path in project.results.iterdir() if path.is_dir() and not path.is_symlink()]


def _await_the_end(run: Killed, nox: subprocess.Popen[bytes]) -> tuple[list[str], float]:
    """What of a run is left at the deadline, and the seconds until nothing was."""
    began = time.monotonic()
    while True:
        nox.poll()
        processes, ports = run.processes(), run.listening()
        seconds = time.monotonic() - began
        left = [f"{role} (pid {pid})" for pid, role in processes.items()]
        left += [f"port {port}" for port in ports]
        if not left or seconds > CLEAN_SECONDS:
            return left, seconds
        time.sleep(_POLL_SECONDS)


def _read(made: Path | None, text: str, target: str) -> tuple[int, list[str]]:
    """How many verdicts a killed run's records have, and what is wrong with them."""
    shown = {one["alone"] or one["by_a_worker"] for one in _PRINTED.finditer(text)}
    if made is None or not (made / records.FILE).exists():
        return 0, [f"no records of {len(shown)} verdicts"] if shown else []
    try:
        found = list(records.read(made))
    except records.RecordsError as error:
        return 0, [str(error)]
    verdicts = {one["nodeid"]: one for one in found if one["kind"] == "verdict"}
    wrong = [f"no verdict of {nodeid} in the records" for nodeid in shown - verdicts.keys()]
    if target in ("nox", "pytest"):
        # nobody killed their server: nothing of the interruption may look like a finding
        wrong += [
            f"{nodeid}: {one['verdict']}: {one['reason']}"
            for nodeid, one in verdicts.items()
            if one["verdict"] not in ("pass", "not_applicable")
        ]
    return len(verdicts), wrong


def _resume(project: Project, folder: Path, target: str) -> tuple[str, list[str]]:
    """Take a run up, and say what is wrong with how that ended."""
    before = list(records.read(folder))
    is_complete = before[-1]["kind"] == "end" and before[-1]["exit_code"] != Exit.INTERRUPTED
    status, text, _ = project.whole_run("--resume", folder.name)
    if is_complete:
        refused = "is complete" in text and list(records.read(folder)) == before
        return "refused", [] if refused else [f"a complete run was taken up:\n{text[-2000:]}"]
    after = list(records.read(folder))
    again = next(one["again"] for one in reversed(after) if one["kind"] == "resume")
    reached = [one["nodeid"] for one in before if one["kind"] == "verdict"]
    kept = [nodeid for nodeid in reached if nodeid not in again]
    now = [one["nodeid"] for one in after[len(before) :] if one["kind"] == "verdict"]
    wrong = []
    if status != Exit.PASSED:
        wrong.append(f"--resume ended with {status}:\n{text[-2000:]}")
    if sorted(now + kept) != sorted(project.tests):
        wrong.append(f"--resume ran {len(now)} tests, and {len(kept)} were kept")
    rest = project.tests - set(kept)
    cells = {cell for cell in before[0]["configurations"] if any(f"[{cell}]" in n for n in rest)}
    launched = [one["cell"] for one in after[len(before) :] if one["kind"] == "cell"]
    if sorted(launched) != sorted(cells):
        wrong.append(f"--resume launched {launched}, and tests were left in {sorted(cells)}")
    if again and target in ("nox", "pytest"):
        wrong.append(f"{len(again)} errors of a server that nobody killed")
    return "completed", wrong


def survive(
    project: Project, rounds: int, seed: int, *, targets: Sequence[str] = TARGETS, resume_every: int
) -> Iterator[Round]:
    """Kill one run after the other: each target in turn, half of the time under `-n 2`."""
    chance = random.Random(seed)
    number = 0
    while number < rounds:
        target = targets[number % len(targets)]
        turn = number // len(targets)
        workers = target == "worker" or turn % 2 == 1
        # most of a quick run is its start: every other time within the servers' lives
        role = "server" if turn // 2 % 2 == 1 else target
        moment = After(role, chance.random() * project.spans[workers][role])
        resume = number % resume_every == resume_every - 1
        done = killed(project, target, moment, workers=workers, resume=resume)
        if done is not None:
            number += 1
            yield done


def figures(
    rounds: int = 100, seed: int = 4
) -> Iterator[tuple[str, list[float], str, float | None]]:
    """What is left of killed runs, and how long it takes until nothing is."""
    done: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.warm_up()
        for one in survive(project, rounds, seed, resume_every=3):
            done.append(one)
            print(f"[{len(done)}/{rounds}] {one}", file=sys.stderr, flush=True)
        project.whole_run()
        files, for_next = project.left()
    for target in TARGETS:
        seconds = [one.clean_seconds for one in done if one.target == target]
        yield f"SIGKILL to {target}: until nothing is left", seconds, "s", CLEAN_SECONDS
    counts = {
        f"of {rounds} killed runs: with something left": sum(bool(one.left) for one in done),
        "  with a verdict that cannot be read, or a wrong --resume": sum(
            bool(one.wrong) for one in done
        ),
        "  files left to the next run, and still there after it": len(for_next) + len(files),
    }
    for name, count in counts.items():
        yield name, [float(count)], "", 0.0
    for name, number in (
        ("  files that the next run removed", sum(len(one.for_the_next_run) for one in done)),
        ("  taken up by --resume and completed", sum(one.resumed == "completed" for one in done)),
        ("  complete, so that --resume refused", sum(one.resumed == "refused" for one in done)),
        ("  killed before the first verdict", sum(not one.verdicts for one in done)),
    ):
        yield name, [float(number)], "", None
