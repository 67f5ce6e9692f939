"""`nox -s mutants [-- NAME…]`: mutate, run the tests, judge what survives.

A name is a part (`gates`, `kits`) or one of its modules (`gates.text`); without one it is both
parts, from scratch. `--alive` takes up the last run where it ended and tries again what survived.
Ends with 1 where a mutant is neither killed nor explained in `explained.toml`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from rich.console import Console
from rich.table import Table

from benchmarks.mutants import survivors, workspace
from benchmarks.mutants.survivors import Change, Mutant

FOLDER = workspace.ROOT / ".mutants"
EXPLAINED = Path(__file__).with_name("explained.toml")
LEFT_OUT = {
    "gates": ["--deselect=tests/gates/test_gate_difference.py::test_risks_and_power_are_as_stated"],
    "kits": [
        "--ignore=tests/kits/test_kit_drop_in.py",
        "--ignore=tests/kits/test_hostile_answers.py",
    ],
}
"""Tests that take seconds: a simulation that others make up for, one that starts servers, and those
that send hundreds of broken answers to every test."""

CONFIGURATION = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/servematrix/{part}/*.py"]
also_copy = ["configs", "suites"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["--hypothesis-profile=mutants", "-p", "no:cacheprovider"]
type_check_command = ["{python}", "-m", "mypy", "--output=json", "--no-warn-unused-ignores"]
track_dependencies = false
timeout_multiplier = 5.0
timeout_constant = 2.0
"""


def run(part: str, modules: Sequence[str], *, alive: bool, workers: int) -> list[Mutant]:
    """Mutate one part of the project against its own tests; return what became of the mutants.

    Without `modules` it is all of them. With `alive` a mutant that was killed is not run again,
    unless its function has changed.
    """
    folder = FOLDER / part
    if not modules and not alive:
        shutil.rmtree(folder, ignore_errors=True)
    tests = [f"tests/{part}", *LEFT_OUT[part]]
    configuration = CONFIGURATION.format(part=part, tests=tests, python=sys.executable)
    workspace.make(folder, configuration)
    with contextlib.chdir(folder):
        package = Path("src", "servematrix", part)
        sources = [package / f"{name}.py" for name in modules] or sorted(package.glob("*.py"))
        if alive:
            # which test reaches which function: not known of functions that are new
            Path("mutants", "mutmut-stats.json").unlink(missing_ok=True)
            for source in sources:
                _forget_survivors(source)
        names = [] if alive else [f"servematrix.{part}.{name}.*" for name in modules]
        mutmut = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()"]
        subprocess.run([*mutmut, "run", f"--max-children={workers}", *names], check=True)
        return [mutant for source in sources for mutant in _mutants(source)]


def _ended(source: Path) -> SourceFileMutationData:
    data = SourceFileMutationData(path=source)
    data.load()
    return data


def _forget_survivors(source: Path) -> None:
    """Let mutmut take those that were not killed for such that were never run."""
    data = _ended(source)
    for name, code in data.exit_code_by_key.items():
        if status_by_exit_code[code] not in survivors.COLUMNS:
            data.exit_code_by_key[name] = None
    data.save()


def _mutants(source: Path) -> list[Mutant]:
    ended = _ended(source).exit_code_by_key
    return [_mutant(source, name, status_by_exit_code[code]) for name, code in ended.items()]


def _mutant(source: Path, name: str, status: str) -> Mutant:
    module = f"{source.parent.name}.{source.stem}"
    function, owner = orig_function_and_class_names_from_key(name)
    function = f"{owner}." * bool(owner) + function.removeprefix(workspace.PLAIN)
    change: Change | None = None
    if status in survivors.ALIVE:
        diff = get_diff_for_mutant(name, path=source)
        change = survivors.change_of(f"{module}.{function}", diff, workspace.OPENS)
    return Mutant(module, function, status, change)


def table(mutants: Sequence[Mutant], judged: survivors.Judged) -> Table:
    """The score of each module, and of all."""
    shown = Table("module", "mutants", *survivors.COLUMNS, "survived", "explained", title="Mutants")
    unexplained = list(judged.unexplained)
    modules = sorted({one.module for one in mutants})
    for name in [*modules, "all"]:
        some = [one for one in mutants if name in (one.module, "all")]
        alive = [one.change for one in some if one.status in survivors.ALIVE]
        counts = [sum(one.status == status for one in some) for status in survivors.COLUMNS]
        explained = len(alive) - sum(change in unexplained for change in alive)
        shown.add_row(name, *map(str, (len(some), *counts, len(alive), explained)))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s mutants --", description=__doc__)
    parser.add_argument("names", nargs="*", default=workspace.MUTATED, metavar="NAME")
    parser.add_argument("--alive", action="store_true", help="only what survived the last run")
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    began = time.monotonic()
    mutants: list[Mutant] = []
    for part in workspace.MUTATED:
        named = [name.split(".", 1) for name in chosen.names if name.split(".")[0] == part]
        if named:
            modules = [] if [part] in named else [module for _, module in named]
            mutants += run(part, modules, alive=chosen.alive, workers=chosen.workers)
    if not mutants:
        parser.error(f"no part or module is named {' or '.join(chosen.names)}")
    judged = survivors.judge(mutants, survivors.explanations(EXPLAINED))
    console = Console(width=120)
    console.print(table(mutants, judged))
    for kind, count in judged.explained.items():
        console.print(f"{count} {kind}: {survivors.KINDS[kind]}")
    for one in judged.unclear:
        console.print(f"ended as {one.status!r}: a mutant of {one.module}.{one.function}")
    for change in judged.outlived:
        outlived = f"no such survivor any more, take it out of {EXPLAINED.name}: {change}"
        console.print(outlived, markup=False, soft_wrap=True)
    for change in judged.unexplained:
        console.print(f"neither killed nor explained: {change}", markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} s")
    sys.exit(0 if judged.good else 1)


if __name__ == "__main__":
    main()
