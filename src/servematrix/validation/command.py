"""`servematrix validate`: its options, and the way from them to a table and an exit status."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from servematrix import config as configs
from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.records import RecordsError
from servematrix.terminal import say
from servematrix.validation import kept, running, servers, table
from servematrix.validation.kept import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("servers", nargs="*", metavar="SERVER", help="servers of known state; all by default")
    add(
        "--path",
        action="append",
        default=[],
        metavar="ROLE=PATH",
        help="where a model lies, such as smollm2=/models/smollm2; may be repeated",
    )
    running.add_run_options(parser, changes="for every server")
    add("--out", type=Path, metavar="DIR", help="for the records (results/validation-<time>/)")
    add(
        "--from",
        type=Path,
        dest="kept",
        metavar="DIR",
        help="draw the table again from the records in DIR; nothing is started",
    )
    add("--markdown", action="store_true", help="for documents")


def validate(options: argparse.Namespace) -> Exit:
    """Run the servers, or read what was kept of them, and print the table.

    Progress and the last line go to stderr, so that stdout is the table alone.
    """
    if options.kept is not None:
        return _print(_kept(options), options, options.kept)
    known = servers.load()
    chosen = servers.select(known, options.servers)
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    prepared = running.prepare(chosen, servers.paths(options.path, known), options, folder)
    now = datetime.datetime.now().astimezone()
    root = options.out or Path("results") / f"validation-{now:%Y%m%d-%H%M%S}"
    for server in chosen:
        if (root / server.name).exists():
            raise ConfigError(
                f"--out {root}: {server.name} was validated there already; "
                "remove its folder, or name another one"
            )
    rows: list[Row] = []
    ended: Exit | None = None
    try:
        for row in running.run_all(prepared, root, say):
            rows.append(row)
    except KeyboardInterrupt:
        ended = Exit.INTERRUPTED
    except RecordsError as error:
        say(str(error))
        ended = Exit.USAGE
    return _print(rows, options, root, ended)


def _kept(options: argparse.Namespace) -> list[Row]:
    rows = kept.rows(options.kept, servers.load())
    chosen = servers.select([row.server for row in rows], options.servers)
    return [row for row in rows if row.server in chosen]


def _print(
    rows: list[Row], options: argparse.Namespace, root: Path, ended: Exit | None = None
) -> Exit:
    code = table.status(rows) if ended is None else ended
    if options.json:
        table.programs(rows)
    elif rows:
        (table.markdown if options.markdown else table.plain)(rows)
    say(f"{table.last_line(rows, code)}; records in {root}")
    return code
