"""`servematrix run`: the matrix without Nox, and without the repository.

The wheel brings the configurations and suites of the repository along; they are used where no
`configs/` lies at or above the working directory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from servematrix import config as configs
from servematrix import matrix
from servematrix.config import ConfigError

# the plugin is not installed for every pytest run of an environment
_PLUGIN = ("-p", "servematrix.plugin", "--import-mode=importlib")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Names first; from the first option on, all is for pytest."""
    parser.usage = "%(prog)s NAME... [--configs DIR] [OPTION...] [-- PYTEST_ARGUMENT...]"
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="NAME",
        help="a Nox session (stage_a, matrix), a configuration, 'cuda_graph(max_bs=8)' or all; "
        "then what could follow `nox -s NAME --`",
    )


def run(options: argparse.Namespace) -> NoReturn:
    """Become the run of pytest that the words ask for; its exit status is ours.

    ConfigError where no name is given, or one is unknown, before anything is started.
    """
    line = command(options.arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # the same process, so that an interrupt or a SIGTERM meets the run itself
    os.execv(line[0], line)


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of the run: suites, configurations, then the arguments for pytest."""
    names = list(takewhile(lambda one: not one.startswith("-"), arguments))
    rest = list(arguments[len(names) :])
    if not names:
        raise ConfigError(
            "servematrix run: name what to run first, such as: servematrix run stage_a"
            " --engine reference; `servematrix list` has the configurations"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configs")
    given, rest = parser.parse_known_args(rest)
    if "--" in rest:
        rest.remove("--")
    folder = configs.find_directory(Path.cwd(), given.configs, shipped=True)
    line = pytest_line(folder)
    known = sessions()
    selections = [known.get(name, name) for name in names]
    matrix.select(folder, selections)
    named = [f"--config={selection}" for selection in selections]
    return [*line, f"--configs={folder}", *named, *rest]


def pytest_line(folder: Path) -> list[str]:
    """The command of a run of the suites that lie beside a folder of configurations.

    It says nothing of configurations yet. ConfigError where no suites lie there.
    """
    suites = configs.suites_beside(folder)
    line = [sys.executable, "-m", "pytest", *_PLUGIN, os.path.relpath(suites)]
    if configs.is_shipped(folder):
        # else pytest takes the folder of the package for the project, and writes its cache there
        line.append(f"--rootdir={Path.cwd()}")
    return line


def sessions() -> dict[str, str]:
    """Names of Nox sessions to what `--config` calls it, where the two differ."""
    text = resources.files("servematrix") / "resources" / "sessions.toml"
    found: dict[str, str] = tomllib.loads(text.read_text(encoding="utf-8"))
    return found
