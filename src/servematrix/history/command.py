"""`servematrix history`: its options, and the way from a results folder to a table or an export."""

from __future__ import annotations

import argparse
from pathlib import Path

from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.history import database, series, table
from servematrix.terminal import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a configuration, or one of its cells")
    add("--kit", metavar="KIT", help="only what this kit measured")
    add("--measure", metavar="NAME", help="only this number")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="the run folders")
    add("--rebuild", action="store_true", help=f"make {database.FILE} anew from the records")
    add("--csv", action="store_true", help="the numbers as CSV, a row a number and run")
    add("--json", action="store_true", help="numbers and verdicts as one object, for programs")


def history(options: argparse.Namespace) -> Exit:
    """Update the history, and print that of a configuration; runs that cannot be read are named."""
    if options.csv and options.json:
        raise ConfigError("--csv and --json are two forms of one table; leave one out")
    updated = database.update(options.results, rebuild=options.rebuild)
    for run, problem in updated.left_out.items():
        say(f"left out: {run}: {problem}")
    with database.opened(options.results) as connection:
        found = series.of(connection, options.config, options.kit, options.measure)
    if options.json:
        table.as_json(found)
    elif options.csv:
        table.as_csv(found)
    else:
        table.plain(found)
    runs = {one.run for one in found.points} | {one.run for one in found.outcomes}
    noun = "run" if len(runs) == 1 else "runs"
    say(f"{len(runs)} {noun} of {options.config} in {options.results / database.FILE}")
    return Exit.PASSED
