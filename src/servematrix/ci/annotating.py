"""Annotations of a change on GitHub: each failure, at the line that set the gate's limit.

GitHub reads them from what a step prints: `::error file=F,line=N,title=T::MESSAGE`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servematrix.terminal import line

_LONGEST: Final = 1000


def command(kind: str, message: str, *, file: str, at: int, title: str) -> str:
    r"""One annotation; `kind` is `error`, `warning` or `notice`, `at` a line counted from 1.

    >>> command("error", "50 %\n", file="a,b.toml", at=3, title="x: y")
    '::error file=a%2Cb.toml,line=3,title=x%3A y::50 %25\\n'
    """
    found = {"file": file, "line": str(at), "title": title}
    properties = ",".join(f"{name}={_property(line(value))}" for name, value in found.items())
    return f"::{kind} {properties}::{_data(line(message, _LONGEST))}"


def _data(text: str) -> str:
    """A message as GitHub's runner reads it back."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def limit_line(
    file: Path, kit: str, limits: Mapping[str, Any], rule: str, *, section: str = "gates"
) -> int:
    """The line of a configuration's file that sets the limit by which a kit's gate judged.

    `limits` are those that held, as `SECTION.KIT` of the resolved configuration has them, so that a
    line in an override that did not match, or that another override changed, is not taken. Of
    several the one is taken whose value the rule names, else the first; the first line of the file
    where none is set there, but by the kit or by `--set`.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return 1
    held = dict(_flat(limits))
    set_at: dict[tuple[str, ...], int] = {}
    for number, path, value in _settings(lines):
        key = path[2:]
        if path[:2] == (section, kit) and key in held and held[key] == value:
            set_at[key] = number
    named = [at for key, at in set_at.items() if _is_named(held[key], rule)]
    return min(named or set_at.values(), default=1)


def _is_named(value: Any, rule: str) -> bool:
    """Whether a rule names a limit; rules write numbers in the shortest way."""
    shown = f"{value:g}" if isinstance(value, int | float) else str(value)
    words = (word.strip(".,;:()") for word in rule.split())
    return shown in words


def _settings(lines: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], Any]]:
    """Number, path and value of what single lines of a TOML file set.

    A line that is no TOML by itself, such as a part of a list, sets nothing here.
    """
    table: tuple[str, ...] = ()
    for number, text in enumerate(lines, start=1):
        try:
            found = tomllib.loads(text)
        except (ValueError, RecursionError):
            continue
        if text.lstrip().startswith("["):
            path: list[str] = []
            inner: Any = found
            while inner and isinstance(inner, dict | list):
                if isinstance(inner, list):
                    inner = inner[0]
                    continue
                name, inner = next(iter(inner.items()))
                path.append(name)
            # what an override changes is called as what it changes
            table = tuple(path[1:] if path[:1] == ["overrides"] else path)
            continue
        for key, value in _flat(found):
            yield number, (*table, *key), value


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            for inner, one in _flat(value):
                yield (key, *inner), one
        else:
            yield (key,), value
