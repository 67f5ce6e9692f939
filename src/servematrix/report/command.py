"""`servematrix report`: its options, and the way from runs to one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from servematrix import folders
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError, as_written
from servematrix.redaction import Secrets
from servematrix.report import cells, page
from servematrix.terminal import line

FILE: Final = "report.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; several are drawn over time"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="(report.html in the run; of several in the folder of the first one's folder)",
    )


def report(options: argparse.Namespace) -> Exit:
    """Write the report, and print where it is."""
    runs = list({one.resolve(): one for one in options.runs}.values())
    out = options.out or (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / FILE
    write(runs, out, Secrets.inherited())
    print(out)
    return Exit.PASSED


def write(runs: Sequence[Path], out: Path, hidden: Secrets) -> None:
    """Write one file of some runs, the oldest first.

    RecordsError where a run cannot be read or the file cannot be written.
    """
    found = [cells.read(folder, hidden) for folder in runs]
    found.sort(key=lambda one: str(one.header["time"]))
    text = _rendered(found)
    try:
        folders.write_whole(out, text)
    except OSError as error:
        raise RecordsError(f"cannot write {out}: {error.strerror}; name another --out") from error


def _rendered(found: Sequence[cells.Report]) -> str:
    """The page; where records are not as kits write them, a RecordsError names their run."""
    try:
        with as_written(found[0].folder):
            return page.render(found)
    except RecordsError:
        for one in found:
            with as_written(one.folder):
                page.render([one])
        raise


def write_beside(folder: Path, hidden: Secrets) -> str | None:
    """Write the report of a run beside its records; returns why there is none, None where it is.

    It raises nothing: a report never changes how a command ends.
    """
    try:
        write([folder], folder / FILE, hidden)
    except Exception as error:
        # whatever it is: the verdicts stand, and are worth more than a page
        return (
            f"no report was written ({line(f'{type(error).__name__}: {error}')}); the records are"
            f" whole: servematrix report {folder}"
        )
    return None
