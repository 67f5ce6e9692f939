"""`servematrix new-config`: a commented start of a configuration, which plans as it is.

What is new is written whole or not at all, and overwrites nothing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from servematrix import config as configs
from servematrix.config import ConfigError
from servematrix.exit_codes import Exit
from servematrix.running import sessions
from servematrix.terminal import line

NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_SUITE: Final = "basic_sanity"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The name of what is new, and where its kind is kept."""
    parser.add_argument("name", metavar="NAME", help="lower case, digits and underscores")
    parser.add_argument(
        "--configs", metavar="DIR", help="the nearest configs/, else a new one in this folder"
    )


def config(options: argparse.Namespace) -> Exit:
    """Write `NAME.toml`, and a suite where none fits.

    ConfigError where something is there already or cannot be written; then no file is.
    """
    name: str = options.name
    if not NAME.fullmatch(name) or is_taken(name):
        raise ConfigError(
            f"new-config {line(name)}: not a name for a configuration; take lower-case letters, "
            "digits and underscores, and no name of a session"
        )
    with within_reach():
        directory = folder(options.configs)
        suites = directory.parent / "suites"
        texts_there = (
            path.read_text(encoding="utf-8", errors="replace") for path in suites.glob("test_*.py")
        )
        known = any(f'suite("{_SUITE}")' in one for one in texts_there)
        values = {"name": name, "suite": _SUITE if known else name, "classname": classname(name)}
        texts = {directory / f"{name}.toml": text("config.toml", values)}
        if not known:
            texts[suites / f"test_{name}.py"] = text("suite.txt", values)
        replaced = takes_the_place(directory)
        write(texts)
    for told in replaced:
        print(told)
    print(f"next: edit it, then `servematrix plan {name}`, then `servematrix run {name}`")
    return Exit.PASSED


def is_taken(name: str) -> bool:
    """Whether a name already means something else where configurations are named."""
    return name in {"all", "waivers", *sessions()}


def classname(name: str) -> str:
    """The name of the test class for what is new.

    >>> classname("night_build")
    'TestNightBuild'
    """
    return "Test" + "".join(part.title() for part in name.split("_"))


def folder(named: str | None) -> Path:
    """The configurations: those `named`, else the nearest, else a new folder here."""
    if named is not None:
        return Path(named)
    try:
        return configs.find_directory(Path.cwd())
    except ConfigError:
        return Path("configs").absolute()


def takes_the_place(directory: Path) -> list[str]:
    """What to say of a new folder that runs will take instead of what the package brought."""
    packaged = configs.shipped()
    if packaged is None or directory.is_dir() or directory != Path("configs").absolute():
        return []
    return [
        f"runs from here now take {directory}, no longer the package's own configurations; copy"
        f" those that you want too: {packaged}"
    ]


def text(template: str, values: Mapping[str, str]) -> str:
    """A template of `resources/new`, filled in."""
    file = resources.files("servematrix") / "resources" / "new" / template
    return Template(file.read_text(encoding="utf-8")).substitute(values)


@contextmanager
def within_reach() -> Iterator[None]:
    """Turn what the file system refuses into a ConfigError of one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; no file was written: make it a folder that can be"
            " written to, or name another one with --configs DIR"
        ) from error


def write(texts: Mapping[Path, str]) -> None:
    """Write all files and say so; ConfigError where one is there already, OSError as it comes.

    Either way none of them is written.
    """
    for path in texts:
        # a link to nowhere is there too
        if path.is_symlink() or path.exists():
            raise ConfigError(f"{path} is there already; nothing was written")
    begun: list[Path] = []
    try:
        for path, content in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                begun.append(path)
                file.write(content)
    except OSError as error:
        for one in begun:
            with suppress(OSError):
                one.unlink()
        # a full disk is found while writing, where Python names no file
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    for path in texts:
        print(f"wrote {path}")
