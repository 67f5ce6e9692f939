"""The `servematrix` command: configurations, plans, validation, comparison, replay."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix import config as configs
from servematrix import github, matrix, new, new_kit, run, running, waivers
from servematrix.calibration import command as calibration
from servematrix.ci.commands import kept_from_output
from servematrix.compare import command as comparing
from servematrix.config import ConfigError
from servematrix.doctor import command as doctoring
from servematrix.engines import choice
from servematrix.engines.base import Engine, EnvironmentProblem
from servematrix.exit_codes import Exit
from servematrix.faults import command as faulting
from servematrix.history import command as remembering
from servematrix.merge import command as merging
from servematrix.options import OPTIONS
from servematrix.records import RecordsError
from servematrix.redaction import Secrets
from servematrix.replay import command as replaying
from servematrix.replay.reading import RecordingError
from servematrix.report import command as reporting
from servematrix.terminal import console, say
from servematrix.validation import command as validation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns an exit status of `exit_codes`."""
    options = _parser().parse_args(arguments)
    try:
        if getattr(options, "json", False) and getattr(options, "markdown", False):
            raise ConfigError("--json and --markdown are two forms of one table; leave one out")
        with kept_from_output():
            status: Exit = options.command(options)
    except (ConfigError, EnvironmentProblem, RecordingError, RecordsError) as problem:
        say(_secrets(options).redact(str(problem)))
        return Exit.USAGE
    except BrokenPipeError:
        # the reader of a pipe left early; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.PASSED
    return status


def _secrets(options: argparse.Namespace) -> Secrets:
    """What is secret in the environment, and in what was typed."""
    given = [getattr(options, name, None) or [] for name in ("set", "a_set", "b_set")]
    return run.secrets([*chain(*given)], getattr(options, "api_key_env", None))


