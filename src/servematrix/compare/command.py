"""`servematrix compare`: its options, and the way from runs or servers to a table and a status."""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from servematrix import config as configs
from servematrix import records
from servematrix.compare import differences, live, runs, table
from servematrix.compare.differences import ITEM_MARGINS, Settings
from servematrix.compare.runs import Run
from servematrix.config import ConfigError, nearest
from servematrix.exit_codes import Exit
from servematrix.gates.difference import QUANTITIES
from servematrix.terminal import say
from servematrix.validation.running import add_run_options
from servematrix.validation.table import SIMULATED

_CONFIG: Final = "baseline"
_LIVE: Final = (
    *("a", "b", "a_set", "b_set", "config", "rounds", "out", "engine", "server_python", "sglang"),
    *("model", "draft_model", "gpus", "start_deadline", "hellaswag", "api_key_env", "set"),
)
"""Options that are about servers to measure, and mean nothing for runs that were made."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="two run folders, A and B")
    for side in ("a", "b"):
        add(f"--{side}", metavar="SPEC", help="sglang==VERSION, a Python that has it, or a URL")
        add(
            f"--{side}-set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"a change of the configuration for {side.upper()} alone; may be repeated",
        )
    add("--config", metavar="NAME", help=f"the configuration that both serve ({_CONFIG})")
    add("--rounds", type=int, metavar="N", help="rounds of runs, each A B B A (1)")
    add("--out", type=Path, metavar="DIR", help="for the runs (results/compare-<time>/)")
    add("--model", metavar="PATH_OR_ID")
    add("--draft-model", metavar="PATH_OR_ID")
    add("--api-key-env", metavar="NAME")
    # no default, so that options given beside two run folders are seen and refused
    add_run_options(parser, engine=None, changes="for both")
    add("--accept", metavar="NAME", help="a change of numerics that is wanted, such as 'fp8 KV'")
    add(
        "--margin",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="loss to exclude, such as occupancy=3 (points) or decode_tokens_per_s=0.1 (of A's)",
    )
    add("--markdown", action="store_true", help="for documents")


def compare(options: argparse.Namespace) -> Exit:
    """Read two runs, or measure two servers in turn, and print what differs.

    Progress and the last line go to stderr, so that stdout is the table alone.
    """
    if options.accept is not None and not options.accept.strip():
        raise ConfigError("--accept: the change has a name, such as 'fp8 KV cache'")
    settings = Settings(options.accept, _margins(options.margin))
    given = [name for name in _LIVE if getattr(options, name)]
    if options.runs:
        a, b = _kept(options.runs, given)
        return _print([a], [b], options, settings)
    if not {"a", "b", "a_set", "b_set"} & set(given):
        raise ConfigError(
            "name two runs, or say how two servers differ: --a SPEC, --b SPEC, --a-set KEY=VALUE"
            " or --b-set KEY=VALUE"
        )
    return _measured(options, settings)


def _kept(folders: Sequence[Path], given: Sequence[str]) -> tuple[Run, Run]:
    if given:
        name = given[0].replace("_", "-")
        raise ConfigError(f"--{name} is about servers to measure, and two runs were named")
    if len(folders) != 2:
        told = "run was" if len(folders) == 1 else "runs were"
        raise ConfigError(f"{len(folders)} {told} named: a comparison is of two, A and B")
    a, b = (runs.read(one.parent if one.name == records.FILE else one) for one in folders)
    return a, b


def _measured(options: argparse.Namespace, settings: Settings) -> Exit:
    rounds = 1 if options.rounds is None else options.rounds
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: one at least")
    options.config = options.config or _CONFIG
    options.engine = options.engine or "auto"
    folder = configs.find_directory(Path.cwd(), options.configs, shipped=True)
    sides = live.prepare(options, folder)
    now = datetime.datetime.now().astimezone()
    root = options.out or Path("results") / f"compare-{now:%Y%m%d-%H%M%S}"
    if root.exists() and any(root.iterdir()):
        raise ConfigError(f"--out {root}: has files already; name another folder")
    found = live.measure(sides, rounds, root, say)
    code = _print(
        found.runs["A"],
        found.runs["B"],
        options,
        settings,
        Exit.INTERRUPTED if found.interrupted else None,
        told={side.name: side.told for side in sides},
    )
    say(f"records in {root}")
    return code


def _margins(given: Sequence[str]) -> dict[str, float]:
    known = [*QUANTITIES, *ITEM_MARGINS]
    found: dict[str, float] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if name not in known:
            raise ConfigError(
                f"--margin {text}: unknown quantity {name!r}{nearest(name, known)}; "
                f"there are: {', '.join(known)}"
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not separator or not (math.isfinite(found[name]) and found[name] > 0):
            raise ConfigError(f"--margin {text}: expected {name}=NUMBER, above 0")
    return found


def _print(
    a: Sequence[Run],
    b: Sequence[Run],
    options: argparse.Namespace,
    settings: Settings,
    ended: Exit | None = None,
    told: dict[str, str] | None = None,
) -> Exit:
    rows = differences.compare(a, b, settings)
    code = differences.status(rows) if ended is None else ended
    asked = told or {"A": "", "B": ""}
    sides = {name: _answered(side, asked[name]) for name, side in (("A", a), ("B", b)) if side}
    if options.json:
        table.programs(rows, sides, code)
    elif rows:
        (table.markdown if options.markdown else table.plain)(rows, sides)
    if a and b and not (a[0].problem or b[0].problem):
        for name, cells in differences.only_one(a[0], b[0]).items():
            if cells:
                say(f"only {name} has {', '.join(cells)}: compared with nothing")
    if len({run.gpus for run in (*a, *b) if not run.problem}) > 1:
        say("not all runs were on the same GPU: their speeds may differ for that alone")
    say(table.last_line(rows, code))
    return code


def _answered(side: Sequence[Run], asked: str) -> str:
    """What answered, how it was asked for or where its records lie, and whether it is simulated."""
    answered = "; ".join(dict.fromkeys(run.answered for run in side if run.answered))
    note = f" ({SIMULATED})" if any(run.simulated for run in side) else ""
    runs_told = f", {len(side)} runs" if len(side) > 1 else ""
    return f"{asked or side[0].folder}: {answered or 'no server answered'}{note}{runs_told}"
