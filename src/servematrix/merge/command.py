"""`servematrix merge`: its options, and the way from several runs to one, a table and a status."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

from servematrix import config as configs
from servematrix import durations, matrix, provenance, run
from servematrix.config import ConfigError, Place
from servematrix.exit_codes import Exit
from servematrix.merge import joined, parts, table, writing
from servematrix.merge.parts import Part
from servematrix.redaction import Secrets
from servematrix.report import command as report
from servematrix.terminal import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders: shards, or jobs")
    add("--out", type=Path, metavar="DIR", help="for the merged run (results/merged-<time>/)")
    add(
        "--expect",
        action="append",
        default=[],
        metavar="NAME",
        help="cells that must be there, as --config names them, such as all; may be repeated",
    )
    add(
        "--cell-durations",
        type=Path,
        metavar="FILE",
        help="keep there how long the cells took, in place of what it has of them",
    )
    add("--markdown", action="store_true", help="for documents, such as a workflow's summary")


def merge(options: argparse.Namespace) -> Exit:
    """Join the runs, write and print what they are together; the status is theirs.

    Notes and the last line go to stderr, so that stdout is the table alone.
    """
    now = datetime.datetime.now().astimezone()
    out = options.out or Path("results") / f"merged-{now:%Y%m%d-%H%M%S}"
    if out.exists():
        raise ConfigError(f"--out {out}: it is there already; name another folder")
    found = [parts.read(folder) for folder in options.runs]
    parts.check(found)
    whole = joined.join(found, _expected(options, found[0]))
    writing.write(out, whole, provenance.command_line(), Secrets.inherited())
    no_report = report.write_beside(out, Secrets.inherited())
    if options.cell_durations is not None:
        _keep(options.cell_durations, found)
    if options.json:
        table.programs(whole)
    else:
        (table.markdown if options.markdown else table.plain)(whole)
    for problem in whole.problems:
        say(problem)
    if no_report is not None:
        say(no_report)
    say(f"{table.last_line(whole)}; records{'' if no_report else ' and report'} in {out}")
    return whole.status


def _expected(options: argparse.Namespace, part: Part) -> list[str]:
    """The cells that must be there: those asked for that the engine can serve on some machine."""
    if not options.expect:
        return []
    engine = part.header["engine"]
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    expected = []
    for cell in matrix.for_engine(folder, matrix.select(folder, options.expect), engine):
        why = run.misfit(configs.resolve(cell.config, cell.axis, Place(engine)), engine)
        if why is None:
            expected.append(cell.id)
        else:
            say(f"not expected: {cell.id}: {why}")
    return expected


def _keep(file: Path, found: Sequence[Part]) -> None:
    oldest_first = sorted(found, key=lambda part: str(part.header["time"]))
    newer = [durations.measured(part.folder) for part in oldest_first]
    durations.write(file, durations.updated(durations.read(file), newer))
    cells = sum(len(one) for by_engine in newer for one in by_engine.values())
    say(f"{cells} duration{'s' * (cells != 1)} kept in {file}")