class _Parser(argparse.ArgumentParser):
    """Ends bad usage with our status for it; argparse's 2 means interrupted here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        # what was typed in a place where nothing is known may be a change all the same
        typed = [part for one in sys.argv for part in (one, one.partition("=")[2])]
        self.exit(Exit.USAGE, f"{self.prog}: {run.secrets(typed).redact(message)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="servematrix", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the configurations as a table")
    listing.set_defaults(command=_list)
    runs = commands.add_parser("run", help="run sessions or configurations, as nox -s does")
    runs.set_defaults(command=running.run)
    running.add_options(runs)
    newer = commands.add_parser("new-config", help="write a commented start of a configuration")
    newer.set_defaults(command=new.config)
    new.add_options(newer)
    kits = commands.add_parser("new-kit", help="write a commented start of a kit, with its tests")
    kits.set_defaults(command=new_kit.kit)
    new.add_options(kits)
    planning = commands.add_parser(
        "plan", help="cells, command lines and environment of a run, without starting anything"
    )
    planning.set_defaults(command=_plan)
    planning.add_argument(
        "selections",
        nargs="*",
        default=["all"],
        metavar="NAME",
        help="configurations, or cells such as 'cuda_graph(max_bs=8)' (all)",
    )
    planning.add_argument("--engine", choices=choice.NAMES, default="auto")
    planning.add_argument("--server-python", metavar="PATH")
    planning.add_argument("--sglang", metavar="VERSION")
    planning.add_argument("--model", metavar="PATH_OR_ID")
    planning.add_argument("--draft-model", metavar="PATH_OR_ID")
    planning.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    planning.add_argument("--gpus", metavar="LIST")
    planning.add_argument("--port", type=int, default=0)
    planning.add_argument("--api-key-env", metavar="NAME")
    planning.add_argument("--shard", metavar="N/M", help="the cells of one shard of M alone")
    planning.add_argument(
        "--cell-durations", metavar="FILE", help="recorded durations (configs/durations.json)"
    )
    planning.add_argument(
        "--github",
        action="store_true",
        help="a GitHub Actions matrix, one line of JSON: a job a cell, or a job a shard",
    )
    planning.add_argument("--shards", type=int, metavar="M", help="with --github: M jobs")
    planning.add_argument("--waivers", metavar="FILE", help="waivers.toml among the configurations")
    validating = commands.add_parser(
        "validate", help="run servers of known state; do the kits tell them apart?"
    )
    validating.set_defaults(command=validation.validate)
    validation.add_options(validating)
    calibrating = commands.add_parser(
        "calibrate", help="repeats of a healthy server become the baseline of later runs"
    )
    calibrating.set_defaults(command=calibration.calibrate)
    calibration.add_options(calibrating)
    replay = commands.add_parser("replay", help="the gates applied to recordings, without a server")
    replay.set_defaults(command=replaying.replay)
    replaying.add_options(replay)
    comparison = commands.add_parser(
        "compare", help="two runs side by side, or two servers measured in turn: is B worse?"
    )
    comparison.set_defaults(command=comparing.compare)
    comparing.add_options(comparison)
    faulty = commands.add_parser(
        "faults", help="would the kits notice a bug? faults of the embedded server, one by one"
    )
    faulty.set_defaults(command=faulting.faults)
    faulting.add_options(faulty)
    merged = commands.add_parser(
        "merge", help="several runs, such as the shards of a workflow, become one"
    )
    merged.set_defaults(command=merging.merge)
    merging.add_options(merged)
    examining = commands.add_parser(
        "doctor", help="is this machine fit for a run? what is there, what is not, what to do"
    )
    examining.set_defaults(command=doctoring.doctor)
    doctoring.add_options(examining)
    remembered = commands.add_parser(
        "history", help="what a configuration measured from run to run, oldest to newest"
    )
    remembered.set_defaults(command=remembering.history)
    remembering.add_options(remembered)
    reported = commands.add_parser("report", help="one HTML file of a run, or of several")
    reported.set_defaults(command=reporting.report)
    reporting.add_options(reported)
    for command in (listing, planning, validating, replay, comparison, faulty, merged, examining):
        command.add_argument("--configs", metavar="DIR", help="the nearest configs/")
        command.add_argument("--json", action="store_true", help="for programs")
    for command in commands.choices.values():
        _explain(command)
    return parser


def _explain(command: argparse.ArgumentParser) -> None:
    """Let an option without a word of its own say what it says in a run."""
    known = {name: settings["help"] for name, settings in OPTIONS}
    for action in command._actions:
        if action.help is None and action.option_strings:
            action.help = known.get(action.option_strings[0])


def _list(options: argparse.Namespace) -> Exit:
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    found = [configs.load(folder, name) for name in configs.names(folder)]
    if options.json:
        rows = [
            item.model_dump(exclude_none=True)
            | {"cells": [cell.id for cell in matrix.expand(item)]}
            for item in found
        ]
        hidden = Secrets(chain(*(configs.secrets(item) for item in found)))
        print(json.dumps(hidden.plain(rows), indent=2))
        return Exit.PASSED
    table = Table(title=f"configurations in {folder}", title_justify="left", box=SIMPLE_HEAD)
    for column in ("name", "stage", "cells", "about", "needs"):
        table.add_column(column, no_wrap=True)
    table.add_column("description")
    for item in found:
        table.add_row(
            item.name,
            item.stage,
            str(len(list(matrix.expand(item)))),
            f"{item.estimated_seconds} s",
            _needs(item),
            item.description,
        )
    console().print(table)
    return Exit.PASSED


def _needs(config: configs.Configuration) -> str:
    requires = config.requires
    parts = [{0: "no GPU", 1: "1 GPU"}.get(requires.gpus, f"{requires.gpus} GPUs")]
    if requires.memory_gib:
        parts.append(f"{requires.memory_gib:g} GiB")
    if requires.compute_capability:
        parts.append(f"cc {requires.compute_capability}")
    if requires.accelerator:
        parts.append(f"{requires.accelerator} (ray)")
    return "\n".join(parts)


def _plan(options: argparse.Namespace) -> Exit:
    asked = run.Options.read(
        options,
        selections=options.selections,
        changes=options.set,
        configs_directory=configs.find_directory(Path.cwd(), options.configs, shipped=True),
        dry=True,
    )
    if options.github or options.shards is not None:
        return _github(asked, options)
    plan = run.plan(asked)
    engine = plan.engine
    known = waivers.find(asked.configs_directory, options.waivers)
    rows: Any = plan.secrets().plain([_row(plan, cell, known) for cell in plan.cells])
    if options.json:
        print(json.dumps({"engine": engine.name, "reason": engine.reason, "cells": rows}, indent=2))
    else:
        for line in plan.dealt.told() if plan.dealt else ():
            print(line)
        _print_plan(engine, len(plan.visible), rows)
    return Exit.PASSED


def _github(asked: run.Options, options: argparse.Namespace) -> Exit:
    """Print the matrix alone; what is in no job goes to stderr."""
    if not options.github or options.json:
        raise ConfigError("--shards is about --github, which has one form; leave out --json")
    if options.engine == "auto":
        raise ConfigError(
            "--github: the machine that plans is not the one that runs; say what the jobs run, "
            "such as --engine sglang"
        )
    if asked.shard is not None:
        raise ConfigError("--github plans every job, and --shard is one of them; leave it out")
    jobs, left_out = github.jobs(asked, options.shards)
    for one in left_out:
        say(f"in no job: {one}")
    print(json.dumps({"include": jobs}))
    return Exit.PASSED


def _row(plan: run.Plan, cell: run.PlannedCell, known: waivers.Waivers) -> dict[str, Any]:
    launch = cell.launch(plan.options, log=Path("server.log"), deadline=0.0)
    return {
        "cell": cell.id,
        "label": cell.cell.label,
        "in_place_of": list(cell.cell.in_place_of),
        "suites": cell.config.suites,
        "estimated_seconds": cell.config.estimated_seconds,
        "recorded_seconds": _recorded(plan, cell),
        "gpus": [gpu.uuid for gpu in cell.gpus],
        "unfit": cell.unfit,
        "environment": plan.engine.environment(launch),
        "command": plan.engine.command(launch),
        "gates": cell.config.gates.model_dump(exclude_none=True),
        "kits": cell.config.kits.model_dump(exclude_none=True),
        "waivers": [
            {"kit": one.kit, "test": one.test, **one.record(), "expired": one.expired}
            | {"told": one.described()}
            for one in known.about(cell.id)
        ],
    }


def _recorded(plan: run.Plan, cell: run.PlannedCell) -> float | None:
    found = plan.durations[cell.id]
    return found.seconds if found.recorded else None


def _print_plan(engine: Engine, visible: int, rows: Sequence[dict[str, Any]]) -> None:
    note = f" ({engine.note})" if engine.note else ""
    print(f"engine {engine.name}{note}: {engine.reason}; GPUs visible: {visible}")
    for row in rows:
        print(f"\n{row['label']}  (about {row['estimated_seconds']} s; {', '.join(row['suites'])})")
        if row["unfit"]:
            print(f"  not run here: {row['unfit']}")
            continue
        for waiver in row["waivers"]:
            print(f"  known failure: {waiver['told']}")
        for key, value in row["environment"].items():
            print(f"  {key}={shlex.quote(value)}")
        print(f"  {shlex.join(row['command'])}")
    print("\nport 0 stands for a free port that is chosen at launch")
