"""Two servers measured in turn, A B B A, each time as a run of the matrix of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from servematrix import run
from servematrix.changes import told
from servematrix.compare import runs
from servematrix.compare.runs import Run
from servematrix.config import ConfigError
from servematrix.engines.base import EnvironmentProblem, Say
from servematrix.engines.log import last_lines
from servematrix.interrupts import end_in_good_order
from servematrix.records import RecordsError
from servematrix.validation.running import Command, guarded_run, pytest_command

_ORDER: Final = "ABBA"
_SHOWN_LINES: Final = 25


@dataclass(frozen=True)
class Side:
    """One of two servers: what was asked for in words, and the command of each of its runs."""

    name: str
    told: str
    command: Command


@dataclass
class Measured:
    """The runs of each side in the order in which they were made, also where a person ended it."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: {"A": [], "B": []})
    interrupted: bool = False


def prepare(options: argparse.Namespace, folder: Path) -> list[Side]:
    """Resolve both servers as their runs would, before anything is started.

    `folder` has the configurations, and the suites lie beside it. ConfigError or EnvironmentProblem
    for bad usage, and where one side would be simulated and the other not.
    """
    prepared = [_side(name, options, folder) for name in "AB"]
    if prepared[0][1] != prepared[1][1]:
        raise EnvironmentProblem(
            "one side is simulated (engine reference) and the other is not; name a server that"
            " there is for both"
        )
    return [side for side, _ in prepared]


def _side(name: str, options: argparse.Namespace, folder: Path) -> tuple[Side, bool]:
    """One side, and whether it is simulated."""
    low = name.lower()
    spec, own = getattr(options, low), getattr(options, f"{low}_set")
    named = dict(vars(options), base_url=None)
    if spec is not None:
        named |= {"server_python": None, "sglang": None, **_server(f"--{low} {spec}", spec)}
    chosen = argparse.Namespace(**named)
    changes = [*options.set, *own]
    plan = run.plan(
        run.Options.read(
            chosen, selections=[options.config], changes=changes, configs_directory=folder
        )
    )
    if spec is not None and plan.simulated:
        raise EnvironmentProblem(
            f"--{low} {spec}: it would not be started, for {plan.engine.reason}"
        )
    more = ["--no-baseline"]
    for option in ("base_url", "api_key_env"):
        if named[option] is not None:
            more.append(f"--{option.replace('_', '-')}={named[option]}")
    command = pytest_command(options.config, folder, chosen, changes).with_options(*more)
    shown = " ".join([spec or plan.engine.name, *(f"--set {told(change)}" for change in own)])
    return Side(name, shown, command), plan.simulated


def _server(where: str, spec: str) -> dict[str, str]:
    """The option that a SPEC stands for."""
    package, separator, version = spec.partition("==")
    if separator and package == "sglang" and version:
        return {"sglang": version}
    if spec.startswith(("http://", "https://")):
        return {"base_url": spec}
    if Path(spec).is_file():
        return {"server_python": spec}
    raise ConfigError(
        f"{where}: expected sglang==VERSION, the Python of an environment with SGLang, or a base"
        " URL; changes of the configuration are --a-set KEY=VALUE and --b-set KEY=VALUE"
    )


def measure(sides: Sequence[Side], rounds: int, root: Path, say: Say) -> Measured:
    """Run both servers in turn, A B B A in each round, and read what they left under `root`.

    The first run that is not whole is the last one. `say` is told when a run begins and ends.
    """
    end_in_good_order()
    by_name = {side.name: side for side in sides}
    measured = Measured()
    order = _ORDER * rounds
    for number, name in enumerate(order, start=1):
        begun = f"[{number}/{len(order)}] {name}"
        say(f"{begun}: {by_name[name].told}")
        output = root / f"{number}-{name.lower()}.txt"
        results = output.with_suffix("")
        results.mkdir(parents=True)
        command = by_name[name].command.with_options(f"--results={results}")
        whole, ending = guarded_run(command, output)
        if not whole:
            measured.interrupted = True
            return measured
        found = _read(results, ending)
        measured.runs[name].append(found)
        if found.problem:
            say(f"{begun}: {found.problem}; the end of {output}:")
            say(last_lines(output, _SHOWN_LINES))
            return measured
    return measured


def _read(results: Path, ending: str) -> Run:
    made = results / "latest"
    try:
        if not made.exists():
            raise RecordsError("it left no records")
        return runs.read(made.resolve())
    except RecordsError as error:
        problem = f"the run ended ({ending}), and {error}"
        return Run(results, answered="", simulated=False, problem=problem, cells={})
