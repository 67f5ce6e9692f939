"""`servematrix doctor`: every check, as a table or one JSON object a line, and a status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from servematrix import config as configs
from servematrix.config import ConfigError
from servematrix.doctor import accelerators, machine, stores
from servematrix.doctor.finding import Check, Finding, examine
from servematrix.exit_codes import Exit
from servematrix.hub import cache as caches
from servematrix.redaction import Secrets
from servematrix.terminal import console, line, say

_STYLES: Final = {"ok": "", "warning": "yellow", "problem": "bold red"}
_WIDE: Final = 140


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="run folders"
    )


def doctor(options: argparse.Namespace) -> Exit:
    """Examine this machine; the status is 1 where there is a problem, else 0."""
    found = examine(checks(Path.cwd(), options.configs, options.results))
    hidden = Secrets.inherited()
    shown = {
        name: Finding(one.kind, line(hidden.redact(one.told)), line(hidden.redact(one.remedy)))
        for name, one in found.items()
    }
    if options.json:
        for name, one in shown.items():
            print(json.dumps({"check": name, **asdict(one)}))
    else:
        _print(shown)
    problems = [name for name, one in shown.items() if one.kind == "problem"]
    warnings = sum(one.kind == "warning" for one in shown.values())
    say(f"{len(shown)} checks; problems: {', '.join(problems) or 'none'}; warnings: {warnings}")
    return Exit.FAILED if problems else Exit.PASSED


def checks(start: Path, named: str | None, results: Path) -> dict[str, Check]:
    """Every check by its name; `named` is the folder of configurations where one was."""
    # which says where they are from where that is the package, and is asked twice
    find = cache(partial(configs.find_directory, start, named, shipped=True))
    found: dict[str, Check] = {
        "Python": machine.python,
        "nox": partial(machine.nox, start),
        "GPUs": accelerators.visible,
        "driver": accelerators.driver,
        "use of GPUs": accelerators.users,
        "leases": accelerators.held,
        "SGLang": stores.sglang,
        "configurations": partial(_of_configurations, find, named, stores.configurations),
        "cache": stores.hub_cache,
        "models": partial(_of_configurations, find, named, stores.weights),
        "HellaSwag": stores.hellaswag,
        "ports": machine.loopback,
        "disk for results": partial(machine.results, results),
        "disk for models": lambda: machine.cache_space(caches.folder()),
        "shared memory": machine.shared_memory,
        "leftovers": machine.leftovers,
    }
    return found


def _of_configurations(
    find: Callable[[], Path], named: str | None, check: Callable[[Path], Finding]
) -> Finding:
    try:
        folder = find()
    except ConfigError as problem:
        if named is not None:
            return Finding("problem", str(problem), "name the folder that has them")
        return Finding("warning", str(problem), "run it where the configurations are")
    return check(folder)


def _print(found: dict[str, Finding]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    for heading in ("found", "remedy"):
        table.add_column(heading, overflow="fold")
    for name, one in found.items():
        remedy = "" if one.kind == "ok" else one.remedy
        table.add_row(one.kind, name, one.told, remedy, style=_STYLES[one.kind])
    # what is found and what to do fold well; in a file nothing has to
    console(at_least=0 if sys.stdout.isatty() else _WIDE).print(table)
