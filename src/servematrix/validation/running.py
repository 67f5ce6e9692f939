"""Running the servers of known state, one after the other, each as a run of the matrix."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from servematrix import ci, run
from servematrix import config as configs
from servematrix.changes import FROM_VARIABLE, apart
from servematrix.config import ConfigError
from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.guard import guarded
from servematrix.engines.log import last_lines
from servematrix.interrupts import end_in_good_order
from servematrix.records import RecordsError
from servematrix.running import pytest_line
from servematrix.validation import kept
from servematrix.validation.kept import NotRun, Row
from servematrix.validation.servers import KnownServer, Models, NoPathError, models

OUTPUT = "output.txt"
END_SECONDS = 60.0
"""What an interrupted run gets to stop its server, see the GPU free and write its last line."""
_PASSED_ON = ("engine", "server_python", "sglang", "gpus", "start_deadline", "hellaswag")
"""Options of a command that makes runs which each run is given as they are."""
_PASSED_AS = "SERVEMATRIX_SECRET_"
"""Begins the name of a variable through which a run is given a secret."""
_SHOWN_LINES = 25


@dataclass(frozen=True)
class Command:
    """A run as a process: its command line, and what may not stand there, as variables."""

    line: Sequence[str]
    secrets: Mapping[str, str] = field(default_factory=dict)

    def with_options(self, *more: str) -> Command:
        """The same with more on its command line."""
        return replace(self, line=[*self.line, *more])


@dataclass(frozen=True)
class Prepared:
    """A server with everything decided: the command of its run, or why there will be none."""

    server: KnownServer
    command: Command | None = None
    not_run: NotRun | None = None


def prepare(
    servers: Sequence[KnownServer],
    paths: Mapping[str, str],
    options: argparse.Namespace,
    folder: Path,
) -> list[Prepared]:
    """Resolve every server as its run would, before anything is started.

    `folder` has the configurations, and the suites lie beside it. ConfigError or EnvironmentProblem
    for bad usage; where only some servers do not fit this machine, they are prepared as not run.
    """
    configs.suites_beside(folder)
    prepared: list[Prepared] = []
    misfits: list[EnvironmentProblem] = []
    for server in servers:
        try:
            prepared.append(_prepare(server, paths, options, folder))
        except NoPathError as problem:
            not_run = NotRun(state="not run", reason=str(problem))
            prepared.append(Prepared(server, not_run=not_run))
        except EnvironmentProblem as problem:
            misfits.append(problem)
            not_run = NotRun(state="not run", reason=str(problem))
            prepared.append(Prepared(server, not_run=not_run))
    if misfits and not any(one.command for one in prepared):
        raise misfits[0]
    return prepared


def _prepare(
    server: KnownServer,
    paths: Mapping[str, str],
    options: argparse.Namespace,
    folder: Path,
) -> Prepared:
    changes = [*server.set, *options.set]
    plan = run.plan(
        run.Options.read(
            options,
            selections=[server.config],
            changes=changes,
            configs_directory=folder,
        )
    )
    if len(plan.cells) != 1:
        cells = ", ".join(cell.id for cell in plan.cells)
        raise ConfigError(f"{server.name}: config {server.config!r} has several cells: {cells}")
    if server.engines is not None and plan.engine.name not in server.engines:
        reason = f"engine {plan.engine.name} cannot show it: {server.engines_reason}"
        return Prepared(server, not_run=NotRun(state="left out", reason=reason))
    chosen = models(server, plan.cells[0].config.model, paths)
    command = pytest_command(server.config, folder, options, changes, chosen)
    # a server of known state is judged as itself, not by what another one showed
    return Prepared(server, command.with_options("--no-baseline"))


def add_run_options(
    parser: argparse.ArgumentParser, *, engine: str | None = "auto", changes: str
) -> None:
    """The options of a command that makes runs, as `pytest_command` passes them on.

    `engine` is the default; `changes` says what `--set` holds for.
    """
    add = parser.add_argument
    add("--engine", choices=("auto", *configs.LAUNCHED), default=engine)
    for name, metavar in (
        ("server-python", "PATH"),
        ("sglang", "VERSION"),
        ("gpus", "LIST"),
        ("hellaswag", "PATH"),
    ):
        add(f"--{name}", metavar=metavar)
    add("--start-deadline", type=float, metavar="SECONDS")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=changes)


def pytest_command(
    configuration: str,
    folder: Path,
    options: argparse.Namespace,
    changes: Sequence[str],
    chosen: Models | None = None,
) -> Command:
    """The command of one run of a configuration, with the options of a command that makes runs.

    `folder` has the configurations, and the suites lie beside it; ConfigError where they do not.
    `chosen` are the models where `options` does not name them itself.
    """
    named = {name: getattr(options, name) for name in _PASSED_ON}
    if chosen is None:
        chosen = Models(options.model, options.draft_model)
    named |= {"model": chosen.model, "draft_model": chosen.draft}
    # with `=` no value is taken for another option
    line = [*pytest_line(folder), f"--configs={folder}", f"--config={configuration}"]
    for name, value in named.items():
        if value is not None:
            line.append(f"--{name.replace('_', '-')}={value}")
    shown, hidden = apart(changes)
    line += [f"--set={change}" for change in shown]
    line += [f"--set=environment.{name}{FROM_VARIABLE}={_PASSED_AS}{name}" for name in hidden]
    return Command(line, {f"{_PASSED_AS}{name}": value for name, value in hidden.items()})


def run_all(prepared: Sequence[Prepared], root: Path, say: Say) -> Iterator[Row]:
    """Run what can be run; one row a server, also for those that an interrupt leaves out.

    `say` is told when a server begins and ends. RecordsError where the disk takes no more.
    """
    end_in_good_order()
    interrupted = False
    for number, one in enumerate(prepared, start=1):
        folder = root / one.server.name
        not_run = one.not_run
        if interrupted and not_run is None:
            not_run = NotRun(state="not run", reason="interrupted before its turn")
        kept.write(folder, one.server, not_run)
        begun = f"[{number}/{len(prepared)}] {one.server.name}"
        if not_run is None:
            say(f"{begun}: {one.server.description}")
            interrupted = not _run(one, folder)
        row = kept.row(folder)
        say(f"{begun}: {told(row)}")
        if not_run is None and not interrupted and row.state == "no result":
            say(f"the end of {folder / OUTPUT}:\n{last_lines(folder / OUTPUT, _SHOWN_LINES)}")
        yield row
    if interrupted:
        raise KeyboardInterrupt


def told(row: Row) -> str:
    """A row's state in words, with what was found where it is not as expected."""
    if row.reason:
        return f"{row.state}: {row.reason}"
    if row.defects:
        return f"{row.state}: {'; '.join(defect.what for defect in row.defects)}"
    return f"{row.state}: {', '.join(row.failed) or 'nothing'} failed; {row.seconds:.0f} s"


