"""Kits with their tests and attributes, gates with what they demand and where that comes from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docs.generate.configuration import shown
from docs.generate.text import about, attributes, code, meaning, table
from servematrix import gates as gate_package
from servematrix import kits as kit_package
from servematrix.gates.verdict import Verdict
from servematrix.kits.base import Kit
from servematrix.settings import Gates, Kits


def kits() -> str:
    """A section for each kit, and one for what all share."""
    parts = [
        "## Every kit\n",
        about(Kit, "Kit"),
        "",
        table(("attribute", "default", "meaning"), _attributes(Kit, "")),
    ]
    for mixin in kit_package.MIXINS:
        tests = [name for name in vars(mixin) if name.startswith("test_")]
        parts += [f"\n## `{mixin.__name__}`\n", about(mixin, mixin.__name__), ""]
        rows = [(code(name), _first(getattr(mixin, name), name)) for name in tests]
        parts += [table(("test", "what it is for"), rows), ""]
        found = _attributes(mixin, mixin.kit)
        parts.append(table(("attribute", "default", "meaning", "key of a configuration"), found))
    return "\n".join(parts)


def _first(thing: object, name: str) -> str:
    """The first paragraph of a docstring."""
    return about(thing, name).partition("\n\n")[0]


def _attributes(mixin: type, kit: str) -> Iterator[tuple[str, ...]]:
    for name in inspect.get_annotations(mixin):
        if name.startswith("_") or name == "kit":
            continue
        told, value = meaning(mixin, name), getattr(mixin, name, None)
        row = (code(name), shown(value), told)
        yield (*row, code(_key(kit, name))) if kit else row


def _key(kit: str, attribute: str) -> str:
    """The key of a configuration that sets an attribute; nothing where none does."""
    name = attribute.removeprefix(f"{kit}_")
    for section, tables in (("gates", Gates), ("kits", Kits)):
        field: Any = tables.model_fields.get(kit)
        if name != attribute and field is not None and name in field.annotation.model_fields:
            return f"{section}.{kit}.{name}"
    return ""


def gates() -> str:
    """A section for each module of gates: what it asks, its rules, its limits and their source."""
    parts = []
    for module in _modules():
        name = module.__name__.rpartition(".")[2]
        rules = list(_rules(module))
        if not rules:
            continue
        limits = list(_limits(module))
        parts += [f"\n## `{name}`\n", about(module, name), ""]
        parts += [table(("rule", "what it decides"), rules), ""]
        if limits:
            parts.append(table(("limit", "value", "meaning and source"), limits))
    return "\n".join(parts)


def _modules() -> Iterator[ModuleType]:
    for one in pkgutil.iter_modules(gate_package.__path__):
        yield importlib.import_module(f"{gate_package.__name__}.{one.name}")


def _rules(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        mine = function.__module__ == module.__name__ and not name.startswith("_")
        if mine and Verdict.__name__ in str(function.__annotations__.get("return", "")):
            yield code(name), _first(function, name)


def _limits(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    for (owner, name), told in attributes(module.__name__).items():
        value = getattr(module, name, None)
        if not owner and isinstance(value, int | float | str):
            yield code(name), shown(value), told
