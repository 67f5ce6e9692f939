"""Markdown, and the words that stand under a name in the code."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Sequence

from sphinx.pycode import ModuleAnalyzer


class Undescribed(Exception):
    """Something that readers meet and that the code says nothing about."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; what stands in a cell is Markdown of one line."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(cell: object) -> str:
    return re.sub(r"\s+", " ", str(cell)).strip().replace("|", "\\|")


def code(text: object) -> str:
    """A text as code; nothing where there is none."""
    return f"`{text}`" if str(text) else ""


def plain(text: str) -> str:
    """A text that is no Markdown: it shows as it is."""
    return re.sub(r"([\\`*_<>\[\]{}$])", r"\\\1", text)


def about(thing: object, name: str) -> str:
    """The docstring of a class, function or module; Undescribed without one."""
    found = inspect.getdoc(thing)
    if not found:
        raise Undescribed(f"{name} has no docstring")
    return found


def meaning(owner: type, attribute: str) -> str:
    """What stands under an attribute of a class, or of one that it derives from."""
    for one in owner.__mro__:
        found = attributes(one.__module__).get((one.__qualname__, attribute))
        if found:
            return found
    raise Undescribed(
        f"{owner.__module__}.{owner.__qualname__}.{attribute}: say under it, as a docstring, what"
        " it means"
    )


@functools.cache
def attributes(module: str) -> dict[tuple[str, str], str]:
    """What stands under the attributes of a module (class `""`) and of its classes."""
    if module == "builtins":
        return {}
    try:
        found = ModuleAnalyzer.for_module(module).find_attr_docs()
    except Exception as error:
        raise Undescribed(f"{module} cannot be read: {error}") from error
    return {key: " ".join(lines).strip() for key, lines in found.items()}
