"""`servematrix report`: its options, and the way from runs to one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from servematrix import folders
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError, as_written
from servematrix.redaction import Secrets
from servematrix.report import cells, page

FILE: Final = "report.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(report.html in the first run)")


def report(options: argparse.Namespace) -> Exit:
    """Write the report, and print where it is."""
    out = options.out or options.runs[0] / FILE
    write(options.runs, out, Secrets.inherited())
    print(out)
    return Exit.PASSED


def write(runs: list[Path], out: Path, hidden: Secrets) -> None:
    """Write one file of some runs; RecordsError where one cannot be read or the file written."""
    found = [cells.read(folder, hidden) for folder in runs]
    with as_written(runs[0]):
        text = page.render(found)
    try:
        folders.write_whole(out, text)
    except OSError as error:
        raise RecordsError(f"cannot write {out}: {error.strerror}; name another --out") from error