def _run(one: Prepared, folder: Path) -> bool:
    """Run one server to its end and keep its records; False where a person interrupted it."""
    runs = folder / "run"
    assert one.command is not None, "only these are run"
    whole, ending = guarded_run(one.command.with_options(f"--results={runs}"), folder / OUTPUT)
    found = [path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()]
    try:
        if not found:
            raise RecordsError("it left no records")
        kept.pack(found[0], folder)
    except RecordsError as error:
        # without whole records the run says nothing of its server; what there is stays
        reason = f"the run ended ({ending}), and {error}"
        kept.write(folder, one.server, NotRun(state="no result", reason=reason))
        return whole
    # messages of a run without a result name files in its own folder
    if kept.row(folder).state != "no result":
        shutil.rmtree(runs)
    return whole


def guarded_run(command: Command, output: Path) -> tuple[bool, str]:
    """Run a command that ends with us; whether nobody interrupted it, and how it ended.

    The guard turns our end, and a Ctrl-C, into a SIGTERM of the run, which then ends in good order.
    """
    guard = subprocess.Popen(
        guarded(command.line, output, grace=END_SECONDS, secrets=list(command.secrets)),
        env={**ci.without(os.environ), **command.secrets},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    whole = True
    try:
        guard.wait()
    except KeyboardInterrupt:
        whole = False
        while guard.poll() is None:
            with suppress(KeyboardInterrupt):
                guard.terminate()
                guard.wait()
    ending, _ = guard.communicate()
    return whole, ending.partition("\n")[0].strip()
