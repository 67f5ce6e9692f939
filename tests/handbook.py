"""Commands of the documentation: found in the pages, and held against what there is."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servematrix import cli
from servematrix.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, and what the page shows below it."""

    page: str
    text: str
    shown: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def pages() -> list[Path]:
    """Everything that people read, but for the changelog."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code."""
    yield from _FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[Command]:
    """Lines that begin with `$ `, without comments, with the lines that a backslash joins."""
    for language, text in fences(page):
        if language != "console":
            continue
        for block in re.split(r"(?m)^ *\$ ", text)[1:]:
            typed, _, shown = block.replace("\\\n", " ").partition("\n")
            words = re.sub(r"\s+#\s.*$", "", re.sub(r"\s+", " ", typed)).strip()
            yield Command(str(page.relative_to(ROOT)), words, shown)


PYTESTS = {"-k", "-n", "-x", "--junitxml", "--strict"}
"""Pytest's own options that pages name."""
OTHERS = {"lint", "typecheck", "tests", "bench", "mutants", "docs", "harness"}
"""Sessions whose words go to other programs."""


def wordings(page: Path) -> Iterator[str]:
    """Commands of ours within sentences and tables, without what stands for something else."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    for found in re.findall(r"`((?:nox -|servematrix |pytest suites)[^`]*)`", text):
        yield re.sub(r"\s+", " ", found).replace("…", "").replace("\\|", "|")


def unknown(text: str) -> list[str]:
    """What a command names of ours and is not there: sessions, commands, options."""
    words = shlex.split(text)
    if words[0] == "servematrix" and len(words) > 1:
        return _unknown_to(words[1], words[2:])
    if words[0] == "pytest":
        return _options_but(words[1:], _options_of_runs())
    if words[0] != "nox":
        return []
    split = words.index("--") if "--" in words else len(words)
    ours, theirs = words[1:split], words[split + 1 :]
    named = [one.partition("(")[0] for one in ours[ours.index("-s") + 1 :]] if "-s" in ours else []
    placeholders = {"NAME", "SESSION"}
    found = [one for one in named if one not in sessions() and one not in placeholders]
    for one in set(named) & sessions() - OTHERS:
        found += _unknown_to(one if one in _commands() else "run", theirs)
    return found


def _unknown_to(command: str, words: list[str]) -> list[str]:
    if command == "COMMAND":
        return []
    if command == "run":
        return _options_but(words, _options_of_runs())
    if command not in _commands():
        return [command]
    return _options_but(words, set(_commands()[command]._option_string_actions))


def _options_but(words: list[str], known: set[str]) -> list[str]:
    given = [one.partition("=")[0] for one in words if re.match(r"--?[a-z]", one)]
    return [one for one in given if one not in known]


def _options_of_runs() -> set[str]:
    return {name for name, _ in OPTIONS} | PYTESTS


@functools.cache
def _commands() -> dict[str, argparse.ArgumentParser]:
    choices: Any = next(one for one in cli._parser()._actions if one.choices).choices
    return dict(choices)


@functools.cache
def sessions() -> set[str]:
    """Names of the sessions of the noxfile."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    found = [one for one in tree.body if isinstance(one, ast.FunctionDef)]
    return {one.name for one in found if one.decorator_list}
