"""`servematrix calibrate`: its options, N runs of the matrix, and the baseline of them."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

from servematrix import baselines, run
from servematrix import config as configs
from servematrix.calibration import building, measured
from servematrix.calibration.building import Refused
from servematrix.calibration.measured import Measured
from servematrix.config import ConfigError
from servematrix.engines.log import last_lines
from servematrix.exit_codes import Exit
from servematrix.gates.proportions import ALPHA
from servematrix.gates.throughput import FEWEST_RUNS, extrapolated
from servematrix.interrupts import end_in_good_order
from servematrix.terminal import say
from servematrix.validation.running import add_run_options, guarded_run, pytest_command

_REPEATS = 5
_SHOWN_LINES = 25


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("configuration", metavar="CONFIG", help="NAME or 'NAME(axis=value)'")
    add("--repeats", type=int, metavar="N", help=f"runs to make ({_REPEATS})")
    add("--alpha", type=float, default=ALPHA, help=f"risk of each threshold ({ALPHA:g})")
    add(
        "--from",
        type=Path,
        nargs="+",
        dest="kept",
        metavar="RUN",
        help="run folders, or their records.jsonl, instead of new runs; nothing is started",
    )
    add(
        "--known-bad",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of a broken server, which the thresholds must not let pass",
    )
    add("--out", type=Path, metavar="DIR", help="for the baseline (baselines/ beside configs/)")
    add("--results", type=Path, metavar="DIR", help="for the runs (results/calibration-<time>/)")
    add("--configs", metavar="DIR", help="the nearest configs/")
    add("--model", metavar="PATH_OR_ID")
    add("--draft-model", metavar="PATH_OR_ID")
    add_run_options(parser, changes="for every run")


def calibrate(options: argparse.Namespace) -> Exit:
    """Make the runs, or read earlier ones, and write a baseline for each of their cells."""
    repeats = _repeats(options)
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    root = options.out or configs.project(folder) / baselines.FOLDER
    bad = [measured.folder_of(path) for path in options.known_bad]
    try:
        by_cell = _earlier(options) if options.kept else _run(options, folder, repeats)
        known = {cell: [measured.read(one, cell) for one in bad] for cell in by_cell}
        for cell, runs in by_cell.items():
            path = building.build(runs, known[cell], root, options.alpha)
            say(f"wrote {baselines.at(path).described()}; {_checked(bad)}")
            _, told = building.items_of(runs[0])
            if told is not None:
                say(f"{path}: {told}")
    except Refused as problem:
        say(f"no baseline: {problem}")
        return Exit.FAILED
    except KeyboardInterrupt:
        say("interrupted; no baseline was written")
        return Exit.INTERRUPTED
    return Exit.PASSED


def _repeats(options: argparse.Namespace) -> int:
    """How many runs; ConfigError for what could only fail once they are made."""
    if options.kept is not None and options.repeats is not None:
        raise ConfigError("--repeats makes runs and --from takes earlier ones; leave one out")
    if not 0 < options.alpha < 0.5:
        raise ConfigError(f"--alpha {options.alpha:g}: a risk lies above 0 and below 0.5")
    repeats = len(options.kept or ()) or (_REPEATS if options.repeats is None else options.repeats)
    if repeats < FEWEST_RUNS:
        raise ConfigError(
            f"{repeats} runs: a baseline needs {FEWEST_RUNS} or more, to know their spread"
        )
    if extrapolated(repeats, options.alpha):
        say(
            f"risk {options.alpha:g} is below 1/{repeats + 1}: thresholds rest on the assumption"
            " of a normal distribution, and the baseline says so (extrapolated)"
        )
    return repeats


def _earlier(options: argparse.Namespace) -> dict[str, list[Measured]]:
    by_cell: dict[str, list[Measured]] = {}
    folders = [measured.folder_of(path) for path in options.kept]
    found = [measured.cells(folder, options.configuration) for folder in folders]
    wanted = list(dict.fromkeys(cell for cells in found for cell in cells))
    for folder, cells in zip(folders, found, strict=True):
        missing = [cell for cell in wanted if cell not in cells]
        if missing or not cells:
            raise Refused(f"{folder}: no server of {', '.join(missing) or options.configuration}")
    for cell in wanted:
        by_cell[cell] = [measured.read(folder, cell) for folder in folders]
    return by_cell


def _run(options: argparse.Namespace, folder: Path, repeats: int) -> dict[str, list[Measured]]:
    """Run the configuration `repeats` times; the first run that is not healthy ends it."""
    # what is wrong with the options is told before anything is started
    plan = run.plan(
        run.Options.read(
            options,
            selections=[options.configuration],
            changes=options.set,
            configs_directory=folder,
        )
    )
    command = pytest_command(options.configuration, folder, options, changes=options.set)
    now = datetime.datetime.now().astimezone()
    root = options.results or Path("results") / f"calibration-{now:%Y%m%d-%H%M%S}"
    end_in_good_order()
    by_cell: dict[str, list[Measured]] = {cell.id: [] for cell in plan.cells if not cell.unfit}
    for number in range(1, repeats + 1):
        say(f"[{number}/{repeats}] {', '.join(by_cell)}")
        results, output = root / f"{number}", root / f"{number}.txt"
        if results.exists():
            raise ConfigError(f"--results {root}: has runs of a calibration; name another folder")
        results.mkdir(parents=True)
        one = command.with_options("--no-baseline", f"--results={results}")
        whole, ending = guarded_run(one, output)
        if not whole:
            raise KeyboardInterrupt
        made = results / "latest"
        if not made.exists():
            raise Refused(f"{output}: the run ended ({ending}): {last_lines(output, _SHOWN_LINES)}")
        for cell, runs in by_cell.items():
            runs.append(measured.read(made.resolve(), cell))
            building.check_health(runs)
    return by_cell


def _checked(bad: Sequence[Path]) -> str:
    return f"{len(bad)} known-bad runs do not pass it" if bad else "no known-bad run was given"
