"""`servematrix faults`: the faults as a list, their matrix run, or drawn again from its records."""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from servematrix import config as configs
from servematrix.calibration import building, measured
from servematrix.config import ConfigError
from servematrix.engines.log import last_lines
from servematrix.exit_codes import Exit
from servematrix.faults import cells, known, matrix, table
from servematrix.faults.known import Fault, Known
from servematrix.faults.matrix import Matrix
from servematrix.gates.proportions import ALPHA
from servematrix.gates.throughput import FEWEST_RUNS
from servematrix.interrupts import end_in_good_order
from servematrix.records import RecordsError
from servematrix.running import pytest_line
from servematrix.terminal import say
from servematrix.validation.running import Command, guarded_run

_START_SECONDS: Final = 6.0
"""For the embedded server to generate; half a second is usual."""
_HEALTHY_RUNS: Final = 20
_SHOWN_LINES: Final = 25


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("faults", nargs="*", metavar="FAULT", help="only these; all by default")
    add("--run", action="store_true", help="run the faults against the kits, then healthy servers")
    add(
        "--matrix",
        type=Path,
        metavar="RUN",
        help="draw the matrix from the records of a run; nothing is started",
    )
    add("--quick", action="store_true", help="each fault before one kit that must catch it")
    add(
        "--healthy",
        type=int,
        metavar="N",
        help=f"healthy runs ({_HEALTHY_RUNS}; none with --quick or where faults are named)",
    )
    add("-n", "--workers", type=int, metavar="N", help="servers at a time (one a core)")
    add("--against", type=Path, metavar="FILE", help="a kept matrix; a cell that changed fails")
    add("--out", type=Path, metavar="DIR", help="for the records (results/faults-<time>/)")
    add("--markdown", action="store_true", help="for documents")


def faults(options: argparse.Namespace) -> Exit:
    """List the faults, or print their matrix on stdout; what went wrong goes to stderr."""
    if options.run and options.matrix is not None:
        raise ConfigError("--run makes records and --matrix reads them; leave one out")
    all_known = known.load()
    chosen = all_known.select(options.faults)
    if options.matrix is not None:
        return _print(_read(options.matrix), all_known, options, whole=False)
    if not options.run:
        (table.listing_programs if options.json else table.listing)(chosen)
        return Exit.PASSED
    began = time.monotonic()
    try:
        folder, whole = _run(options, all_known, chosen)
    except KeyboardInterrupt:
        say("interrupted; --matrix RUN draws what there is")
        return Exit.INTERRUPTED
    if folder is None:
        return Exit.USAGE
    code = _print(_read(folder), all_known, options, whole=whole)
    say(f"exit {int(code)}; {time.monotonic() - began:.0f} s; records in {folder}")
    return code


def _run(
    options: argparse.Namespace, all_known: Known, chosen: Sequence[Fault]
) -> tuple[Path | None, bool]:
    """Run the matrix; its records, None where there are none, and whether it is a whole one.

    KeyboardInterrupt where a person interrupted it.
    """
    source = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    line = pytest_line(source)
    now = datetime.datetime.now().astimezone()
    root = options.out or Path("results") / f"faults-{now:%Y%m%d-%H%M%S}"
    if root.exists():
        raise ConfigError(f"--out {root}: it is there already; name another folder")
    part = options.quick or bool(options.faults)
    healthy = options.healthy if options.healthy is not None else (0 if part else _HEALTHY_RUNS)
    folder = root / "configs"
    cells.write(folder, all_known, chosen, source, quick=options.quick, healthy=healthy)
    end_in_good_order()
    command = [*line, "--no-report", "--configs", str(folder)]
    command += ["--engine", "reference", "--start-deadline", str(_START_SECONDS)]
    for fault in chosen:
        if fault.baseline:
            say(f"{FEWEST_RUNS} healthy runs, as a baseline for {fault.name}")
            _calibrate(command, fault, root)
    say(f"{len(chosen)} faults, {healthy} healthy runs; output in {root / 'output.txt'}")
    baselines = root / "baselines"
    command += ["--config", "all", "-n", str(options.workers or _cores()), "-q"]
    command += ["--baselines", str(baselines)] if baselines.is_dir() else ["--no-baseline"]
    made = _made([*command, "--results", str(root)], root, "output.txt")
    return made, not part


def _calibrate(command: Sequence[str], fault: Fault, root: Path) -> None:
    """Write a baseline for the cell that is to catch a fault, from runs without the fault."""
    cell = f"{fault.name}(kit={fault.caught_by[0]})"
    healthy = [*command, "--config", cell, "--set", "arguments.fault=false", "--no-baseline"]
    runs = []
    for number in range(1, FEWEST_RUNS + 1):
        results = root / "baseline-runs" / fault.name / str(number)
        results.mkdir(parents=True)
        made = _made([*healthy, "--results", str(results)], results, "output.txt")
        if made is None:
            raise RecordsError(f"{results}: no records of a healthy run, so no baseline")
        runs.append(measured.read(made, cell))
    building.build(runs, [], root / "baselines", ALPHA)


def _made(command: Sequence[str], results: Path, output: str) -> Path | None:
    """Run pytest; returns the folder of its run, None where it left none."""
    whole, ending = guarded_run(Command(command), results / output)
    if not whole:
        raise KeyboardInterrupt
    latest = results / "latest"
    if latest.exists():
        return latest.resolve()
    say(f"the run ended ({ending}): {last_lines(results / output, _SHOWN_LINES)}")
    return None


def _read(folder: Path) -> Matrix:
    """The matrix of a run's folder, or of the file that `--json` printed."""
    return table.parse(folder) if folder.is_file() else matrix.read(folder)


def _print(found: Matrix, all_known: Known, options: argparse.Namespace, *, whole: bool) -> Exit:
    if options.json:
        table.programs(found)
    elif options.markdown:
        table.markdown(found, all_known)
    else:
        table.plain(found)
    problems = found.problems(all_known, whole=whole)
    if options.against is not None:
        problems += found.changes(table.parse(options.against))
    for problem in problems:
        say(problem)
    return Exit.FAILED if problems else Exit.PASSED


def _cores() -> int:
    return len(os.sched_getaffinity(0))
