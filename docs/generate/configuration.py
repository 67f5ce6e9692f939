"""Every key of a configuration: type, default and meaning."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.generate.text import code, meaning, table
from servematrix import kits
from servematrix.config import Configuration
from servematrix.gates.consistency import LIMITS
from servematrix.settings import ConsistencyLimits

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = (
    (limits.Ge, "ge", "≥"),
    (limits.Gt, "gt", ">"),
    (limits.Le, "le", "≤"),
    (limits.Lt, "lt", "<"),
)
_MIXINS = {mixin.kit: mixin for mixin in kits.MIXINS}
_COLUMNS = ("key", "type", "default", "meaning")
_LONGEST = 40
"""Characters of a default that are shown; a table has room for no more."""
Row = tuple[str, str, str, str]


def keys() -> str:
    """A table of the top level, and one of each table within."""
    parts = ["## Top level\n", table(_COLUMNS, _rows(Configuration, ""))]
    for name, title in (("requires", "`requires`"), ("model", "`model`")):
        within = _within(Configuration.model_fields[name].annotation)
        parts += [f"\n## {title}\n", table(_COLUMNS, _rows(within, f"{name}."))]
    for section in ("gates", "kits"):
        tables = _within(Configuration.model_fields[section].annotation)
        parts += [f"\n## `{section}`\n"]
        for kit, field in tables.model_fields.items():
            found = list(_of_kit(section, kit, _within(field.annotation)))
            parts += [f"\n### `{section}.{kit}`\n", table(_COLUMNS, found)]
    overrides = _within(Configuration.model_fields["overrides"].annotation)
    parts += ["\n## `[[overrides]]`\n", table(_COLUMNS, _rows(overrides, ""))]
    return "\n".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[Row]:
    for name, field in model.model_fields.items():
        # a configuration is called as its file is
        if (model, name) != (Configuration, "name"):
            told = meaning(model, name)
            yield f"`{prefix}{name}`", kind(field.annotation, field), default(field), told


def _of_kit(section: str, kit: str, model: type[BaseModel]) -> Iterator[Row]:
    """Keys that are a kit's attributes, whose word and default are the kit's."""
    mixin = _MIXINS[kit]
    for name, field in model.model_fields.items():
        attribute, key = f"{kit}_{name}", f"{section}.{kit}.{name}"
        told, value = meaning(mixin, attribute), getattr(mixin, attribute)
        if _within(field.annotation) is not ConsistencyLimits:
            yield f"`{key}`", kind(field.annotation, field), shown(value), told
            continue
        for limit, of_limit in ConsistencyLimits.model_fields.items():
            yield (
                f"`{key}.{limit}`",
                kind(of_limit.annotation, of_limit),
                shown(float(f"{getattr(LIMITS[name], limit):.4g}")),
                meaning(ConsistencyLimits, limit),
            )


def default(field: FieldInfo) -> str:
    """What holds where a key is left out."""
    if field.default is PydanticUndefined:
        return "**must be given**"
    return "" if isinstance(field.default, BaseModel) else shown(field.default)


def shown(value: Any) -> str:
    """A value as TOML has it; nothing for None and what is empty."""
    if value is None or (value in ({}, [], ()) and not isinstance(value, bool | int | float)):
        return ""
    if isinstance(value, Mapping):
        return code("{ " + ", ".join(f"{key} = {one}" for key, one in value.items()) + " }")
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    return code(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def kind(annotation: Any, field: FieldInfo | None = None) -> str:
    """The type of a key in words, with the bounds of its values."""
    bounds = [
        f"{sign} {getattr(one, name):g}"
        for one in (field.metadata if field else ())
        for bound, name, sign in _BOUNDS
        if isinstance(one, bound)
    ]
    return ", ".join([_kind(annotation), *bounds])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(code(json.dumps(one)) for one in arguments)
    if origin in (Union, types.UnionType):
        names = [_kind(one) for one in arguments if one is not type(None)]
        return "text, number, true or false" if len(names) == 4 else " or ".join(names)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"table of {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return _NAMES[annotation]


def _within(annotation: Any) -> Any:
    """The table that a key holds, or a list of which it holds; its type itself else."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _within(argument)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation
