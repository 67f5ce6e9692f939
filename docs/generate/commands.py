"""The commands and options that people type, from their parsers."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate.text import Undescribed, code, plain, table
from servematrix import cli
from servematrix.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent.parent


def commands() -> str:
    """Each command of `servematrix`, with its usage and its options."""
    parser = cli._parser()
    choices: Any = next(one for one in parser._actions if one.choices)
    about = {one.dest: one.help for one in choices._choices_actions}
    parts = []
    for name, command in choices.choices.items():
        if not about.get(name):
            raise Undescribed(f"servematrix {name} has no help")
        rows = list(_rows(command, name))
        usage = " ".join(command.format_usage().split()).removeprefix("usage: ")
        parts += [f"\n## `servematrix {name}`\n", f"{plain(about[name])}.\n"]
        parts += [f"```text\n{usage}\n```\n", table(("argument", "meaning"), rows) if rows else ""]
    return "\n".join(parts)


def _rows(command: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        told = command._get_formatter()._expand_help(action) if action.help else ""
        if not told:
            raise Undescribed(f"servematrix {name}: {action.dest} has no help")
        yield _typed(action), plain(told)


def _typed(action: argparse.Action) -> str:
    names = action.option_strings
    value = str(action.metavar or action.dest.upper())
    if not names:
        return code(value)
    if action.nargs == 0:
        return code(", ".join(names))
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    return code(f"{', '.join(names)} {value}")


def run_options() -> str:
    """The options of a run, as pytest takes them."""
    rows = []
    for name, settings in OPTIONS:
        if not settings.get("help"):
            raise Undescribed(f"pytest {name} has no help")
        value = settings.get("metavar", "")
        if "choices" in settings:
            value = "{" + ",".join(settings["choices"]) + "}"
        elif "type" in settings and not value:
            value = "N"
        rows.append((code(f"{name} {value}".strip()), plain(settings["help"])))
    return table(("option", "meaning"), rows)


def sessions() -> str:
    """The sessions of the noxfile, by their docstrings."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    rows = []
    for one in tree.body:
        if isinstance(one, ast.FunctionDef) and one.decorator_list:
            told = ast.get_docstring(one)
            if told is None:
                raise Undescribed(f"noxfile.py: session {one.name} has no docstring")
            rows.append((code(f"nox -s {one.name}"), told))
    return table(("session", "meaning"), rows)
