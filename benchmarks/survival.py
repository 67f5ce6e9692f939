"""Runs that are killed at random moments: what is left of them, and whether they go on.

A round starts a whole run of two cells, nox → pytest → guard → embedded server, kills one of its
processes with SIGKILL and looks, until a deadline of 5 s, for what is left of the run: processes
(each carries the round's mark in its environment), listening ports, files where the run writes.
Then it reads the records, holds them against what pytest printed, and takes the run up again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil

from benchmarks.quick_project import END_SECONDS, POLL_SECONDS, Processes, Project
from servematrix import records
from servematrix.exit_codes import Exit
from servematrix.gpus import leases

TARGETS: Final = ("nox", "pytest", "server", "guard", "worker")
CLEAN_SECONDS: Final = 5.0
"""What a killed run has until nothing of it is left."""
_MISSES: Final = 20
"""In a row: a moment is drawn from a process's whole life, and some runs are a little shorter."""
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
    """From the SIGKILL until nothing was left: of the run, or, where the run goes on to its own
    end, of what hung on the target."""
    verdicts: int
    """In the records when the run had ended."""
    resumed: str = ""
    """How `--resume` ended: `completed`, or `refused` for a run that was complete."""
    left: Sequence[str] = ()
    wrong: Sequence[str] = ()
    for_the_next_run: Sequence[str] = ()
    """Files that the next run has to remove."""


class Moment(Protocol):
    """Tells when to kill: true once it has come. Asked again and again from the run's start on."""

    def __call__(self, run: Processes) -> bool:
        """Whether it has come."""


class After:
    """Some seconds after the first process of a role is there."""

    def __init__(self, role: str, seconds: float) -> None:
        self._role = role
        self._seconds = seconds
        self._began: float | None = None

    def __call__(self, run: Processes) -> bool:
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
    run = Processes(mark, nox.pid)
    try:
        hung_on_it = _kill(run, nox, target, moment)
        if hung_on_it is None:
            return None
        if target in ("nox", "pytest"):
            left, seconds = await_the_end(run, project.leases)
        else:
            left, seconds = _await_all(hung_on_it)
            nox.wait(END_SECONDS)  # the run says what happened, and ends by itself
            left += await_the_end(run, project.leases)[0]
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


def _kill(
    run: Processes, nox: subprocess.Popen[bytes], target: str, moment: Moment
) -> list[psutil.Process] | None:
    """Kill the target at a moment; returns it with all that must end with it.

    That is what it started, and a server's guard too. None where the run was over before.
    """
    has_come = False
    while nox.poll() is None:
        has_come = has_come or moment(run)
        victim = run.find(target) if has_come else None
        if victim is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(victim)
                ends = [process, *process.children(recursive=True)]
                ends += [process.parent()] if target == "server" else []
                process.kill()
                return [one for one in ends if one is not None]
        time.sleep(POLL_SECONDS)
    return None


def _run_folders(project: Project) -> list[Path]:
    if not project.results.exists():
        return []
    return [path for path in project.results.iterdir() if path.is_dir() and not path.is_symlink()]


def await_the_end(run: Processes, folder: Path | None = None) -> tuple[list[str], float]:
    """What of a run is left at the deadline, and the seconds until nothing was.

    `folder` is where it kept its leases.
    """
    began = time.monotonic()
    while True:
        processes, ports = run.processes(), run.listening()
        seconds = time.monotonic() - began
        left = [f"{role} (pid {pid})" for pid, role in processes.items()]
        left += [f"port {port}" for port in ports]
        held = leases.held(folder) if folder else {}
        left += [f"lease of {uuid}: {told}" for uuid, told in held.items()]
        if not left or seconds > CLEAN_SECONDS:
            return left, seconds
        time.sleep(POLL_SECONDS)


def _await_all(processes: Sequence[psutil.Process]) -> tuple[list[str], float]:
    """Which processes are left at the deadline, and the seconds until none was."""
    began = time.monotonic()
    while True:
        left = [str(one) for one in processes if not _has_ended(one)]
        seconds = time.monotonic() - began
        if not left or seconds > CLEAN_SECONDS:
            return left, seconds
        time.sleep(POLL_SECONDS)


def _has_ended(process: psutil.Process) -> bool:
    """Whether it has; its parent may ask how later, as pytest-xdist does of a worker."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
    number = missed = 0
    while number < rounds:
        target = targets[number % len(targets)]
        turn = number // len(targets)
        workers = target == "worker" or turn % 2 == 1
        # most of a quick run is its start: every other time within the servers' lives
        role = "server" if turn // 2 % 2 == 1 else target
        moment = After(role, chance.random() * project.spans[workers][role])
        resume = number % resume_every == resume_every - 1
        done = killed(project, target, moment, workers=workers, resume=resume)
        missed = missed + 1 if done is None else 0
        if missed == _MISSES:
            raise SystemExit(f"{_MISSES} runs were over before a {target} was met, {moment}")
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
